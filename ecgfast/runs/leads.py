"""A run on fewer leads than it learned from: patches of the others are left out, as masks do."""

import copy
from collections.abc import Iterable
from dataclasses import replace

from torch import nn

from ecgfast.errors import ConfigError
from ecgfast.model.classifier import Classifier
from ecgfast.model.vit import Encoder
from ecgfast.records import LEADS
from ecgfast.runs.meta import RunMeta
from ecgfast.vocabulary import leads_in_order


def leads_of(meta: RunMeta) -> tuple[str, ...]:
    """Names of the leads that a run's model takes, in the order of `LEADS`."""
    return meta.preprocessing.normalisation.leads or LEADS


def require_fewer_possible(meta: RunMeta) -> None:
    """Refuse a model that knows leads by their place among all that it was trained on.

    Raises:
        ConfigError: a CNN, or a head that reads each lead by itself.
    """
    kind = "vit" if meta.kind == "pretrain" else meta.model
    pool = meta.identity.get("model.pool")
    if kind != "vit" or (meta.kind == "finetune" and pool == "lead_mean_max"):
        what = f"model.pool={pool}" if kind == "vit" else f"model.kind={kind}"
        raise ConfigError(
            f"a model of {what} needs every lead that it was trained on, "
            f"{', '.join(leads_of(meta))}, got fewer; train one with data.leads, or a vit with "
            "model.pool=cls or mean"
        )


def on_leads(meta: RunMeta, names: Iterable[str], *, option: str = "leads") -> RunMeta:
    """What a run would say of itself if its records had some leads alone.

    Args:
        meta: of the run.
        names: of leads that it takes, in any order.
        option: where they were asked for, for messages.
    Raises:
        ConfigError: it does not take one of them, or cannot do with fewer.
    """
    try:
        leads = leads_in_order(names)
    except ValueError as error:
        raise ConfigError(f"{option} must be {error}") from None
    known = leads_of(meta)
    if leads == known:
        return meta
    if unknown := [lead for lead in leads if lead not in known]:
        raise ConfigError(
            f"{option} must be among the leads of the run, {', '.join(known)}, got "
            f"{', '.join(unknown)}; leave these out, or take another run"
        )
    require_fewer_possible(meta)
    normalisation = replace(meta.preprocessing.normalisation, leads=leads)
    return replace(meta, preprocessing=replace(meta.preprocessing, normalisation=normalisation))


def model_on_leads(model: nn.Module, meta: RunMeta) -> nn.Module:
    """The model that takes the leads of `on_leads`, on the same weights in the same memory.

    Args:
        model: of the run, on any device.
        meta: as `on_leads` gave it.
    """
    own = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
    encoder = own.encoder if isinstance(own, Classifier) else own
    assert isinstance(encoder, Encoder)
    encoder.set_leads(meta.preprocessing.normalisation.lead_numbers)
    return own.eval()
