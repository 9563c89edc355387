"""The plan of an experiment: sets, models and hospitals, as a TOML file that a user can edit."""

import dataclasses
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    ConfigDict,
    StrictBool,
    StrictStr,
    ValidationError,
)
from pydantic.dataclasses import dataclass

from ecgfast import log
from ecgfast.bounds import Fractions, Repeats, nearest
from ecgfast.config import Config, ignored_settings, load_config, toml_line
from ecgfast.errors import ConfigError
from ecgfast.evaluate.cohort import text_column
from ecgfast.runs.column_task import task_of
from ecgfast.runs.initial import WORDS
from ecgfast.store.reader import StoreReader
from ecgfast.train.dataset import labelled_records, pretraining_rows

TARGET = "ejection_fraction<40"
_CLOSED = ConfigDict(extra="forbid")
_ALLOWED = {  # by pydantic's type of error
    **{"string_type": "a text in quotes", "bool_type": "true or false"},
    **{"int_type": "a whole number", "float_type": "a number"},
    **{"tuple_type": "a list in [ ]", "dataclass_type": "a section [[ ]]"},
}
_HEAD = """\
# What `ecgfast reproduce` trains and tests; docs/reproduce.md explains every line.
# A select is an expression, as in --select; without one a set has all records of the store.
"""


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*", text, re.ASCII):
        raise ValueError(f"letters, digits, - and _, because it names a folder, got {text!r}")
    return text


Name = Annotated[StrictStr, AfterValidator(_name)]
Settings = tuple[StrictStr, ...]


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Where the settings of a run come from.

    Attributes:
        preset: its name, or the path of a TOML file.
        settings: as in ``--set``.
        recipe: of a fine-tuning, as in ``--recipe``; None keeps the preset's values.
    """

    preset: str
    settings: tuple[str, ...]
    recipe: str | None = None

    def config(self) -> Config:
        """Resolve them."""
        return load_config(self.preset, self.settings, recipe=self.recipe)

    def options(self) -> tuple[str, ...]:
        """Return them as options of a command."""
        words = ["--preset", _absolute(self.preset)]
        words += [] if self.recipe is None else ["--recipe", _absolute(self.recipe)]
        for setting in self.settings:
            words += ["--set", setting]
        return tuple(words)


def _absolute(name: str) -> str:
    return str(Path(name).resolve()) if name.endswith(".toml") else name


@dataclass(frozen=True, kw_only=True, config=_CLOSED)
class Pretraining:
    """Records that a masked autoencoder reads, without labels.

    Attributes:
        name: of the set, and of the folder of its run.
        select: an expression; None takes all.
        include_test: whether it reads the test patients too, as the study does.
        settings: as in ``--set``, over those of the plan.
    """

    name: Name
    select: StrictStr | None = None
    include_test: StrictBool = False
    settings: Settings = ()


@dataclass(frozen=True, kw_only=True, config=_CLOSED)
class Model:
    """What is fine-tuned.

    Attributes:
        name: heads a column of the table.
        init: a `Pretraining`, "imagenet-mae" or "random".
        preset: None takes the plan's.
        recipe: None takes the plan's.
        frozen: whether the head alone learns: a linear probe.
        settings: as in ``--set``, over those of the plan.
    """

    name: Name
    init: StrictStr
    preset: StrictStr | None = None
    recipe: StrictStr | None = None
    frozen: StrictBool = False
    settings: Settings = ()


@dataclass(frozen=True, kw_only=True, config=_CLOSED)
class Finetuning:
    """Labelled records, and the models that learn from them.

    Attributes:
        name: of the set.
        select: an expression; None takes all. Splits apply within it.
        models: names of the models, in the order of their columns.
    """

    name: Name
    select: StrictStr | None = None
    models: tuple[StrictStr, ...]


@dataclass(frozen=True, kw_only=True, config=_CLOSED)
class Plan:
    """An experiment.

    Attributes:
        target: what a case is.
        preset: of the models that name none.
        recipe: of fine-tuning, for the models that name none; None keeps the presets' values.
        settings: of all runs, as in ``--set``.
        fractions: of the patients with labels, for each of which every model is fine-tuned.
        seeds: fine-tunings of each model on each set and fraction; they differ in `train.seed`.
        sites: hospitals in the rows of the table.
        pretraining: sets without labels.
        model: what is fine-tuned.
        finetuning: sets with labels.
    """

    target: StrictStr = TARGET
    preset: StrictStr = "vit_large"
    recipe: StrictStr | None = None
    settings: Settings = ()
    fractions: Fractions = (1.0,)
    seeds: Repeats = 1
    sites: tuple[StrictStr, ...]
    pretraining: tuple[Pretraining, ...] = ()
    model: tuple[Model, ...]
    finetuning: tuple[Finetuning, ...]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a plan.

        Raises:
            ConfigError: it is no TOML, or a key or value is wrong.
        """
        try:
            return cls(**tomllib.loads(path.read_text(encoding="utf-8")))
        except ValidationError as error:
            raise ConfigError(f"plan {path}: {_in_words(error)}") from None
        except (ValueError, RecursionError) as error:  # also text that is no UTF-8
            raise ConfigError(f"plan {path} is not valid TOML: {error}") from error

    def changed(self, **values: Any) -> Self:  # noqa: ANN401 (as the fields are)
        """Return the plan with other values.

        Raises:
            ConfigError: a value is wrong.
        """
        try:
            return dataclasses.replace(self, **values)
        except ValidationError as error:
            raise ConfigError(f"plan: {_in_words(error)}") from None

    def to_toml(self) -> str:
        """Render the plan as TOML that `read` reads back to an equal one."""
        lines = [_HEAD, *_lines(self)]
        for section in ("pretraining", "model", "finetuning"):
            for entry in getattr(self, section):
                lines += [f"\n[[{section}]]", *_lines(entry)]
        return "\n".join(lines) + "\n"

    def model_named(self, name: str) -> Model:
        """Return a model that `check` has found."""
        return next(model for model in self.model if model.name == name)

    def of_pretraining(self, entry: Pretraining) -> Chosen:
        """Return the settings of a pretraining."""
        return Chosen(preset=self.preset, settings=(*self.settings, *entry.settings))

    def of_finetuning(self, model: Model, repeat: int = 0, fraction: float = 1.0) -> Chosen:
        """Return the settings of a fine-tuning.

        Args:
            model: of the plan.
            repeat: from 0; the seed is so much higher than that of the settings.
            fraction: of the patients with labels.
        """
        settings = (*self.settings, *model.settings)
        if model.frozen:
            settings += ("finetune.frozen=true", "finetune.probe_epochs=0")
        chosen = Chosen(
            preset=model.preset or self.preset,
            settings=settings,
            recipe=model.recipe or self.recipe,
        )
        if fraction < 1:
            settings += (f"finetune.label_fraction={fraction!r}",)
        if repeat:
            settings += (f"train.seed={chosen.config().train.seed + repeat}",)
        return dataclasses.replace(chosen, settings=settings)


