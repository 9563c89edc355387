"""The tables that publishers lay beside their ECGs -> one line of labels for each record.

Record ids are those that `convert` gives: the path below what is converted, without suffix. Cells
are text, None where nothing is known.
"""

import ast
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from ecgfast.errors import BackendUnavailableError, ConfigError
from ecgfast.recipes.catalogue import Recipe

Cells = list[str | None]
Table = dict[str, Cells]

ECHO = "structured-measurement.csv.gz"  # of MIMIC-IV-ECHO
_TEST_FOLD, _VALID_FOLD = 10, 9  # of PTB-XL; Wagner et al. 2020, doi:10.1038/s41597-020-0495-6
_NO_MEASUREMENT = 29_999  # of MIMIC-IV-ECG: what the machine did not measure
_NUM_REPORTS = 18


def ptb_xl(recipe: Recipe, folder: Path) -> Table:
    """PTB-XL: superclasses of the statements, folds, patients; of the records of 500 Hz.

    Source: Strodthoff et al. 2021, section III; their code counts a statement of any likelihood.
    """
    known = _read(folder / "scp_statements.csv", ["", "diagnostic", "diagnostic_class"])
    classes = {
        statement: superclass
        for statement, is_diagnostic, superclass in zip(*known.values(), strict=True)
        if is_diagnostic and float(is_diagnostic) == 1
    }
    names = ["filename_hr", "patient_id", "age", "sex", "scp_codes", "strat_fold"]
    rows = _read(folder / "ptbxl_database.csv", names)
    paths = _present(recipe, folder, rows["filename_hr"])
    found = [{classes.get(code) for code in ast.literal_eval(c or "{}")} for c in rows["scp_codes"]]
    folds = [int(float(fold or "nan")) for fold in rows["strat_fold"]]
    split = {_TEST_FOLD: "test", _VALID_FOLD: "valid"}
    return {
        "record_id": [path.removeprefix(f"{recipe.signals}/") for path in paths],
        "patient_id": rows["patient_id"],
        "age": rows["age"],
        "sex": [{"0": "male", "1": "female"}.get(cell or "") for cell in rows["sex"]],
        **_flags(recipe.targets, found),
        "split": [split.get(fold, "train") for fold in folds],
        "fold": [str(fold) for fold in folds],
    }


def _flags(targets: Sequence[str], found: Sequence[set[str | None]]) -> Table:
    """A column of 0 and 1 for each target; nothing is known of records that have none of them."""
    return {
        name: [str(int(name in each)) if each & {*targets} else None for each in found]
        for name in targets
    }


def code_15(recipe: Recipe, folder: Path) -> Table:
    """CODE-15%: lines of exams.csv, for the rows of the HDF5 files that hold these exams."""
    names = ["exam_id", "patient_id", "age", "is_male", "trace_file", *recipe.targets]
    exams = _read(folder / "exams.csv", names)
    parts = sorted({str(name) for name in exams["trace_file"] if name})
    _present(recipe, folder, parts)
    records = {
        str(exam): f"{Path(part).stem}/{row}"
        for part in parts
        for row, exam in enumerate(_exam_ids(folder / part))
    }
    return {
        "record_id": [records.get(exam or "") for exam in exams["exam_id"]],
        "patient_id": exams["patient_id"],
        "age": exams["age"],
        "sex": [
            {"true": "male", "false": "female"}.get((c or "").lower()) for c in exams["is_male"]
        ],
        **{name: exams[name] for name in recipe.targets},
    }


def _exam_ids(path: Path) -> list[int]:
    try:
        import h5py
    except ImportError:
        raise BackendUnavailableError(
            f"{path}: HDF5 files are read with h5py, which is not installed; "
            "pip install 'ecgfast[hdf5]'"
        ) from None
    try:
        with h5py.File(path, "r", locking=False) as file:
            ids: list[int] = file["exam_id"][:].tolist()
    except (OSError, KeyError) as error:
        raise ConfigError(
            f"{path}: got no HDF5 file with a dataset exam_id ({error}); get it again"
        ) from error
    return ids


def mimic(recipe: Recipe, folder: Path) -> Table:
    """MIMIC-IV-ECG: what the machine measured and wrote, for each record of record_list.csv."""
    listed = _read(folder / "record_list.csv", ["subject_id", "study_id", "path"])
    paths = _present(recipe, folder, listed["path"])
    reports = [f"report_{number}" for number in range(_NUM_REPORTS)]
    marks = ["p_onset", "qrs_onset", "qrs_end", "t_end", "rr_interval"]
    measured = _read(folder / "machine_measurements.csv", ["study_id", *marks, *reports])
    row_of = {study: row for row, study in enumerate(measured["study_id"])}
    rows = [row_of.get(study) for study in listed["study_id"]]
    said = [" ".join(filter(None, cells)).lower() for cells in _rows(measured, reports)]
    start, onset, end, t_end, rr = ([_ms(cell) for cell in measured[name]] for name in marks)

    def between(first: list[float | None], last: list[float | None]) -> Cells:
        """Milliseconds between two marks of each record."""
        pairs = [(None, None) if row is None else (first[row], last[row]) for row in rows]
        return [None if a is None or b is None else f"{b - a:g}" for a, b in pairs]

    def word(name: str) -> Cells:
        text = name.replace("_", " ")
        return [
            None if row is None or not said[row] else str(int(text in said[row])) for row in rows
        ]

    return {
        "record_id": [path.removeprefix(f"{recipe.signals}/") for path in paths],
        "patient_id": listed["subject_id"],
        "rr_ms": between([0.0] * len(rr), rr),
        "pr_ms": between(start, onset),
        "qrs_ms": between(onset, end),
        "qt_ms": between(onset, t_end),
        **{name: word(name) for name in recipe.targets},
    }


