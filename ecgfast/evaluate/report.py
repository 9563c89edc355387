"""What `evaluate` writes: the files of a report.

A new section of report.html is a function in findings.py or views.py, its key in `page`, and a
block in report.html.j2.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, FunctionLoader, StrictUndefined

from ecgfast import log
from ecgfast.errors import ConfigError
from ecgfast.evaluate import findings, views
from ecgfast.evaluate.agreement import (
    Agreements,
    agreements,
    plan_of,
    target_beside,
    with_values,
)
from ecgfast.evaluate.figures import Pictures, write_figures
from ecgfast.evaluate.flow import flow
from ecgfast.evaluate.label_efficiency import FILE as EFFICIENCY
from ecgfast.evaluate.label_efficiency import Point, label_efficiency, lines_of, numbers, section
from ecgfast.evaluate.planning import plan_tests
from ecgfast.evaluate.reconstructions import reconstruction
from ecgfast.evaluate.results import Results, compute
from ecgfast.evaluate.saliency import saliencies
from ecgfast.evaluate.scores import SCORES, VALUES, parquet, scores_of
from ecgfast.evaluate.several import FOLDER as TARGETS
from ecgfast.evaluate.several import Several, several
from ecgfast.evaluate.tables import TABLES, csv_text
from ecgfast.runs.column_task import Number
from ecgfast.runs.inference import choose_device
from ecgfast.runs.loading import LoadedRun, load_run, name_runs
from ecgfast.runs.located import located
from ecgfast.runs.outputs import run_at_threshold
from ecgfast.store.durable import writable_folder, write_durably
from ecgfast.store.format import refuse_inside_store
from ecgfast.store.patients import pseudonymous_patients
from ecgfast.store.reader import StoreReader, open_store


def evaluate(
    runs: Sequence[str | Path],
    store: str | Path,
    out: str | Path,
    *,
    target: str | None = None,
    device: str | None = None,
    leads: Sequence[Sequence[str]] = (),
    average: bool = False,
) -> Path:
    """Test fine-tuned runs site by site, show what pretraining runs learned, write a report.

    Args:
        runs: folders of finished runs. Classifiers are compared, the first with each other one;
            pretraining runs give loss curves and reconstructions.
        store: path of the store to test on.
        out: folder for ``report.html``, ``metrics.json``, ``scores.parquet``, ``table3.md``,
            ``.csv`` and ``.tex``, and ``figures/`` as SVG and PDF; of runs on several fractions of
            the labels also for ``label_efficiency.csv``, of runs that learned a number for
            ``values.parquet``.
        target: such as ``ejection_fraction<40``: runs that learned a number are also tested at this
            threshold; None takes that of the classifiers beside them.
        device: "cpu", "cuda" or "cuda:N", that scores records; by default a GPU where there is one.
        leads: sets of names of leads. Each classifier is also tested on each of them, as if records
            had no others: what fewer leads cost.
        average: test recordings instead of records: the mean probability of their windows, whose
            spread stands in scores.parquet and in the notes.
    Returns:
        Path of ``report.html``.
    Raises:
        ConfigError: different targets, nothing to test on, signals preprocessed in another way
            than in training, leads that a run cannot do with, or no such device.
        BackendUnavailableError: a GPU was asked for and there is none.
    """
    out = Path(out)
    refuse_inside_store(out, "--out")
    chosen, reader = choose_device(device), open_store(store)
    loaded = name_runs([load_run(located(run), reader, chosen) for run in runs])
    loaded += [run.on_leads(names) for run in loaded if run.meta.target for names in leads]
    classifiers = [run for run in loaded if run.meta.target]
    if not loaded:
        raise ConfigError("evaluate needs at least one run, got none; name the folders of runs")
    if not classifiers:
        return write_report(out, reader, loaded, None)
    pseudonymous_patients(reader)  # this and the next lines fail now, not after hours of scoring
    target = target_beside(classifiers, target)
    if any(isinstance(run.meta.task, Number) for run in classifiers):
        return _write_numbers(out, reader, loaded, target, average=average)
    if not classifiers[0].meta.task.is_single:
        writable_folder(out)
        return _write_several(out, reader, loaded, several(reader, classifiers, average=average))
    plan = plan_tests(reader, classifiers)
    writable_folder(out)
    results = compute(plan, classifiers, reader, average=average)
    return write_report(out, reader, loaded, results, _points(reader, classifiers, results))


def _write_numbers(
    out: Path, store: StoreReader, runs: Sequence[LoadedRun], target: str | None, *, average: bool
) -> Path:
    """A report of runs that learned a number, and of all classifiers where there is a target."""
    numbers = [run for run in runs if isinstance(run.meta.task, Number)]
    plan = plan_of(store, numbers)
    writable_folder(out)
    scored = {run.name: run for run in with_values(store, numbers, plan, target)}
    found = agreements([*scored.values()], plan, store, average=average)
    if target is None:
        return write_report(out, store, runs, found)
    classifiers = [
        run_at_threshold(scored[run.name], target) if run.name in scored else run
        for run in runs
        if run.meta.target
    ]
    results = compute(plan_tests(store, classifiers), classifiers, store, average=average)
    points = _points(store, classifiers, results)
    return write_report(out, store, runs, results, points, numbers=found)


def _points(store: StoreReader, runs: Sequence[LoadedRun], results: Results) -> Sequence[Point]:
    return label_efficiency(results.plan, store.records, lines_of(runs), results.scores)


def _write_several(
    out: Path, store: StoreReader, runs: Sequence[LoadedRun], found: Several
) -> Path:
    """A report of each target in a folder of its own, and one of all."""
    for old in (out / TARGETS).glob("*/report.html"):  # of an earlier call
        shutil.rmtree(old.parent)
    for name, folder in found.folders.items():
        own, results = found.runs[name], found.results[name]
        write_report(out / TARGETS / folder, store, own, results, _points(store, own, results))
    return write_report(out, store, runs, found)


def write_report(
    out: Path,
    store: StoreReader,
    runs: Sequence[LoadedRun],
    results: Results | Several | Agreements | None,
    points: Sequence[Point] = (),
    claim: Sequence[str] = (),
    *,
    numbers: Agreements | None = None,
) -> Path:
    """Write the files of a report; see `evaluate`.

    Args:
        out: folder, created.
        store: that was tested on.
        runs: all of the report, each with its own name.
        results: of the classifiers among them, None without any.
        points: of the label efficiency, also of classifiers that the report does not have.
        claim: what these show, in sentences, the verdict first; it heads the report too.
        numbers: of the runs that learned one, beside the results at a threshold of it.
    Returns:
        Path of ``report.html``.
    """
    writable_folder(out)
    log.info("drawing the report")
    numbers = results if isinstance(results, Agreements) else numbers
    sections = page(store, runs, results, points, claim, numbers)
    synthetic = store.manifest["synthetic"]
    pictures = Pictures(synthetic=synthetic)
    html = render(sections, pictures)
    metrics = {
        "synthetic": synthetic,
        "store": {"name": store.path.name, "identity": store.identity},
        "disclosures": sections["disclosures"],
        "masked_mse": {view["name"]: view["error"] for view in sections["reconstructions"]},
        **(results.to_json() if results and results is not numbers else {}),
        **({"agreement": numbers.to_json()} if numbers else {}),
        "label_efficiency": [asdict(point) for point in points],
        **({"claim": list(claim)} if claim else {}),
    }
    for name in ("report.html", SCORES, VALUES, EFFICIENCY, *TABLES):  # of an earlier call
        (out / name).unlink(missing_ok=True)
    write_durably(out / "metrics.json", [json.dumps(metrics, indent=1).encode() + b"\n"])
    if numbers is not None:
        write_durably(out / VALUES, [parquet(numbers.value_table(store))])
    if results is not None:
        table = findings.table3(results) if isinstance(results, Results) else results.table()
        if isinstance(results, Results):
            write_durably(out / SCORES, [parquet(scores_of(store, results))])
        elif isinstance(results, Several):
            write_durably(out / SCORES, [parquet(results.score_table(store))])
        words = caption_of(store, results)
        for name, written in TABLES.items():
            write_durably(out / name, [written(table, words).encode()])
        write_efficiency(out, points, words)
    write_figures(out, sections, pictures)
    write_durably(out / "report.html", [html.encode()])
    return out / "report.html"


def write_efficiency(out: Path, points: Sequence[Point], caption: str) -> None:
    """Write label_efficiency.csv, where there are points.

    Args:
        out: folder that exists.
        points: of the label efficiency.
        caption: what the data are.
    """
    if points:
        write_durably(out / EFFICIENCY, [csv_text(numbers(points), caption).encode()])


def caption_of(store: StoreReader, results: Results | Several | Agreements) -> str:
    """What the data of a table are, synthetic ones first."""
    mark = "SYNTHETIC " if store.manifest["synthetic"] else ""
    return log.plain(f"{mark}{views.heading(store, results)}")


def page(
    store: StoreReader,
    runs: Sequence[LoadedRun],
    found: Results | Several | Agreements | None,
    points: Sequence[Point],
    claim: Sequence[str] = (),
    numbers: Agreements | None = None,
) -> views.View:
    """Everything that the template shows, by section.

    Args:
        store: that was tested on.
        runs: all of the report.
        found: of the classifiers among them, None without any.
        points: of the label efficiency.
        claim: what these show.
        numbers: of the runs that learned one.
    """
    results = found if isinstance(found, Results) else None
    classifiers = [run for run in runs if not (numbers and run.name in numbers.values)]
    return {
        "heading": views.heading(store, found),
        "made_with": views.made_with(),
        "disclosures": views.disclosures(store, runs, found),
        "key_finding": [
            *claim[:1],
            *(findings.key_finding(results) if results else []),
            *(numbers.key_finding() if numbers else []),
        ],
        "flow": flow(store, runs, results),
        "cohort": _cohort(store, found),
        "agreement": numbers and numbers.view(),
        "several": found.view() if isinstance(found, Several) else None,
        "detection": results and findings.detection(results),
        "comparison": results and findings.comparison(results),
        "label_efficiency": section(points, claim),
        "baselines": results and findings.baselines(results),
        "operating": results and findings.operating(results),
        "calibration": results and findings.calibration(results),
        "net_benefit": results and findings.net_benefit(results),
        "groups": results and findings.groups(results),
        "training": views.training(runs),
        "reconstructions": [reconstruction(run, store) for run in runs if not run.meta.target],
        "saliencies": saliencies(classifiers, results, store) if results else [],
        "origin": views.origin(store, runs),
    }


def _cohort(store: StoreReader, found: Results | Several | Agreements | None) -> views.Table:
    if isinstance(found, Agreements):
        return found.cohort(store)
    if isinstance(found, Results):
        return views.cohort(store, found.plan.target, found.plan.truth)
    return views.cohort(store, None)


def render(sections: views.View, pictures: Pictures, *, template: str = "report.html.j2") -> str:
    r"""Return a page; characters that it cannot hold are written as \x1b.

    Args:
        sections: what the template shows: for the report, from `page`.
        pictures: of the figures of these; they say whether the data are synthetic.
        template: its file beside this one.
    """
    environment = Environment(
        loader=FunctionLoader(_template),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        finalize=lambda value: log.plain(value) if type(value) is str else value,  # no Markup
    )
    environment.globals["data_uri"] = pictures.data_uri
    return environment.get_template(template).render(sections, synthetic=pictures.synthetic)


def _template(name: str) -> str:
    return (files("ecgfast.evaluate") / name).read_text(encoding="utf-8")
