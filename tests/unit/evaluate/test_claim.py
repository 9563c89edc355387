"""The verdict on label efficiency follows from the numbers, whichever way they fall."""

from statistics import variance

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import t
from sklearn.metrics import roc_auc_score

from ecgfast.errors import ShapeError
from ecgfast.evaluate.claim import Repeats, claim, delong_of_repeats
from ecgfast.evaluate.discrimination import delong_paired

IS_CASE = np.arange(400) % 4 == 0
PATIENTS = np.arange(400) // 2  # two records each


def scores(shift: float, seed: int, repeats: int = 3) -> list[NDArray[np.float64]]:
    """Of models that differ by chance alone, cases so much higher than controls."""
    rng = np.random.default_rng(seed)
    return [shift * IS_CASE + rng.normal(size=len(IS_CASE)) for _ in range(repeats)]


def three(pretrained: float, others: float) -> Repeats:
    return Repeats(
        is_case=IS_CASE,
        patients=PATIENTS,
        scores={
            "ViT, pretrained": scores(pretrained, 0),
            "ViT, random init": scores(others, 1),
            "CNN": scores(others, 2),
        },
    )


def test_a_clear_gain_is_the_claim_with_its_intervals() -> None:
    external, internal = three(2.0, 0.5), three(2.5, 2.5)
    verdict, differences, why = claim(100, external, internal)
    assert verdict.startswith("With 100 labelled ECGs ViT, pretrained is better than ViT, random")
    assert "machinery" not in verdict
    areas = {
        model: np.mean([roc_auc_score(IS_CASE, each) for each in found])
        for model, found in external.scores.items()
    }
    gain = areas["ViT, pretrained"] - areas["CNN"]
    assert f"ViT, pretrained minus CNN: {gain:+.3f} (+0." in differences
    inside = np.mean([roc_auc_score(IS_CASE, each) for each in internal.scores["CNN"]])
    assert f"CNN from {inside:.3f} to {areas['CNN']:.3f}" in why


@pytest.mark.parametrize(
    ("pretrained", "random", "cnn", "lost"),
    [
        (1.0, 1.0, 1.0, "ViT, random init and CNN"),
        (2.0, 0.2, 2.0, "CNN"),
        (0.2, 2.0, 2.0, "ViT, random init and CNN"),
    ],
)
def test_without_a_gain_over_each_it_shows_the_machinery(
    pretrained: float, random: float, cnn: float, lost: str
) -> None:
    found = Repeats(
        is_case=IS_CASE,
        patients=PATIENTS,
        scores={
            "ViT, pretrained": scores(pretrained, 0),
            "ViT, random init": scores(random, 1),
            "CNN": scores(cnn, 2),
        },
    )
    verdict = claim(50, found, found)[0]
    assert verdict.startswith("This shows the machinery and not the claim: with 50 labelled ECGs")
    assert f"not shown to be better than {lost} at" in verdict


def test_an_interval_holds_the_spread_of_records_and_of_trainings() -> None:
    """Coverage of a true difference of 0 between models whose trainings differ."""
    misses = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        y = rng.random(300) < 0.3
        shared = rng.normal(size=300)
        first, second = (
            [rng.normal(1.0, 0.4) * y + shared + rng.normal(size=300) for _ in range(3)]
            for _ in range(2)
        )
        test = delong_of_repeats(y, first, second)
        assert test.low is not None
        assert test.high is not None
        misses += not test.low <= 0 <= test.high
    assert misses <= 18  # 5 % of 200, and three standard deviations


def test_trainings_that_are_alike_are_one_training_each() -> None:
    (first,), (second,) = scores(1.0, 0, 1), scores(0.6, 1, 1)
    one = delong_paired(IS_CASE, first, second, PATIENTS)
    found = delong_of_repeats(IS_CASE, [first] * 3, [second] * 3, PATIENTS)
    for name in ("difference", "low", "high", "p_value", "std_error"):
        assert getattr(found, name) == pytest.approx(getattr(one, name)), name


def test_the_variance_of_trainings_is_added_with_its_degrees_of_freedom() -> None:
    """Trainings that differ so much that they, and not the records, decide on the test."""
    first = [scores(shift, seed, 1)[0] for seed, shift in enumerate((0.2, 1.0, 3.0))]
    second = scores(0.5, 9)
    found = delong_of_repeats(IS_CASE, first, second)
    gaps = [
        float(roc_auc_score(IS_CASE, one) - roc_auc_score(IS_CASE, other))
        for one, other in zip(first, second, strict=True)
    ]
    pairs = [one[IS_CASE][:, None] > one[~IS_CASE] for one in first]
    others = [other[IS_CASE][:, None] > other[~IS_CASE] for other in second]
    wins = (np.stack(pairs).astype(float) - np.stack(others)).mean(axis=0)  # (cases, controls)
    of_records = sum(
        part.var(ddof=1) / len(part) for part in (wins.mean(axis=1), wins.mean(axis=0))
    )
    of_trainings = variance(gaps) / 3
    assert of_trainings > 10 * of_records
    assert found.difference == pytest.approx(np.mean(gaps))
    assert found.std_error == pytest.approx((of_records + of_trainings) ** 0.5)
    assert found.std_error is not None
    dof = (of_records + of_trainings) ** 2 / (of_trainings**2 / 2)  # of records: a small part
    expected = 2 * t.sf(np.mean(gaps) / found.std_error, dof)
    assert found.p_value == pytest.approx(expected, rel=1e-3)
    assert found.high == pytest.approx(
        np.mean(gaps) + t.ppf(0.975, dof) * found.std_error, rel=1e-3
    )


def test_records_of_one_patient_are_no_further_evidence() -> None:
    once = Repeats(
        is_case=IS_CASE,
        patients=np.arange(400),
        scores={"ViT": scores(1.0, 0), "CNN": scores(0.8, 1)},
    )
    twice = Repeats(
        is_case=np.repeat(IS_CASE, 2),
        patients=np.repeat(once.patients, 2),
        scores={
            model: [np.repeat(each, 2) for each in found] for model, found in once.scores.items()
        },
    )
    assert claim(100, twice, twice) == claim(100, once, once)


def test_trainings_come_in_pairs() -> None:
    both = scores(1.0, 0)
    with pytest.raises(ShapeError, match="2 or more, got 1 and 1"):
        delong_of_repeats(IS_CASE, both[:1], both[:1])
    with pytest.raises(ShapeError, match="got 3 and 2"):
        delong_of_repeats(IS_CASE, both, both[:2])
    one_class = delong_of_repeats(np.ones(400, bool), both, both)
    assert one_class.reason == "no controls"
