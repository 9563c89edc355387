"""Write docs/map.md, a line per file from its first sentence: `tools/file_map.py [--check]`."""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "map.md"
HEAD = "# Where things are\n\nOne line per file, written by `python tools/file_map.py`.\n"
FOLDERS = ("ecgfast", "kernels", "tools", "benchmarks")
_COMMENT = re.compile(r"^(?://|/\*|\{#|#(?!!|include|pragma|ifndef|define))\s*(.+?)\s*(?:\*/)?$")


def first_sentence(path: Path) -> str:
    """What a file says it is for."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return (ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0].replace("\n", " ")
    words: list[str] = []
    for match in map(_COMMENT.match, text.splitlines()[:5]):
        words += [match[1]] if match else []
        if words and (match is None or match[1].endswith((".", ":"))):
            break
    return " ".join(words).split(". ")[0].rstrip(":")


def file_map() -> str:
    """One list per folder."""
    files = (
        path
        for folder in FOLDERS
        for suffix in ("*.py", "*.cpp", "*.cu", "*.cc", "*.h", "*.j2")
        for path in (ROOT / folder).rglob(suffix)
    )
    parts: list[str] = []
    folder = None
    for path in sorted(files, key=lambda path: (path.parent, path.name)):
        if path.parent != folder:
            folder = path.parent
            parts.append(f"\n**{folder.relative_to(ROOT).as_posix()}/**\n\n")
        if words := first_sentence(path):
            parts.append(f"- `{path.name}`: {words.rstrip('.')}\n")
    return "".join(parts)


def main() -> int:
    """Write the page, or only compare it; 1 when it is out of date."""
    new = HEAD + file_map()
    if "--check" in sys.argv:
        is_current = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == new
        print("current" if is_current else f"{PAGE.name} is out of date: run tools/file_map.py")
        return int(not is_current)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
