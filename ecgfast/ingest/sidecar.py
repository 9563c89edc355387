"""Arrays with a sidecar -> EcgRecord: what a file of bare numbers cannot say stands beside it.

    ecg.json   {"sampling_rate_hz": 500, "scale_uv": 4.88, "site": "2", "patient_id": "P7", ...}

The sidecar is NAME.json, or else `signals.json` for all arrays of its folder. `scale_uv` is
microvolt per unit of the array, for integers and floats alike (1000 for floats in mV). Optional:
`offset_adc`, `leads` (names in array order), `array` (its name in a file of several), `patient_id`,
`site`, `age`, `sex`; further keys become labels.
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
from ecgfast.ingest.format import NamesBySuffix
from ecgfast.ingest.leads import arrange_leads, plan_leads
from ecgfast.ingest.microvolt import int16_or_microvolt
from ecgfast.records import (
    LEADS,
    NOT_KNOWN,
    EcgRecord,
    is_patient,
    is_site,
    known_id,
    parse_age,
    parse_number,
    parse_sex,
)

SHARED_SIDECAR = "signals.json"
SIDECARS = "sidecars"  # the kind of their files

_OF_ARRAYS = ("npy", "h5", "hdf5", "mat", "csv", "tsv", "txt")  # suffixes of files that have one
_EF = "ejection_fraction"
_KNOWN = {"signal", "sampling_rate_hz", "scale_uv", "offset_adc", "leads", "array"}
_IDENTITY = {"patient_id", "site", "age", "sex"}
_SHOWN = 60  # characters of a value in an error


def companions(folder: str, names: NamesBySuffix) -> dict[str, list[str]]:
    """Return the sidecars of a folder, those of every format."""
    arrays = {name[: name.rfind(".")] for suffix in _OF_ARRAYS for name in names.get(suffix, ())}
    found = [
        name
        for name in names.get("json", ())
        if name[: name.rfind(".")] in arrays or (arrays and name == SHARED_SIDECAR)
    ]
    return {SIDECARS: found} if found else {}


def record_of(
    array: NDArray[Any],
    meta: dict[str, Any],
    *,
    name: str,
    record_id: str,
    code: str,
    flags: tuple[str, ...] = (),
) -> EcgRecord:
    """Make a record of an array and what is said beside it.

    Args:
        array: (S, T) or (T, S), S signals as `meta` names them, the 12 leads by default.
        meta: the sidecar.
        name: of the file, for errors.
        record_id: of the record.
        code: of the format, for the store.
        flags: what was done to the array before.
    Returns:
        int16 ADC units where the array holds integers that fit, else float32 microvolt.
    Raises:
        FormatError: array and sidecar do not describe an ECG.
    """
    rate = _as_float(meta.get("sampling_rate_hz"))
    if not 0 < rate < 1e6:
        got = _shown(meta.get("sampling_rate_hz"))
        raise not_allowed(name, f"sampling_rate_hz is {got}, allowed a number in (0, 1e6)")
    names = _lead_names(meta, name)
    if array.ndim != 2 or len(names) not in array.shape or array.dtype.kind not in "iuf":
        raise FormatError(
            f"{name}: got {array.dtype} of shape {array.shape}, allowed numbers of shape "
            f"({len(names)}, T), (T, {len(names)}) or, of several records, (N, {len(names)}, T)",
            reason="the array has another shape or type",
        )
    signal_ST = np.ascontiguousarray(array if len(array) == len(names) else array.T)
    scale = _per_signal(meta, "scale_uv", None, len(names), name)
    offset = _per_signal(meta, "offset_adc", 0.0, len(names), name)
    leads = arrange_leads(
        plan_leads(names, name), *int16_or_microvolt(signal_ST, scale, offset), name
    )
    text = _identity(meta, name)
    labels = _labels(meta, name)
    _check_text([*labels, *labels.values(), *text.values()], name)
    age = parse_age(text["age"]) if "age" in text else None
    patient, site = known_id(text.get("patient_id")), known_id(text.get("site"))
    if not is_patient(patient):
        raise not_allowed(name, "patient_id holds a control character, allowed text of one line")
    flags = (*leads.flags, *flags)
    if "age" in text and age is None:
        flags = (*flags, "age_implausible")
    if not is_site(site):
        site, flags = None, (*flags, "site_implausible")
    return EcgRecord(
        record_id=record_id,
        signal=leads.signal,
        scale_uv=leads.scale_uv,
        offset_adc=leads.offset_adc,
        missing=leads.missing,
        sampling_rate_hz=rate,
        patient_id=patient,
        site=site,
        age=age,
        sex=parse_sex(text.get("sex", "")),
        labels=labels,
        provenance={"format": code},
        flags=flags,
    )


def read_sidecar(path: Path) -> dict[str, Any]:
    """Return the sidecar of a file of arrays.

    Raises:
        FormatError: there is none, or it is no JSON object.
        OSError: it cannot be read.
    """
    for candidate in (path.with_suffix(".json"), path.with_name(SHARED_SIDECAR)):
        try:
            text = read_text_bytes(candidate).decode("utf-8-sig")
            meta = json.loads(text, object_pairs_hook=_each_key_once)
        except FileNotFoundError:
            continue
        except FormatError:
            raise
        except (ValueError, RecursionError) as error:
            raise _damaged(f"{candidate.name}: cannot be read as JSON: {error}") from error
        if not isinstance(meta, dict):
            raise _damaged(f"{candidate.name}: got a {type(meta).__name__}, allowed {{...}}")
        return meta
    raise FormatError(
        f"{path.name}: no sidecar, so rate and scale are unknown; write {path.stem}.json or "
        f'{SHARED_SIDECAR} with {{"sampling_rate_hz": 500, "scale_uv": 1.0}}',
        reason="there is no sidecar",
    )


def not_allowed(name: str, message: str) -> FormatError:
    """The refusal of a value beside the signal; `name` is that of the file."""
    return FormatError(f"{name}: {message}", reason="a value of the sidecar is not allowed")


def _identity(meta: dict[str, Any], name: str) -> dict[str, str]:
    """Return the fields of the sidecar that describe the patient, as text.

    Errors do not repeat their values.
    """
    found = {key: meta[key] for key in sorted(_IDENTITY) if meta.get(key) is not None}
    for key, value in found.items():
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise not_allowed(
                name, f"{key} is a {type(value).__name__}, allowed text, a number or null"
            )
    return {key: str(value) for key, value in found.items()}


def _damaged(message: str) -> FormatError:
    return FormatError(message, reason="the sidecar is damaged")


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a key that occurs twice: which of its values is meant is not known."""
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


