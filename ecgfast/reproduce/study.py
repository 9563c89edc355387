"""The study's own plan, on the hospitals of a store."""

import re
from collections.abc import Sequence

from ecgfast.errors import ConfigError
from ecgfast.evaluate.cohort import natural_order, text_column
from ecgfast.evaluate.planning import NO_SITE
from ecgfast.labels.selection import target_labels
from ecgfast.reproduce.plan import TARGET, Finetuning, Model, Plan, Pretraining
from ecgfast.store.reader import StoreReader

_SHARE_OF_SITES = 3 / 8  # of the study's eight institutions, three made its second data set
# Not stated in the paper, which has no frozen encoders; the study's rates are those of all weights.
_RATES_OF_A_HEAD = ("finetune.learning_rates=[1e-2, 1e-3, 1e-4]",)


def default_plan(store: StoreReader, *, target: str = TARGET) -> Plan:
    """The study's columns on a store, with random weights and frozen encoders beside them.

    The first hospital whose labels can teach is the study's institution 1. Three eighths of the
    hospitals, at least two, stand for its institutions 1 to 3; one at least stays external.

    Args:
        store: with labels and splits.
        target: what a case is.
    Raises:
        ConfigError: no hospital has cases and controls to learn from, or one that shall teach has
            a name that no expression can hold.
    """
    named = set(text_column(store.records, "site").tolist()) - {NO_SITE}
    sites = natural_order(sorted(named))
    teaching = [site for site in sites if _can_teach(store, target, site)]
    if not teaching:
        raise ConfigError(
            f"no hospital of {store.path} has cases and controls of {target!r} in both train and "
            "valid; label the store with `ecgfast label`, or write a plan by hand"
        )
    several = min(max(2, round(_SHARE_OF_SITES * len(sites))), len(sites) - 1, len(teaching))
    chosen = [teaching[:1], teaching[:several]] if several > 1 else [teaching[:1]]
    pretraining = [
        Pretraining(name=f"Dataset{number}", select=one_of(names))
        for number, names in enumerate(chosen, 1)
    ]
    names = [entry.name for entry in pretraining]
    models = [
        Model(name="CNN", init="random", preset="cnn"),
        Model(name="ViT-ImageNet", init="imagenet-mae"),
        *(Model(name=f"ViT-{name}", init=name) for name in names),
        Model(name="ViT-random", init="random"),
        *(
            Model(name=f"probe-{name}", init=name, frozen=True, settings=_RATES_OF_A_HEAD)
            for name in [*names, "random"]
        ),
    ]
    columns = [model.name for model in models]
    finetuning = [
        Finetuning(
            name=f"Train{number}",
            select=one_of(names),
            # the study has no ImageNet column on the records of one institution
            models=tuple(c for c in columns if c != "ViT-ImageNet" or number == len(chosen)),
        )
        for number, names in enumerate(chosen, 1)
    ]
    return Plan(
        target=target,
        recipe="paper",
        sites=tuple(sites),
        pretraining=tuple(pretraining),
        model=tuple(models),
        finetuning=tuple(finetuning),
    )


def _can_teach(store: StoreReader, target: str, site: str) -> bool:
    is_case, is_known = target_labels(store.records, target)
    split = text_column(store.records, "split")
    here = is_known & (text_column(store.records, "site") == site)
    return all(
        0 < int(is_case[here & (split == name)].sum()) < int((here & (split == name)).sum())
        for name in ("train", "valid")
    )


def one_of(sites: Sequence[str]) -> str:
    """An expression that selects some hospitals."""

    def quoted(name: str) -> str:
        if re.fullmatch(r"[\w.-]+", name):
            return name
        if '"' in name and "'" in name:
            raise ConfigError(
                f"no expression can hold a site's name with both kinds of quotes, got {name}; "
                "rename it in the column site of `ecgfast label`, or write a plan by hand"
            )
        return f"'{name}'" if '"' in name else f'"{name}"'

    names = [quoted(name) for name in sites]
    return f"site={names[0]}" if len(names) == 1 else f"site in ({', '.join(names)})"
