"""What a run says about itself: its settings, its records and how they were prepared.

Checkpoints (``meta.json``) and finished fine-tunings (``result.json``) hold it as JSON, which is
checked and parsed here and nowhere else.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self, cast, get_args

from ecgfast.config import Config, config_from_dict
from ecgfast.data.normalise import CohortStatistics, Normalisation
from ecgfast.errors import ConfigError, ResumeError
from ecgfast.records import LEADS, NUM_LEADS
from ecgfast.runs.column_task import OF_COLUMNS, misshapen, task_from
from ecgfast.runs.digests import RUN_FILES, Facts
from ecgfast.runs.task import Task
from ecgfast.settings import free_on_resume
from ecgfast.store.reader import StoreReader
from ecgfast.vocabulary import ModelKind, RunKind

_IDENTITY = {"store": (str,), "select": (str, type(None))}
_OF_CLASSIFIER = {
    **{"target": (str, list), "init": (str,), "model": (str,)},
    "fold": (int, type(None)),
}


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How records became a model's input.

    Attributes:
        store: options of `convert` that made the store, such as "window" and "short".
        normalisation: of the signals, with the statistics of the training records.
    """

    store: Mapping[str, Any]
    normalisation: Normalisation

    @classmethod
    def of(cls, store: StoreReader, normalisation: Normalisation) -> Self:
        """The preprocessing of a store's records."""
        return cls(store=store.manifest["preprocessing"], normalisation=normalisation)

    @classmethod
    def from_facts(cls, facts: Facts) -> Self:
        """Read what `as_facts` made, checked before."""
        cohort = facts["cohort"]
        if cohort is not None:
            mean_uv, std_uv = tuple(cohort["mean_uv"]), tuple(cohort["std_uv"])
            cohort = CohortStatistics(mean_uv=mean_uv, std_uv=std_uv)
        mode = facts.get("normalise", Normalisation().mode)  # the settings' default, if unset
        leads = tuple(facts["leads"]) if facts.get("leads") else None
        normalisation = Normalisation(mode=mode, cohort=cohort, leads=leads)
        return cls(store=facts["store"], normalisation=normalisation)

    def as_facts(self) -> Facts:
        """Plain values for JSON."""
        cohort, leads = self.normalisation.cohort, self.normalisation.leads
        return {
            "store": self.store,
            "normalise": self.normalisation.mode,
            "cohort": None if cohort is None else asdict(cohort),
            **({} if leads is None else {"leads": list(leads)}),
        }


