"""Write the map of CONTRIBUTING.md: one line per file, taken from each file's own first line.

Run: python tools/file_map.py [--check]
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "CONTRIBUTING.md"
FOLDERS = ("ecgfast", "kernels", "tools", "benchmarks")
BEGIN, END = "<!-- map: begin (tools/file_map.py) -->\n", "<!-- map: end -->\n"
_COMMENT = re.compile(r"^(?://|/\*|#(?!!|include|pragma|ifndef|define))\s*(.+?)\s*(?:\*/)?$")


def first_line(path: Path) -> str:
    """What a file says it is for."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return (ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0].replace("\n", " ")
    lines = (_COMMENT.match(line) for line in text.splitlines()[:5])
    return next((match[1] for match in lines if match), "")


def file_map() -> str:
    """One list per folder."""
    files = (
        path
        for folder in FOLDERS
        for suffix in ("*.py", "*.cpp", "*.cu", "*.cc", "*.h")
        for path in (ROOT / folder).rglob(suffix)
    )
    parts: list[str] = []
    folder = None
    for path in sorted(files, key=lambda path: (path.parent, path.name)):
        if path.parent != folder:
            folder = path.parent
            parts.append(f"\n**{folder.relative_to(ROOT).as_posix()}/**\n\n")
        if words := first_line(path):
            parts.append(f"- `{path.name}`: {words.rstrip('.')}\n")
    return "".join(parts)


def main() -> int:
    """Fill the marked block, or only compare it; 1 when it is out of date."""
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    new = f"{before}{BEGIN}{file_map()}\n{END}{after}"
    if "--check" in sys.argv:
        print("current" if new == page else f"{PAGE.name} is out of date: run tools/file_map.py")
        return int(new != page)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
