"""The study's table 3 over all columns of a plan, and the report behind it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ecgfast.errors import ResumeError
from ecgfast.evaluate.findings import table3
from ecgfast.evaluate.label_efficiency import Point, label_efficiency
from ecgfast.evaluate.planning import plan_tests
from ecgfast.evaluate.report import caption_of, write_efficiency, write_report
from ecgfast.evaluate.results import Results, compute
from ecgfast.evaluate.scores import SCORES, read_scores
from ecgfast.evaluate.tables import TABLES
from ecgfast.evaluate.views import Table
from ecgfast.reproduce.cells import PRODUCT, Cell, is_finished, outcome_of
from ecgfast.reproduce.plan import Plan
from ecgfast.runs.digests import problem
from ecgfast.runs.loading import LoadedRun, load_run
from ecgfast.runs.register import seen
from ecgfast.store.durable import write_durably
from ecgfast.store.reader import StoreReader

READ = "\N{DAGGER}"  # behind a number: pretraining had read records that test it
_READ_WORDS = f"{READ} pretraining had read, without labels, ECGs of patients who are tested here"


def write_table(plan: Plan, store: StoreReader, cells: Sequence[Cell], out: Path) -> Path | None:
    """Write table3.md, table3.csv, table3.tex and report/ of the columns that are finished.

    They have the largest fraction of the labels; label_efficiency.csv, and that section of the
    report, have all. Scores are those that the evaluations wrote: nothing is computed twice on a
    GPU.

    Args:
        plan: of the experiment.
        store: that it is on.
        cells: of the plan.
        out: folder of the experiment.
    Returns:
        path of table3.md; None where no column is finished.
    Raises:
        ResumeError: a file of a finished cell is not what it wrote.
    """
    tests = [cell for cell in cells if cell.kind == "evaluate"]
    largest = max((cell.fraction for cell in tests), default=1.0)
    columns = [cell for cell in tests if cell.fraction == largest]
    finished = [cell for cell in tests if is_finished(cell)]
    # the report compares the first one, which shall be pretrained, with the others
    finished.sort(key=lambda cell: not cell.needs[0].needs)
    runs = {cell.column: _loaded(cell, store) for cell in finished}
    classifiers = [runs[cell.column] for cell in finished if cell.fraction == largest]
    if not classifiers:
        return None
    encoders = [
        replace(_run_of(cell, store), name=f"Pretraining {cell.folder.name}")
        for cell in cells
        if cell.kind == "pretrain" and is_finished(cell)
    ]
    results = compute(plan_tests(store, classifiers), classifiers, store)
    points = _label_efficiency(store, finished, runs)
    write_report(out / "report", store, [*classifiers, *encoders], results, points)
    write_efficiency(out, points, caption_of(store, results))
    table, notes = _table(plan, store, columns, classifiers, results)
    words = "; ".join((caption_of(store, results), *notes))
    for name, written in TABLES.items():
        write_durably(out / name, [written(table, words).encode()])
    return out / "table3.md"


def _loaded(cell: Cell, store: StoreReader) -> LoadedRun:
    """The classifier of a finished evaluation, with the scores that it gave.

    Raises:
        ResumeError: a file of the two cells is not what they wrote.
    """
    run = _run_of(cell.needs[0], store)
    _require_written(cell)
    return replace(run, name=cell.column, scores=read_scores(cell.folder / SCORES, store))


def _run_of(cell: Cell, store: StoreReader) -> LoadedRun:
    """The run of a finished training, unless it is damaged."""
    _require_written(cell)
    try:
        return load_run(cell.folder, store)
    except ResumeError as error:
        raise ResumeError(f"cell {cell.name}: {error}; {_again(cell)}") from error


def _require_written(cell: Cell) -> None:
    """Refuse what another process than that of the cell has written, or damaged, since."""
    name, outcome = PRODUCT[cell.kind], outcome_of(cell.folder)
    written = outcome.files.get(name) if outcome else None
    if why := problem(cell.folder, name, written):
        raise ResumeError(
            f"{cell.folder} holds other files than cell {cell.name} wrote: {why}; restore them "
            f"from a copy; {_again(cell)}"
        )


def _again(cell: Cell) -> str:
    return f"to do it again, move {cell.folder} away and start reproduce once more"


def _label_efficiency(
    store: StoreReader, finished: Sequence[Cell], runs: Mapping[str, LoadedRun]
) -> list[Point]:
    lines: dict[str, list[LoadedRun]] = {}
    for cell in finished:
        lines.setdefault(cell.line, []).append(runs[cell.column])
    scores = {name: run.scores for name, run in runs.items() if run.scores is not None}
    plan = plan_tests(store, list(runs.values()))
    return label_efficiency(plan, store.records, lines, scores)


def _table(
    plan: Plan,
    store: StoreReader,
    columns: Sequence[Cell],
    classifiers: Sequence[LoadedRun],
    results: Results,
) -> tuple[Table, list[str]]:
    """The report's own table, in the order of the plan, with marks and with what is not done."""
    plain = table3(results)
    place = {name: number for number, name in enumerate(results.names)}
    marked = _read_before(store, classifiers, results)
    hidden = {f"site {site}" for site in set(map(str, store.records["site"].to_pylist()))}
    hidden -= {f"site {site}" for site in plan.sites}
    rows: list[Sequence[str]] = []
    notes: list[str] = []
    for cohort, counts, *cells in plain.rows:
        if cohort.rpartition(", ")[0] in hidden:
            continue
        row = [cohort, counts]
        for column in columns:
            if column.column not in place:
                row.append(_state_of(column))
            elif (cohort, column.column) in marked:
                row.append(f"{cells[place[column.column]]} {READ}")
            else:
                row.append(cells[place[column.column]])
        rows.append(row)
    if any(READ in cell for row in rows for cell in row):
        notes.append(_READ_WORDS)
    notes += [
        f"{column.column}: {_state_of(column)}" for column in columns if column.column not in place
    ]
    header = (*plain.header[:2], *(f"{column.column}: AUROC (95 % CI)" for column in columns))
    return Table(header=header, rows=rows), notes


def _read_before(
    store: StoreReader, classifiers: Sequence[LoadedRun], results: Results
) -> set[tuple[str, str]]:
    """Cohorts and columns where pretraining has read records that are tested."""
    found = set()
    for run in classifiers:
        assert run.register is not None  # load_run refuses classifiers without
        read = seen(run.register, store).read
        for cohort, by_run in results.plan.cohorts.items():
            if run.name in by_run and bool(np.any(read[by_run[run.name]])):
                found.add((cohort, run.name))
    return found


def _state_of(evaluation: Cell) -> str:
    """What a column that is not finished shows: "no weights", or "failed"."""
    found = (outcome_of(cell.folder) for cell in (*evaluation.needs, evaluation))
    states = [outcome.state for outcome in found if outcome and outcome.state != "finished"]
    return "no ImageNet weights" if "no weights" in states else "failed"
