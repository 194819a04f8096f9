"""How does the text of a YAML, TOML or JSON file become plain data that knows its lines, and how is data written as text?

YAML is read by the rules of 1.2: `on`, `no` and `12:30` are text, and a number that 1.1 reads as octal is refused. What is
written means the same to readers of 1.1.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import tomllib
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from headgate.errors import DeclaredStateError, InvalidValueError

Place = tuple[str | int, ...]
"""Keys from the root to a value."""

YAML, TOML, JSON = "yaml", "toml", "json"
SUFFIXES: Final = {".yaml": YAML, ".yml": YAML, ".toml": TOML, ".json": JSON}
"""What the names of files of declared state end in."""

_PLAIN_TAG: Final = "plain"
"""Of scalars without quotes and without a tag of their own."""
_INTEGER: Final = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_BASED: Final = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_OCTAL: Final = re.compile(r"[-+]?0[0-9_]+")
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_NUMBERS: Final = re.compile(f"(?:{_BASED.pattern}|{_OCTAL.pattern}|{_FLOAT.pattern})")
_WORDS: Final = {"": None, "~": None, "null": None, "Null": None, "NULL": None} | {
    word: word.lower() == "true" for word in ("true", "True", "TRUE", "false", "False", "FALSE")
}


class Text(msgspec.Struct, frozen=True):
    """What a file holds: its `data`, and where that is in it."""

    file: str
    data: Any
    lines: dict[Place, int] = {}

    def line(self, place: Place) -> int:
        """The line of a value, or of what it would be in; 0 where that isn't known."""
        return next((self.lines[place[:length]] for length in range(len(place), 0, -1) if place[:length] in self.lines), 0)

    def where(self, place: Place) -> str:
        """The file and the line, for people."""
        line = self.line(place)
        return f"{self.file}:{line}" if line else self.file


def format_of(file: str) -> str:
    """The format of a file, by its name. Raises `InvalidValueError`."""
    for suffix, name in SUFFIXES.items():
        if file.lower().endswith(suffix):
            return name
    raise InvalidValueError(f"{file}: the name of a file of declared state ends in {', '.join(SUFFIXES)}")


def read(text: str, file: str, notation: str) -> Text:
    """Plain data of a text. Raises `DeclaredStateError` with the line where it isn't of its format, or a key is there twice."""
    if notation == TOML:
        return _read_toml(text, file)
    if notation == JSON:
        return _read_json(text, file)
    return _read_yaml(text, file)


def write(data: Mapping[str, Any], notation: str) -> str:
    """Plain data as text. Raises `InvalidValueError` for what the format can't say."""
    if notation == TOML:
        import tomli_w

        _refuse_null(data, ())
        return tomli_w.dumps(data)
    if notation == JSON:
        return msgspec.json.format(msgspec.json.encode(data), indent=2).decode() + "\n"
    import yaml

    return yaml.dump(data, Dumper=_dumper(), sort_keys=False, allow_unicode=True, default_flow_style=False, width=100)


# YAML.


class _YamlReader:
    """Makes data of the nodes of one document."""

    def __init__(self, file: str) -> None:
        self.lines: dict[Place, int] = {}
        self._file = file
        self._open: list[Any] = []  # from the root to here

    def error(self, node: Any, text: str) -> DeclaredStateError:
        return DeclaredStateError(f"{self._file}:{node.start_mark.line + 1}: {text}")

    def data(self, node: Any, place: Place) -> Any:
        import yaml

        self.lines.setdefault(place, node.start_mark.line + 1)
        if any(node is each for each in self._open):
            raise self.error(node, "this is part of itself")
        self._open.append(node)
        try:
            if isinstance(node, yaml.ScalarNode):
                return self._scalar(node)
            kind = "map" if isinstance(node, yaml.MappingNode) else "seq"
            if node.tag != f"tag:yaml.org,2002:{kind}":
                raise self.error(node, f"the tag {node.tag!r} has no meaning here")
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, place)
            return [self.data(item, (*place, index)) for index, item in enumerate(node.value)]
        finally:
            self._open.pop()

    def _mapping(self, node: Any, place: Place) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = self.data(key_node, (*place, "?"))
            del self.lines[(*place, "?")]
            if isinstance(key, list | dict):
                raise self.error(key_node, "a key must be text")
            if key == "<<" and key_node.tag == _PLAIN_TAG:
                raise self.error(key_node, "merge keys ('<<') are no part of YAML 1.2; write the keys out")
            if key in found:
                raise self.error(key_node, f"the key {key!r} is there twice, first in line {self.lines[(*place, key)]}")
            self.lines[(*place, key)] = key_node.start_mark.line + 1
            found[key] = self.data(value_node, (*place, key))
        return found

    def _scalar(self, node: Any) -> Any:
        value: str = node.value
        if node.tag == "tag:yaml.org,2002:str":
            return value
        if node.tag != _PLAIN_TAG:
            raise self.error(node, f"the tag {node.tag!r} has no meaning here")
        if value in _WORDS:
            return _WORDS[value]
        if _INTEGER.fullmatch(value):
            if len(value) > 100:
                raise self.error(node, f"a number of {len(value)} digits is too long; put it in quotes if it is text")
            return int(value)
        if _OCTAL.fullmatch(value):
            raise self.error(node, f"{value} is octal to some and decimal to others; leave out the 0, or put it in quotes if it is text")
        if _BASED.fullmatch(value):
            return int(value, 0)
        if _FLOAT.fullmatch(value):
            return float(value.lower().replace(".inf", "inf").replace(".nan", "nan"))
        return value


