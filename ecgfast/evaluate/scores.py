"""scores.parquet: the probability of every record that tests a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ecgfast.errors import ShapeError
from ecgfast.evaluate.planning import TestPlan
from ecgfast.evaluate.results import Results
from ecgfast.store.patients import pseudonymous_patients
from ecgfast.store.reader import StoreReader

SCORES, VALUES = "scores.parquet", "values.parquet"
SCHEMA = pa.schema(
    [
        pa.field("run", pa.string(), nullable=False),
        pa.field("cohort", pa.string(), nullable=False),
        pa.field("record_id", pa.string(), nullable=False),
        pa.field("patient_id", pa.string()),
        pa.field("site", pa.string()),
        pa.field("split", pa.string()),
        pa.field("is_case", pa.bool_(), nullable=False),
        pa.field("probability", pa.float64(), nullable=False),
    ]
)


def scores_of(store: StoreReader, results: Results) -> pa.Table:
    """Rows of scores.parquet: every probability behind a report, under pseudonyms.

    Where the windows of each recording are averaged, its spread is in further columns.
    """
    columns = {name: store.records[name].to_pylist() for name in ("site", "split")}
    columns["record_id"] = _record_names(store)
    columns["patient_id"] = pseudonymous_patients(store).to_pylist()
    plan, tables = results.plan, []
    for run, probability in results.scores.items():
        own = {name: by_run[run] for name, by_run in plan.cohorts.items() if run in by_run}
        table = scores_table(columns, plan.is_case, own, {run: probability})
        if run in results.windows:
            rows = plan.rows_of(run)
            for name, values in vars(results.windows[run]).items():
                table = table.append_column(f"windows_{name}", pa.array(values[rows]))
        tables.append(table)
    return pa.concat_tables(tables)


def values_table(
    store: StoreReader,
    plan: TestPlan,
    measured: NDArray[np.float64],
    values: Mapping[str, NDArray[np.float64]],
) -> pa.Table:
    """Rows of values.parquet: every number behind a report, under pseudonyms.

    Args:
        store: that was tested on.
        plan: which records tested each run.
        measured: (N,) labels.
        values: run's name -> (N,) predicted numbers.
    """
    columns = {name: store.records[name].to_pylist() for name in ("site", "split")}
    columns["record_id"] = _record_names(store)
    columns["patient_id"] = pseudonymous_patients(store).to_pylist()
    tables = []
    for run, predicted in values.items():
        own = {name: by_run[run] for name, by_run in plan.cohorts.items() if run in by_run}
        table = scores_table(columns, plan.is_case, own, {run: predicted})
        rows = plan.rows_of(run)
        table = table.drop_columns(["is_case", "probability"])
        table = table.append_column("measured", pa.array(measured[rows]))
        tables.append(table.append_column("predicted", pa.array(predicted[rows])))
    return pa.concat_tables(tables)


def parquet(table: pa.Table) -> bytes:
    """Bytes of a table as a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    data: bytes = sink.getvalue().to_pybytes()
    return data


def read_scores(path: Path, store: StoreReader) -> NDArray[np.float64]:
    """(N,) probabilities of a store's records from scores.parquet of one run; NaN where none is.

    Args:
        path: of the file.
        store: that the run was tested on.
    """
    written = pq.read_table(path, columns=["record_id", "probability"]).to_pydict()
    known = dict(zip(written["record_id"], written["probability"], strict=True))
    return np.array([known.get(name, np.nan) for name in _record_names(store)], dtype=np.float64)


def _record_names(store: StoreReader) -> list[str]:
    """What records are called: of a store that keeps readable ids by their row, as in pictures."""
    if store.manifest["identifiers"] == "kept":
        return [f"row {row}" for row in range(len(store))]
    names: list[str] = store.records["record_id"].to_pylist()
    return names


def scores_table(
    records: Mapping[str, Sequence[str | None]],
    is_case: NDArray[np.bool_],
    cohorts: Mapping[str, NDArray[np.int64]],
    scores: Mapping[str, NDArray[np.float64]],
) -> pa.Table:
    """One row for every run and every record that it was tested on.

    Args:
        records: columns record_id, patient_id, site and split, each with N values.
        is_case: (N,) bool.
        cohorts: name -> (n,) rows, each with a known label. A record in several of them, such as
            a site and all sites together, has the name of the first.
        scores: run's name -> (N,) float64 probabilities; only those at the rows are looked at.
    Returns:
        A table of `SCHEMA`, by run, then by row of the store.
    Raises:
        ShapeError: a column has another length than `is_case`, or a record of a cohort has no
            probability.
    """
    num_records = len(is_case)
    columns = {name: records[name] for name in ("record_id", "patient_id", "site", "split")}
    lengths = {name: len(values) for name, values in columns.items()}
    lengths |= {name: len(values) for name, values in scores.items()}
    for name, length in lengths.items():
        if length != num_records:
            raise ShapeError(
                f"{name} must have one value per record, {num_records}, got {length}; give whole "
                "columns of the store"
            )
    named = np.full(num_records, -1)
    for number, rows in reversed(list(enumerate(cohorts.values()))):
        named[rows] = number
    chosen = np.flatnonzero(named >= 0)
    names = np.array(list(cohorts), dtype=object)
    parts = []
    for run, probability in scores.items():
        if missing := int((~np.isfinite(probability[chosen])).sum()):
            raise ShapeError(
                f"run {run} has no probability for {missing} of {len(chosen)} tested records; "
                "score every row of every cohort"
            )
        parts.append(
            pa.table(
                {
                    "run": [run] * len(chosen),
                    "cohort": names[named[chosen]].tolist(),
                    **{
                        name: [values[row] for row in chosen.tolist()]
                        for name, values in columns.items()
                    },
                    "is_case": is_case[chosen],
                    "probability": probability[chosen],
                },
                schema=SCHEMA,
            )
        )
    return pa.concat_tables(parts) if parts else SCHEMA.empty_table()
