"""Tables of labels joined to the records of a store, one after the other; nothing is written."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ecgfast.errors import ConfigError
from ecgfast.labels.choice import (
    DayWindow,
    agreeing_rows,
    cells,
    first_rows,
    parse_date,
    rows_in_window,
)
from ecgfast.labels.columns import label_columns, set_column, stored
from ecgfast.labels.files import file_of, read_cells
from ecgfast.labels.matching import Identities, match_rows, with_identities
from ecgfast.labels.naming import Naming
from ecgfast.labels.table import labels_of_cells
from ecgfast.store.format import EF_GIVEN
from ecgfast.store.patients import Pseudonyms

_EF = "ejection_fraction"


@dataclass(frozen=True, kw_only=True)
class LabelTable:
    """A table of labels that was read.

    Attributes:
        path: of its file, perhaps with #SHEET behind it.
        labels: of `read_labels`.
        columns: label columns to take.
    """

    path: Path
    labels: pa.Table
    columns: list[str]

    @property
    def compared(self) -> list[str]:
        """Columns whose cells make two lines differ."""
        has_given = _EF in self.columns and EF_GIVEN in self.labels.column_names
        return [*self.columns, EF_GIVEN] if has_given else self.columns


@dataclass(frozen=True, kw_only=True)
class Join:
    """A table and the records that its lines name.

    Attributes:
        table: joined.
        matches: for each record the lines that name it.
        chosen: (N,) the line whose labels each record has, -1 for none.
    """

    table: LabelTable
    matches: list[list[int]]
    chosen: NDArray[np.int64]

    @cached_property
    def is_named(self) -> NDArray[np.bool_]:
        """(N,) records that a line names."""
        return first_rows(self.matches) >= 0

    @cached_property
    def unused_lines(self) -> list[int]:
        """Lines that name no record, from 0."""
        used = {row for rows in self.matches for row in rows}
        return [row for row in range(self.table.labels.num_rows) if row not in used]


@dataclass(frozen=True, kw_only=True)
class JoinRule:
    """How tables are joined.

    Attributes:
        window: of days from the ECG to the label; None where no date counts.
        ages_over_89: keep these apart.
        store: named in errors.
    """

    window: DayWindow | None
    ages_over_89: bool
    store: Path


def read_tables(
    paths: Sequence[Path], naming: Naming, columns: Sequence[str] | None
) -> list[LabelTable]:
    """Read tables of labels, each with the columns to take of it.

    Args:
        paths: of the tables.
        naming: what they call their columns; each name must be in one of them.
        columns: the label columns, each in one of them at least; None as in `label_columns`.
    Raises:
        ConfigError: a table cannot be read, or a name is in none.
    """
    raw = [read_cells(path, naming.ids) for path in paths]
    where = ", ".join(map(str, paths))
    naming.check([name for each in raw for name in each.table.column_names], where)
    found = [labels_of_cells(each, naming, path) for each, path in zip(raw, paths, strict=True)]
    known = {name for labels in found for name in labels.column_names}
    tables = []
    for path, labels in zip(paths, found, strict=True):
        wanted = columns
        if columns is not None and len(paths) > 1:  # of a single table, all must be in it
            missing = [name for name in columns if name not in known]
            if missing:
                raise ConfigError(
                    f"--columns: {missing[0]!r} is in none of {where}; they have "
                    f"{', '.join(sorted(known))}"
                )
            wanted = [name for name in columns if name in labels.column_names]
        taken = label_columns(labels, wanted, path)
        tables.append(LabelTable(path=path, labels=labels, columns=taken))
    return tables


def columns_of(joins: Sequence[Join]) -> list[str]:
    """The label columns that joins take, each once."""
    return list(dict.fromkeys(name for each in joins for name in each.table.columns))


def digest_of_tables(paths: Sequence[Path]) -> str:
    """SHA-256 of the file, or of the digests of several."""
    digests = [hashlib.sha256(file_of(path)[0].read_bytes()).hexdigest() for path in paths]
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()
    )


def join_tables(
    records: pa.Table,
    tables: Sequence[LabelTable],
    names: Identities,
    pseudonyms: Pseudonyms,
    rule: JoinRule,
) -> tuple[pa.Table, list[str], list[Join]]:
    """Join tables in their order: what a later one says of a record replaces the earlier.

    Returns:
        the rows; (N,) readable keys of their patients; the joins.
    Raises:
        ConfigError: a table names no record, or its lines disagree.
    """
    joins = []
    for table in tables:
        join = _join(records, table, names, pseudonyms, rule)
        records = _with_labels(records, join)
        records, patients = with_identities(
            records,
            table.labels,
            join.matches,
            names,
            pseudonyms,
            ages_over_89=rule.ages_over_89,
        )
        names = replace(names, patient=patients)
        joins.append(join)
    return records, names.patient, joins


def _join(
    records: pa.Table,
    table: LabelTable,
    names: Identities,
    pseudonyms: Pseudonyms,
    rule: JoinRule,
) -> Join:
    matches = match_rows(records, table.labels, pseudonyms)
    if not any(matches):
        raise _no_partner(table, names, rule)
    if rule.window is None:
        chosen = agreeing_rows(matches, table.labels, table.compared)
    else:
        dates = [parse_date(text) for text in names.recorded]
        chosen = rows_in_window(matches, table.labels, table.compared, dates, rule.window)
    return Join(table=table, matches=matches, chosen=chosen)


def _with_labels(records: pa.Table, join: Join) -> pa.Table:
    """Set label columns; records without a line keep what they had."""
    labels, is_chosen = join.table.labels, pa.array(join.chosen >= 0)
    for name in join.table.columns:
        column = stored(cells(labels[name], join.chosen))
        if name in records.column_names and records[name].type == column.type:
            column = pc.if_else(is_chosen, column, records[name])
        records = set_column(records, name, column)
    if _EF in join.table.columns and EF_GIVEN in {*labels.column_names, *records.column_names}:
        nothing = pa.nulls(records.num_rows, pa.string())
        new = cells(labels[EF_GIVEN], join.chosen) if EF_GIVEN in labels.column_names else nothing
        old = records[EF_GIVEN] if EF_GIVEN in records.column_names else nothing
        records = set_column(records, EF_GIVEN, pc.if_else(is_chosen, new, old))
    return records


def _no_partner(table: LabelTable, names: Identities, rule: JoinRule) -> ConfigError:
    """The refusal of a table whose lines are all of other records."""
    listing = f"{rule.store.name}.sources.csv beside the store"
    if "record_id" in table.labels.column_names:
        return ConfigError(
            f"labels {table.path}: no line names a record of {rule.store}; ids are paths below the "
            f"source without suffix, such as data/1; see {listing}"
            f"{_would_fit(names.record, table.labels)}"
        )
    return ConfigError(
        f"labels {table.path}: no line names a patient of {rule.store}, got "
        f"{table.labels.num_rows:,} lines; patient_id must be the id that the source files have, "
        f"letter by letter, or a pseudonym of the store; see column patient of {listing}, or join "
        "by recording with --id-column NAME"
    )


def _would_fit(names: Sequence[str | None], labels: pa.Table) -> str:
    """Whether ids lack the first folder of the records, or have one more."""
    if "record_id" not in labels.column_names:
        return ""
    ids = labels["record_id"].drop_null().to_pylist()
    known = {name for name in names if name}
    shorter = {name.partition("/")[2] for name in known} - {""}
    count = sum(name in shorter for name in ids)
    if count:
        return (
            f"; {count:,} of its ids are such paths without their first folder: convert that "
            "folder instead of the one above it, or write it in front of the ids"
        )
    above = Counter(name.partition("/")[0] for name in ids if name.partition("/")[2] in known)
    for folder, number in above.most_common(1):
        return (
            f"; {number:,} of its ids are such paths with a folder {folder}/ in front: "
            f"--drop-id-prefix {folder}/ leaves it out"
        )
    return ""