@dataclass(frozen=True, kw_only=True)
class RunMeta:
    """What a run says about itself.

    Attributes:
        kind: what trained it.
        identity: what a resumed run must share with this one: `flat` settings, the store, the
            selection, and for a classifier its target, labels, first weights and model.
        preprocessing: how its records were prepared.
        microbatch: records per rank and forward pass; None where a run does not say.
        thresholds: of a finished fine-tuning, set on its validation records; None without one.
        counts: of a finished fine-tuning: "train_patients", "train_cases" and others.
        outputs: of one of several outputs: name of an output -> its labels, its AUROC on validation
            and its thresholds.
        run_files: sizes and digests of the run's other files, as `digests.entries` gives them.
    """

    kind: RunKind
    identity: Mapping[str, Any]
    preprocessing: Preprocessing
    microbatch: int | None = None
    thresholds: Mapping[str, float | None] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    outputs: Mapping[str, Facts] = field(default_factory=dict)
    run_files: Mapping[str, Facts] = field(default_factory=dict)

    @classmethod
    def from_facts(cls, facts: Facts, where: Path) -> Self:
        """Check and parse the JSON of a checkpoint or of a finished fine-tuning.

        Args:
            facts: the JSON.
            where: its file, for messages.
        Raises:
            ResumeError: it lacks what a run needs, or has it in the wrong form.
        """
        why = _missing(facts)
        if why is not None:
            raise ResumeError(f"{where} is damaged: {why}; restore it from a copy, or train again")
        return cls(
            kind=facts["kind"],
            identity=facts["identity"],
            preprocessing=Preprocessing.from_facts(facts["preprocessing"]),
            microbatch=facts.get("microbatch"),
            thresholds=facts.get("thresholds", {}),
            counts=facts.get("counts", {}),
            outputs=facts.get("outputs", {}),
            run_files=facts.get(RUN_FILES, {}),
        )

    def as_facts(self) -> Facts:
        """What a checkpoint keeps of it, as plain values for JSON."""
        return {
            "kind": self.kind,
            "identity": self.identity,
            "microbatch": self.microbatch,
            "preprocessing": self.preprocessing.as_facts(),
        }

    @property
    def task(self) -> Task:
        """What a classifier learned."""
        return task_from(self.identity)

    @property
    def target(self) -> str:
        """What a classifier learned, in one line; empty for pretraining runs."""
        return self.task.name if self.identity.get("target") else ""

    def of_output(self, number: int) -> Self:
        """What the run says of one output: as if it were yes or no of that alone."""
        task = self.task
        if task.is_single:
            return self
        name = task.outputs[number]
        facts = self.outputs.get(name, {})
        shared = {key: value for key, value in self.identity.items() if key not in OF_COLUMNS}
        return replace(
            self,
            identity={**shared, "target": name},
            thresholds=facts.get("thresholds", {}),
            counts={**self.counts, **{k: v for k, v in facts.items() if type(v) is int}},
            outputs={},
        )

    @property
    def init(self) -> str:
        """Name of a classifier's initial weights, without their folder; empty for pretraining."""
        return Path(self.identity.get("init") or "").name

    @property
    def model(self) -> ModelKind:
        """Architecture of a classifier."""
        return cast(ModelKind, self.identity["model"])

    @property
    def select(self) -> str | None:
        """Expression that chose the run's records; None: all."""
        return cast(str | None, self.identity.get("select"))

    @property
    def fold(self) -> int | None:
        """The fold that it held out, None where it took the splits."""
        return cast(int | None, self.identity.get("fold"))

    @property
    def threshold(self) -> float | None:
        """With the highest Youden index on its own validation records; None without one."""
        return self.thresholds.get("youden")

    @property
    def name(self) -> str:
        """What reports call it, such as "ViT, pretrained"."""
        init = self.identity.get("init")
        if not init:
            return "Pretraining"
        if self.model != "vit":
            return {"cnn": "CNN"}.get(self.model, self.model)
        words = {"random": "random init", "imagenet-mae": "ImageNet"}
        probe = ", probe" if self.identity.get("probe") else ""
        return f"ViT, {words.get(init, 'pretrained')}{probe}"

    def config(self, where: Path) -> Config:
        """Build the settings from their flat names; the rest of the identity is left out.

        Settings that came after the run have their defaults.

        Args:
            where: the file of these facts, for the message.
        Raises:
            ResumeError: another version has settings that this one lacks, or a value is wrong.
        """
        tree: Facts = {}
        known = flat(Config())
        unknown = [name for name in self.identity if "." in name and name not in known]
        if unknown:
            raise ResumeError(
                f"{where} has settings that this version of ecgfast lacks, got "
                f"{', '.join(unknown)}; use the version that wrote it (see versions.json)"
            )
        for name in filter(self.identity.__contains__, known):
            section, dot, key = name.partition(".")
            part = tree.setdefault(section, {}) if dot else tree
            part[key or name] = self.identity[name]
        if self.kind == "finetune":  # earlier versions took it from elsewhere
            tree.setdefault("model", {})["kind"] = self.model
        try:
            return config_from_dict(tree)
        except ConfigError as error:
            raise ResumeError(f"{where} is damaged: {error}; restore it from a copy") from error


