"""Which files is the dashboard's page made of, and how are they sent?

They lie in `headgate/dashboard`, and need nothing from elsewhere: browsers are told to take nothing from elsewhere either.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Final

from headgate.ingress.problems import Reply

_FOLDER: Final = Path(__file__).parent.parent / "dashboard"
FILES: Final = {
    "index.html": b"text/html; charset=utf-8",
    "dashboard.css": b"text/css; charset=utf-8",
    **dict.fromkeys(
        ("access.js", "changes.js", "dashboard.js", "edit.js", "elements.js", "flow.js", "shares.js", "sliders.js", "words.js"),
        b"text/javascript; charset=utf-8",
    ),
}
"""The files with their types."""
GUARDS: Final = b"x-content-type-options: nosniff\r\ncross-origin-resource-policy: same-origin\r\nreferrer-policy: no-referrer\r\n"
"""What keeps pages of other sites from reading what is sent with it."""
_POLICY: Final = (
    b"content-security-policy: default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n"
    b"x-frame-options: DENY\r\n"
    b"cross-origin-opener-policy: same-origin\r\n"
)


@functools.cache
def reply(name: str) -> Reply:
    """One of the files, read when it is first asked for. Browsers ask each time, so that they see a new version at once."""
    lines = b"content-type: %b\r\ncache-control: no-cache\r\n" % FILES[name] + GUARDS
    if name == "index.html":
        lines += _POLICY
    return Reply(200, lines, (_FOLDER / name).read_bytes())