def _per_signal(
    meta: dict[str, Any], key: str, default: float | None, count: int, name: str
) -> list[float]:
    """Return one finite number per signal from a number or a list of them."""
    value = meta.get(key, default)
    values = [_as_float(each) for each in (value if isinstance(value, list) else [value] * count)]
    if len(values) != count or not all(map(math.isfinite, values)):
        raise not_allowed(name, f"{key} is {_shown(value)}, allowed a number or {count} numbers")
    return values


def _lead_names(meta: dict[str, Any], name: str) -> list[str]:
    """Return the names of the signals in the order of the array."""
    names = meta.get("leads", list(LEADS))
    if not isinstance(names, list) or not all(isinstance(lead, str) for lead in names):
        raise not_allowed(
            name,
            f"leads is {_shown(names)}, allowed a list of names; leave it out where "
            f"they are {', '.join(LEADS)}",
        )
    return names


def _ejection_fraction(value: object, name: str) -> float | None:
    """Return the label that the store keeps as a number."""
    if value is None or (isinstance(value, str) and value.strip().lower() in NOT_KNOWN):
        return None
    number = None
    if isinstance(value, str):
        number = parse_number(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value)
    if number is None or math.isinf(number):
        raise not_allowed(
            name, f"{_EF} is {_shown(value)}, allowed a number, or null where it is unknown"
        )
    return number


def _labels(meta: dict[str, Any], name: str) -> dict[str, str | float | None]:
    """Return all further fields of the sidecar, sorted."""
    labels = {key: _label(key, meta[key], name) for key in sorted(set(meta) - _KNOWN - _IDENTITY)}
    if _EF in labels:
        labels[_EF] = _ejection_fraction(meta[_EF], name)
    return labels


def _label(key: str, value: object, name: str) -> str | float | None:
    """Return a label as text, number or None."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, int | float):
        return json.dumps(value)
    try:
        return float(value)
    except OverflowError as error:
        raise not_allowed(
            name, f"label {_shown(key)} is a number beyond 1e308; write it as text"
        ) from error


def _check_text(values: Sequence[str | float | None], name: str) -> None:
    """JSON can hold half of a UTF-16 pair, which no table can."""
    for value in values:
        try:
            str(value).encode()
        except UnicodeEncodeError as error:
            raise not_allowed(
                name,
                f"{_shown(value)} holds half of a UTF-16 pair, allowed Unicode text; "
                "correct it where the labels are written",
            ) from error