def _read_yaml(text: str, file: str) -> Text:
    import yaml

    loader = None
    try:
        loader = _loader()(text)  # which reads the first characters already
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark is not None else ""
        said = " ".join(part for part in (error.context, error.problem) if part)
        raise DeclaredStateError(f"{file}{line}: this is no YAML: {said}{_tab_hint(text, mark)}") from None
    except yaml.YAMLError as error:
        raise DeclaredStateError(f"{file}: this is no YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise DeclaredStateError(f"{file}: values are nested too deeply") from None
    finally:
        if loader is not None:
            loader.dispose()
    reader = _YamlReader(file)
    try:
        data = None if node is None else reader.data(node, ())
    except RecursionError:
        raise DeclaredStateError(f"{file}: values are nested too deeply") from None
    return Text(file, data, reader.lines)


def _tab_hint(text: str, mark: Any) -> str:
    lines = text.splitlines()
    if mark is None or mark.line >= len(lines) or "\t" not in lines[mark.line]:
        return ""
    return "; YAML is indented by spaces, and there is a tab in this line"


@functools.cache
def _loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Tells scalars apart by whether they had quotes, and leaves it to us what they are."""

        yaml_implicit_resolvers = {}  # noqa: RUF012 - what PyYAML looks for

    Loader.add_implicit_resolver(_PLAIN_TAG, re.compile("", re.DOTALL), None)
    return Loader


@functools.cache
def _dumper() -> Any:
    import yaml

    class Dumper(yaml.SafeDumper):
        """Puts text in quotes also where only 1.2 takes it for a number, and repeats what is there twice."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

        def increase_indent(self, flow: bool = False, indentless: bool = False) -> Any:
            return super().increase_indent(flow, False)

    def represent_text(dumper: Any, text: str) -> Any:
        # Only in double quotes is everything escaped that readers take for the end of a line, or refuse.
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')

    Dumper.add_representer(str, represent_text)
    Dumper.add_implicit_resolver("number of 1.2", re.compile(rf"^{_NUMBERS.pattern}$"), list("-+.0123456789"))
    return Dumper


# JSON.


def _read_json(text: str, file: str) -> Text:
    def once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise DeclaredStateError(f"{file}: the key {key!r} is there twice")
            found[key] = value
        return found

    try:
        data = json.loads(text, object_pairs_hook=once_each)
    except json.JSONDecodeError as error:
        raise DeclaredStateError(f"{file}:{error.lineno}: this is no JSON: {error.msg}") from None
    except RecursionError:
        raise DeclaredStateError(f"{file}: values are nested too deeply") from None
    lines: dict[Place, int] = {}
    with contextlib.suppress(DeclaredStateError):  # nearly all of JSON is YAML, whose reader knows lines
        lines = _read_yaml(text, file).lines
    return Text(file, data, lines)


# TOML.


def _read_toml(text: str, file: str) -> Text:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        said, _, where = str(error).rpartition(" (at ")
        found = re.match(r"line (\d+)", where)
        line = found[1] if found else len(text.splitlines())
        raise DeclaredStateError(f"{file}:{line}: this is no TOML: {said}") from None
    except RecursionError:
        raise DeclaredStateError(f"{file}: values are nested too deeply") from None
    return Text(file, data or None, _toml_lines(text))  # what has no key says nothing, as with YAML


def _toml_lines(text: str) -> dict[Place, int]:
    """The lines of keys: `tomllib` doesn't tell them, so each line is looked at by itself. What is in a value has the line of its key."""
    lines: dict[Place, int] = {}
    table: Place = ()
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if stripped.startswith("["):
            header = _toml_path(stripped)
            if header:
                table = header
                _note(lines, table, number)
        elif "=" in stripped and not stripped.startswith("#"):
            for end in (index for index, char in enumerate(stripped) if char == "="):  # others may be in the quotes of a key
                path = _toml_path(f"{stripped[:end]}= 0")
                if path:
                    _note(lines, (*table, *path), number)
                    break
    return lines


def _note(lines: dict[Place, int], place: Place, number: int) -> None:
    for length in range(1, len(place) + 1):
        lines.setdefault(place[:length], number)


def _toml_path(line: str) -> Place:
    """The keys of a header or an assignment; none where it is no such line."""
    try:
        data: Any = tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return ()
    path: list[str | int] = []
    while isinstance(data, dict) and len(data) == 1:
        ((key, data),) = data.items()
        path.append(key)
    return tuple(path)


def _refuse_null(value: object, place: Place) -> None:
    if value is None:
        raise InvalidValueError(f"{'.'.join(map(str, place))} is null, which TOML can't say; take YAML")
    if isinstance(value, Mapping):
        for key, item in value.items():
            _refuse_null(item, (*place, key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _refuse_null(item, (*place, index))
