"""What a join does, for people: a preview of it, and the file of what has no partner."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ecgfast import log
from ecgfast.errors import ConfigError
from ecgfast.labels.columns import KEYS, holds_yes_no, is_number
from ecgfast.labels.join import Join, columns_of
from ecgfast.labels.matching import Identities
from ecgfast.labels.selection import target_labels
from ecgfast.store.csv_files import csv_lines
from ecgfast.store.durable import write_durably
from ecgfast.store.format import (
    EF_GIVEN,
    refuse_inside_store,
    refuse_to_replace,
    unmatched_beside,
)
from ecgfast.store.patients import UNNAMED

UNMATCHED_COLUMNS = ("side", "table", "line", "record", "patient", "why")
_HEADER = csv_lines([UNMATCHED_COLUMNS])
_EF = "ejection_fraction"
_SHOWN_ROWS = 5
_SHOWN_SITES = 20
_WIDEST = 24  # characters of a cell


def named_and_labelled(
    joins: Sequence[Join], num_records: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(N,) records that a line of any table names; (N,) those whose labels one of them gives."""
    is_named, has_label = np.zeros(num_records, bool), np.zeros(num_records, bool)
    for join in joins:
        is_named |= join.is_named
        has_label |= join.chosen >= 0
    return is_named, has_label


def preview(records: pa.Table, joins: Sequence[Join], target: str | None, store: Path) -> str:
    """What would be written, without an id: counts on both sides, columns, classes, first rows.

    Args:
        records: the rows as they would be.
        joins: that made them.
        target: what a case is, None for nothing.
        store: its folder.
    """
    is_named, has_label = named_and_labelled(joins, records.num_rows)
    lines = []
    for join in joins:
        num_lines, unused = join.table.labels.num_rows, len(join.unused_lines)
        by = "record_id" if "record_id" in join.table.labels.column_names else "patient_id"
        lines.append(
            f"{join.table.path}: {log.counted(num_lines, 'line')} joined by {by}; "
            f"{num_lines - unused:,} name records of this store, {unused:,} do not"
        )
    lines.append(
        f"{store}: {log.counted(records.num_rows, 'record')}; {is_named.sum():,} named by a line, "
        f"{(~is_named).sum():,} not"
    )
    if outside := int((is_named & ~has_label).sum()):
        lines.append(f"  {outside:,} of the named without a label inside the window of days")
    names = columns_of(joins)
    if names:
        lines += ["", *_columns(records, names)]
    if target is not None:
        lines += ["", *_classes(records, target)]
    rows = np.flatnonzero(has_label)[:_SHOWN_ROWS]
    if len(rows):
        lines += ["", *_first_rows(records.take(rows), names)]
    return "\n".join(lines)


def _columns(records: pa.Table, names: Sequence[str]) -> list[str]:
    rows = [("column", "type", "known", "unknown", "values")]
    for name in names:
        column = records[name]
        known = len(column) - column.null_count
        kind, values = "text", "not shown"
        if holds_yes_no(column):
            yes = int(pc.sum(column).as_py() or 0)
            kind, values = "yes/no", f"{yes:,} yes, {known - yes:,} no"
        elif is_number(column.type):
            low, high = (pc.min_max(column)[end].as_py() for end in ("min", "max"))
            kind, values = "number", f"{low:g} to {high:g}" if known else ""
        if name == _EF and EF_GIVEN in records.column_names:
            given = known - pc.sum(pc.and_(column.is_valid(), records[EF_GIVEN].is_null())).as_py()
            values += f", {given:,} from ranges, limits or estimates" if given else ""
        rows.append((name, kind, f"{known:,}", f"{column.null_count:,}", values))
    return _aligned(rows)


