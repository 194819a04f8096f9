"""How does the Markdown of this folder become the documentation site? `python3 dev.py docs` builds it; what it warns of makes it fail."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from docutils import nodes
from sphinx.util.nodes import make_refnode

import headgate
import headgate.errors

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent

# Pages that include a file from outside of this folder: links to the file go there.
INCLUDED: Final = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "README.md": "index.md",
    "benchmarks/README.md": "benchmarks/method.md",
}

# Classes that users don't construct, beside all records.
GIVEN: Final = ("Context", "Handle", "Instance", "Reply", "Request")

project = "Headgate"
version = release = headgate.__version__
root_doc = "index"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
source_suffix = {".md": "markdown"}
myst_heading_anchors = 4  # links into a page are by its headings
nitpicky = True
nitpick_ignore_regex = [("py:.*", ".*")]  # types in signatures that have no place on a page, such as those of Python itself
highlight_language = "none"  # a block that doesn't say its language is shown as it is

# The reference page of what Python callers use comes from docstrings. Their backticks are code, as in Markdown, and lead to
# what is documented under that name.
default_role = "py:obj"
add_module_names = False
toc_object_entries_show_parents = "hide"
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
maximum_signature_line_length = 120

html_theme = "furo"
html_title = "Headgate"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = html_show_copyright = False
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}
pygments_style, pygments_dark_style = "friendly", "github-dark"


def setup(app: Any) -> None:
    """Have Sphinx show us what it reads."""
    app.connect("source-read", lambda _, name, text: _read(DOCS / f"{name}.md", text))
    app.connect("include-read", lambda _, path, __, text: _mend((DOCS / path).resolve(), text))
    app.connect("doctree-read", _put_pictures_in, priority=100)  # before images are collected as files
    app.connect("doctree-read", _name_rows_of_errors)
    app.connect("missing-reference", _find_by_name)
    app.connect("autodoc-process-docstring", lambda _, __, ___, ____, _____, lines: _list_arguments(lines))
    app.connect(
        "autodoc-process-signature", lambda _, kind, name, ____, _____, arguments, returns: _without(kind, name, arguments, returns)
    )


def _read(page: Path, text: list[str]) -> None:
    """A page as Sphinx reads it."""
    _mend(page, text)
    if page.name == "index.md":
        text[0] += _navigation(page.parent, text[0])


def _navigation(folder: Path, index: str) -> str:
    """The pages of a folder, as the site lists them: those that its index links, in that order.

    In a clone there is nothing but these links. A page without one has no place on the site, which fails the build.
    """
    linked = [(DOCS if root else folder) / path for root, path in re.findall(r"\]\((/?)([^)#\s]+\.md)\)", index)]
    pages = dict.fromkeys(f"/{page.relative_to(DOCS)}" for page in linked if page.is_relative_to(folder))
    return "\n".join(["\n```{toctree}", ":hidden:", ":titlesonly:", *pages, "```\n"])


def _mend(page: Path, text: list[str]) -> None:
    """Turn links between the repository's files, which work in a clone, into links between pages of the site.

    A file that is no page, such as one of the code, keeps its words and loses its link; one that isn't there fails the build.
    """

    def mended(link: re.Match[str]) -> str:
        words, path, anchor = link.groups()
        target = (page.parent / path).resolve()
        known = INCLUDED.get(str(target.relative_to(ROOT)))
        if known is not None:
            return f"[{words}](/{known}{anchor})"
        if target.is_relative_to(DOCS):
            return f"[{words}](/{target.relative_to(DOCS)}{anchor})" if page.parent != target.parent else link[0]
        return words if target.exists() else link[0]

    text[0] = re.sub(r"\[([^]\n]*)\]\(((?!\w+:|/)[^)#\s]+)((?:#[^)\s]*)?)\)", mended, text[0])


def _put_pictures_in(app: Any, page: nodes.document) -> None:
    """Make our pictures a part of their page: so they follow its light and dark, and their words can be selected and searched for."""
    for image in list(page.findall(nodes.image)):
        path = Path(app.env.relfn2path(image["uri"], app.env.docname)[1])
        if path.parent == DOCS / "pictures" and path.exists():
            app.env.note_dependency(str(path))
            image.replace_self(nodes.raw("", path.read_text(), format="html"))


def _name_rows_of_errors(app: Any, page: nodes.document) -> None:
    """Each row of the page of errors can be led to by the name of its class."""
    if app.env.docname == "reference/errors":
        for row in page.findall(nodes.row):
            for name in list(row.children[0].findall(nodes.literal)):
                name["ids"].append(name.astext())


def _find_by_name(app: Any, env: Any, wanted: Any, shown: Any) -> nodes.reference | None:
    """Lead from the name of a class to where it is documented, from `serve.x` to `headgate.serve.x`, from an error to its row."""
    if wanted.get("refdomain") != "py":
        return None
    target = wanted["reftarget"]
    name = target.rpartition(".")[2]
    error = getattr(headgate.errors, name, None)
    if isinstance(error, type) and issubclass(error, headgate.errors.HeadgateError):
        return make_refnode(app.builder, wanted["refdoc"], "reference/errors", name, shown)
    objects = env.domains["py"].objects.items()
    named = [(full, known) for full, known in objects if full == f"headgate.{target}"]
    found = named or [(full, known) for full, known in objects if full.endswith(f".{name}") and known.objtype == "class"]
    if len(found) != 1:
        return None
    ((full, known),) = found
    return make_refnode(app.builder, wanted["refdoc"], known.docname, known.node_id, shown, full)


def _list_arguments(lines: list[str]) -> None:
    """What stands below `Args:` in a docstring becomes a list: `name: what it is`, and what is further indented belongs to it."""
    if "Args:" not in lines:
        return
    first = lines.index("Args:")
    last = next((number for number in range(first + 1, len(lines)) if lines[number] and not lines[number].startswith(" ")), len(lines))
    arguments = [re.sub(r"^    (\w+): ", r":param \1: ", line) for line in lines[first + 1 : last]]
    lines[first:last] = [line if line.startswith(":param") else f"    {line.strip()}" if line else "" for line in arguments]


def _without(kind: str, name: str, arguments: str | None, returns: str | None) -> tuple[str, str | None] | None:
    """What users are given, and don't construct, has no arguments to show; its attributes say what is in it."""
    if kind != "class" or not (name.startswith("headgate.core.") or name.rpartition(".")[2] in GIVEN):
        return None
    return "", returns
