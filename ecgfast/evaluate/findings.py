"""What a report says of its numbers: one function per section, which returns text and tables."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from ecgfast.evaluate import charts
from ecgfast.evaluate.baselines import areas_of
from ecgfast.evaluate.cohort import FEWEST
from ecgfast.evaluate.discrimination import Auroc, PairedTest
from ecgfast.evaluate.interval import Interval
from ecgfast.evaluate.operating import Calibration, OperatingPoint, Recalibration
from ecgfast.evaluate.planning import POOLED
from ecgfast.evaluate.results import CohortResult, Results
from ecgfast.evaluate.views import Table, View
from ecgfast.labels.expression import Clause, Expression, Junction, Negation, parse

_AS_GIVEN, _CORRECTED = "as the network gives them", "recalibrated on validation"
_COMPARED = {
    "<": "below",
    "<=": "of at most",
    ">": "above",
    ">=": "of at least",
    "=": "=",
    "!=": "other than",
    "~": "containing",
    "in": "one of",
}
_POINTS = {"youden": "Youden index", "sensitivity_90": "sensitivity 90 %"}
_UNITS = {"ejection_fraction": " %"}


def in_words(target: str) -> str:
    """A target as a reader says it, such as "ejection fraction below 40 %"."""
    return _said(parse(target))


def _said(part: Expression) -> str:
    match part:
        case Clause(column=column, op=op, value=value):
            return f"{column.replace('_', ' ')} {_COMPARED[op]} {value}{_UNITS.get(column, '')}"
        case Negation(part=inner):
            return f"not ({_said(inner)})"
    return f" {part.word} ".join(
        f"({_said(inner)})" if isinstance(inner, Junction) else _said(inner) for inner in part.parts
    )


def key_finding(results: Results) -> list[str]:
    """What the report found of its first run, in sentences, the main number first."""
    (first, *others), cohort = results.names, results.plan.main_cohort
    result = results.cohorts[cohort].get(first)
    if result is None:
        return [f"{first} is not tested on {cohort}."]
    area = result.auroc
    words = in_words(results.plan.target)
    what = f"{words[:1].upper()}{words[1:]}, {cohort}"
    if area.value is None:
        return [f"{what}: AUROC of {first} is not defined, {area.reason}."]
    sentences = [
        f"{what}: AUROC of {first} {with_interval(area, digits=3)}, "
        f"{area.num_cases:,} cases among {area.num_cases + area.num_controls:,} ECGs."
    ]
    for name in others:
        if test := results.paired[cohort].get(name):
            corrected = p_text(results.p_holm.get(cohort, {}).get(name))
            difference, p_value = difference_and_p(test)
            sentences.append(
                f"{first} minus {name}: {difference}; p {p_value}, corrected for all comparisons "
                f"{corrected}."
            )
    for name, baseline in results.baselines.items():
        if against := baseline.cohorts.get(cohort, {}).get(first):
            sentences.append(
                f"{name[:1].upper()}{name[1:]} alone: {with_interval(against.auroc, digits=3)}; "
                f"{first} minus that: {difference_and_p(against.run_minus)[0]}."
            )
    if point := result.operating:
        sentences.append(
            f"At the threshold that validation fixed: sensitivity "
            f"{with_interval(point.sensitivity)}, specificity {with_interval(point.specificity)}."
        )
    return sentences


def detection(results: Results) -> View:
    """AUROC and average precision of every run at every site: tables, intervals, ROC curves."""
    areas = results.each(lambda result: result.auroc)
    notes: list[str] = []
    for cohort, by_run in areas.items():
        notes += dict.fromkeys(f"{cohort}: {_why(a)}" for a in by_run.values() if a.reason)
    curves = {
        cohort: by_run
        for cohort, by_run in results.each(lambda r: (r.is_case, r.probability)).items()
        if all(area.value is not None for area in areas[cohort].values())
    }
    precision = [
        (
            cohort,
            "; ".join(dict.fromkeys(_prevalence(result) for result in by_run.values())),
            *(
                with_interval(by_run[name].average_precision) if name in by_run else "-"
                for name in results.names
            ),
        )
        for cohort, by_run in results.cohorts.items()
    ]
    shown = {
        cohort: {**by_run, **areas_of(results.baselines, results.plan, cohort)}
        for cohort, by_run in areas.items()
    }
    header = ("cohort", "prevalence", *(f"{name}: AUPRC (95 % CI)" for name in results.names))
    return {
        "target": results.plan.target,
        "in_words": in_words(results.plan.target),
        "table": table3(results),
        "precision": Table(header=header, rows=precision, sums=_sums(areas)),
        "notes": [*notes, *results.plan.notes],
        "areas": charts.auroc_by_site(shown) if curves else [],
        "curves": charts.roc_curves(curves),
    }


def table3(results: Results) -> Table:
    """AUROC of every run (columns) on every cohort (rows), as the study's table 3 has it."""
    areas = results.each(lambda result: result.auroc)
    rows: list[Sequence[str]] = []
    for cohort, by_run in areas.items():
        cells = [_area(by_run[name]) if name in by_run else "-" for name in results.names]
        counts = dict.fromkeys(f"{a.num_cases} / {a.num_controls}" for a in by_run.values())
        rows.append((cohort, "; ".join(counts), *cells))
    names = (f"{name}: AUROC (95 % CI)" for name in results.names)
    return Table(header=("cohort", "cases / controls", *names), rows=rows, sums=_sums(areas))


