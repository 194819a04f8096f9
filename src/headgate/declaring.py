"""What is meant by a file, or a dict, that declares what should run, and where in it is what is wrong?

The code that it names is imported from the folder of the file first, as a program that stands there would.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from headgate import formats, importing
from headgate.core import declared as declared_state
from headgate.core.declared import Declared, HttpSettings, Problem
from headgate.core.desired import check_fit
from headgate.core.reports import Description
from headgate.core.specs import Definition
from headgate.engines.local import machine
from headgate.errors import DeclaredStateError, HeadgateError, InvalidTypeError, NotRunningError
from headgate.formats import Text


class Source:
    """What is declared, and where it stands."""

    def __init__(self, declared: Declared, text: Text, folder: str) -> None:
        self.declared = declared
        self._text = text
        self._folder = folder  # whose modules are found first; empty where it came from no file

    def error(self, problems: list[Problem]) -> DeclaredStateError:
        """One error for all of them, a line for each, in the order of the file."""
        ordered = sorted(problems, key=lambda problem: self._text.line(problem.place))
        return DeclaredStateError("\n".join(dict.fromkeys(f"{self._text.where(problem.place)}: {problem.text}" for problem in ordered)))

    @contextlib.contextmanager
    def at(self, *place: str | int, who: str) -> Iterator[None]:
        """What is wrong in here is wrong at this place."""
        try:
            yield
        except NotRunningError:
            raise
        except HeadgateError as error:
            raise self.error([Problem(place, f"{who}: {error.message}")]) from error

    def http(self) -> dict[str, Any]:
        """The arguments of `init` that it gives; paths of files are seen from the folder of this one."""
        given = msgspec.to_builtins(self.declared.http)
        for name in ("ssl_certfile", "ssl_keyfile"):
            if self._folder and name in given:
                given[name] = os.path.join(self._folder, given[name])
        return dict(given)

    def definitions(self) -> dict[str, Definition]:
        """Have the code of all backends imported and packed, but for what is given by value. Raises `DeclaredStateError`."""
        named = {
            tag: importing.Named(backend.import_path, backend.init_args, backend.init_kwargs)
            for tag, backend in self.declared.backends.items()
            if not backend.by_value
        }
        if not named:
            return {}
        timeout_s = sum(self.declared.backends[tag].config.startup_timeout for tag in named)  # one after the other
        with self.at(who="backends"):
            found = importing.definitions(named, self._folder, timeout_s)
        wrong = [
            Problem(("backends", tag, each.key), f"backend {tag!r}: {each.error.message}")
            for tag, each in found.items()
            if each.error is not None
        ]
        if wrong:
            raise self.error(wrong)
        packed = {tag: each.definition for tag, each in found.items() if each.definition is not None}
        for tag, definition in packed.items():
            with self.at("backends", tag, "config", who=f"backend {tag!r}"):
                check_fit(tag, definition, self.declared.backends[tag].config)
        return packed


def of_running(running: Description, usual: Mapping[str, object]) -> Declared:
    """What declares all that is asked for of an instance; `usual` is what `init` takes where nothing is said."""
    http = {key: value for key, value in running.http.items() if value != usual[key]}
    if http.get("max_inflight_bytes") == machine.memory_bytes() // 4:  # as it is where nothing was said
        del http["max_inflight_bytes"]
    return msgspec.structs.replace(declared_state.of_running(running), http=HttpSettings(**http))


def load(given: object) -> Source:
    """What a file (its path), a dict or a `Declared` declares.

    Raises `DeclaredStateError` naming every mistake, with file and line; `OSError` for a file that can't be read;
    `InvalidValueError` for the name of a file whose format isn't known, `InvalidTypeError` for what is none of these.
    """
    if isinstance(given, Declared):
        return _checked(Text("what is declared", declared_state.to_data(given)), "")
    if isinstance(given, Mapping):
        return _checked(Text("what is declared", given), "")
    if not isinstance(given, str | os.PathLike):
        raise InvalidTypeError(f"declared state is a path, a dict or a Declared, got {type(given).__name__}: {given!r}")
    path = os.fspath(given)
    if not isinstance(path, str):
        raise InvalidTypeError(f"the path of a file must be a str, got {path!r}")
    notation = formats.format_of(path)
    with open(path, "rb") as file:
        return load_text(file.read(), path, notation, os.path.dirname(os.path.abspath(path)))


def load_text(data: bytes, name: str, notation: str, folder: str) -> Source:
    """The same for what a file holds; `folder` is where its modules are looked for first."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DeclaredStateError(f"{name}:{line}: this is no text in UTF-8") from None
    return _checked(formats.read(text, name, notation), folder)


def _checked(text: Text, folder: str) -> Source:
    declared, problems = declared_state.parse(text.data)
    source = Source(declared, text, folder)
    if problems:
        raise source.error(problems)
    return source