def _classes(records: pa.Table, target: str) -> list[str]:
    """Cases and controls of the target by site, and what the target cannot tell apart."""
    is_case, is_known = target_labels(records, target)
    sites = np.array([site or "-" for site in records["site"].to_pylist()], dtype=object)
    rows = [("site", "records", "cases", "controls", "unknown")]
    every = sorted(set(sites.tolist()))
    shown = every[:_SHOWN_SITES]
    rows += [(site, *_counts(is_case, is_known, sites == site)) for site in shown]
    if len(every) > _SHOWN_SITES:
        rows.append((f"({len(every) - _SHOWN_SITES} more)", "", "", "", ""))
    rows.append(("all", *_counts(is_case, is_known, np.ones(len(sites), bool))))
    lines = [f"target {target}", *_aligned(rows)]
    if EF_GIVEN in records.column_names:
        given = records[EF_GIVEN].is_valid().to_numpy()
        if open_ones := int((given & ~is_known).sum()):
            lines.append(
                f"of the unknown, {log.counted(open_ones, 'record')} whose range or limit, such as "
                "35-45 or <50, does not decide the target"
            )
    return lines


def _counts(
    is_case: NDArray[np.bool_], is_known: NDArray[np.bool_], here: NDArray[np.bool_]
) -> tuple[str, str, str, str]:
    cases, controls = (here & is_known & is_case).sum(), (here & is_known & ~is_case).sum()
    numbers = (here.sum(), cases, controls, (here & ~is_known).sum())
    return tuple(f"{number:,}" for number in numbers)  # type: ignore[return-value]  # four


def _first_rows(records: pa.Table, names: Sequence[str]) -> list[str]:
    """Cells of some records: no ids, and no text of a table, which can name people."""
    shown = [
        name
        for name in ("site", "age", "sex", *names)
        if name not in names or not pa.types.is_string(records[name].type)
    ]
    shown += [EF_GIVEN] if _EF in names and EF_GIVEN in records.column_names else []
    rows = [tuple(shown)]
    for row in records.select(shown).to_pylist():
        cells = ("" if value is None else str(value) for value in row.values())
        rows.append(tuple(cell[:_WIDEST] for cell in cells))
    return [f"first {log.counted(records.num_rows, 'labelled record')}", *_aligned(rows)]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  "
        + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def unmatched_file(store: Path, asked: str | Path | None) -> Path:
    """Where the records and lines without a partner are listed: beside the store by default.

    Raises:
        ConfigError: the file lies in a store or in no folder, or is another one that exists.
    """
    path = unmatched_beside(store) if asked is None else Path(asked)
    if asked is not None:
        refuse_inside_store(path, "--unmatched")
        if not path.parent.is_dir():  # it is written last, behind the labels
            raise ConfigError(
                f"--unmatched {path}: no folder {path.parent}; make it, or name another"
            )
    refuse_to_replace(path, "--unmatched", _HEADER.encode(), "table of unmatched lines")
    return path


def write_unmatched(path: Path, joins: Sequence[Join], names: Identities) -> None:
    """List lines that name no record, and records without a label; mode 0600, it has readable ids.

    Args:
        path: of `unmatched_file`.
        joins: of the tables.
        names: of the records.
    """
    rows = csv_lines([*_lines_without_record(joins), *_records_without_label(joins, names)])
    write_durably(path, [(_HEADER + rows).encode()], mode=0o600)


def _lines_without_record(joins: Sequence[Join]) -> Iterator[tuple[str, ...]]:
    for join in joins:
        labels = join.table.labels
        nothing = pa.nulls(labels.num_rows, pa.string())
        records, patients = (
            (labels[name] if name in labels.column_names else nothing).to_pylist() for name in KEYS
        )
        by_record = "record_id" in labels.column_names
        for row in join.unused_lines:
            has_id = records[row] if by_record else patients[row]
            why = "names no record of the store" if has_id else "has no id"
            place = ("table", str(join.table.path), str(row + 2))
            yield (*place, records[row] or "", patients[row] or "", why)


def _records_without_label(joins: Sequence[Join], names: Identities) -> Iterator[tuple[str, ...]]:
    is_named, has_label = named_and_labelled(joins, len(names.record_id))
    for row in np.flatnonzero(~has_label).tolist():
        why = "no label in the window of days" if is_named[row] else "no line names it"
        patient = names.patient[row]
        patient = "" if patient.startswith(UNNAMED) else patient
        yield ("store", "", "", names.record[row] or names.record_id[row], patient, why)
