"""Which records test a set of runs.

Shapes: N records of the store, n chosen ones.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ecgfast.errors import ConfigError
from ecgfast.evaluate.cohort import natural_order, shown_name, text_column
from ecgfast.labels.selection import labels_of
from ecgfast.labels.splits import splits_of_fold
from ecgfast.runs.loading import LoadedRun
from ecgfast.runs.register import Register, Seen, seen
from ecgfast.store.patients import patient_groups
from ecgfast.store.reader import StoreReader

POOLED = "all external sites"
NO_SITE = "-"

Rows = NDArray[np.int64]
Flags = NDArray[np.bool_]
Truth = NDArray[np.float64] | None  # (N,) labels, NaN where unknown; None: as a target says


@dataclass(frozen=True, kw_only=True)
class Learner:
    """What decides which records may test a run.

    Attributes:
        register: whom it learned from.
        fold: that it held out, None where it took the splits.
    """

    register: Register
    fold: int | None = None


@dataclass(frozen=True, kw_only=True)
class TestPlan:
    """Which records test each run.

    Attributes:
        target: what a case is.
        is_case: (N,) bool, meaningful where the label is known.
        patients: (N,) number of each record's patient.
        cohorts: cohort -> run's name -> rows with known labels of patients that this run has not
            learned from. At a site that it learned from, a run is tested on the test split alone.
            Sites without any label have none.
        notes: for the report, what was left out and what is not known.
        training: run's name -> labelled rows of this store that it was trained on.
        validation: run's name -> labelled rows of this store that chose its weights.
        sites: run's name -> sites of this store that it learned from.
        truth: labels, of a number in its unit; None: as `target` says.
    """

    target: str
    is_case: Flags
    patients: NDArray[np.intp]
    cohorts: dict[str, dict[str, Rows]]
    notes: tuple[str, ...]
    training: dict[str, Rows] = field(default_factory=dict)
    validation: dict[str, Rows] = field(default_factory=dict)
    sites: dict[str, frozenset[str]] = field(default_factory=dict)
    truth: Truth = None

    @property
    def same_training(self) -> dict[str, str]:
        """Run's name -> the first run of the same training and validation records."""
        first: dict[tuple[bytes, bytes], str] = {}
        none = np.zeros(0, np.int64)
        return {
            name: first.setdefault(
                (rows.tobytes(), self.validation.get(name, none).tobytes()), name
            )
            for name, rows in self.training.items()
        }

    @property
    def main_cohort(self) -> str:
        """The one that single figures are of: all external sites where there are several."""
        return POOLED if POOLED in self.cohorts else list(self.cohorts)[-1]

    def rows_of(self, run: str | None) -> Rows:
        """Rows, ascending, that test a run; None: that test any run."""
        parts = [
            rows
            for by_run in self.cohorts.values()
            for name, rows in by_run.items()
            if run in (None, name)
        ]
        return np.unique(np.concatenate([np.zeros(0, np.int64), *parts]))


@dataclass(frozen=True, kw_only=True)
class _Test:
    """One run on one store.

    Attributes:
        training_sites: sites of the store that it learned from.
        unseen: (N,) labelled records of patients that it did not learn from.
        in_test: (N,) records in its test split or fold.
        taught: (N,) labelled records of its training split.
        validated: (N,) labelled records of its validation split.
        by_fold: whether that is the fold that it held out.
    """

    training_sites: frozenset[str]
    unseen: Flags
    in_test: Flags
    taught: Flags
    validated: Flags
    by_fold: bool

    @property
    def internal(self) -> Flags:
        """(N,) what tests it at the sites that it learned from."""
        return self.unseen & self.in_test