def comparison(results: Results) -> View | None:
    """Paired tests of the first run against every other; None with a single run."""
    first, *others = results.names
    if not others:
        return None
    header = ("cohort", "minus", "difference (95 % CI)", "p", "p, Holm")
    rows: list[Sequence[str]] = []
    sums: list[int] = []
    for number, (cohort, tests) in enumerate(results.paired.items()):
        corrected = results.p_holm.get(cohort, {})
        tested = [name for name in others if name in tests]
        if number in _sums(results.paired):
            sums += range(len(rows), len(rows) + len(tested))
        rows += [
            (cohort, name, *difference_and_p(tests[name]), p_text(corrected.get(name)))
            for name in tested
        ]
    number = sum(map(len, results.p_holm.values()))
    table = Table(header=header, rows=rows, sums=sums)
    return {"first": first, "table": table, "num_tests": number}


def baselines(results: Results) -> View:
    """What simple models reach, and what each run adds to them."""
    simple = results.baselines
    header = ["cohort", "run"]
    for kind in simple:
        header += [f"{kind}: AUROC (95 % CI)", "run minus that (95 % CI)"]
    rows = []
    for cohort, by_run in results.cohorts.items():
        for name in by_run:
            found = [baseline.cohorts.get(cohort, {}).get(name) for baseline in simple.values()]
            cells = [
                cell
                for each in found
                for cell in (
                    (_area(each.auroc), difference_and_p(each.run_minus)[0]) if each else ("-", "-")
                )
            ]
            if any(found):
                rows.append((cohort, name, *cells))
    notes: dict[str, list[str]] = {}
    for kind, baseline in simple.items():
        for name in results.plan.training:
            how = baseline.how.get(name) or f"not fitted, {baseline.not_fitted.get(name)}"
            notes.setdefault(f"{kind}: {how}.", []).append(name)
    return {
        "table": Table(header=header, rows=rows),
        "notes": [f"Beside {', '.join(runs)}, {note}" for note, runs in notes.items()],
    }


def operating(results: Results) -> Table:
    """What every threshold that validation fixed does to every cohort."""
    header = ("cohort", "run", "threshold", "sensitivity", "specificity", "PPV", "NPV")
    rows = [
        (cohort, name, f"{_POINTS.get(kind, kind)}: {point.threshold:.2g}", *_shares(point))
        for cohort, by_run in results.cohorts.items()
        for name, result in by_run.items()
        if result.calibration
        for kind, point in result.points.items()
    ]
    return Table(header=header, rows=rows)


def calibration(results: Results) -> View:
    """Agreement of probabilities with outcomes, before and after recalibration."""
    header = ("cohort", "run", "probabilities", "mean predicted / observed", "Brier score", "ECE",
              "slope", "intercept")  # fmt: skip
    rows = [
        (cohort, name, kind, *_calibration(found))
        for cohort, by_run in results.cohorts.items()
        for name, result in by_run.items()
        for kind, found in (("as given", result.calibration), ("recalibrated", result.recalibrated))
        if found
    ]
    main = results.cohorts[results.plan.main_cohort]
    panels = {
        _AS_GIVEN: {n: r.calibration for n, r in main.items() if r.calibration},
        _CORRECTED: {n: r.recalibrated for n, r in main.items() if r.recalibrated},
    }
    panels = {title: shown for title, shown in panels.items() if shown}
    return {
        "table": Table(header=header, rows=rows),
        "fits": [f"{name}: {_fit(fixed.recalibration)}" for name, fixed in results.fixed.items()],
        "cohort": results.plan.main_cohort,
        "curves": charts.reliability(panels) if panels else None,
    }


