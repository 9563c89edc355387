"""The page of `ecgfast quality`: what the signal checks found, by site and device, with examples.

Shapes: N records of the store, T timesteps.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ecgfast.errors import ConfigError
from ecgfast.evaluate import charts, views
from ecgfast.evaluate.cohort import natural_order, text_column
from ecgfast.evaluate.figures import Pictures
from ecgfast.evaluate.report import render
from ecgfast.evaluate.views import Table, View
from ecgfast.records import LEADS
from ecgfast.runs.ecg_paper import Strip, paper
from ecgfast.store.durable import write_durably
from ecgfast.store.format import refuse_inside_store, refuse_to_replace
from ecgfast.store.quality import AMPLITUDE_SITE, MEASURES, table_of_limits
from ecgfast.store.reader import StoreReader, open_store

_GROUPS = ("site", "device")
_MOST_GROUPS = 30  # the largest; the others are one
_FILTERS = {"high_pass_hz": "high-pass", "low_pass_hz": "low-pass", "notch_hz": "mains filter"}
_EXAMPLES = 2  # of each flag
_MICROVOLT_PER_MV = 1000.0
_WORDS = {  # of flags that no limit of their own explains
    "factor_1000": "amplitude is that of a heart times or by 1000: mV taken for microvolt, or back",
    "leads_i_ii": "III is I - II: I and II are in each other's place",
}
# Flag -> the leads that show it, and the measure by which records with it are ordered.
_SHOWN = {
    "amplitude": ("I", "II", "V2", "V5"),
    AMPLITUDE_SITE: ("I", "II", "V2", "V5"),
    "arm_leads": ("I", "II", "aVR", "V6"),
    "einthoven": ("I", "II", "III"),
    "factor_1000": ("I", "II", "V2", "V5"),
    "leads_i_ii": ("I", "II", "III"),
    "precordial_order": LEADS[6:],
}
_MEASURED = {"noise": "noise_uv", "wander": "wander_uv", "mains": "mains_uv"}
_MEASURED |= {"einthoven": "einthoven_uv"}

Groups = Mapping[str, NDArray[np.bool_]]


def write_page(store: Path, out: Path) -> Path:
    """Write what the signal checks found as one HTML file.

    It shows signals, so it lies where the user says and never in the store.

    Args:
        store: path of a store.
        out: file to write.
    Returns:
        `out`.
    Raises:
        ConfigError: the store was made before it had measures, or `out` lies in a store or is a
            file that is no page.
    """
    refuse_inside_store(out, "--out")
    refuse_to_replace(out, "--out", b"<!doctype html>", "page")
    reader = open_store(store)
    if "quality" not in reader.records.column_names:
        raise ConfigError(
            f"{store} was made by an earlier version of ecgfast, which took no measures of "
            "quality; convert its sources again"
        )
    html = render(
        page(reader),
        Pictures(synthetic=reader.manifest["synthetic"]),
        template="quality.html.j2",
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_durably(out, [html.encode()])
    return out


def page(store: StoreReader) -> View:
    """Everything that the template shows."""
    records = store.records
    quality = [{*filter(None, text.split(";"))} for text in records["quality"].to_pylist()]
    flags = [{*filter(None, text.split(";"))} for text in records["flags"].to_pylist()]
    groups = {name: found for name in _GROUPS if (found := _groups(records, name))}
    return {
        "heading": views.heading(store, None),
        "made_with": views.made_with(),
        "failed": sum(map(bool, quality)),
        "num_records": len(quality),
        "mode": store.manifest["quality"],
        "checks": {name: _counts(quality, of, name, sum_up=True) for name, of in groups.items()},
        "noticed": _counts(flags, groups["site"], "site"),
        "spreads": {name: _spreads(records, of) for name, of in groups.items()},
        "filters": {name: _filters(records, of, name) for name, of in groups.items()},
        "limits": _limits(store),
        "examples": [*_examples(store, quality)],
    }


def _groups(records: pa.Table, column: str) -> Groups:
    """Group -> (N,) bool; the smallest of many are one, and a store without devices has none."""
    names = text_column(records, column)
    if column != "site" and set(names) <= {"-"}:
        return {}
    ordered = [name for name, _ in Counter(names.tolist()).most_common()]
    largest = natural_order(ordered[:_MOST_GROUPS])
    found = {"unknown" if name == "-" else name: names == name for name in largest}
    if rest := ordered[_MOST_GROUPS:]:
        found[f"{len(rest)} others"] = np.isin(names, rest)
    return found


def _counts(flags: list[set[str]], groups: Groups, of: str, *, sum_up: bool = False) -> Table:
    """How many records of each group have each flag."""
    members = {name: np.flatnonzero(chosen).tolist() for name, chosen in groups.items()}
    if len(members) > 1:
        members["all"] = [*range(len(flags))]
    names = [name for name, _ in Counter(flag for each in flags for flag in each).most_common()]
    counts = {
        name: [sum(name in flags[n] for n in rows) for rows in members.values()] for name in names
    }
    if sum_up:
        counts["any of these"] = [sum(bool(flags[n]) for n in rows) for rows in members.values()]
    totals = [len(rows) for rows in members.values()]
    rows = [
        (name, *(_share(count, total) for count, total in zip(found, totals, strict=True)))
        for name, found in counts.items()
    ]
    rows.append(("records", *(f"{total:,}" for total in totals)))
    return Table(header=(of, *members), rows=rows, sums=[*range(len(names), len(rows))])


def _share(count: int, total: int) -> str:
    return f"{count:,} ({100 * count / total:.1f} %)" if count else "0"


def _spreads(records: pa.Table, groups: Groups) -> Figure:
    """Each measure's distribution by group."""
    values = {name: records[name].to_numpy() for name in MEASURES}
    titles = {
        "amplitude_uv": "amplitude of the middle lead",
        "noise_uv": "noise of the noisiest lead",
        "wander_uv": "baseline wander of the worst lead",
        "mains_uv": "mains of the worst lead",
    }
    return charts.spreads(
        {
            titles[name]: {group: values[name][chosen] for group, chosen in groups.items()}
            for name in MEASURES
        },
        x_label="microvolt",
    )


