"""Who is in a store: tables by site and split, and subgroups.

Shapes: N records of the store, n chosen ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ecgfast.labels.selection import target_labels
from ecgfast.log import plain
from ecgfast.store.format import passed_over_beside
from ecgfast.store.info import StoreInfo, kinds_in_words
from ecgfast.store.info import describe as describe_store
from ecgfast.store.patients import patient_groups
from ecgfast.store.reader import StoreReader

SPLITS = ("train", "valid", "test")
DEFAULT_TARGET = "ejection_fraction<40"
FEWEST = 10  # cases, and controls, below which nothing is computed of a subgroup
_AGES = {
    "under 18": (0, 18),
    "18 to 39": (18, 40),
    "40 to 59": (40, 60),
    "60 to 79": (60, 80),
    "80 and over": (80, np.inf),
}
_GROUPED = ("sex", "site", "device")  # columns of text, where a store has them


@dataclass(frozen=True, kw_only=True)
class CohortRow:
    """One line of a cohort table.

    Attributes:
        site: institution, or "all".
        split: "train", "valid", "test", "-" where none was assigned, or "all".
        num_records: every record, labelled or not.
        num_cases: records that meet the target.
        num_controls: records that do not.
        num_patients: different patients.
        ages: lower quartile, median and upper quartile of the known ages; None without any.
        female: share of women among the records whose sex is known; None without any.
    """

    site: str
    split: str
    num_records: int
    num_cases: int
    num_controls: int
    num_patients: int
    ages: tuple[float, float, float] | None = None
    female: float | None = None

    @property
    def num_unlabelled(self) -> int:
        """Records whose target is unknown; they are never controls."""
        return self.num_records - self.num_cases - self.num_controls

    @property
    def prevalence(self) -> float | None:
        """Share of cases among the labelled records; None without any."""
        labelled = self.num_cases + self.num_controls
        return self.num_cases / labelled if labelled else None


def text_column(records: pa.Table, name: str) -> NDArray[np.str_]:
    """A column of the records as text, "-" where it is missing or null; see `shown_name`."""
    if name not in records.column_names:
        return np.full(records.num_rows, "-")
    values = records.column(name).to_pylist()
    return np.array([shown_name(value) for value in values], dtype=np.str_)


def shown_name(value: object) -> str:
    """Return a site or split as tables have it: "-" is none, "all" a sum, and no site is either."""
    if value is None:
        return "-"
    text = str(value)
    return f'"{text}"' if text in {"-", "all"} else text


def cohort_table(
    records: pa.Table, target: str | None, truth: NDArray[np.float64] | None = None
) -> list[CohortRow]:
    """Count every site and split of a store.

    Args:
        records: `StoreReader.records`.
        target: what a case is, such as "ejection_fraction<40"; None counts no labels.
        truth: (N,) labels instead, 1 of a case, NaN where unknown.
    Returns:
        For each site, in order, its splits and their sum; at the end the sum of all sites.
    """
    is_case, is_known = target_labels(records, target, truth)
    sites, splits = text_column(records, "site"), text_column(records, "split")
    patients = patient_groups(records)
    age, sex = ages(records), text_column(records, "sex")

    def count(site: str, split: str, chosen: NDArray[np.bool_]) -> CohortRow:
        known = age[chosen & ~np.isnan(age)]
        sexes = sex[chosen & (sex != "-")]
        low, median, high = np.percentile(known, (25, 50, 75)).tolist() if len(known) else [0.0] * 3
        return CohortRow(
            site=site,
            split=split,
            num_records=int(chosen.sum()),
            num_cases=int((chosen & is_known & is_case).sum()),
            num_controls=int((chosen & is_known & ~is_case).sum()),
            num_patients=len(np.unique(patients[chosen])),
            ages=(low, median, high) if len(known) else None,
            female=float((sexes == "female").mean()) if len(sexes) else None,
        )

    rows: list[CohortRow] = []
    for site in natural_order(np.unique(sites).tolist()):
        here = sites == site
        present = [s for s in (*SPLITS, "-") if (here & (splits == s)).any()]
        rows += [count(site, split, here & (splits == split)) for split in present]
        if len(present) > 1:
            rows.append(count(site, "all", here))
    return [*rows, count("all", "all", np.ones(records.num_rows, dtype=bool))]


def subgroups(records: pa.Table) -> dict[str, dict[str, NDArray[np.bool_]]]:
    """Divide records by age, sex, site and device, as far as the store knows them.

    Args:
        records: `StoreReader.records`.
    Returns:
        Column -> group -> (N,) bool; groups without a record are left out, and so are columns
        without a value.
    """
    age = ages(records)
    spans = {name: (age >= low) & (age < high) for name, (low, high) in _AGES.items()}
    columns = {"age": {**spans, "unknown": np.isnan(age)}}
    for name in _GROUPED:
        values = text_column(records, name)
        columns[name] = {
            "unknown" if value == "-" else value: values == value
            for value in natural_order(np.unique(values).tolist())
        }
    present = {
        column: {group: chosen for group, chosen in groups.items() if chosen.any()}
        for column, groups in columns.items()
    }
    return {column: groups for column, groups in present.items() if set(groups) != {"unknown"}}


def ages(records: pa.Table) -> NDArray[np.float64]:
    """(N,) years, NaN where unknown."""
    if "age" not in records.column_names:
        return np.full(records.num_rows, np.nan)
    return np.array(records["age"].to_pylist(), dtype=np.float64)


def natural_order(names: Sequence[str]) -> list[str]:
    """Sort names so that site 10 comes after site 9."""
    return sorted(names, key=lambda name: (not name.isdigit(), len(name) * name.isdigit(), name))


def describe(store: StoreReader, target: str | None = None) -> str:
    """Summarise a store in plain text.

    Args:
        store: an open store.
        target: what a case is; None takes "ejection_fraction<40" where a record has one.
    Raises:
        ConfigError: the target names a column that the store lacks.
    """
    if target is None and _has_values(store.records, "ejection_fraction"):
        target = DEFAULT_TARGET
    rows = cohort_table(store.records, target)
    info = describe_store(store)
    flags, quality = (
        ", ".join(f"{flag} {count}" for flag, count in found.items())
        for found in (info.flags, info.quality or {})
    )
    lines = [
        f"store     {store.path}" + ("   SYNTHETIC" if info.synthetic else ""),
        f"identity  {store.identity}" + _generation(store),
        f"inputs    {info.num_inputs} = {info.num_converted} converted + "
        f"{info.num_quarantined} quarantined",
        *(f"          {count} refused: {reason}" for reason, count in info.reasons.items()),
        *_passed_over(info),
        f"records   {len(store)}, each {store.num_leads} leads x {store.num_timesteps} timesteps",
        *([] if info.num_duplicates is None else [f"          {info.num_duplicates} duplicates"]),
        f"flags     {flags or 'none'}",
        *([] if info.quality is None else [f"quality   {quality or 'no check failed'}"]),
        f"codec     {info.codec}, {info.stored_bytes / 2**20:.1f} MiB, "
        f"ratio {info.ratio:.2f} to int16, all headers and indexes counted",
        f"target    {target or 'none: no record has an ejection fraction; name one with --target'}",
        "",
        f"{'site':<12}{'split':<8}{'records':>9}{'patients':>10}{'cases':>8}{'controls':>10}"
        f"{'unlabelled':>12}{'prevalence':>12}",
    ]
    for row in rows:
        share = "-" if row.prevalence is None else f"{100 * row.prevalence:.1f} %"
        lines.append(
            f"{plain(row.site):<12}{row.split:<8}{row.num_records:>9}{row.num_patients:>10}"
            f"{row.num_cases:>8}{row.num_controls:>10}{row.num_unlabelled:>12}{share:>12}"
        )
    return "\n".join(lines)


def _generation(store: StoreReader) -> str:
    """Which generation this is, of a store that has grown."""
    if store.generation == 1 and store.is_newest:
        return ""
    first = store.history[0]["generation"] if store.history else store.generation
    return f", generation {store.generation}" + (
        f" ({store.path.name}@{first} is the oldest)" if first < store.generation else ""
    )


def _has_values(records: pa.Table, name: str) -> bool:
    """Whether a column exists and holds anything."""
    return name in records.column_names and records[name].null_count < records.num_rows


def _passed_over(info: StoreInfo) -> list[str]:
    """Lines on the files below the sources that nothing read."""
    if info.num_files is None:
        return ["files     unknown: converted by an earlier version"]
    number = sum(info.passed_over.values())
    lines = [
        f"files     {info.num_files} = {info.num_files - number} of the inputs + "
        f"{number} passed over"
    ]
    for kind, count in sorted(info.passed_over.items(), key=lambda item: (-item[1], item[0])):
        lines.append(f"          {kinds_in_words({kind: count})}")
    if info.examples:
        lines.append(f"          {passed_over_beside(info.path)} names some")
    return lines
