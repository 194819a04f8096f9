"""Do a wheel and a source distribution hold what they should, and nothing else? Usage: contents.py <folder of both>."""

from __future__ import annotations

import re
import sys
import tarfile
import zipfile
from pathlib import Path

MODULES = Path("src/headgate")
CLUTTER = re.compile(r"__pycache__|\.pyc$|(^|/)\.(?!gitignore$)|^(tests|benchmarks|demo)/")
IN_WHEEL = re.compile(r"headgate/|headgate-[^/]*\.(dist-info|data/data/share/headgate)/")
IN_SOURCE = re.compile(r"src/|docs/|(README|CHANGELOG)\.md$|LICENSE$|pyproject\.toml$|PKG-INFO$|\.gitignore$")


def main() -> None:
    """Compare; raises on the first difference."""
    (wheel,) = Path(sys.argv[1]).glob("*.whl")
    (source,) = Path(sys.argv[1]).glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as opened:
        packed = [name for name in opened.namelist() if not name.endswith("/")]
    with tarfile.open(source) as opened:
        unpacked = [member.name.partition("/")[2] for member in opened.getmembers() if member.isfile()]
    ours = {str(path.relative_to("src")) for path in MODULES.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    _check("the wheel", packed, IN_WHEEL, ours | {"headgate/py.typed"})
    _check("the source distribution", unpacked, IN_SOURCE, {f"src/{name}" for name in ours} | {"LICENSE", "README.md", "CHANGELOG.md"})
    print(f"{wheel.name}: {len(packed)} files; {source.name}: {len(unpacked)} files")


def _check(what: str, names: list[str], allowed: re.Pattern[str], wanted: set[str]) -> None:
    if missing := sorted(wanted - set(names)):
        raise SystemExit(f"{what} lacks {', '.join(missing)}")
    if strange := sorted(name for name in names if CLUTTER.search(name) or not allowed.match(name)):
        raise SystemExit(f"{what} has what nobody needs: {', '.join(strange)}")


if __name__ == "__main__":
    main()
