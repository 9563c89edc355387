"""Write docs/map.md, a line per file from its first sentence: `python tools/file_map.py`."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "map.md"
HEAD = "# Where things are\n\nOne line per file, written by `python tools/file_map.py`.\n"
FOLDERS = ("ecgfast", "kernels", "tools", "benchmarks")
SUFFIXES = {".py", ".cpp", ".cu", ".cc", ".h", ".j2"}
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
    found = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.*"))
    folders: dict[Path, list[str]] = {}
    for path in sorted(found, key=lambda path: (path.parent, path.name)):
        if path.suffix in SUFFIXES and (words := first_sentence(path)):
            line = f"- `{path.name}`: {words.rstrip('.')}\n"
            folders.setdefault(path.parent, []).append(line)
    lists = (
        f"\n**{folder.relative_to(ROOT).as_posix()}/**\n\n{''.join(lines)}"
        for folder, lines in folders.items()
    )
    return HEAD + "".join(lists)


if __name__ == "__main__":
    PAGE.write_text(file_map(), encoding="utf-8")
