"""What `evaluate` and `reconstruct` write: the files of a report, and the picture of one record.

A new section of report.html is a function in findings.py or views.py, its key in `page`, and a
block in report.html.j2.
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jinja2 import Environment, StrictUndefined
from numpy.typing import NDArray

from ecgfast import log
from ecgfast.errors import ConfigError, ShapeError
from ecgfast.evaluate import charts, findings, views
from ecgfast.evaluate.planning import plan_tests
from ecgfast.evaluate.results import Results, compute
from ecgfast.model.mae import MaskedAutoencoder
from ecgfast.records import LEADS
from ecgfast.runs.ecg_paper import draw
from ecgfast.runs.inference import fill_in
from ecgfast.runs.loading import LoadedRun, load_run, name_runs
from ecgfast.store.csv_files import csv_lines
from ecgfast.store.durable import write_durably
from ecgfast.store.format import refuse_to_replace
from ecgfast.store.patients import pseudonymous_patients
from ecgfast.store.reader import StoreReader, open_store

SCORES = "scores.parquet"
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
_LATEX = str.maketrans(
    {
        **{sign: rf"\{sign}" for sign in "&%$#_{}"},
        **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
        **{"<": r"\textless{}", ">": r"\textgreater{}"},
    }
)


def evaluate(runs: Sequence[Path], store: Path, out: Path) -> Path:
    """Test fine-tuned runs site by site, show what pretraining runs learned, write a report.

    Args:
        runs: folders of finished runs. Classifiers are compared, the first with each other one;
            pretraining runs give loss curves and reconstructions.
        store: path of the store to test on.
        out: folder for ``report.html``, ``metrics.json``, ``scores.parquet`` and
            ``table3.md``, ``.csv`` and ``.tex``.
    Returns:
        Path of ``report.html``.
    Raises:
        ConfigError: different targets, nothing to test on, or signals preprocessed in another way
            than in training.
    """
    reader = open_store(store)
    loaded = name_runs([load_run(run, reader) for run in runs])
    classifiers = [run for run in loaded if run.meta.target]
    if not loaded:
        raise ConfigError("evaluate needs at least one run, got none; name the folders of runs")
    results = None
    if classifiers:
        plan = plan_tests(reader, classifiers)
        pseudonymous_patients(reader)  # this and the next line fail now, not after hours of scoring
        out.mkdir(parents=True, exist_ok=True)
        results = compute(plan, classifiers, reader)
    out.mkdir(parents=True, exist_ok=True)
    log.info("drawing the report")
    sections = page(reader, loaded, results)
    synthetic = reader.manifest["synthetic"]
    html = render(sections, synthetic=synthetic)
    metrics = {
        "synthetic": synthetic,
        "store": {"name": reader.path.name, "identity": reader.identity},
        "disclosures": sections["disclosures"],
        "masked_mse": {view["name"]: view["error"] for view in sections["reconstructions"]},
        **(results.to_json() if results else {}),
    }
    for name in ("report.html", SCORES, *TABLES):  # of an earlier call: of other numbers
        (out / name).unlink(missing_ok=True)
    write_durably(out / "metrics.json", [json.dumps(metrics, indent=1).encode() + b"\n"])
    if results is not None:
        write_durably(out / SCORES, [_scores(reader, results)])
        mark = "SYNTHETIC " if synthetic else ""
        table, caption = findings.table3(results), log.plain(f"{mark}{sections['heading']}")
        for name, written in TABLES.items():
            write_durably(out / name, [written(table, caption).encode()])
    write_durably(out / "report.html", [html.encode()])
    return out / "report.html"


def page(store: StoreReader, runs: Sequence[LoadedRun], results: Results | None) -> views.View:
    """Everything that the template shows, by section.

    Args:
        store: that was tested on.
        runs: all of the report.
        results: of the classifiers among them, None without any.
    """
    return {
        "heading": views.heading(store, results),
        "made_with": views.made_with(),
        "disclosures": views.disclosures(store, runs, results),
        "key_finding": findings.key_finding(results) if results else [],
        "flow": views.flow(store, results),
        "cohort": views.cohort(store, results.plan.target if results else None),
        "detection": results and findings.detection(results),
        "comparison": results and findings.comparison(results),
        "age_and_sex": results and findings.age_and_sex(results),
        "operating": results and findings.operating(results),
        "calibration": results and findings.calibration(results),
        "net_benefit": results and findings.net_benefit(results),
        "groups": results and findings.groups(results),
        "training": views.training(runs),
        "reconstructions": [
            views.reconstruction(run, store) for run in runs if not run.meta.target
        ],
        "origin": views.origin(store, runs),
    }


def render(sections: views.View, *, synthetic: bool) -> str:
    r"""Return report.html; characters that a page cannot hold are written as \x1b.

    Args:
        sections: from `page`.
        synthetic: mark the heading and every figure.
    """
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        finalize=lambda value: log.plain(value) if type(value) is str else value,  # no Markup
    )
    template = files("ecgfast.evaluate") / "report.html.j2"
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        sections, synthetic=synthetic, data_uri=partial(charts.data_uri, synthetic=synthetic)
    )


def markdown(table: views.Table, caption: str) -> str:
    """Return a table as Markdown, what the data are in its first line."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(log.plain(cell).replace('|', chr(92) + '|') for cell in cells)} |"

    rule = ["---", *["---:"] * (len(table.header) - 1)]
    lines = [line(table.header), line(rule), *map(line, table.rows)]
    return f"{caption}\n\n" + "\n".join(lines) + "\n"


