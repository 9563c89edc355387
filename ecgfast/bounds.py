"""Types of settings with their bounds, and one line of ours for what does not hold them."""

import difflib
import functools
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import is_dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, InstanceOf, ValidationError
from pydantic import StrictBool as Flag
from pydantic import StrictFloat as Real
from pydantic import StrictInt as Int

from ecgfast.errors import ConfigError
from ecgfast.vocabulary import MOST_SEEDS, leads_in_order

__all__ = ["Flag", "check_fractions", "errors_in_words", "nearest"]

T = TypeVar("T")


def _bound(allowed: str, holds: Callable[[Any], bool], *, cure: str = "") -> AfterValidator:
    def check(value: T) -> T:
        if not holds(value):
            got = list(value) if isinstance(value, tuple) else value
            raise ValueError(f"{allowed}, got {got!r}{cure}")
        return value

    return AfterValidator(check)


def _positive(value: float) -> bool:
    return 0 < value < math.inf


def _not_negative(value: float) -> bool:
    return 0 <= value < math.inf


def _below_1(value: float) -> bool:
    return 0 <= value < 1


def check_fractions(values: tuple[float, ...]) -> tuple[float, ...]:
    """Return fractions of the labels that make a curve.

    Raises:
        ValueError: one is not in (0, 1], or is there twice.
    """
    if not values or not all(0 < value <= 1 for value in values) or len({*values}) < len(values):
        raise ValueError(f"numbers above 0 and at most 1, each once, got {list(values)}")
    return values


Text = InstanceOf[str]  # also of file names that are not UTF-8, which pydantic's str refuses
Count = Annotated[Int, _bound("at least 1", lambda value: value >= 1)]
PatchTimesteps = Annotated[
    Int, _bound("250, as long as the codec's columns", lambda n: n == 250, cure="; leave it out")
]
Timesteps = Annotated[
    Int, _bound("a multiple of 250", lambda n: n > 0 and n % 250 == 0, cure="; a store's is 5000")
]
Shift = Annotated[
    Int, _bound("in [0, 2500], half a record's timesteps", lambda value: 0 <= value <= 2500)
]
Seed = Annotated[Int, _bound("in [0, 2^63)", lambda value: 0 <= value < 2**63)]
Repeats = Annotated[Int, _bound(f"1 to {MOST_SEEDS}", lambda number: 1 <= number <= MOST_SEEDS)]
Positive = Annotated[Real, _bound("above 0", _positive)]
NotNegative = Annotated[Real, _bound("at least 0", _not_negative)]
NotNegativeCount = Annotated[Int, _bound("at least 0", _not_negative)]
Share = Annotated[Real, _bound("above 0 and at most 1", lambda value: 0 < value <= 1)]
Fraction = Annotated[Real, _bound("in [0, 1)", _below_1)]
MaskRatio = Annotated[Real, _bound("in [0, 1)", _below_1, cure="; the study masks 0.75")]
# Beside "auto" or unset an integer stays one, and config.toml shows it as it was given.
ClipNorm = Annotated[Int | Real, _bound("above 0", _positive)]
Memory = Annotated[Int | Real, _bound("'auto' or at least 0", _not_negative)]  # GiB
Rates = Annotated[
    tuple[Real, ...],
    _bound("one or more numbers above 0", lambda rates: bool(rates) and all(map(_positive, rates))),
]
Fractions = Annotated[tuple[Real, ...], AfterValidator(check_fractions)]
Leads = Annotated[tuple[Text, ...], AfterValidator(leads_in_order)]


def errors_in_words(prefix: str) -> Callable[[type[T]], type[T]]:
    """Make a class raise `ConfigError`, with the names that users write, for pydantic's errors."""

    def decorate(cls: type[T]) -> type[T]:
        construct = cls.__init__

        @functools.wraps(construct)
        def checked(self: T, /, **values: object) -> None:
            try:
                construct(self, **values)
            except ValidationError as error:
                raise ConfigError(_in_words(cls, error, values, prefix)) from None

        cls.__init__ = checked  # type: ignore[assignment]  # wider: keywords
        return cls

    return decorate


def _in_words(cls: type, error: ValidationError, values: Mapping[str, Any], prefix: str) -> str:
    """The first of pydantic's errors as a line of ours; wrong names and types before bounds."""
    errors = error.errors(include_url=False)
    causes = {e["loc"][:1]: e["ctx"]["error"] for e in errors if e["type"] == "value_error"}
    if () in causes:  # of several settings together
        return str(causes[()])
    place = list(values).index
    first = min(errors, key=lambda e: (e["type"] == "value_error", place(str(e["loc"][0]))))
    name = str(first["loc"][0])
    key, value, hints = prefix + name, values[name], typing.get_type_hints(cls)
    if name not in hints:
        allowed = ", ".join(prefix + other for other in hints)
        return f"unknown setting {key}{nearest(name, hints)}; allowed: {allowed}"
    if is_dataclass(hints[name]):
        return f"{key} is a section, got the value {value!r}; set {key}.name=value"
    # A value that may be of several types has an error for each of them.
    cause = causes.get((name,))
    return f"{key} must be {cause or f'{_describe(hints[name])}, got {value!r}'}"


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return the nearest of `allowed` as the end of a message, "" where none is near."""
    match = difflib.get_close_matches(name, list(allowed), n=1)
    return f", did you mean {match[0]!r}?" if match else ""


def _describe(hint: object) -> str:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if float in options:  # which takes integers too
            options = tuple(option for option in options if option is not int)
        return " or ".join(_describe(option) for option in options)
    if origin is Literal:
        return "one of " + ", ".join(repr(option) for option in options)
    if origin is tuple:
        return "a list of numbers" if float in options else "a list of names"
    assert isinstance(hint, type)
    words = {float: "a number", int: "an integer", str: "a text", type(None): "unset"}
    return words.get(hint, hint.__name__)