def _filters(records: pa.Table, groups: Groups, of: str) -> Table:
    """Settings and rates of each group, the most frequent first: what differs between devices."""
    columns = {"original_rate_hz": "recorded at"}
    columns |= {name: title for name, title in _FILTERS.items() if name in records.column_names}
    values = {name: records[name].to_pylist() for name in columns}
    rows = []
    for group, chosen in groups.items():
        here = np.flatnonzero(chosen).tolist()
        cells = [_most_frequent(values[name][n] for n in here) for name in columns]
        rows.append((group, f"{len(here):,}", *cells))
    return Table(header=(of, "records", *columns.values()), rows=rows)


def _most_frequent(values: Iterator[float | None]) -> str:
    found = Counter("unknown" if value is None else f"{value:g} Hz" for value in values)
    shown = [f"{name}: {count:,}" for name, count in found.most_common(4)]
    return "; ".join([*shown, *(["..."] if len(found) > 4 else [])])


def _limits(store: StoreReader) -> Table:
    """Each limit as it was in the convert; another than the default has a star."""
    used = store.manifest["quality_limits"]
    rows = []
    for name, limit in table_of_limits().items():
        value = used.get(name, limit.value)
        star = "" if value == limit.value else " *"
        rows.append((name, f"{value:g}{star} {limit.unit}", limit.flag, limit.means, limit.source))
    rows += [("", "", flag, words, "") for flag, words in _WORDS.items()]
    return Table(header=("limit", "value", "flag", "a record is flagged for", "why"), rows=rows)


def _examples(store: StoreReader, quality: list[set[str]]) -> Iterator[View]:
    """Of each flag the record that is farthest beyond its limit and the one that is least so."""
    names = {name for found in quality for name in found}
    for flag in sorted(names):
        rows = np.array([n for n, found in enumerate(quality) if flag in found])
        measure = _MEASURED.get(flag)
        if measure is not None:
            order = np.argsort(store.records[measure].to_numpy()[rows], kind="stable")[::-1]
        elif flag in ("amplitude", AMPLITUDE_SITE, "factor_1000"):
            amplitude = np.maximum(store.records["amplitude_uv"].to_numpy()[rows], 1e-3)
            order = np.argsort(-np.abs(np.log(amplitude / 1000)), kind="stable")
        else:  # those with few other faults show it best
            order = np.argsort([len(quality[n]) for n in rows], kind="stable")
        chosen = rows[order[[0, -1]]] if measure else rows[order[:_EXAMPLES]]
        yield {
            "flag": flag,
            "figures": [_example(store, int(row), flag) for row in dict.fromkeys(chosen.tolist())],
        }


def _example(store: StoreReader, row: int, flag: str) -> Figure:
    """The leads that are at fault, at most four, with lead II where there is one alone."""
    leads = _SHOWN.get(flag) or _leads_of(store.records["quality_leads"][row].as_py(), flag)
    signal = store.read(np.array([row]))[0].astype(np.float64)
    scale, offset = (np.asarray(getattr(store, name)[row]) for name in ("scale_uv", "offset_adc"))
    signal_mv = (signal - offset[:, None]) * scale[:, None] / _MICROVOLT_PER_MV
    readable = store.manifest["identifiers"] == "kept"
    name = f"row {row}" if readable else str(store.records["record_id"][row].as_py())[:16]
    mark = "SYNTHETIC   " if store.manifest["synthetic"] else ""
    strips = [Strip(name=lead, signal_mv=signal_mv[LEADS.index(lead)]) for lead in leads]
    return paper(strips, title=f"{mark}{flag}   record {name}")


def _leads_of(text: str, flag: str) -> tuple[str, ...]:
    """The leads that `quality_leads` names for a flag."""
    found = dict(part.split("=") for part in text.split(";") if part)
    leads = tuple(found[flag].split(","))[:3]
    return leads if "II" in leads else (*leads, "II")
