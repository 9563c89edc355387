"""AUROC of models on real labels as rows, and the tables of docs/evidence.md made of them.

    python benchmarks/evidence_rows.py benchmarks/evidence --page docs/evidence.md

`real_evidence.py` and `ludb_probe.py` write the rows. Shapes: n records, S seeds.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from plot import fill

from ecgfast.bench import make_rows
from ecgfast.evaluate.discrimination import delong, delong_paired, holm
from ecgfast.runs.roc import auroc

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Patients = NDArray[np.int64]

FOREST = "forest, hand-made features"
LUDB = "LUDB"  # table of `ludb_probe.py`
_DRAWS = 500  # of the bootstrap
_SEED = 20221128


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """A model on a label, out of fold; differences are the model's AUROC minus the other's."""

    table: str  # "labels": scores averaged over seeds; "fewer labels": AUROC averaged over seeds
    label: str
    model: str
    fraction: float  # of the labelled patients of training
    seeds: int
    records: int
    patients: int
    cases: int
    auroc: float
    low: float
    high: float
    other: str  # model that it is compared with, empty where it is not
    difference: float
    difference_low: float
    difference_high: float
    p: float  # not adjusted; 1 where nothing is compared or no test was made
    device: str
    torch: str
    commit: str
    date: str


def on_all_labels(
    is_case: Flags, score: Floats, forest: Floats, patient: Flags
) -> dict[str, float]:
    """AUROC of (n,) scores with the interval of the reports, and the paired test."""
    area = delong(is_case, score, patient)
    test = delong_paired(is_case, score, forest, patient)
    return _numbers(
        *(area.value, area.low, area.high), *(test.difference, test.low, test.high, test.p_value)
    )


def on_fewer_labels(
    is_case: Flags, scores: Sequence[Floats], others: Sequence[Floats] | None, patient: Patients
) -> dict[str, float]:
    """Mean AUROC over seeds; 95 % intervals of a bootstrap that draws patients and seeds.

    Args:
        is_case: (n,).
        scores: of each seed, (n,).
        others: of the model that this one is compared with, seed by seed.
        patient: (n,) numbers of patients from 0.
    """
    rng = np.random.default_rng(_SEED)
    of_patient = [np.flatnonzero(patient == each) for each in np.unique(patient)]
    found: list[tuple[float, float]] = []
    for draw in range(1 + _DRAWS):
        drawn = rng.integers(len(of_patient), size=len(of_patient))
        seeds = rng.integers(len(scores), size=len(scores))
        rows = np.concatenate([of_patient[each] for each in drawn])
        if draw == 0:  # the estimate itself
            rows, seeds = np.arange(len(is_case)), np.arange(len(scores))
        areas = [_area(is_case, scores[seed], rows) for seed in seeds]
        minus = [_area(is_case, others[seed], rows) for seed in seeds] if others else areas
        found.append((float(np.mean(areas)), float(np.mean(areas) - np.mean(minus))))
    (value, difference), drawn_K2 = found[0], np.array(found[1:])
    (low, minus_low), (high, minus_high) = np.quantile(drawn_K2, (0.025, 0.975), axis=0).tolist()
    return _numbers(value, low, high, difference, minus_low, minus_high, 1.0)


def _area(is_case: Flags, score: Floats, rows: NDArray[np.int64]) -> float:
    area = auroc(is_case[rows], score[rows])
    assert area is not None, "a label so rare that a bootstrap misses its cases"
    return area


def _numbers(*found: float | None) -> dict[str, float]:
    names = ("auroc", "low", "high", "difference", "difference_low", "difference_high", "p")
    numbers = {name: value for name, value in zip(names, found, strict=True) if value is not None}
    assert len(numbers) == len(names)
    return numbers


def made_here() -> dict[str, str]:
    """Where and when rows are made."""
    made = next(make_rows({("auroc", ""): [0.0]}, case="evidence", provider=""))
    return {name: getattr(made, name) for name in ("device", "torch", "commit", "date")}


def write(path: Path, rows: Iterable[Evidence]) -> None:
    """Write rows as lines of JSON, rounded to what 495 records can tell."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (
        {name: float(f"{v:.4g}") if isinstance(v, float) else v for name, v in asdict(row).items()}
        for row in rows
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def read(folder: Path) -> list[Evidence]:
    """Rows of every file of a folder."""
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise SystemExit(f"no rows in {folder}; make them with benchmarks/real_evidence.py")
    return [
        Evidence(**json.loads(line)) for file in files for line in file.read_text().splitlines()
    ]


