"""NumPy files: one record or a batch, with a small sidecar that says what the digits mean.

    ecg.npy    (12, T), (T, 12) or a batch (N, 12, T)
    ecg.json   {"sampling_rate_hz": 500, "scale_uv": 4.88, "site": "2", "patient_id": "P7", ...}
    ecg.npz    the same in one file: array "signal", and each sidecar key as an array

The sidecar is NAME.json, or else `signals.json` for all arrays of its folder. `scale_uv` is
microvolt per unit of the array, for integers and floats alike (1000 for floats in mV). Optional:
`offset_adc`, `leads` (names in array order), `patient_id`, `site`, `age`, `sex`; further keys
become labels.
"""

import io
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ecgfast.errors import FormatError
from ecgfast.ingest.kinds import SHARED_SIDECAR
from ecgfast.ingest.leads import arrange_leads, plan_leads
from ecgfast.ingest.wfdb_comments import parse_age
from ecgfast.records import INVALID, LEADS, EcgRecord, is_site, known_id, parse_sex

_KNOWN = {"signal", "sampling_rate_hz", "scale_uv", "offset_adc", "leads"}
_IDENTITY = {"patient_id", "site", "age", "sex"}


def batch_size(path: Path) -> int | None:
    """Return the number of records in a batch .npy, or None for a file of one record.

    A file whose header cannot be read counts as one record, so that reading it says why; one that
    was cut short counts its whole records and one more, for the same reason.

    Args:
        path: the .npy file; only its header is read.
    """
    try:
        with open(path, "rb") as file:
            shape, _, dtype = _read_npy_header(file, path)
            held = os.fstat(file.fileno()).st_size - file.tell()
    except FormatError:
        return None
    if len(shape) != 3:
        return None
    return min(shape[0], held // max(math.prod(shape[1:]) * dtype.itemsize, 1) + 1)


def read_arrays(path: Path, record_id: str, row: int | None) -> EcgRecord:
    """Read one record of a NumPy file.

    Args:
        path: .npy or .npz.
        record_id: of the record.
        row: position in a batch file, None otherwise.
    Returns:
        int16 digits where the array holds integers that fit, else float32 microvolt.
    Raises:
        FormatError: the file is damaged, or array and sidecar do not describe an ECG.
    """
    if path.suffix.lower() == ".npz":
        meta = _read_npz(path)
        array = np.asarray(meta["signal"])
    else:
        meta = _read_sidecar(path)
        array = _read_npy(path, row)
    rate = _number(meta, "sampling_rate_hz", path)
    names = [str(name) for name in meta.get("leads", LEADS)]
    if array.ndim != 2 or len(names) not in array.shape or array.dtype.kind not in "iuf":
        raise FormatError(
            f"{path.name}: got {array.dtype} of shape {array.shape}, allowed numbers of shape "
            f"({len(names)}, T), (T, {len(names)}) or, in .npy, (N, {len(names)}, T)",
            reason="the array has another shape or type",
        )
    signal_ST = np.ascontiguousarray(array if len(array) == len(names) else array.T)
    scale = _per_signal(meta, "scale_uv", None, len(names), path)
    offset = _per_signal(meta, "offset_adc", 0.0, len(names), path)
    signal, scale, offset = _digits_or_microvolt(signal_ST, scale, offset)
    leads = arrange_leads(plan_leads(names, path.name), signal, scale, offset, path.name)
    text = {key: str(meta[key]) for key in _IDENTITY if meta.get(key) is not None}
    labels = {key: _label(key, meta[key], path) for key in sorted(set(meta) - _KNOWN - _IDENTITY)}
    _check_text([*labels, *labels.values(), *text.values()], path)
    age = parse_age(text["age"]) if "age" in text else None
    site = known_id(text.get("site"))
    flags = leads.flags + (("age_implausible",) if "age" in text and age is None else ())
    if not is_site(site):
        site, flags = None, (*flags, "site_implausible")
    return EcgRecord(
        record_id=record_id,
        signal=leads.signal,
        scale_uv=leads.scale_uv,
        offset_adc=leads.offset_adc,
        sampling_rate_hz=rate,
        patient_id=known_id(text.get("patient_id")),
        site=site,
        age=age,
        sex=parse_sex(text.get("sex", "")),
        labels=labels,
        provenance={"format": "numpy"},
        flags=flags,
    )


def _read_npy_header(file: BinaryIO, path: Path) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, Fortran order and dtype; the file is left at the first byte of data."""
    try:
        version = np.lib.format.read_magic(file)
        reader = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = reader(file)
    except Exception as error:  # the header is a Python literal: damage can raise anything
        raise FormatError(
            f"{path.name}: not a NumPy array file: {_one_line(error)}",
            reason="the file is damaged",
        ) from error
    held = os.fstat(file.fileno()).st_size - file.tell()
    if len(shape) != 3 and not dtype.hasobject and held < math.prod(shape) * dtype.itemsize:
        raise FormatError(
            f"{path.name}: not a NumPy array file of shape {shape}: it holds {held} bytes of "
            f"{math.prod(shape) * dtype.itemsize}; the copy is cut short",
            reason="a signal file is cut short",
        )
    return shape, fortran, dtype


def _read_npy(path: Path, row: int | None) -> NDArray[Any]:
    """Read a whole .npy, or only the bytes of one row of a batch."""
    with open(path, "rb") as file:
        shape, fortran, dtype = _read_npy_header(file, path)
        if row is None or fortran or dtype.hasobject:
            file.seek(0)
            try:
                whole = np.load(file, allow_pickle=False)
            except (ValueError, EOFError) as error:
                raise FormatError(
                    f"{path.name}: not a NumPy array file: {_one_line(error)}",
                    reason="the file is damaged",
                ) from error
            return np.asarray(whole if row is None else whole[row])
        num_bytes = math.prod(shape[1:]) * dtype.itemsize
        file.seek(row * num_bytes, 1)
        content = file.read(num_bytes)
    if len(content) < num_bytes:
        raise FormatError(
            f"{path.name}: ends before record {row} of {shape[0]}; the copy is cut short",
            reason="a signal file is cut short",
        )
    return np.frombuffer(content, dtype).reshape(shape[1:])


def _read_npz(path: Path) -> dict[str, Any]:
    """Return the arrays of a .npz, those of one element as Python values."""
    content = io.BytesIO(path.read_bytes())  # from here on, no error is the share's
    try:
        with np.load(content, allow_pickle=False) as archive:
            meta = {key: archive[key] for key in archive.files}
    except Exception as error:  # zipfile, zlib and NumPy have a dozen classes for damage
        raise FormatError(
            f"{path.name}: not a NumPy archive: {_one_line(error)}", reason="the file is damaged"
        ) from error
    if "signal" not in meta:
        raise FormatError(
            f"{path.name}: got arrays {sorted(meta)}, one must be named 'signal'",
            reason="the array has another shape or type",
        )
    return {
        key: value if key == "signal" else (value.item() if value.ndim == 0 else value.tolist())
        for key, value in meta.items()
    }


def _read_sidecar(path: Path) -> dict[str, Any]:
    """Return the sidecar of a .npy."""
    for candidate in (path.with_suffix(".json"), path.with_name(SHARED_SIDECAR)):
        if candidate.is_file():
            try:
                meta = json.loads(candidate.read_text(encoding="utf-8"))
            except ValueError as error:
                raise FormatError(
                    f"{candidate.name}: not JSON: {error}", reason="the sidecar is damaged"
                ) from error
            if not isinstance(meta, dict):
                raise FormatError(
                    f"{candidate.name}: got a {type(meta).__name__}, allowed {{...}}",
                    reason="the sidecar is damaged",
                )
            return meta
    raise FormatError(
        f"{path.name}: no sidecar, so rate and scale are unknown; write {path.stem}.json or "
        f'{SHARED_SIDECAR} with {{"sampling_rate_hz": 500, "scale_uv": 1.0}}',
        reason="there is no sidecar",
    )


def _one_line(error: Exception) -> str:
    """Return an error of a library as one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _number(meta: dict[str, Any], key: str, path: Path) -> float:
    """Return a positive number of the sidecar."""
    value = meta.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
        raise FormatError(
            f"{path.name}: {key} is {value!r}, allowed a number in (0, 1e6)",
            reason="a value of the sidecar is not allowed",
        )
    return float(value)


def _per_signal(
    meta: dict[str, Any], key: str, default: float | None, count: int, path: Path
) -> list[float]:
    """Return one finite number per signal from a number or a list of them."""
    value = meta.get(key, default)
    values: list[Any] = value if isinstance(value, list) else [value] * count
    if len(values) != count or not all(
        isinstance(v, int | float) and not isinstance(v, bool) and np.isfinite(v) for v in values
    ):
        raise FormatError(
            f"{path.name}: {key} is {value!r}, allowed a number or {count} numbers",
            reason="a value of the sidecar is not allowed",
        )
    return [float(v) for v in values]


def _digits_or_microvolt(
    signal_ST: NDArray[Any], scale: list[float], offset: list[float]
) -> tuple[NDArray[Any], list[float], list[float]]:
    """Keep integers that fit in 16 bits; turn anything else into float32 microvolt."""
    if signal_ST.dtype == np.int16:
        return signal_ST, scale, offset
    is_integer = signal_ST.dtype.kind in "iu"
    if is_integer and (
        signal_ST.size == 0 or (signal_ST.min() > INVALID and signal_ST.max() < -INVALID)
    ):
        return signal_ST.astype(np.int16), scale, offset
    column = np.array([offset, scale])[:, :, None]
    with np.errstate(over="ignore"):  # beyond float32 is infinite, which counts as invalid
        microvolt = ((signal_ST.astype(np.float64) - column[0]) * column[1]).astype(np.float32)
    return microvolt, [1.0] * len(scale), [0.0] * len(offset)


def _label(name: str, value: object, path: Path) -> str | float | None:
    """Return a label as text, number or None."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, int | float):
        return json.dumps(value)
    try:
        return float(value)
    except OverflowError as error:
        raise FormatError(
            f"{path.name}: label {name!r} is a number beyond 1e308; write it as text",
            reason="a value of the sidecar is not allowed",
        ) from error


def _check_text(values: Sequence[str | float | None], path: Path) -> None:
    """JSON can hold half of a UTF-16 pair, which no table can."""
    for value in values:
        try:
            str(value).encode()
        except UnicodeEncodeError as error:
            raise FormatError(
                f"{path.name}: {value!r} holds half of a UTF-16 pair, allowed Unicode text; "
                "correct it where the labels are written",
                reason="a value of the sidecar is not allowed",
            ) from error
