"""Pages that are made from the code are current."""

import ast
import dataclasses
import itertools
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recordings import make_store
from scripts import script

import ecgfast
from ecgfast.config import Config
from ecgfast.ingest import FORMATS
from ecgfast.ingest.kinds import PASSED_OVER
from ecgfast.ingest.vendor.record import Fields
from ecgfast.labels.preview import UNMATCHED_COLUMNS
from ecgfast.records import NOT_KNOWN, EcgRecord
from ecgfast.runs import register
from ecgfast.store.csv_files import PASSED_OVER_COLUMNS
from ecgfast.store.format import (
    ACQUISITION,
    EF_GIVEN,
    PSEUDONYM,
    QUARANTINE_COLUMNS,
    ROW_TYPES,
    SHIFTED_DATE,
    SOURCES_COLUMNS,
)
from ecgfast.store.patients import retained

ROOT = Path(__file__).parents[2]


def test_the_map_of_files_is_current() -> None:
    tool = script("tools/file_map.py")
    assert tool.PAGE.read_text(encoding="utf-8") == tool.file_map()


def test_links_of_the_pages_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_page_of_the_docs_is_linked_from_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT).as_posix()
        assert f"({name}" in text, f"README.md does not lead to {name}"


def test_every_page_of_the_docs_is_in_the_menu_of_the_site() -> None:
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:\n")[1]
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert set(re.findall(r"[\w/-]+\.md", menu)) == pages


def test_the_page_of_functions_names_each_public_one_where_it_is_defined() -> None:
    page = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    public = [getattr(ecgfast, name) for name in ecgfast.__all__]
    homes = {f"{each.__module__}.{each.__qualname__}" for each in public}
    assert set(re.findall("^::: (.+)$", page, re.MULTILINE)) == homes


def test_the_image_is_made_of_files_that_are_there() -> None:
    copied = re.findall(r"^COPY (.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    names = " ".join(copied).split()
    assert {"pyproject.toml", "ecgfast", "kernels"} < set(names)
    assert all((ROOT / name).exists() for name in names)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert sorted(line[1:] for line in ignored if line.startswith("!")) == sorted(names)


def test_the_python_of_the_readme_runs_without_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cohort").mkdir()
    _, signal = make_store(tmp_path / "cohort", 20)
    (tmp_path / "cohort/store").rename(tmp_path / "store")
    shutil.rmtree(tmp_path / "cohort")
    (tmp_path / "store").rename(tmp_path / "cohort")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    np.testing.assert_array_equal(names["store"].read([5, 0, 3]), signal[[5, 0, 3]])
    batch = names["batch"]
    assert tuple(batch.patches.shape) == (16, 240, 256)
    assert str(batch.patches.dtype) == "torch.float16"
    assert tuple(batch.record_index.shape) == (16,)


def test_the_list_of_settings_is_complete_and_their_defaults_true() -> None:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    block = text.split("## Settings", 1)[1].split("```")[1].replace("null", "None")
    section, listed = Config(), set()
    prefix = ""
    for word in re.findall(r"\[[a-z]+\]\n|[a-z_0-9]+=(?:\[.*?\]|\S+)", block):
        if word.startswith("["):
            prefix = word.strip("[]\n")
            section = getattr(Config(), prefix)
            continue
        name, _, value = word.partition("=")
        value = {"true": "True", "false": "False"}.get(value, value)
        default = getattr(section, name)
        shown = ast.literal_eval(value)
        assert (tuple(shown) if isinstance(shown, list) else shown) == default, word
        listed.add(f"{prefix}.{name}".strip("."))
    every = {
        f"{field.name}.{inner.name}"
        for field in dataclasses.fields(Config)
        if dataclasses.is_dataclass(getattr(Config(), field.name))
        for inner in dataclasses.fields(getattr(Config(), field.name))
    }
    assert listed == every | {"recipe", "kernels", "attention", "fused"}


def test_the_kinds_and_the_words_for_nothing_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8")
    (line,) = (line for line in text.splitlines() if line.startswith("| any other file |"))
    listed = set(line.strip("| ").split("passed over: ")[1].split(", "))
    words = {"pipes, sockets and devices": {"pipes", "sockets and devices"}}
    elsewhere = {"hidden folders", "links to folders", "folders named as records"}
    expected: set[str] = set()
    for kind in set(PASSED_OVER) - elsewhere:
        expected |= words.get(kind, {kind})
    assert listed == expected
    (words_for_nothing,) = re.findall(r"- Empty are: no text, (.*?), in capitals", text, re.DOTALL)
    assert {"", *re.findall(r"`(.+?)`", words_for_nothing.lower())} == NOT_KNOWN


def listed(page: str, header: str) -> list[str]:
    """The first cells of a table of docs/ethics.md, below a header line that begins so."""
    lines = iter(page.splitlines())
    assert any(line.startswith(f"| {header} |") for line in lines), header
    next(lines)
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines)
    return [line.split("|")[1].strip().strip("`") for line in rows]


def test_the_page_for_ethics_boards_names_all_that_the_code_can_keep() -> None:
    page = (ROOT / "docs" / "ethics.md").read_text(encoding="utf-8")
    made = [*ACQUISITION, PSEUDONYM, EF_GIVEN, SHIFTED_DATE, "label columns"]
    assert sorted(listed(page, "column")) == sorted([*ROW_TYPES, *made])
    assert listed(page, "column of quarantine.csv") == list(QUARANTINE_COLUMNS)
    assert listed(page, "column of sources.csv") == list(SOURCES_COLUMNS)
    assert listed(page, "column of passed_over.csv") == list(PASSED_OVER_COLUMNS)
    assert listed(page, "column of unmatched.csv") == list(UNMATCHED_COLUMNS)
    assert listed(page, "field") == [each.name for each in dataclasses.fields(Fields)]
    assert listed(page, "format") == [each.name for each in FORMATS]
    for each in FORMATS:
        assert f"| {each.name} | {each.keeps} |" in page
    kept = retained([], sites=True, identifiers=False, ages_over_89=False)
    assert listed(page, "entry of retained") == list(kept)
    assert listed(page, "column of register.parquet") == list(register._SCHEMA.names)


def test_the_page_names_every_file_beside_a_store() -> None:
    page = (ROOT / "docs" / "ethics.md").read_text(encoding="utf-8")
    suffixes: set[str] = set()
    for path in (ROOT / "ecgfast").rglob("*.py"):
        suffixes |= set(re.findall(r'beside\([\w.()]+, "(\.\w+(?:\.csv)?)"\)', path.read_text()))
    assert {".key", ".sources.csv", ".passed_over.csv", ".unmatched.csv", ".lock"} <= suffixes
    files = [name.rstrip("/") for name in listed(page, "file")]
    assert suffixes == {name.removeprefix("STORE") for name in files if name.startswith("STORE.")}


def test_the_page_names_every_field_of_a_record() -> None:
    """What `EcgRecord` has and `Fields` lacks is of other formats, and known here."""
    more = {each.name for each in dataclasses.fields(EcgRecord)}
    more -= {each.name for each in dataclasses.fields(Fields)}
    assert more == {
        *("record_id", "signal", "scale_uv", "offset_adc", "sampling_rate_hz", "site", "labels"),
        *("provenance", "segments", "missing"),
    }