def flat(config: Config) -> Facts:
    """Settings as ``section.name`` to plain values."""
    values: Facts = {}
    for name, value in asdict(config).items():
        if isinstance(value, dict):
            values |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            values[name] = value
    return values


def contradictions(
    now: Mapping[str, Any],
    then: Mapping[str, Any],
    *,
    kind: RunKind | None = None,
    where: str = "checkpoint",
) -> list[str]:
    """List the settings in which a resumed run differs from its checkpoint.

    A setting that one of them lacks, because it came later, has its default there.

    Args:
        now: flat names to plain values.
        then: the same of the checkpoint.
        kind: of the run: what only the other kind uses may differ; None compares that too.
        where: they stand, for the message.
    """
    free, defaults = free_on_resume(kind), flat(Config())

    def said(values: Mapping[str, Any], name: str) -> str:
        if name in values:
            return repr(values[name])
        if name in defaults:
            return f"not set, which is {defaults[name]!r}"
        return "no setting of this version" if "." in name else "None"

    return [
        f"{name} (now {said(now, name)}, in the {where} {said(then, name)})"
        for name in {**then, **now}
        if name not in free
        and _plain(now.get(name, defaults.get(name))) != _plain(then.get(name, defaults.get(name)))
    ]


def _plain(value: object) -> object:
    """What JSON would keep: tuples are lists."""
    return json.loads(json.dumps(value))


def _missing(facts: Facts) -> str | None:
    """What of a run's facts is missing or wrong; None where all is right."""
    identity, preprocessing = facts.get("identity"), facts.get("preprocessing")
    if not isinstance(identity, dict) or not isinstance(preprocessing, dict):
        return "it has no identity or no preprocessing"
    kind = facts.get("kind")
    if kind not in get_args(RunKind):
        return f"its kind is {kind!r:.40}"
    needed = _IDENTITY | (_OF_CLASSIFIER if kind == "finetune" else {})
    wrong = [name for name, types in needed.items() if type(identity.get(name)) not in types]
    if wrong:
        return f"its identity has no right {', '.join(wrong)}"
    if kind == "finetune" and identity["model"] not in get_args(ModelKind):
        return f"its model is {identity['model']!r:.40}"
    store, cohort = preprocessing.get("store"), preprocessing.get("cohort", "none given")
    if not isinstance(store, dict) or not {"window", "short"} <= store.keys():
        return "its preprocessing does not say how the store was made"
    for name in ("normalise", "leads"):
        if preprocessing.get(name) != identity.get(f"data.{name}"):
            return f"its preprocessing and its settings disagree about {name}"
    leads = preprocessing.get("leads")
    in_order = [lead for lead in LEADS if isinstance(leads, list) and lead in leads]
    if leads is not None and (not leads or leads != in_order):
        return "its preprocessing has no right leads"
    if cohort is not None and not _is_cohort(cohort):
        return "its preprocessing has no right cohort statistics"
    outputs = facts.get("outputs", {})
    if not isinstance(outputs, dict) or not all(isinstance(one, dict) for one in outputs.values()):
        return "its outputs are no tables"
    if kind == "finetune" and (why := misshapen(identity)):
        return why
    for thresholds in (one.get("thresholds", {}) for one in (facts, *outputs.values())):
        if not isinstance(thresholds, dict) or any(
            type(each) not in (int, float, type(None)) for each in thresholds.values()
        ):
            return "its thresholds are no numbers"
    counts = facts.get("counts", {})
    if not isinstance(counts, dict) or any(type(each) is not int for each in counts.values()):
        return "its counts are no numbers"
    return None


def _is_cohort(value: object) -> bool:
    names = {field.name for field in fields(CohortStatistics)}
    if not isinstance(value, dict) or set(value) != names:
        return False
    return all(
        isinstance(numbers, list)
        and len(numbers) == NUM_LEADS
        and all(type(number) in (int, float) for number in numbers)
        for numbers in value.values()
    )
