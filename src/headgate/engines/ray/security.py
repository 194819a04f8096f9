"""What do Ray's own security settings say of connections between nodes?

`RAY_USE_TLS=1`, with the files that Ray itself takes, is for ours, too. Ray's tokens are Ray's affair: they decide who may connect with
the cluster, and so who may read the secret of an instance.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from headgate.errors import InvalidValueError
from headgate.router.tls import Tls

_SWITCH: Final = "RAY_USE_TLS"
_FILES: Final = ("RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT")


def tls(environ: Mapping[str, str] = os.environ) -> Tls | None:
    """What encrypts connections with other nodes; None where Ray doesn't either. Reads the files anew.

    Raises `InvalidValueError` that names what is missing, or a file that can't be used.
    """
    if environ.get(_SWITCH, "0").lower() not in ("1", "true"):
        return None
    missing = [name for name in _FILES if not environ.get(name)]
    if missing:
        raise InvalidValueError(f"{_SWITCH} is set, and {' and '.join(missing)} is not: give the paths of PEM files, on every node")
    return Tls(*(environ[name] for name in _FILES))
