"""Which certificates do the nodes of a test show each other?"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import shutil
import tempfile
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from tests.support import leave_out


class Files(NamedTuple):
    """Paths of PEM files."""

    cert: str
    key: str
    authority: str


@functools.cache
def made_for(authority: str, *names: str) -> Files:
    """A node's with these names or addresses, signed by the authority of that name, which is made for this run of the tests."""
    if importlib.util.find_spec("trustme") is None:
        leave_out("trustme isn't installed: it makes certificates")
    import trustme

    folder = Path(tempfile.mkdtemp(prefix="headgate-certificates-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    made = trustme.CA(organization_name=authority)
    node = made.issue_cert("node.test", *dict.fromkeys(names))
    node.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    node.private_key_pem.write_to_path(folder / "key.pem")
    made.cert_pem.write_to_path(folder / "authority.pem")
    return Files(str(folder / "cert.pem"), str(folder / "key.pem"), str(folder / "authority.pem"))


def write(folder: Path, *names: str, not_before: datetime | None = None, not_after: datetime | None = None) -> Files:
    """Write a certificate with these names, of an authority of its own, into a folder; what was there is renewed."""
    if importlib.util.find_spec("trustme") is None:
        leave_out("trustme isn't installed: it makes certificates")
    import trustme

    made = trustme.CA()
    node = made.issue_cert(*names, not_before=not_before, not_after=not_after)
    files = Files(str(folder / "cert.pem"), str(folder / "key.pem"), str(folder / "authority.pem"))
    for path, parts in ((files.cert, node.cert_chain_pems), (files.key, [node.private_key_pem]), (files.authority, [made.cert_pem])):
        new = Path(f"{path}.new")
        new.write_bytes(b"".join(part.bytes() for part in parts))
        new.replace(path)
    return files