def plan_tests(
    store: StoreReader, classifiers: Sequence[LoadedRun], truth: Truth = None
) -> TestPlan:
    """Choose test records for each run, whatever it is compared with.

    Args:
        store: an open store.
        classifiers: the runs to compare, all of one target.
        truth: labels instead of those of their target.
    Raises:
        ConfigError: the runs have different targets, or no record is left to test on.
    """
    targets = sorted({run.meta.target for run in classifiers})
    if len(targets) != 1:
        raise ConfigError(
            f"runs must share one target, got {', '.join(targets) or 'none'}; evaluate them apart"
        )
    learners = {}
    for run in classifiers:
        assert run.register is not None  # load_run refuses classifiers without
        learners[run.name] = Learner(register=run.register, fold=run.meta.fold)
    return plan_for(store, targets[0], learners, truth)


def plan_for(
    store: StoreReader, target: str, learners: Mapping[str, Learner], truth: Truth = None
) -> TestPlan:
    """Choose test records; see `plan_tests`. `learners`: run's name -> what it learned from."""
    is_case, is_known = labels_of(store.records, target, truth)
    site = text_column(store.records, "site")
    sites = natural_order(np.unique(site[is_known]).tolist())
    seen_by = {name: seen(learner.register, store) for name, learner in learners.items()}
    tests = {
        name: _test(store, learner, seen_by[name], site, is_known)
        for name, learner in learners.items()
    }
    cohorts: dict[str, dict[str, Rows]] = {}
    for name in sites:
        here = site == name
        learned_here = [run for run, test in tests.items() if name in test.training_sites]
        if learned_here:
            words = _held_words([tests[run] for run in learned_here])
            cohorts[f"{_called(name)}, {words}"] = {
                run: np.flatnonzero(here & test.internal) for run, test in tests.items()
            }
        if others := [run for run in tests if run not in learned_here]:
            cohorts[f"{_called(name)}, external"] = {
                run: np.flatnonzero(here & tests[run].unseen) for run in others
            }
    cohorts |= _pooled(site, sites, tests)
    if not any(len(rows) for by_run in cohorts.values() for rows in by_run.values()):
        raise ConfigError(
            f"no record of {store.path} is left to test {target}: labels missing, or all in "
            "training; join labels and splits with ecgfast label"
        )
    return TestPlan(
        target=target,
        is_case=is_case & is_known,
        patients=patient_groups(store.records),
        cohorts=cohorts,
        notes=_notes(target, site, is_known, learners, tests, seen_by),
        training={name: np.flatnonzero(test.taught) for name, test in tests.items()},
        sites={name: test.training_sites for name, test in tests.items()},
        validation={name: np.flatnonzero(test.validated) for name, test in tests.items()},
        truth=truth,
    )


def _test(
    store: StoreReader, learner: Learner, seen_by: Seen, site: NDArray[np.str_], is_known: Flags
) -> _Test:
    names = store.records["split"].to_pylist()
    folds = store.records["fold"].to_pylist() if "fold" in store.records.column_names else []
    by_fold = learner.fold is not None and learner.fold in folds
    if learner.fold is not None and by_fold:
        names = splits_of_fold(folds, learner.fold)
    split = np.array(names, dtype=object)
    trained = _trained(learner)
    # Sites of one name are one hospital where the pseudonym keys are the same; under another key
    # only where the run learned from an ECG that this store has at the site.
    ours = {name for name in trained if seen_by.same_key or (seen_by.taught & (site == name)).any()}
    learned = is_known & seen_by.taught & np.isin(site, sorted(ours))
    return _Test(
        training_sites=frozenset(ours),
        unseen=is_known & ~seen_by.taught,
        in_test=split == "test",
        taught=learned & (split == "train"),
        validated=learned & (split == "valid"),
        by_fold=by_fold,
    )


def _trained(learner: Learner) -> set[str]:
    """Names of the sites that a run learned from."""
    return {shown_name(name) for name in learner.register.sites}