def _lines(entry: Any) -> Iterator[str]:  # noqa: ANN401 (any of the classes above)
    for field in dataclasses.fields(entry):
        value = getattr(entry, field.name)
        if value is not None and not (isinstance(value, tuple) and value and _is_entry(value[0])):
            yield toml_line(field.name, value)


def _is_entry(value: object) -> bool:
    return dataclasses.is_dataclass(value)


def _in_words(error: ValidationError) -> str:
    """One of pydantic's errors, such as "model 2: unknown key frozn, did you mean 'frozen'"."""
    unknown = "unexpected_keyword_argument"  # before keys that are missing: one is the other
    first = min(error.errors(include_url=False), key=lambda each: each["type"] != unknown)
    *place, key = first["loc"]
    if place and isinstance(key, int):  # of a list
        key = f"{place.pop()} {key + 1}"
    entry = {"pretraining": Pretraining, "model": Model, "finetuning": Finetuning}
    known = entry.get(str(place[0]), Plan) if place else Plan
    where = " ".join(str(part + 1 if isinstance(part, int) else part) for part in place)
    prefix = f"{where}: " if where else ""
    if first["type"] == unknown:
        names = [field.name for field in dataclasses.fields(known)]
        return f"{prefix}unknown key {key}{nearest(str(key), names)}; allowed: {', '.join(names)}"
    if first["type"] == "missing":
        return f"{prefix}{key} is missing"
    if first["type"] == "value_error":
        return f"{prefix}{key} must be {first['ctx']['error']}"
    allowed = _ALLOWED.get(first["type"], "something else")
    return f"{prefix}{key} must be {allowed}, got {first['input']!r:.80}"


def check(plan: Plan, store: StoreReader) -> None:
    """Refuse a plan that cannot be carried out, before anything is trained.

    Args:
        plan: to check.
        store: that it is for.
    Raises:
        ConfigError: names stand twice, for nothing or nowhere, a setting or column does not
            exist, a set is empty or has no cases or no controls to learn from.
    """
    for what in ("pretraining", "model", "finetuning"):
        names = [entry.name for entry in getattr(plan, what)]
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise ConfigError(f"plan: {what} {twice[0]!r} stands twice; give each its own name")
    if not plan.sites:
        raise ConfigError("plan: sites is empty; name the hospitals in the rows of the table")
    if unknown := sorted(set(plan.sites) - set(text_column(store.records, "site").tolist())):
        raise ConfigError(
            f"plan: sites: {store.path} has no site {unknown[0]!r}; `ecgfast info` lists them"
        )
    for entry in plan.pretraining:
        with _named("pretraining", entry.name):
            plan.of_pretraining(entry).config()
            if not len(pretraining_rows(store, entry.select, include_test=entry.include_test)):
                raise ConfigError(f"select {entry.select!r} has no record to read; widen it")
    inits = [*WORDS, *(entry.name for entry in plan.pretraining)]
    for model in plan.model:
        with _named("model", model.name):
            config = plan.of_finetuning(model).config()
            if ignored := ignored_settings(config, model.settings):
                log.warning(f"plan: model {model.name!r}: settings: {ignored}")
            fraction = config.finetune.label_fraction
            if fraction < 1 and plan.fractions != (1.0,):
                raise ConfigError(
                    f"fractions {list(plan.fractions)} and finetune.label_fraction={fraction:g} in "
                    "settings; take one of the two"
                )
            if model.init not in inits:
                near = nearest(model.init, inits)
                raise ConfigError(f"init {model.init!r}{near}; allowed: {', '.join(inits)}")
    for each in plan.finetuning:
        with _named("finetuning", each.name):
            known = [model.name for model in plan.model]
            if not each.models:
                raise ConfigError(f"models is empty; allowed: {', '.join(known)}")
            if len(set(each.models)) < len(each.models):
                raise ConfigError(f"a model stands twice in models, got {', '.join(each.models)}")
            if missing := [name for name in each.models if name not in known]:
                near = nearest(missing[0], known)
                raise ConfigError(f"no model {missing[0]!r}{near}; allowed: {', '.join(known)}")
            labelled_records(store, task_of(plan.target), each.select)


@contextmanager
def _named(section: str, name: str) -> Iterator[None]:
    """Put the entry of the plan before an error's text."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"plan: {section} {name!r}: {error}") from error
