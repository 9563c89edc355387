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
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import brier_score_loss, roc_auc_score, roc_curve

from ecgfast.cli import main
from ecgfast.demo import demo
from ecgfast.demo_plan import DemoPlan
from ecgfast.evaluate.discrimination import delong, delong_paired
from ecgfast.ingest.synthetic_population import Design
from ecgfast.runs.loading import load_model, load_run
from ecgfast.store.reader import StoreReader, open_store

pytestmark = pytest.mark.slow

TINY = tuple(
    f"model.{part}_{what}={value}"
    for part in ("encoder", "decoder")
    for what, value in (("width", 32), ("depth", 1), ("heads", 2))
)
PLAN = DemoPlan(
    num_records=120,
    num_sites=3,
    design=Design(prevalence=0.4, unlabelled=("2",)),
    unlabelled="site in (1, 2)",
    vit=TINY,
    labels=((15, 1), (30, 1)),
    claim_at=15,
    num_seeds=2,
    pretraining=(
        "train.batch_size=4",
        "train.epochs=2",
        "train.max_steps=6",
        "train.log_every=2",
        "train.val_fraction=0.2",
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


def rows_of_cohorts(records: pa.Table) -> dict[str, np.ndarray]:
    """By hand: the test split of hospital 1, and every ECG of the one that nobody read."""
    site, split = (np.array(records[name].to_pylist()) for name in ("site", "split"))
    rows = {
        "site 1, test split": (site == "1") & (split == "test"),
        "site 3, external": site == "3",  # hospital 2 has no labels
    }
    return {cohort: np.flatnonzero(chosen) for cohort, chosen in rows.items()}


def plain_probabilities(run: Path, store: StoreReader) -> np.ndarray:
    """The kept weights on z-scores by hand, the CNN's on millivolts, in one batch."""
    signal = store.read(range(len(store))).astype(np.float64)
    if run.name.startswith("cnn"):
        values = (signal - store.offset_adc[..., None]) * store.scale_uv[..., None] / 1000
    else:
        values = (signal - signal.mean(-1, keepdims=True)) / signal.std(-1, keepdims=True)
    patches = np.pad(values.reshape(-1, 240, 250), ((0, 0), (0, 0), (0, 6))).astype(np.float16)
    with torch.no_grad():
        logits = load_model(run)[0](torch.from_numpy(patches).float())
    return torch.sigmoid(logits.double()).numpy()


@pytest.mark.parametrize(
    ("folder", "name"), [("vit-pretrained-30-seed0", "ViT, pretrained"), ("cnn-30-seed0", "CNN")]
)
def test_the_numbers_are_those_of_the_runs(finished: Path, folder: str, name: str) -> None:
    metrics = json.loads((finished / "report" / "metrics.json").read_text())
    assert metrics["synthetic"] is True
    store = open_store(finished / "synthetic")
    patients = np.array(store.records["patient_id"].to_pylist())
    is_case = store.records["ejection_fraction"].to_numpy() < 40
    score = plain_probabilities(finished / "runs" / folder, store)
    valid = np.isin(patients, patients_who_validated(finished / "runs" / folder))
    assert metrics["thresholds"][name] == pytest.approx(
        best_threshold(is_case[valid], score[valid]), abs=1e-6
    )
    written = pq.read_table(finished / "report" / "scores.parquet")
    written = written.filter(pa.compute.equal(written["run"], name))
    of_record = dict(
        zip(written["record_id"].to_pylist(), written["probability"].to_pylist(), strict=True)
    )
    names = store.records["record_id"].to_pylist()
    cohorts = rows_of_cohorts(store.records)
    assert sorted(of_record) == sorted(
        names[row] for cohort in ("site 1, test split", "site 3, external")
        for row in cohorts[cohort]
    )  # fmt: skip
    assert set(metrics["cohorts"]) == set(cohorts)
    for cohort, rows in cohorts.items():
        got, y = metrics["cohorts"][cohort][name], is_case[rows]
        exact = np.array([of_record[names[row]] for row in rows])
        np.testing.assert_allclose(exact, score[rows], atol=1e-6)  # of other batches, in fp32
        area = delong(y, exact, patients[rows])
        assert (got["auroc"]["num_cases"], got["auroc"]["num_controls"]) == (y.sum(), (~y).sum())
        # the report numbers patients in another order, so sums over them differ in the last bit
        ends = got["auroc"]["low"], got["auroc"]["high"]
        assert ends == pytest.approx((area.low, area.high), rel=1e-12)
        assert got["calibration"]["brier"]["value"] == pytest.approx(brier_score_loss(y, exact))
        if not 0 < y.sum() < len(y):
            assert got["auroc"]["value"] is None
            assert got["auroc"]["reason"] in {"no cases", "no controls"}
            continue
        assert got["auroc"]["value"] == pytest.approx(roc_auc_score(y, exact))
        found, point = exact >= metrics["thresholds"][name], got["operating_point"]
        assert point["sensitivity"]["value"] == pytest.approx(found[y].mean())
        assert point["specificity"]["value"] == pytest.approx(1 - found[~y].mean())


def patients_who_validated(run: Path) -> list[str]:
    """Pseudonyms of a part of the validation split, as the run's register lists them."""
    register = pq.read_table(run / "register.parquet")
    return register.filter(pa.compute.equal(register["role"], "valid"))["patient"].to_pylist()


def best_threshold(is_case: np.ndarray, score: np.ndarray) -> float:
    """A score with the highest Youden index; scikit-learn's curve begins above all of them."""
    false_rate, true_rate, candidates = roc_curve(is_case, score, drop_intermediate=False)
    return float(candidates[1 + np.argmax((true_rate - false_rate)[1:])])


def test_the_pretrained_run_is_compared_with_the_others_patient_by_patient(finished: Path) -> None:
    report = finished / "report"
    paired = json.loads((report / "metrics.json").read_text())["first_run_minus"]
    store, written = open_store(finished / "synthetic"), pq.read_table(report / "scores.parquet")
    rows = rows_of_cohorts(store.records)["site 3, external"]
    names = store.records["record_id"].take(rows).to_pylist()
    y = store.records["ejection_fraction"].to_numpy()[rows] < 40
    score = {}
    for run in ("ViT, pretrained", "CNN"):
        own = written.filter(pa.compute.equal(written["run"], run))
        of = dict(zip(own["record_id"].to_pylist(), own["probability"].to_pylist(), strict=True))
        score[run] = np.array([of[name] for name in names])
    patients = np.array(store.records["patient_id"].to_pylist())[rows]
    expected = delong_paired(y, score["ViT, pretrained"], score["CNN"], patients)
    got = paired["site 3, external"]["CNN"]
    assert got["difference"] == pytest.approx(
        roc_auc_score(y, score["ViT, pretrained"]) - roc_auc_score(y, score["CNN"])
    )
    assert (got["low"], got["high"], got["p_value"]) == pytest.approx(
        (expected.low, expected.high, expected.p_value), rel=1e-12
    )


def test_the_curve_has_every_model_and_number_of_labels_with_its_seeds(finished: Path) -> None:
    metrics = json.loads((finished / "report" / "metrics.json").read_text())
    store = open_store(finished / "synthetic")
    rows = rows_of_cohorts(store.records)["site 3, external"]
    is_case = store.records["ejection_fraction"].to_numpy()[rows] < 40
    points = {
        (point["line"], round(point["fraction"], 3)): point
        for point in metrics["label_efficiency"]
        if point["cohort"].startswith("external")
    }
    lines = ("ViT, pretrained", "ViT, random init", "CNN")
    assert len(points) == 3 * 2  # too few cases for a regression on the median beat
    assert {line for line, _ in points} == set(lines)
    for folder, line in (("vit-pretrained", lines[0]), ("cnn", lines[2])):
        for number, num_labels in enumerate((15, 30)):
            (fraction,) = sorted({fraction for _, fraction in points})[number : number + 1]
            by_hand = [
                roc_auc_score(is_case, plain_probabilities(run, store)[rows])
                for seed in range(2)
                for run in [finished / "runs" / f"{folder}-{num_labels}-seed{seed}"]
            ]
            assert points[line, fraction]["by_run"] == pytest.approx(by_hand)
            assert points[line, fraction]["mean"]["value"] == pytest.approx(np.mean(by_hand))


def test_the_verdict_heads_report_and_section(finished: Path) -> None:
    text = (finished / "report" / "report.html").read_text(encoding="utf-8")
    verdict, differences, why = json.loads((finished / "report" / "metrics.json").read_text())[
        "claim"
    ]
    assert verdict.startswith("This shows the machinery and not the claim: with 15 labelled ECGs")
    assert f'<div class="finding">\n<p>{verdict}</p>' in text
    section = text[text.index("<h2>Label efficiency</h2>") :]
    assert section.startswith(
        f'<h2>Label efficiency</h2>\n<p class="warning">{verdict}</p>\n<p>{differences}</p>'
    )
    assert why.startswith("Why: AUROC on the test patients of the hospital that taught")


def test_a_demo_run_again_goes_on_where_it_was(finished: Path) -> None:
    before = {p: p.read_bytes() for p in (finished / "runs").rglob("metrics.jsonl")}
    report = (finished / "report" / "report.html").read_bytes()
    demo(finished, PLAN)
    assert {p: p.read_bytes() for p in (finished / "runs").rglob("metrics.jsonl")} == before
    assert (finished / "report" / "report.html").read_bytes() == report


def test_predict_gives_the_probabilities_of_the_store(finished: Path, tmp_path: Path) -> None:
    run, files = finished / "runs" / "vit-pretrained-30-seed0", finished / "cohort"
    out = tmp_path / "probabilities.csv"
    (tmp_path / "broken.hea").write_text("broken 12 500 5000\n")
    assert main(["predict", str(run), str(tmp_path / "broken.hea"), "--out", str(out)]) == 1
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
    expected = loaded.probabilities(store, np.arange(len(store)))
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