def net_benefit(results: Results) -> View:
    """Decision curves of the main cohort, before and after recalibration."""
    main = results.cohorts[results.plan.main_cohort]
    panels = {
        _AS_GIVEN: {n: r.net_benefit for n, r in main.items() if r.net_benefit},
        _CORRECTED: {
            n: r.net_benefit_recalibrated for n, r in main.items() if r.net_benefit_recalibrated
        },
    }
    panels = {title: shown for title, shown in panels.items() if shown}
    return {
        "cohort": results.plan.main_cohort,
        "curves": charts.decision_curves(panels) if panels else None,
    }


def groups(results: Results) -> View:
    """AUROC and operating point of every subgroup of the main cohort."""
    header = ("group", "run", "cases / controls", "AUROC (95 % CI)", "sensitivity", "specificity")
    rows = [
        (
            f"{column}: {group}",
            name,
            f"{found.auroc.num_cases} / {found.auroc.num_controls}",
            _area(found.auroc) if found.auroc.value is not None else "not computed",
            *(_shares(found.operating)[:2] if found.operating else ("-", "-")),
        )
        for column, by_group in results.groups.items()
        for group, by_run in by_group.items()
        for name, found in by_run.items()
    ]
    return {
        "table": Table(header=header, rows=rows),
        "cohort": results.plan.main_cohort,
        "columns": list(results.groups),
        "fewest": FEWEST,
    }


def _area(area: Auroc) -> str:
    return with_interval(area, digits=3) if area.value is not None else "not defined"


def _why(area: Auroc) -> str:
    what = "AUROC is not defined" if area.value is None else "its interval is not defined"
    return f"{what}: {area.reason}."


def _prevalence(result: CohortResult) -> str:
    return f"{100 * result.is_case.mean():.1f} %" if len(result.is_case) else "-"


def difference_and_p(test: PairedTest) -> tuple[str, str]:
    """The difference with its interval, and its p-value."""
    if test.p_value is None:
        return "not defined", "-"
    return f"{test.difference:+.3f} ({test.low:+.3f} to {test.high:+.3f})", p_text(test.p_value)


def p_text(value: float | None) -> str:
    """Such as "0.012" or "< 0.001"; "-" without one."""
    if value is None:
        return "-"
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def _shares(point: OperatingPoint) -> tuple[str, ...]:
    shares = (point.sensitivity, point.specificity, point.ppv, point.npv)
    return tuple(with_interval(share) for share in shares)


def _calibration(found: Calibration) -> tuple[str, ...]:
    return (
        f"{100 * found.mean_predicted:.1f} % / {100 * found.observed:.1f} %",
        with_interval(found.brier, digits=3),
        f"{found.expected_calibration_error:.3f}",
        with_interval(found.slope),
        with_interval(found.intercept),
    )


def _fit(fitted: Recalibration) -> str:
    if fitted.slope is None or fitted.intercept is None:
        return f"not recalibrated, {fitted.reason} on validation."
    return (
        f"log odds become {fitted.intercept:.2f} + {fitted.slope:.2f} x log odds, fitted on "
        f"{fitted.num_cases:,} cases and {fitted.num_controls:,} controls of validation."
    )


Part = Callable[[Any], Auroc | Interval]


def with_interval(share: Auroc | Interval, *, digits: int = 2) -> str:
    """Such as "0.83 (0.71 to 0.92)"; "-" where the value is not defined."""
    if share.value is None:
        return "-"
    if share.low is None or share.high is None:
        return f"{share.value:.{digits}f} (no interval)"
    return f"{share.value:.{digits}f} ({share.low:.{digits}f} to {share.high:.{digits}f})"


def _sums(cohorts: Collection[str] | Mapping[str, object]) -> list[int]:
    return [number for number, name in enumerate(cohorts) if name == POOLED]
