"""Splits by patient: right shares, stable, keyed."""

from collections import Counter

from ecgfast.labels.splits import split_of
from ecgfast.store.pseudonyms import Pseudonyms

PSEUDONYMS = Pseudonyms(bytes(range(32)))


def test_shares() -> None:
    num_patients = 20_000
    counts = Counter(split_of(PSEUDONYMS, f"patient {n}") for n in range(num_patients))
    # Five standard deviations of a binomial with p = 0.7 or 0.15 are 0.016 and 0.013.
    assert abs(counts["train"] / num_patients - 0.70) < 0.016
    assert abs(counts["valid"] / num_patients - 0.15) < 0.013
    assert abs(counts["test"] / num_patients - 0.15) < 0.013


def test_depends_on_the_key_alone() -> None:
    other = Pseudonyms(bytes(32))
    ours = [split_of(PSEUDONYMS, f"{n}") for n in range(100)]
    assert ours == [split_of(PSEUDONYMS, f"{n}") for n in range(100)]
    assert ours != [split_of(other, f"{n}") for n in range(100)]
