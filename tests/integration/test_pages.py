"""The code of the pages: each block runs, or stands in a list with the reason why not."""

import contextlib
import csv
import logging
import re
import shlex
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import typer
from typer.main import get_command

import ecgfast
from ecgfast.cli import app, main
from ecgfast.reproduce.plan import Plan

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = {"README.md": ROOT / "README.md"} | {
    page.relative_to(DOCS).as_posix(): page for page in sorted(DOCS.rglob("*.md"))
}
BLOCK = re.compile(r"^```(\w*)(?: title=\"(.+?)\")?\n(.*?)^```$", re.DOTALL | re.MULTILINE)

GPU, CLUSTER = "needs GPUs and hours", "needs several machines"
SCRIPTS = "tests/integration/test_examples.py runs the script"
NETWORK, LAYOUT = "needs a bucket on the network", "shows files, has nothing to run"
# Page -> words that one block of it has -> why that block does not run here.
NOT_RUN = {
    "README.md": {
        "make demo": "takes ten minutes; tests/integration/test_demo.py runs what it calls",
        "--preset vit_large": GPU,
        "1998/77,35": LAYOUT,
    },
    "datasets.md": {
        "ecg.npz": LAYOUT,
        "--select 'quality": "takes hours on a CPU",
        "fetch s3:": NETWORK,
        "convert s3:": NETWORK,
        "--out s3:": NETWORK,
        "--part 3/64": CLUSTER,
        "recipe ptb-xl": "needs the data set; tests/integration/test_recipes.py has its own",
    },
    "demo.md": {"ecgfast demo": "takes ten minutes; tests/integration/test_demo.py"},
    "format.md": {"quarantine.csv": LAYOUT, "45 50 01 00": LAYOUT},
    "howto/gpus.md": {"train.max_steps=200": GPU, "--standalone": GPU},
    "howto/slurm.md": {
        "slurm/convert.sh": f"{CLUSTER}; {SCRIPTS}",
        "slurm/pretrain.sbatch": f"{CLUSTER}; {SCRIPTS}",
        "slurm/finetune.sbatch": f"{CLUSTER}; {SCRIPTS}",
    },
    "performance.md": {
        "--run 1": GPU,
        "--run 2": GPU,
        "--run 3": GPU,
        "--run 4": GPU,
    },
    "quickstart.md": {"docker run": "needs Docker"},
    "reproduce.md": {
        "reproduce cohort": GPU,
        "[[pretraining]]": "a plan, which `test_the_plan_of_the_page_is_one` reads",
        "pretrain/Dataset1/": LAYOUT,
        "#SBATCH": CLUSTER,
        "sbatch --parsable": CLUSTER,
        "--sites 8": "takes an hour on two cores",
    },
    "training.md": {
        "--preset vit_large": GPU,
        "[finetune]": "settings, which tests/unit/test_docs.py compares with the code",
        "--standalone": GPU,
        "--nnodes": CLUSTER,
        "load_model": "needs a model; tests/integration/test_export.py makes one and asks it",
    },
}
# Paths of a page, and what the prepared folder has for them.
PATHS = {
    "README.md": {'"cohort"': '"share/cohort"'},
    "datasets.md": {"/share/": "share/", "STORE": "share/cohort"},
    "format.md": {"STORE": "share/cohort"},
    **{f"howto/{page}.md": {"/share/": "share/"} for page in ("cluster", "exports", "stores")},
    "howto/gpus.md": {"/share/": "share/"},
    "howto/model.md": {'"cohort"': '"share/cohort"'},
    "training.md": {"/share/": "share/"},
}
STUDIES = {"quickstart.md", "python.md", "tutorial.md"}  # which make their own


class Block(NamedTuple):
    """A block of code of a page, and the file that it shows, if it has a title."""

    language: str
    title: str
    code: str


def blocks_of(page: str) -> list[Block]:
    return [Block(*found) for found in BLOCK.findall(PAGES[page].read_text(encoding="utf-8"))]


def runs(page: str, block: Block) -> bool:
    return not any(words in block.code for words in NOT_RUN.get(page, ()))