def csv_text(table: views.Table, caption: str) -> str:
    """Return a table as CSV, what the data are in its first column."""
    rows = [("data", *table.header), *((caption, *row) for row in table.rows)]
    return csv_lines([[log.plain(cell) for cell in row] for row in rows])


def latex(table: views.Table, caption: str) -> str:
    """Return a table as LaTeX (package booktabs), what the data are in its caption."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join(log.plain(cell).translate(_LATEX) for cell in cells) + r" \\"

    return "\n".join(
        (
            r"\begin{table}",
            rf"\caption{{{caption.translate(_LATEX)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}",
            r"\toprule",
            line(table.header),
            r"\midrule",
            *map(line, table.rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        )
    )


TABLES = {"table3.md": markdown, "table3.csv": csv_text, "table3.tex": latex}


def _scores(store: StoreReader, results: Results) -> bytes:
    """scores.parquet: every probability behind the report, under pseudonyms.

    Of a store that keeps readable ids, a record is called by its row, as in pictures.
    """
    columns = {name: store.records[name].to_pylist() for name in ("record_id", "site", "split")}
    columns["patient_id"] = pseudonymous_patients(store).to_pylist()
    if store.manifest["identifiers"] == "kept":
        columns["record_id"] = [f"row {row}" for row in range(len(store))]
    plan, tables = results.plan, []
    for run, probability in results.scores.items():
        own = {name: by_run[run] for name, by_run in plan.cohorts.items() if run in by_run}
        tables.append(scores_table(columns, plan.is_case, own, {run: probability}))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.concat_tables(tables), sink, compression="zstd")
    data: bytes = sink.getvalue().to_pybytes()
    return data


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


def reconstruct(
    run: Path, store: Path, *, record_id: str, out: Path, leads: Sequence[str] = LEADS
) -> Path:
    """Draw one record as original, masked and reconstructed.

    Args:
        run: folder of a pretraining run.
        store: path of a store.
        record_id: as records.parquet has it, or the beginning of one alone, as pictures show it.
        out: PNG to write.
        leads: names of the leads to draw.
    Returns:
        `out`.
    Raises:
        ConfigError: no such record, several of them, a run without a decoder, or `out` is a file
            that is no picture.
    """
    refuse_to_replace(out, "--out", b"\x89PNG", "picture")
    reader = open_store(store)
    row = row_of(reader, record_id)
    loaded = load_run(run, reader)
    if not isinstance(loaded.model, MaskedAutoencoder):
        raise ConfigError(f"{run} must be a pretraining run, got a classifier: it has no decoder")
    normalisation = loaded.meta.preprocessing.normalisation
    (result,) = fill_in(loaded.model, loaded.config, normalisation, reader, np.array([row]))
    out.parent.mkdir(parents=True, exist_ok=True)
    draw(reader, result, leads).savefig(out, format="png")
    return out


def row_of(store: StoreReader, record_id: str) -> int:
    """Return the row of a record by its id, or by a beginning that no other id has.

    Raises:
        ConfigError: no such record, or several.
    """
    names: list[str] = store.records["record_id"].to_pylist()
    if record_id in names:
        return names.index(record_id)
    rows = [row for row, name in enumerate(names) if name.startswith(record_id)]
    if not rows:
        raise ConfigError(
            f"no record {record_id!r} in {store.path}; allowed: the record_id column of "
            "records.parquet"
        )
    if len(rows) > 1:
        raise ConfigError(
            f"{len(rows)} records of {store.path} begin with {record_id!r}, such as "
            f"{names[rows[0]]} and {names[rows[1]]}; give more of one"
        )
    return rows[0]