def _pooled(
    site: NDArray[np.str_], sites: Sequence[str], tests: Mapping[str, _Test]
) -> dict[str, dict[str, Rows]]:
    """Sites taken together: those that a run learned from, and those that it never saw."""
    cohorts: dict[str, dict[str, Rows]] = {}
    for learned in _distinct(test.training_sites & set(sites) for test in tests.values()):
        together = np.isin(site, sorted(learned))
        cohorts[f"test splits of {listed(learned)}"] = {
            run: np.flatnonzero(together & test.internal) for run, test in tests.items()
        }
    external = _distinct(frozenset(sites) - test.training_sites for test in tests.values())
    for never in external:
        together = np.isin(site, sorted(never))
        name = POOLED if len(external) == 1 else f"external {listed(never)}"
        cohorts[name] = {
            run: np.flatnonzero(together & test.unseen)
            for run, test in tests.items()
            if not never & test.training_sites
        }
    return cohorts


def _distinct(groups: Iterable[frozenset[str]]) -> list[frozenset[str]]:
    """Different sets of at least two sites, larger ones first."""
    found = {group for group in groups if len(group) > 1}
    return sorted(found, key=lambda group: (-len(group), natural_order(list(group))))


def _called(site: str) -> str:
    return "no site" if site == NO_SITE else f"site {site}"


def listed(sites: frozenset[str]) -> str:
    """Such as "sites 1, 2", or "site 1"."""
    if len(sites) == 1:
        return _called(next(iter(sites)))
    return f"sites {', '.join(natural_order(list(sites)))}"


def _held_words(users: Sequence[_Test]) -> str:
    """What the records of a site are called that its users held back."""
    by_fold = {test.by_fold for test in users}
    if by_fold == {False}:
        return "test split"
    return "held-out fold" if by_fold == {True} else "test split or fold"


def _notes(
    target: str,
    site: NDArray[np.str_],
    is_known: Flags,
    learners: Mapping[str, Learner],
    tests: Mapping[str, _Test],
    seen_by: Mapping[str, Seen],
) -> tuple[str, ...]:
    notes = []
    for run, test in tests.items():
        learner, by_run = learners[run], seen_by[run]
        here = np.isin(site, sorted(test.training_sites))
        left_out = is_known & by_run.taught & (~here | test.in_test)
        for name in natural_order(np.unique(site[left_out]).tolist()):
            count = int((left_out & (site == name)).sum())
            where = f", {_held_words([test])}" if name in test.training_sites else ""
            notes.append(
                f"{_called(name)}{where}: {count} records of patients whom {run} learned from left "
                "out"
            )
        if learner.fold is not None and not test.by_fold:
            notes.append(
                f"{run} held out fold {learner.fold}, which this store does not have: it is tested "
                "on the test split"
            )
        notes += _doubts(run, by_run, _trained(learner), set(site.tolist()) - test.training_sites)
    if unlabelled := natural_order(list(set(site.tolist()) - set(site[is_known].tolist()))):
        notes.append(f"{listed(frozenset(unlabelled))}: no record has a label for {target}")
    if unknown := int((~is_known).sum()):
        notes.append(f"{unknown} records have no label for {target} and count nowhere")
    return tuple(notes)


def _doubts(run: str, by_run: Seen, trained: set[str], external: set[str]) -> list[str]:
    """What is not known of a run's patients and sites in this store.

    Args:
        run: its name.
        by_run: which patients of this store it learned from or read.
        trained: names of the sites that it learned from.
        external: names of the sites that are called external to it.
    """
    doubts = []
    if not by_run.by_patient:
        why = "under another pseudonym key" if not by_run.same_key else "with another --patient-ids"
        doubts.append(
            f"{run} was trained on a store {why}: its patients are recognised here by identical "
            "ECGs alone"
        )
    doubts += [
        f"{_called(name)}: {run} learned from a site of the same name under another key; whether "
        "it is the same hospital is not known"
        for name in natural_order(list((trained & external) - {NO_SITE}))
    ]
    if NO_SITE in trained and external:
        doubts.append(
            f"{run} learned from records that name no site: whether they are of a site called "
            "external is not known"
        )
    elif NO_SITE in external:
        doubts.append(f"no site: whether {run} learned from the hospital of these is not known")
    return doubts
