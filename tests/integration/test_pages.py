"""The code of the pages runs, block by block in one folder each, as a reader would."""

import logging
import re
import shlex
from pathlib import Path

import pytest

from ecgfast.cli import main

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```(\w+)(?: title=\"(.+?)\")?\n(.*?)^```", re.DOTALL | re.MULTILINE)


@pytest.mark.slow  # a study each
@pytest.mark.parametrize("page", ["quickstart.md", "python.md"])
def test_the_code_of_a_page_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("xarray", reason="xarray is not installed")
    pytest.importorskip("dask.array", reason="Dask is not installed")
    monkeypatch.chdir(tmp_path)
    logger = logging.getLogger("ecgfast")
    monkeypatch.setattr(logger, "handlers", logger.handlers[:])
    monkeypatch.setattr(logger, "propagate", logger.propagate)
    names: dict[str, object] = {}
    blocks = BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))
    assert len(blocks) > 3
    for language, title, code in blocks:
        if title:
            Path(title).write_text(code)
        elif language == "python":
            exec(compile(code, page, "exec"), names)
        else:
            assert language == "sh", f"{page}: a block of {language} runs nowhere"
            for line in code.splitlines():
                command, *words = shlex.split(line)
                assert command == "ecgfast"
                assert main(words) == 0, line
    assert (tmp_path / "report/report.html").exists()