def tables(rows: Sequence[Evidence]) -> str:
    """Markdown of all rows: AUROCs, differences from the forest and their counts, fewer labels."""
    full = [row for row in rows if row.table == "labels"]
    fewer = [row for row in rows if row.table == "fewer labels"]
    text = [*_areas(full), "", *_tests(full), "", *_words(full)]
    ludb = _ludb([row for row in rows if row.table == LUDB])
    return "\n".join([*text, "", "## Fewer labels", "", *_curves(fewer), *ludb])


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table in Markdown."""
    shown = [f"| {' | '.join(cells)} |" for cells in (head, *lines)]
    return [shown[0], "|---" * len(head) + "|", *shown[1:]]


def _ludb(rows: Sequence[Evidence]) -> list[str]:
    """AUROC of each model, then the differences, with p-values as one family."""
    if not rows:
        return []
    tested, of = [row for row in rows if row.other], {row.model: row for row in rows}
    what = f"{rows[0].label} ({rows[0].cases} of {rows[0].patients} patients)"
    areas = ((model, _area_text(of[model])) for model in _names(rows))
    differences = (
        (f"{row.model}, minus {row.other}", _difference_text(row), _p(p))
        for row, p in zip(tested, holm([row.p for row in tested]), strict=True)
    )
    lines = ["", "## Probes on LUDB", "", *_table((what, "AUROC"), areas), ""]
    return lines + _table(("difference", "AUROC", "p"), differences)


def _words(full: Sequence[Evidence]) -> list[str]:
    """How many labels each model is above the forest on, in numbers and beyond chance."""
    p = _adjusted(full)
    lines = []
    for model in (name for name in _names(full) if name != FOREST):
        own = [row for row in full if row.model == model]
        above = sum(row.difference > 0 for row in own)
        signs = [np.sign(row.difference) * (p[row.model, row.label] < 0.05) for row in own]
        lines.append(
            f"- {model}: above the forest on {above} of {len(own)} labels; after Holm better on "
            f"{sum(s > 0 for s in signs)} and worse on {sum(s < 0 for s in signs)}."
        )
    return lines


def _areas(full: Sequence[Evidence]) -> list[str]:
    of = {(row.model, row.label): row for row in full}
    labels = list(dict.fromkeys(row.label for row in full))
    head = ["model", *(f"{label} ({of[FOREST, label].cases})" for label in labels)]
    return _table(
        head,
        ([model, *(_area_text(of[model, label]) for label in labels)] for model in _names(full)),
    )


def _tests(full: Sequence[Evidence]) -> list[str]:
    p, of = _adjusted(full), {(row.model, row.label): row for row in full}
    labels = list(dict.fromkeys(row.label for row in full))
    lines = (
        [model, *(f"{_difference_text(of[model, n])}, p {_p(p[model, n])}" for n in labels)]
        for model in _names(full)
        if model != FOREST
    )
    return _table(["minus the forest", *labels], lines)


def _curves(fewer: Sequence[Evidence]) -> list[str]:
    fractions = sorted({row.fraction for row in fewer})
    of = {(row.label, row.model, row.fraction, row.other): row for row in fewer}
    pairs = dict.fromkeys((row.label, row.model, row.other) for row in fewer)
    labels, lines = list(dict.fromkeys(row.label for row in fewer)), {}
    for label, model, other in sorted(pairs, key=lambda pair: labels.index(pair[0])):
        cells = [of[label, model, fraction, other] for fraction in fractions]
        lines[label, model, ""] = [label, model, *map(_area_text, cells)]
        if other:
            minus = map(_difference_text, cells)
            lines[label, model, other] = [label, f"the same minus {other}", *minus]
    heads = [f"{fraction:.0%} of the patients" for fraction in fractions]
    return _table(["label", "model", *heads], lines.values())


def _names(rows: Sequence[Evidence]) -> list[str]:
    return list(dict.fromkeys(row.model for row in rows))


def _adjusted(full: Sequence[Evidence]) -> dict[tuple[str, str], float]:
    """p-values of all comparisons with the forest, as one family."""
    tested = [row for row in full if row.other]
    adjusted = holm([row.p for row in tested])
    return {(row.model, row.label): p for row, p in zip(tested, adjusted, strict=True)}


def _area_text(row: Evidence) -> str:
    return f"{row.auroc:.3f} ({row.low:.3f}-{row.high:.3f})"


def _difference_text(row: Evidence) -> str:
    return f"{row.difference:+.3f} ({row.difference_low:+.3f} to {row.difference_high:+.3f})"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def main(rows: Path, page: Annotated[Path, typer.Option()]) -> None:
    """Fill a page between its marks with the tables of a folder of rows."""
    page.write_text(fill(page.read_text("utf-8"), tables(read(rows)) + "\n"), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