def _ms(cell: str | None) -> float | None:
    value = float(cell or _NO_MEASUREMENT)
    return None if value >= _NO_MEASUREMENT else value


def echoes(folder: Path) -> Table | None:
    """Ejection fractions of MIMIC-IV-ECHO, transthoracic, by patient and day; None without them."""
    path = folder / ECHO
    if not path.exists():
        return None
    names = ["subject_id", "measurement_datetime", "test_type", "measurement", "result"]
    kinds = {"measurement": "lvef", "test_type": "tte"}
    wanted = []
    for batch in _batches(path, names):
        matches = [pc.equal(pc.utf8_lower(batch[name]), kind) for name, kind in kinds.items()]
        wanted.append(batch.filter(pc.and_(*matches)))
    found = pa.Table.from_batches(wanted).to_pydict()
    return {
        "patient_id": found["subject_id"],
        "label_date": [moment and moment[:10] for moment in found["measurement_datetime"]],
        "ejection_fraction": found["result"],
    }


def echonext(recipe: Recipe, folder: Path) -> Table:
    """EchoNext: rows of the metadata in their order are rows of the array of their split."""
    split_of = {"train": "train", "val": "valid", "test": "test"}
    names = ["patient_key", "split", "age_at_ecg", "sex", *recipe.targets]
    rows = _read(folder / "echonext_metadata_100k.csv", names)
    counts = dict.fromkeys(split_of, 0)
    ids: Cells = []
    for split in rows["split"]:
        if split not in counts:  # no_split: not among the arrays
            ids.append(None)
            continue
        ids.append(f"EchoNext_{split}_waveforms/{counts[split]}")
        counts[split] += 1
    for split, count in counts.items():
        _check_rows(folder / f"EchoNext_{split}_waveforms.npy", count)
    sexes = {"0": "female", "1": "male"}
    return {
        "record_id": ids,
        "patient_id": rows["patient_key"],
        "age": rows["age_at_ecg"],
        "sex": [sexes.get((cell or "").removesuffix(".0"), cell) for cell in rows["sex"]],
        **{name: rows[name] for name in recipe.targets},
        "split": [split_of.get(split or "") for split in rows["split"]],
    }


def _check_rows(path: Path, count: int) -> None:
    """Refuse an array that has not a row for each line: labels would be those of other patients."""
    from ecgfast.ingest.numpy_files import batch_size

    rows = batch_size(path)
    if rows != count:
        raise ConfigError(
            f"{path} has {rows} rows, and the metadata {count} lines of its split; get both again, "
            "of one version"
        )


def of_codes(recipe: Recipe, names: Sequence[str], diagnoses: Sequence[str | None]) -> Table:
    """Targets of records whose headers have SNOMED CT codes.

    Args:
        recipe: with `codes`.
        names: (N,) readable ids of the records.
        diagnoses: (N,) codes, separated by commas or semicolons.
    """
    found = [{*(text or "").replace(";", ",").split(",")} for text in diagnoses]
    table: Table = {"record_id": [*names]}
    if recipe.site_of_folder:
        table["site"] = [name.partition("/")[0] for name in names]
    for target, codes in recipe.codes.items():
        wanted = {str(code) for code in codes}
        table[target] = [str(int(bool(each & wanted))) if each != {""} else None for each in found]
    return table


def _present(recipe: Recipe, folder: Path, paths: Iterable[str | None]) -> list[str]:
    """Paths that a table names; refuse a folder that lacks one of their folders or files."""
    given = [path or "" for path in paths]
    depth = recipe.signals.count("/") + 2 if (folder / recipe.signals).is_dir() else 1
    parts = sorted({"/".join(path.split("/")[:depth]) for path in given} - {""})
    missing = [part for part in parts if not (folder / part).exists()]
    if missing:
        raise recipe.lacks(folder, missing)
    return given


def _rows(table: Mapping[str, Cells], names: Sequence[str]) -> Iterable[tuple[str | None, ...]]:
    return zip(*(table[name] for name in names), strict=True)


def _read(path: Path, names: list[str]) -> Table:
    """Columns of a CSV as text, in the order asked for.

    Raises:
        ConfigError: it is no table, or lacks a column.
    """
    table: Table = pa.Table.from_batches(list(_batches(path, names))).to_pydict()
    return table


def _batches(path: Path, names: list[str]) -> Iterable[pa.RecordBatch]:
    as_text = pacsv.ConvertOptions(
        include_columns=names,
        column_types=dict.fromkeys(names, pa.string()),
        strings_can_be_null=True,
        null_values=["", "nan", "NaN", "None"],
    )
    lines = pacsv.ParseOptions(newlines_in_values=True)
    try:
        with pacsv.open_csv(path, parse_options=lines, convert_options=as_text) as reader:
            yield pa.RecordBatch.from_pylist([], schema=reader.schema)  # where there are no lines
            yield from reader
    except (KeyError, pa.ArrowException) as error:
        raise ConfigError(
            f"{path}: got no table with the columns {', '.join(filter(None, names))} "
            f"({error!s:.80}); take the file as published"
        ) from error


TABLES: dict[str, Callable[[Recipe, Path], Table]] = {
    "ptb_xl": ptb_xl,
    "code_15": code_15,
    "mimic": mimic,
    "echonext": echonext,
}
