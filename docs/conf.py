"""How does the Markdown of this folder become the documentation site? `python3 dev.py docs` builds it; what it warns of makes it fail."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import headgate

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent

# Pages that include a file from outside of this folder: links to the file go there.
INCLUDED: Final = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "README.md": "index.md",
    "benchmarks/README.md": "benchmarks/method.md",
}

project = "Headgate"
version = release = headgate.__version__
root_doc = "index"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
myst_heading_anchors = 4  # links into a page are by its headings
nitpicky = True
highlight_language = "none"  # a block that doesn't say its language is shown as it is

html_theme = "furo"
html_title = "Headgate"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = html_show_copyright = False
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}
pygments_style, pygments_dark_style = "friendly", "github-dark"


def setup(app: Any) -> None:
    """Have Sphinx show us what it reads."""
    app.connect("source-read", lambda _, name, text: _mend(DOCS / f"{name}.md", text))
    app.connect("include-read", lambda _, path, __, text: _mend((DOCS / path).resolve(), text))


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
