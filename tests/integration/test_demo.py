"""The whole way, small: from synthetic files to a report whose every number can be made again."""

import base64
import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import roc_auc_score

from ecgfast.cli import main
from ecgfast.demo import DemoPlan, demo
from ecgfast.evaluate.runs import load_run
from ecgfast.evaluate.scores import plan_tests, probabilities
from ecgfast.store.reader import open_store

pytestmark = pytest.mark.slow

TINY = tuple(
    f"model.{part}_{what}={value}"
    for part in ("encoder", "decoder")
    for what, value in (("width", 32), ("depth", 1), ("heads", 2))
)
PLAN = DemoPlan(
    num_records=120,
    num_sites=3,
    pretraining=(
        "train.batch_size=4",
        "train.epochs=2",
        "train.max_steps=6",
        "train.log_every=2",
        "train.val_fraction=0.2",
        *TINY,
    ),
    finetuning=(
        "finetune.learning_rates=[1e-3]",
        "finetune.epochs=1",
        "finetune.batch_size=8",
        *TINY,
    ),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    assert demo(out, PLAN) == out / "report" / "report.html"
    return out


class Page(HTMLParser):
    """First line, headings and sources of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.heading = ""
        self.sources: list[str] = []
        self._in_heading = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_heading |= tag == "h1"
        self.sources += [value or "" for name, value in attrs if name in {"src", "href"}]

    def handle_endtag(self, tag: str) -> None:
        self._in_heading &= tag != "h1"

    def handle_data(self, data: str) -> None:
        self.heading += data if self._in_heading else ""


def test_the_report_says_what_its_data_are_and_loads_nothing(finished: Path) -> None:
    page = Page((finished / "report" / "report.html").read_text(encoding="utf-8"))
    assert page.heading.startswith("SYNTHETIC data: synthetic, 120 ECGs of 3 sites")
    assert len(page.sources) >= 8
    assert all(source.startswith("data:image/") for source in page.sources)


def test_every_picture_of_the_report_can_be_read(finished: Path) -> None:
    page = Page((finished / "report" / "report.html").read_text(encoding="utf-8"))
    for source in page.sources:
        kind, content = source.split(";base64,")
        data = base64.b64decode(content)
        if kind.endswith("png"):
            assert np.ptp(matplotlib.image.imread(io.BytesIO(data))[..., :3]) > 0.5
        else:
            assert data.rstrip().endswith(b"</svg>")


def test_no_path_and_no_readable_identifier_is_in_the_report(finished: Path) -> None:
    text = (finished / "report" / "report.html").read_text(encoding="utf-8")
    text = re.sub(r";base64,[^\"]+", "", text)
    assert str(finished) not in text
    with (finished / "cohort" / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 120
    for row in rows:
        assert row["patient_id"] not in text
        assert row["record_id"] not in text


def test_the_numbers_are_those_of_the_runs(finished: Path) -> None:
    metrics = json.loads((finished / "report" / "metrics.json").read_text())
    assert metrics["synthetic"] is True
    store = open_store(finished / "synthetic")
    run = load_run(finished / "runs" / "cnn", store)
    plan = plan_tests(store, [run])
    ejection_fraction = store.records["ejection_fraction"].to_numpy()
    for cohort, by_run in plan.cohorts.items():
        rows = by_run["CNN"]
        reported = metrics["cohorts"][cohort]["CNN"]["auroc"]
        y = ejection_fraction[rows] < 40
        assert (reported["num_cases"], reported["num_controls"]) == (y.sum(), (~y).sum())
        if y.any() and not y.all():
            score = probabilities(run, store, rows)
            assert reported["value"] == pytest.approx(roc_auc_score(y, score), abs=1e-9)
        else:
            assert reported["value"] is None
            assert reported["reason"] in {"no cases", "no controls", "no labelled records"}


def test_no_patient_of_training_is_tested(finished: Path) -> None:
    store = open_store(finished / "synthetic")
    run = load_run(finished / "runs" / "vit-random", store)
    records = store.records
    trained = records.filter(
        pa.compute.and_(
            pa.compute.equal(records["site"], "1"),
            pa.compute.is_in(records["split"], pa.array(["train", "valid"])),
        )
    )
    patients = set(trained["patient_id"].to_pylist())
    assert len(patients) > 10
    plan = plan_tests(store, [run])
    assert set(plan.cohorts) == {
        "site 1, test split", "site 2, external", "site 3, external", "all external sites",
    }  # fmt: skip
    for by_run in plan.cohorts.values():
        for rows in by_run.values():
            assert not patients & set(records["patient_id"].take(rows).to_pylist())


def test_a_demo_run_again_goes_on_where_it_was(finished: Path) -> None:
    before = {p: p.read_bytes() for p in (finished / "runs").rglob("metrics.jsonl")}
    report = (finished / "report" / "report.html").read_bytes()
    demo(finished, PLAN)
    assert {p: p.read_bytes() for p in (finished / "runs").rglob("metrics.jsonl")} == before
    assert (finished / "report" / "report.html").read_bytes() == report


def test_predict_gives_the_probabilities_of_the_store(finished: Path, tmp_path: Path) -> None:
    run, files = finished / "runs" / "vit-pretrained", finished / "cohort"
    out = tmp_path / "probabilities.csv"
    (tmp_path / "broken.hea").write_text("broken 12 500 5000\n")
    assert (
        main(["predict", str(run), str(files), str(tmp_path / "broken.hea"), "--out", str(out)])
        == 0
    )
    with out.open() as file:
        rows = {Path(row["file"]).with_suffix("").as_posix(): row for row in csv.DictReader(file)}
    broken = rows.pop(str(tmp_path / "broken"))
    assert broken["probability"] == ""
    assert broken["note"]
    store = open_store(finished / "synthetic")
    loaded = load_run(run, store)
    expected = probabilities(loaded, store, np.arange(len(store)))
    with (finished / "synthetic.sources.csv").open() as file:
        source = {row["record_id"]: Path(row["source"]) for row in csv.DictReader(file)}
    for row, record_id in enumerate(store.records["record_id"].to_pylist()):
        got = float(rows[source[record_id].with_suffix("").as_posix()]["probability"])
        assert got == pytest.approx(expected[row], abs=1e-5)  # batches of another size round apart


def test_reconstruct_draws_one_record(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = finished / "synthetic"
    record_id = open_store(store).records["record_id"][3].as_py()
    out = tmp_path / "pictures" / "one.png"
    command = ["reconstruct", str(finished / "runs" / "pretrained"), str(store)]
    assert main([*command, "--record", record_id, "--out", str(out), "--leads", "II,V5"]) == 0
    assert matplotlib.image.imread(out).shape[1] == 1425  # 285 mm at 5 pixels per mm
    assert main([*command, "--record", "nobody", "--out", str(out)]) == 2
    assert "nobody" in capsys.readouterr().err
