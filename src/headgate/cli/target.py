"""What does `headgate run` run: a file, or a function of a module?

Both set up what is served, by the verbs, and may then end. A file is run as Python runs it: as `__main__`, beside which its imports
are looked for, and with the arguments that follow it. A function is imported from the working directory, and called.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.machinery
import os
import sys
import traceback
import types
from typing import Any, Final, NamedTuple

import click

from headgate.cli.where import nearest_file

_PACKAGE: Final = os.path.join(os.path.dirname(os.path.dirname(__file__)), "")


class Target(NamedTuple):
    """What to run, as `parse` understood it: `function` is empty for a file."""

    text: str
    module: str
    function: str


def parse(text: str) -> Target:
    """`app.py` or `module:function`. Raises `click.BadParameter` for what is neither."""
    if text.endswith(".py") or os.sep in text or (os.path.isfile(text) and ":" not in text):
        if not os.path.isfile(text):
            raise click.BadParameter(f"there is no file {text!r}{nearest_file(text, '.py')}", param_hint="TARGET")
        return Target(text, text, "")
    module, colon, function = text.partition(":")
    if not colon or not function:
        raise click.BadParameter(f"{text!r} is neither a file, such as app.py, nor module:function", param_hint="TARGET")
    if not all(part.isidentifier() for part in (*module.split("."), *function.split("."))):
        raise click.BadParameter(f"{text!r} has names in it that Python can't import", param_hint="TARGET")
    return Target(text, module, function)


def perform(target: Target, arguments: tuple[str, ...]) -> None:
    """Run it in this process; what it leaves behind, such as `__main__`, stays. Raises whatever it raises."""
    sys.argv = [target.text, *arguments]
    if target.function:
        _call(target)
    else:
        _run_file(target.module)


def _call(target: Target) -> None:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    found: Any = importlib.import_module(target.module)
    for name in target.function.split("."):
        if not hasattr(found, name):
            from headgate.config import suggest

            raise click.ClickException(f"module {target.module!r} has no {name!r}{suggest(name, vars(found))}")
        found = getattr(found, name)
    if not callable(found):
        raise click.ClickException(f"{target.text} is no function but {type(found).__name__}")
    found()


def _run_file(path: str) -> None:
    """Not by `runpy`, which takes `__main__` back at the end: threads and handles of the file still need it."""
    path = os.path.abspath(path)
    if sys.path and sys.path[0] in ("", os.getcwd()):
        del sys.path[0]  # that `python -m headgate` looks there is not the file's affair
    sys.path.insert(0, os.path.dirname(path))
    module = types.ModuleType("__main__")
    module.__file__ = path
    module.__dict__["__builtins__"] = builtins
    module.__loader__ = importlib.machinery.SourceFileLoader("__main__", path)
    sys.modules["__main__"] = module
    with open(path, "rb") as file:
        code = compile(file.read(), path, "exec", dont_inherit=True)
    exec(code, module.__dict__)  # what `python app.py` does


def failure(error: BaseException, *, log_is_here: bool) -> str:
    """How a target failed: its traceback, which begins in the user's code, and ends there where a verb has refused what it was given.

    With `log_is_here` what replicas print comes out in the same place. So why one did not start stands there already, and isn't said again.
    """
    from headgate.errors import HeadgateError, ReplicaStartError

    if log_is_here and isinstance(error, ReplicaStartError):
        error.remote_traceback = ""
    frames = error.__traceback__
    while frames is not None and frames.tb_next is not None and _is_ours(frames.tb_frame.f_code.co_filename):
        frames = frames.tb_next
    if frames is not None and _is_ours(frames.tb_frame.f_code.co_filename):
        frames = None  # it didn't come to any
    told = traceback.TracebackException(type(error), error, frames)
    if isinstance(error, HeadgateError):
        while len(told.stack) > 1 and told.stack[-1].filename.startswith(_PACKAGE):
            del told.stack[-1]
    return "".join(told.format()).rstrip()


def _is_ours(file: str) -> bool:
    return file.startswith((os.path.join(os.path.dirname(__file__), ""), "<frozen importlib", importlib.__path__[0]))
