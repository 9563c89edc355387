"""Signal checks as a store has them: their limits, their flags, and those that a site decides.

A record's flags stand in the column `quality`, its measures in the columns beside it.
"""

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ecgfast.bounds import nearest
from ecgfast.errors import ConfigError

Limits = Mapping[str, float]

PACING = "pacing"  # the flag of `flags`, not of `quality`: a paced heart is no bad recording
AMPLITUDE_SITE = "amplitude_site"  # the flag that no record has by itself
# Columns of measures, microvolt: of the middle lead, and of the lead with most.
MEASURES = ("amplitude_uv", "noise_uv", "wander_uv", "mains_uv")

_TABLE = files("ecgfast.store") / "quality.toml"


class Limit(NamedTuple):
    """One limit of the signal checks, as `quality.toml beside this file` has it.

    Attributes:
        value: the default.
        unit: of the value.
        flag: what a record is flagged as that exceeds it.
        means: what is held against it.
        source: why this value.
    """

    value: float
    unit: str
    flag: str
    means: str
    source: str


@cache
def table_of_limits() -> dict[str, Limit]:
    """Every limit by its name."""
    tree = tomllib.loads(_TABLE.read_text(encoding="utf-8"))
    return {name: Limit(**entry) for name, entry in tree.items()}


def default_limits() -> dict[str, float]:
    """The limits of a convert that is given none."""
    return {name: limit.value for name, limit in table_of_limits().items()}


def read_limits(path: Path) -> dict[str, float]:
    """Read the limits that a user sets, lines of TOML such as ``noise_uv = 50``.

    Raises:
        ConfigError: no such file, no TOML, an unknown name, or a value that is no number above 0.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"--quality-limits {path} cannot be read ({error.strerror}); name a TOML file"
        ) from error
    except ValueError as error:  # of UTF-8 too
        raise ConfigError(f"--quality-limits {path} is not valid TOML: {error}") from error
    names = table_of_limits()
    for name, value in tree.items():
        if name not in names:
            raise ConfigError(
                f"--quality-limits {path}: unknown limit {name!r}{nearest(name, names)}; "
                f"allowed: {', '.join(names)}"
            )
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e12:
            raise ConfigError(
                f"--quality-limits {path}: {name} must be a number above 0, got {value!r}; a large "
                "number turns an upper limit off"
            )
    return {name: float(value) for name, value in tree.items()}


def with_site_flags(records: pa.Table, limits: Limits) -> pa.Table:
    """Flag records whose amplitude is far from that of their site; earlier such flags go.

    Finds a gain that is wrong in all leads by less than `amplitude` does. Records without a site
    are held against each other.

    Args:
        records: with the columns `quality`, `amplitude_uv` and `site`.
        limits: `site_factor` and `site_records` of them.
    """
    amplitude = records["amplitude_uv"].to_numpy()
    codes = records["site"].combine_chunks().dictionary_encode().indices
    sites = codes.fill_null(-1).to_numpy(zero_copy_only=False)
    far = np.zeros(len(sites), bool)
    for site in np.unique(sites).tolist():
        here = np.flatnonzero((sites == site) & (amplitude > 0))
        if len(here) >= limits["site_records"]:
            ratio = amplitude[here]
            ratio /= np.median(ratio)
            factor = limits["site_factor"]
            far[here] = (ratio > factor) | (ratio < 1 / factor)
    flags = records["quality"]
    changes = far | pc.match_substring(flags, AMPLITUDE_SITE).to_numpy()
    changed = [
        joined(text, AMPLITUDE_SITE, present=present)
        for text, present in zip(
            flags.filter(pa.array(changes)).to_pylist(), far[changes].tolist(), strict=True
        )
    ]
    flags = pc.replace_with_mask(flags, pa.array(changes), pa.array(changed, pa.string()))
    place = records.column_names.index("quality")
    return records.set_column(place, records.schema.field(place), flags)


def joined(flags: str, flag: str, *, present: bool) -> str:
    """Flags with one more, or without it, sorted and joined by ";"."""
    others = {each for each in flags.split(";") if each not in ("", flag)}
    return ";".join(sorted(others | {flag} if present else others))
