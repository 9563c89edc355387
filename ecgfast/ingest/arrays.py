"""NumPy files: one record or a batch, with a small sidecar that says what the digits mean.

    ecg.npy    (12, T), (T, 12) or a batch (N, 12, T)
    ecg.json   {"sampling_rate_hz": 500, "scale_uv": 4.88, "site": "2", "patient_id": "P7", ...}
    ecg.npz    the same in one file: array "signal", and each sidecar key as an array

The sidecar is NAME.json, or else `signals.json` for all arrays of its folder. `scale_uv` is
microvolt per unit of the array, for integers and floats alike (1000 for floats in mV). Optional:
`offset_adc`, `leads` (names in array order), `patient_id`, `site`, `age`, `sex`; further keys
become labels.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfast.errors import FormatError
from ecgfast.ingest.files import read_text_bytes
from ecgfast.ingest.kinds import SHARED_SIDECAR
from ecgfast.ingest.leads import arrange_leads, plan_leads
from ecgfast.ingest.numpy_files import read_npy, read_npz
from ecgfast.ingest.wfdb_comments import parse_age, parse_number
from ecgfast.records import (
    INVALID,
    LEADS,
    NOT_KNOWN,
    EcgRecord,
    is_patient,
    is_site,
    known_id,
    parse_sex,
)

_EF = "ejection_fraction"
_KNOWN = {"signal", "sampling_rate_hz", "scale_uv", "offset_adc", "leads"}
_IDENTITY = {"patient_id", "site", "age", "sex"}
_SHOWN = 60  # letters of a value in an error


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
        meta = read_npz(path)
        array: NDArray[Any] = meta["signal"]
    else:
        meta = _read_sidecar(path)
        array = read_npy(path, row)
    rate = _number(meta, "sampling_rate_hz", path)
    names = _lead_names(meta, path)
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
    text = _identity(meta, path)
    labels = {key: _label(key, meta[key], path) for key in sorted(set(meta) - _KNOWN - _IDENTITY)}
    if _EF in labels:
        labels[_EF] = _ejection_fraction(meta[_EF], path)
    _check_text([*labels, *labels.values(), *text.values()], path)
    age = parse_age(text["age"]) if "age" in text else None
    patient, site = known_id(text.get("patient_id")), known_id(text.get("site"))
    if not is_patient(patient):
        raise FormatError(
            f"{path.name}: patient_id holds a control character, allowed text of one line",
            reason="a value of the sidecar is not allowed",
        )
    flags = leads.flags + (("age_implausible",) if "age" in text and age is None else ())
    if not is_site(site):
        site, flags = None, (*flags, "site_implausible")
    return EcgRecord(
        record_id=record_id,
        signal=leads.signal,
        scale_uv=leads.scale_uv,
        offset_adc=leads.offset_adc,
        sampling_rate_hz=rate,
        patient_id=patient,
        site=site,
        age=age,
        sex=parse_sex(text.get("sex", "")),
        labels=labels,
        provenance={"format": "numpy"},
        flags=flags,
    )


def _identity(meta: dict[str, Any], path: Path) -> dict[str, str]:
    """Return what the sidecar says of the patient, as text; the values are in no error."""
    found = {key: meta[key] for key in sorted(_IDENTITY) if meta.get(key) is not None}
    for key, value in found.items():
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise FormatError(
                f"{path.name}: {key} is a {type(value).__name__}, allowed text, a number or null",
                reason="a value of the sidecar is not allowed",
            )
    return {key: str(value) for key, value in found.items()}


def _read_sidecar(path: Path) -> dict[str, Any]:
    """Return the sidecar of a .npy."""
    for candidate in (path.with_suffix(".json"), path.with_name(SHARED_SIDECAR)):
        try:
            text = read_text_bytes(candidate).decode("utf-8-sig")
            meta = json.loads(text, object_pairs_hook=_each_key_once)
        except FileNotFoundError:
            continue
        except FormatError:
            raise
        except (ValueError, RecursionError) as error:
            raise FormatError(
                f"{candidate.name}: cannot be read as JSON: {error}",
                reason="the sidecar is damaged",
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


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a key that occurs twice: nobody knows which of its values is meant."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {_shown(key)} occurs twice, allowed once")
        found[key] = value
    return found


def _shown(value: object) -> str:
    """A value of a sidecar in an error: it can have thousands of digits."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."


def _as_float(value: object) -> float:
    """Return a number of a sidecar, NaN for anything else and beyond float64."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def _number(meta: dict[str, Any], key: str, path: Path) -> float:
    """Return a positive number of the sidecar."""
    value = _as_float(meta.get(key))
    if not 0 < value < 1e6:
        raise FormatError(
            f"{path.name}: {key} is {_shown(meta.get(key))}, allowed a number in (0, 1e6)",
            reason="a value of the sidecar is not allowed",
        )
    return value


def _per_signal(
    meta: dict[str, Any], key: str, default: float | None, count: int, path: Path
) -> list[float]:
    """Return one finite number per signal from a number or a list of them."""
    value = meta.get(key, default)
    values = [_as_float(each) for each in (value if isinstance(value, list) else [value] * count)]
    if len(values) != count or not all(map(math.isfinite, values)):
        raise FormatError(
            f"{path.name}: {key} is {_shown(value)}, allowed a number or {count} numbers",
            reason="a value of the sidecar is not allowed",
        )
    return values


def _lead_names(meta: dict[str, Any], path: Path) -> list[str]:
    """Return the names of the signals in the order of the array."""
    names = meta.get("leads", list(LEADS))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise FormatError(
            f"{path.name}: leads is {_shown(names)}, allowed a list of names; leave it out where "
            f"they are {', '.join(LEADS)}",
            reason="a value of the sidecar is not allowed",
        )
    return names


def _ejection_fraction(value: object, path: Path) -> float | None:
    """Return the label that the store keeps as a number."""
    if value is None or (isinstance(value, str) and value.strip().lower() in NOT_KNOWN):
        return None
    number = None
    if isinstance(value, str):
        number = parse_number(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value)
    if number is None or math.isinf(number):
        raise FormatError(
            f"{path.name}: {_EF} is {_shown(value)}, allowed a number, or null where it is unknown",
            reason="a value of the sidecar is not allowed",
        )
    return number


def _digits_or_microvolt(
    signal_ST: NDArray[Any], scale: list[float], offset: list[float]
) -> tuple[NDArray[Any], list[float], list[float]]:
    """Keep integers that fit in 16 bits; turn anything else into float32 microvolt."""
    if signal_ST.dtype.kind in "iu" and (
        np.can_cast(signal_ST.dtype, np.int16)
        or signal_ST.size == 0
        or (signal_ST.min() > INVALID and signal_ST.max() < -INVALID)
    ):  # 16 bits have -32768 for an invalid timestep, wider integers as a value
        return signal_ST.astype(np.int16, copy=False), scale, offset
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
            f"{path.name}: label {_shown(name)} is a number beyond 1e308; write it as text",
            reason="a value of the sidecar is not allowed",
        ) from error


def _check_text(values: Sequence[str | float | None], path: Path) -> None:
    """JSON can hold half of a UTF-16 pair, which no table can."""
    for value in values:
        try:
            str(value).encode()
        except UnicodeEncodeError as error:
            raise FormatError(
                f"{path.name}: {_shown(value)} holds half of a UTF-16 pair, allowed Unicode text; "
                "correct it where the labels are written",
                reason="a value of the sidecar is not allowed",
            ) from error
