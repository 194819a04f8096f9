"""What does the page about errors say? Made from `headgate.errors`: `python docs/errors_page.py > docs/reference/errors.md`."""

from __future__ import annotations

import inspect
import sys

from headgate.errors import HeadgateError, WireError

_HEAD = """# Errors: every class, with its HTTP status

Made from `headgate.errors` by `python docs/errors_page.py`. All are in `headgate.errors` and derive from `HeadgateError`;
the built-in class beside each catches it, too.
"Again" says whether the same call may succeed later, unchanged.

| error | also a | HTTP | again | when |
|---|---|---|---|---|
"""


def text() -> str:
    """The whole page."""
    return _HEAD + "".join(_row(error) for error in _all(HeadgateError) if error is not WireError)


def _all(root: type[HeadgateError]) -> list[type[HeadgateError]]:
    """With those that derive from it, in the order in which they are written."""
    found = {root, *(each for sub in root.__subclasses__() if sub.__module__ == root.__module__ for each in _all(sub))}
    return sorted(found, key=lambda error: inspect.getsourcelines(error)[1])


def _row(error: type[HeadgateError]) -> str:
    general = (Exception, BaseException, object)
    built_in = [base for base in error.__mro__ if base.__module__ == "builtins" and base not in general]
    nearest = [base for base in built_in if not any(other is not base and issubclass(other, base) for other in built_in)]
    bases = ", ".join(f"`{base.__name__}`" for base in nearest)
    said = " ".join((error.__doc__ or "").split())
    return f"| `{error.__name__}` | {bases} | {error.status} | {'yes' if error.retry else ''} | {said} |\n"


if __name__ == "__main__":
    sys.stdout.write(text())
