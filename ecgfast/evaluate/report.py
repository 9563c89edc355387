"""report.html and metrics.json: runs compared site by site, on one self-contained page."""

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ecgfast import log
from ecgfast.errors import ConfigError
from ecgfast.evaluate import page
from ecgfast.evaluate.cohort import is_synthetic
from ecgfast.evaluate.disclosure import disclosures
from ecgfast.evaluate.results import Results, compute
from ecgfast.evaluate.runs import LoadedRun, load_run, name_runs
from ecgfast.evaluate.score_table import scores_table
from ecgfast.evaluate.scores import plan_tests
from ecgfast.evaluate.sections import (
    calibration_section,
    cohort_section,
    comparison_section,
    loss_section,
    origin_section,
    reconstruction_section,
    result_section,
)
from ecgfast.store.durable import write_durably
from ecgfast.store.patients import is_unnamed
from ecgfast.store.reader import StoreReader, open_store

SCORES = "scores.parquet"


def evaluate(runs: Sequence[Path], store: Path, out: Path) -> Path:
    """Test fine-tuned runs site by site, show what pretraining runs learned, write a report.

    Args:
        runs: folders of finished runs. Classifiers are compared, the first with each other one;
            pretraining runs give loss curves and reconstructions.
        store: path of the store to test on.
        out: folder for ``report.html``, ``metrics.json`` and ``scores.parquet``.
    Returns:
        Path of ``report.html``.
    Raises:
        ConfigError: different targets, nothing to test on, or signals preprocessed in another way
            than in training.
    """
    reader = open_store(store)
    loaded = name_runs([load_run(run, reader) for run in runs])
    classifiers = [run for run in loaded if run.target]
    pretrained = [run for run in loaded if not run.target]
    if not loaded:
        raise ConfigError("evaluate needs at least one run, got none; name the folders of runs")
    results = None
    if classifiers:
        plan = plan_tests(reader, classifiers)
        out.mkdir(parents=True, exist_ok=True)  # said now, not after hours of scoring
        results = compute(plan, classifiers, reader)
    out.mkdir(parents=True, exist_ok=True)
    log.info("drawing the report")
    reconstructions = {run.name: reconstruction_section(run, reader) for run in pretrained}
    said = disclosures(reader, loaded, results)
    sections = [page.warnings(said)] if said else []
    sections += _sections(reader, results, loaded, [html for html, _ in reconstructions.values()])
    synthetic = is_synthetic(reader)
    html = page.page(_first_line(reader, results), sections, synthetic=synthetic)
    metrics = {
        "synthetic": synthetic,
        "store": {"name": reader.path.name, "identity": reader.identity},
        "disclosures": said,
        "masked_mse": {name: error for name, (_, error) in reconstructions.items()},
        **(results.to_json() if results else {}),
    }
    for name in ("report.html", SCORES):  # of an earlier call, which were no match for these
        (out / name).unlink(missing_ok=True)
    write_durably(out / "metrics.json", [json.dumps(metrics, indent=1).encode() + b"\n"])
    if results is not None:
        write_durably(out / SCORES, [_scores(reader, results)])
    write_durably(out / "report.html", [html.encode()])
    return out / "report.html"


def _scores(store: StoreReader, results: Results) -> bytes:
    """scores.parquet: every probability behind the report."""
    names = ("record_id", "patient_id", "site", "split")
    columns = {name: store.records[name].to_pylist() for name in names}
    plan, tables = results.plan, []
    for run, probability in results.scores.items():
        own = {name: by_run[run] for name, by_run in plan.cohorts.items() if run in by_run}
        tables.append(scores_table(columns, plan.is_case, own, {run: probability}))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.concat_tables(tables), sink, compression="zstd")
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _first_line(store: StoreReader, results: Results | None) -> str:
    sites = len(set(store.records["site"].to_pylist()))
    task = f", {results.plan.target}" if results else ""
    unnamed = int(is_unnamed(store.records).sum())
    doubt = f"; {unnamed:,} ECGs name no patient" if unnamed else ""
    return (
        f"data: {store.path.name}, {len(store):,} ECGs of {sites} "
        f"{'site' if sites == 1 else 'sites'}{task}{doubt}"
    )


def _sections(
    store: StoreReader,
    results: Results | None,
    runs: Sequence[LoadedRun],
    reconstructions: Sequence[str],
) -> list[str]:
    cohort = cohort_section(store, results.plan.target if results else None)
    end = [loss_section(runs), *reconstructions]
    origin = origin_section(store, runs, results)
    if results is None:
        return [cohort, *end, origin]
    first = [result_section(results), comparison_section(results)]
    return [*first, cohort, *end, calibration_section(results), origin]