RUN = {page: [b for b in blocks_of(page) if runs(page, b)] for page in PAGES}


def commands(code: str) -> list[list[str]]:
    """The words of each command in a block, without comments."""
    lines = code.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_no_block_is_overlooked() -> None:
    for page in PAGES:
        fences = re.findall(r"^ *```", PAGES[page].read_text(encoding="utf-8"), re.MULTILINE)
        assert len(fences) == 2 * len(blocks_of(page)), f"{page} has a block that is not found"
    assert sum(map(len, RUN.values())) > 15


def test_each_entry_of_the_list_is_of_one_block() -> None:
    for page, entries in NOT_RUN.items():
        for words in entries:
            found = sum(words in block.code for block in blocks_of(page))
            assert found == 1, f"{page}: {found} blocks have {words!r}"


def test_every_command_of_the_pages_parses() -> None:
    """Also those that do not run here: their options and values exist."""
    known = get_command(app).commands  # type: ignore[attr-defined]  # it is a group
    parsed = 0
    for page in PAGES:
        for block in blocks_of(page):
            if block.language not in ("", "sh") or "ecgfast " not in block.code:
                continue
            for words in commands(block.code):
                if "ecgfast" in words:
                    name, *rest = words[words.index("ecgfast") + 1 :]
                    with contextlib.suppress(typer.Exit):  # --list-formats ends here
                        known[name].make_context(name, [word for word in rest if word != "&"])
                    parsed += 1
    assert parsed > 30


def test_the_plan_of_the_page_is_one(tmp_path: Path) -> None:
    (plan,) = (block.code for block in blocks_of("reproduce.md") if block.language == "toml")
    (tmp_path / "plan.toml").write_text(plan)
    assert [model.name for model in Plan.read(tmp_path / "plan.toml").model] == [
        "CNN", "ViT-Dataset1", "probe-Dataset1",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic hospitals, their store and a run, where the pages have them."""
    folder = tmp_path_factory.mktemp("prepared")
    exports, cohort = folder / "share/ecg", folder / "share/cohort"
    ecgfast.synth(exports, num_records=240, num_sites=2)
    ecgfast.convert([exports], cohort, labels=exports / "labels.csv", workers=1)
    ecgfast.synth(folder / "share/north/north", num_records=40, num_sites=1, seed=1)
    steps = {"train.max_steps": 1}
    ecgfast.pretrain(cohort, folder / "runs/mae", preset="demo", settings=steps, device="cpu")
    with (exports / "labels.csv").open() as file:
        first, *_, last = csv.DictReader(file)
    (folder / "patients.txt").write_text(first["patient_id"] + "\n")
    (folder / "records.txt").write_text(last["record_id"] + "\n")
    return folder


@pytest.mark.slow  # two are a study each
@pytest.mark.parametrize("page", [page for page, blocks in RUN.items() if blocks])
def test_the_code_of_a_page_runs(
    page: str,
    tmp_path: Path,
    prepared: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("xarray", reason="xarray is not installed")
    pytest.importorskip("dask.array", reason="Dask is not installed")
    folder = tmp_path / "folder"
    if page in STUDIES:
        folder.mkdir()
    else:
        shutil.copytree(prepared, folder)
    monkeypatch.chdir(folder)
    logger = logging.getLogger("ecgfast")
    monkeypatch.setattr(logger, "handlers", logger.handlers[:])
    monkeypatch.setattr(logger, "propagate", logger.propagate)
    names: dict[str, object] = {}
    for language, title, code in RUN[page]:
        for name, path in PATHS.get(page, {}).items():
            code = code.replace(name, path)
        if title:
            Path(title).write_text(code)
        elif language == "python":
            capsys.readouterr()
            exec(compile(code, page, "exec"), names)
        elif language == "text":
            assert capsys.readouterr().out == code, f"{page}: the block above prints something else"
        else:
            assert language in ("", "sh"), f"{page}: a block of {language} runs nowhere"
            for command, *words in commands(code):
                assert command == "ecgfast", f"{page}: {command} runs nowhere; see NOT_RUN"
                assert main(words) == 0, words
    if page in STUDIES:
        assert (folder / "report/report.html").exists()
