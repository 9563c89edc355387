"""Is one run closer to the measured numbers than another? Differences of MAE and RMSE, tested.

Shapes: N records of the store, n chosen ones, P patients.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfast.evaluate.discrimination import PairedTest, holm
from ecgfast.evaluate.findings import difference_and_p, p_text
from ecgfast.evaluate.interval import patients_of, plain_interval
from ecgfast.evaluate.planning import TestPlan
from ecgfast.evaluate.views import Table

SIGN_FLIPS = "sign flips of patients"
NUM_FLIPS = 9999
_SEED, _SIGNS_AT_ONCE = 20050801, 2**22  # signs held at a time, 32 MiB
NAMES = {"mae": "MAE", "rmse": "RMSE"}
Floats = NDArray[np.float64]
Key = tuple[str, str, str]  # cohort, run, and a key of `NAMES`


def mean(values: Floats) -> float:
    """NaN of none."""
    return float(values.mean()) if len(values) else float("nan")


def mean_absolute(error: Floats) -> tuple[float, Floats]:
    """MAE of (n,) errors, and n times what each record adds to it minus the truth."""
    absolute = np.abs(error)
    value = mean(absolute)
    return value, absolute - value


def root_mean_square(error: Floats) -> tuple[float, Floats]:
    """RMSE likewise."""
    square = np.square(error)
    value = float(np.sqrt(mean(square)))
    return value, (square - value**2) / (2 * value) if value else square


def compare(first: Floats, second: Floats, groups: NDArray[np.intp]) -> dict[str, PairedTest]:
    """MAE and RMSE of the first run minus those of the second.

    The interval is that of one MAE or RMSE, of the difference of what each record adds to both.
    For the p-value whole patients swap their errors: where no run is closer, each sign of a
    patient's difference of absolute or squared errors is as likely as the other. With the sum of
    both runs' squared errors fixed, the difference of RMSE, and that of R2, grows with that of the
    squares, so that all three have one p-value.

    Args:
        first: (n,) errors of the first run.
        second: (n,) errors of the other one, on the same records.
        groups: (n,) patient of each record.
    """
    number, patients = len(first), patients_of(groups, len(first))
    if number < 2 or not patients.any():
        why = "fewer than two labelled records" if number < 2 else "records of a single patient"
        return dict.fromkeys(NAMES, PairedTest(reason=why))
    found = {}
    for name, of, size in (("mae", mean_absolute, np.abs), ("rmse", root_mean_square, np.square)):
        (value, influence), (other, of_other) = of(first), of(second)
        interval = plain_interval(value - other, (influence - of_other) / number, patients)
        by_patient = np.bincount(patients, size(first) - size(second)).astype(np.float64)
        found[name] = PairedTest(
            difference=interval.value,
            low=interval.low,
            high=interval.high,
            p_value=sign_flip_p_value(by_patient),
            method=SIGN_FLIPS,
        )
    return found


def sign_flip_p_value(difference_P: Floats) -> float:
    """Two-sided p-value of differences that are as likely below zero as above it, by their sum.

    Returns:
        (1 + flips with at least the observed sum) / (1 + `NUM_FLIPS`), the same for the same
        input: the signs are drawn with a fixed seed.
    Source: Fisher 1935, section 21; Phipson and Smyth 2010 for the 1 in both counts.
    """
    rounding = 1e-12 * np.abs(difference_P).sum()
    observed = abs(difference_P.sum()) - rounding
    rng, as_extreme = np.random.default_rng(_SEED), 0
    at_once = max(1, _SIGNS_AT_ONCE // len(difference_P))
    for start in range(0, NUM_FLIPS, at_once):
        number, size = min(at_once, NUM_FLIPS - start), len(difference_P)
        bits = rng.integers(0, 256, (number, -(-size // 8)), np.uint8)
        kept = np.unpackbits(bits, axis=1, count=size).astype(np.float64)
        sums = 2 * (kept @ difference_P) - difference_P.sum()
        as_extreme += number - int((np.abs(sums) < observed).sum())  # NaN is as extreme: p is 1
    return (1 + as_extreme) / (1 + NUM_FLIPS)


@dataclass(frozen=True, kw_only=True)
class ErrorDifferences:
    """First run minus each other one, on the records that test both.

    Attributes:
        first: its name.
        tests: in the order of a report.
    """

    first: str
    tests: Mapping[Key, PairedTest]

    @property
    def p_holm(self) -> dict[Key, float]:
        """P-values, corrected for the number of all of them."""
        found = {key: test.p_value for key, test in self.tests.items() if test.p_value is not None}
        return dict(zip(found, holm([*found.values()]), strict=True))

    def to_json(self) -> dict[str, Any]:
        """The numbers alone: each by cohort, run, and "mae" or "rmse"."""
        return {
            "first_run_minus": _nested({key: asdict(test) for key, test in self.tests.items()}),
            "p_holm": _nested(self.p_holm),
        }

    def table(self) -> Table:
        """Every test."""
        corrected = self.p_holm
        rows = [
            (cohort, run, NAMES[name], *difference_and_p(test), p_text(corrected.get(key)))
            for key, test in self.tests.items()
            for cohort, run, name in [key]
        ]
        return Table(header=("cohort", "minus", "of", "difference (95 % CI)", "p", "p, Holm"),
                     rows=rows)  # fmt: skip

    def sentences(self, cohort: str) -> list[str]:
        """What they say of the mean absolute errors of a cohort."""
        said = []
        for key, test in self.tests.items():
            if key[0] == cohort and key[2] == "mae" and test.p_value is not None:
                difference, p_value = difference_and_p(test)
                said.append(
                    f"{self.first} minus {key[1]}, mean absolute error: {difference}; p {p_value}, "
                    f"corrected for all comparisons {p_text(self.p_holm[key])}."
                )
        return said


def error_differences(
    plan: TestPlan, measured: Floats, values: Mapping[str, Floats]
) -> ErrorDifferences:
    """Test the first run of a report against every other, cohort by cohort.

    Args:
        plan: which records test each run.
        measured: (N,) labels.
        values: run's name -> (N,) predicted numbers.
    """
    first, *others = values
    tests = {
        (cohort, name, measure): test
        for cohort, by_run in plan.cohorts.items()
        for name in others
        if first in by_run and name in by_run
        for both in [np.intersect1d(by_run[first], by_run[name])]
        for measure, test in compare(
            (values[first] - measured)[both], (values[name] - measured)[both], plan.patients[both]
        ).items()
    }
    return ErrorDifferences(first=first, tests=tests)


def _nested(values: Mapping[Key, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    nested: dict[str, dict[str, dict[str, Any]]] = {}
    for (cohort, run, name), value in values.items():
        nested.setdefault(cohort, {}).setdefault(run, {})[name] = value
    return nested
