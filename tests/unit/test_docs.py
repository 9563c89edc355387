"""Pages that are made from the code are current."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_map_of_files_is_current() -> None:
    command = [sys.executable, str(ROOT / "tools" / "file_map.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "current"


def test_links_of_the_pages_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
