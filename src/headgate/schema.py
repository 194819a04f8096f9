"""What does an editor have to know to help with a file of declared state? Its JSON schema, made of the records.

`python -m headgate.schema` prints it; it is kept in `docs/reference/declared-state.schema.json`.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import Any, Final

import msgspec

from headgate.config import BackendConfig, ReplicaOptions
from headgate.core.declared import Declared, DeclaredBackend, DeclaredEndpoint, HttpSettings
from headgate.core.desired import HTTP_METHODS
from headgate.scheduling import WORDS, InPlacementGroup, LabelMatch, NodeAffinity, NodeLabels

_RECORDS: Final[tuple[type[msgspec.Struct], ...]] = (
    Declared,
    HttpSettings,
    DeclaredBackend,
    DeclaredEndpoint,
    BackendConfig,
    ReplicaOptions,
    NodeAffinity,
    NodeLabels,
    InPlacementGroup,
    LabelMatch,
)
_DETAILS: Final[dict[tuple[type[msgspec.Struct], str], dict[str, Any]]] = {
    (DeclaredBackend, "import_path"): {"pattern": r"^(by-value:.+|[\w.]+:[\w.]+)$"},
    (DeclaredEndpoint, "route"): {"pattern": "^/(?!-/)"},
    (DeclaredEndpoint, "methods"): {"items": {"enum": list(HTTP_METHODS)}, "minItems": 1},
}
"""What the types of fields don't say, and functions check."""


def field_docs(record: type[msgspec.Struct]) -> dict[str, str]:
    """The text under each field of a record."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(record))).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(after, ast.Expr):
            found[field.target.id] = inspect.cleandoc(ast.literal_eval(after.value))
    return found


def schema() -> dict[str, Any]:
    """The JSON schema of what `headgate deploy` reads."""
    (root,), parts = msgspec.json.schema_components(_RECORDS[:1], ref_template="#/$defs/{name}")
    for record in _RECORDS:
        part = parts[record.__name__]
        part["description"] = inspect.cleandoc(record.__doc__ or "")
        docs = field_docs(record)
        for name, about in part["properties"].items():
            if name in docs:
                about["description"] = docs[name]
            about.update(_DETAILS.get((record, name), {}))
            if "$ref" in about:  # its defaults are said where it is defined
                about.pop("default", None)
    options = parts[ReplicaOptions.__name__]["properties"]
    for each in options["scheduling_strategy"]["anyOf"]:
        if each.get("type") == "string":
            each["enum"] = list(WORDS)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Declared state of Headgate", **root, "$defs": parts}


def text() -> str:
    """The same as a file."""
    return msgspec.json.format(msgspec.json.encode(schema()), indent=2).decode() + "\n"


if __name__ == "__main__":
    print(text(), end="")  # noqa: T201 - a program that speaks to a terminal
