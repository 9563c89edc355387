"""What a worker does with input files: read, preprocess, check and encode them."""

import json
from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from ecgfast_kernels.codec import lead_statistics
from ecgfast_kernels.codec.signals import fingerprints
from numpy.typing import NDArray

from ecgfast.convert.measures import LEAST_TIMESTEPS, content_digests, packed_fingerprints
from ecgfast.convert.plan import ConvertOptions, PlannedInput
from ecgfast.convert.preprocess import CutRecording, Window, check_source, read_windows
from ecgfast.convert.quality import STRICT, quality_of
from ecgfast.errors import FormatError, Reason, ShapeError
from ecgfast.ingest import InputFile, unreadable
from ecgfast.ingest.files import printable
from ecgfast.ingest.kinds import known_suffix
from ecgfast.ingest.wfdb_records import reading_into
from ecgfast.records import (
    NO_PATIENT,
    NUM_LEADS,
    NUM_TIMESTEPS,
    EcgRecord,
    codes_of,
    is_percent,
    stored_age,
)
from ecgfast.store.format import ACQUISITION, ROW_TYPES, encode_chunks
from ecgfast.store.patients import UNNAMED, Pseudonyms, key_of_unnamed

Label = str | float | None

# What stays out, in words that hold no name of a field: a sidecar's key can name a patient.
FREE_TEXT, OTHERS = "diagnoses in free text", "other fields"

_BLOCK_RECORDS = 32  # four megabytes: with 16, calls cost a record 3 to 4 % more time
_BUFFERED_BYTES = 64 << 20  # of records whose windows are buffered: long ones are encoded at once
_LONGEST_DETAIL = 500  # characters of an error: a damaged file can bring megabytes into it

_codes_of = lru_cache(maxsize=4096)(codes_of)


class EncodedRecord(NamedTuple):
    """One record, ready to be written.

    Attributes:
        chunk: its encoded signal.
        leads: (4, 12) float32: scale_uv, offset_adc, lead_mean, lead_std.
        row: its line of records.parquet by the names of ROW_TYPES and PENDING_TYPES, label columns
            under "labels".
        source: its line of the table beside the store, the columns of SOURCES_COLUMNS.
    """

    chunk: bytes
    leads: NDArray[np.float32]
    row: dict[str, Any]
    source: tuple[str, ...]


class Refusal(NamedTuple):
    """One input, or one window of it, that the store does not take.

    Attributes:
        row: its line of quarantine.csv: record_id (pseudonym), format, one of `errors.Reason`.
        source: its line of the table beside the store, what is wrong included.
    """

    row: tuple[str, str, str]
    source: tuple[str, ...]


class _Pending(NamedTuple):
    """A window to be encoded, of a recording of an input."""

    item: InputFile
    position: int
    slot: int
    recording: CutRecording
    window: Window


def encode_inputs(
    inputs: Iterable[PlannedInput], slots: range, options: ConvertOptions, pseudonyms: Pseudonyms
) -> Iterator[list[EncodedRecord | Refusal]]:
    """Turn input files into encoded records and refusals, a few at a time.

    Args:
        inputs: those that fill the slots; windows whose slots lie outside are left out.
        slots: of one unit.
        options: what to do with them.
        pseudonyms: of ids.
    Yields:
        for each slot its record or refusal, in order; for an input that is refused as a whole one
        refusal, at its first slot.
    Raises:
        EcgfastError: a whole source has gone; a single bad file is a refusal.
        OSError: the share fails; the caller stops and resumes later.
    """
    # Used again and again: fresh pages cost 70 microseconds a record. Not shared: an executor may
    # do units in several threads of a process.
    block = np.empty((_BLOCK_RECORDS, NUM_LEADS, NUM_TIMESTEPS), np.int16)
    buffered: list[_Pending | Refusal] = []
    num_bytes = 0  # of the records behind the buffered windows, once for each window
    for planned in inputs:
        # Where its window, if it has one, will be encoded: none that waits lies there.
        place = block[sum(isinstance(each, _Pending) for each in buffered)]
        for each in _windows(planned, slots, options, pseudonyms, place):
            buffered.append(each)
            num_bytes += 0 if isinstance(each, Refusal) else each.recording.samples.signal.nbytes
            if len(buffered) == _BLOCK_RECORDS:
                yield _encoded(buffered, options, pseudonyms, block)
                buffered, num_bytes = [], 0
        if num_bytes > _BUFFERED_BYTES:
            yield _encoded(buffered, options, pseudonyms, block)
            buffered, num_bytes = [], 0
    yield _encoded(buffered, options, pseudonyms, block)


def _windows(
    planned: PlannedInput,
    slots: range,
    options: ConvertOptions,
    pseudonyms: Pseudonyms,
    place: NDArray[np.int16],
) -> list[_Pending | Refusal]:
    item, position, own = planned
    try:
        with reading_into(place):
            recording = read_windows(item, window=options.window, short=options.short)
        if len(recording.windows) != len(own):
            raise FormatError(
                f"{item.path.name}: it has {len(recording.windows)} windows, {len(own)} when the "
                "inputs were listed; correct its header, or convert again if it has changed",
                reason="it has not as many windows as were planned",
            )
    except (FormatError, ShapeError) as error:
        check_source(item.source, again="run the same command again, it resumes where it stopped")
        return [_refusal(item, error, pseudonyms)] if own.start in slots else []
    return [
        _refusal(item, window, pseudonyms)
        if isinstance(window, FormatError)
        else _Pending(item, position, slot, recording, window)
        for slot, window in zip(own, recording.windows, strict=True)
        if slot in slots
    ]


def _encoded(
    buffered: list[_Pending | Refusal],
    options: ConvertOptions,
    pseudonyms: Pseudonyms,
    block: NDArray[np.int16],
) -> list[EncodedRecord | Refusal]:
    """Encode the windows among some outcomes; one that cannot be encoded is a refusal."""
    windows = [each for each in buffered if isinstance(each, _Pending)]
    try:
        encoded = _encoded_block(windows, options, pseudonyms, block) if windows else []
    except Exception as error:  # of one of them: found by taking each alone
        if len(buffered) > 1:
            return [_encoded([each], options, pseudonyms, block)[0] for each in buffered]
        (failed,) = windows
        return [_refusal(failed.item, unreadable(failed.item, error), pseudonyms)]
    rest = iter(encoded)
    return [each if isinstance(each, Refusal) else next(rest) for each in buffered]


def _encoded_block(
    windows: list[_Pending],
    options: ConvertOptions,
    pseudonyms: Pseudonyms,
    block: NDArray[np.int16],
) -> list[EncodedRecord | Refusal]:
    signal_NCT = block[: len(windows)]
    for place, each in zip(signal_NCT, windows, strict=True):
        if not np.may_share_memory(place, each.window.signal):  # else it was read into its place
            place[:] = each.window.signal
    valid_NCT = _valid(windows, signal_NCT.shape)
    mean_NC, std_NC = lead_statistics(signal_NCT, valid_NCT)
    scale_NC = np.stack([each.recording.samples.scale_uv for each in windows])
    offset_NC = np.stack([each.recording.samples.offset_adc for each in windows])
    found = fingerprints(signal_NCT, least_timesteps=LEAST_TIMESTEPS)
    measured = (signal_NCT, valid_NCT, scale_NC, offset_NC, found.correlation)
    quality = quality_of(*measured, options.limits)
    leads_N4C = np.stack([scale_NC, offset_NC, mean_NC, std_NC], axis=1)
    content = content_digests(signal_NCT, std_NC)
    packed = packed_fingerprints(found)
    chunks = encode_chunks(options.codec, signal_NCT)
    result: list[EncodedRecord | Refusal] = []
    for n, pending in enumerate(windows):
        item, record = pending.item, pending.recording.record
        row = _row(pending, options, pseudonyms, quality[n])
        row |= {"content": content[n], "fingerprint": packed[n]}
        if options.quality == "strict":
            present = {*row["flags"].split(";"), *row["quality"].split(";")}
            failed = [flag for flag in STRICT if flag in present]
            if failed:
                error = FormatError(f"signal check: {', '.join(failed)}", reason=STRICT[failed[0]])
                result.append(_refusal(item, error, pseudonyms))
                continue
        patient = row["patient_key"]
        source = (
            *(row["record_id"], printable(item.place), record.provenance.get("recorded", "")),
            *(item.record_id, "" if patient.startswith(UNNAMED) else patient, ""),
            *(str(item.num_bytes), str(item.mtime_ns)),
        )
        result.append(EncodedRecord(chunk=chunks[n], leads=leads_N4C[n], row=row, source=source))
    return result


def _valid(windows: list[_Pending], shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
    if all(each.window.valid is None for each in windows):
        return None
    valid = np.ones(shape, bool)
    for n, each in enumerate(windows):
        if each.window.valid is not None:
            valid[n] = each.window.valid
    return valid


def _row(
    pending: _Pending,
    options: ConvertOptions,
    pseudonyms: Pseudonyms,
    quality: dict[str, Any],
) -> dict[str, Any]:
    item, record, window = pending.item, pending.recording.record, pending.window
    flags = [*window.flags, *quality["flags"]]
    if record.patient_id is None:
        # Its pseudonym is its own; the flag keeps it out of splits unless the user says otherwise.
        flags.append(NO_PATIENT)
        patient = pseudonyms.of("record as patient", item.record_id)
        key = key_of_unnamed(item.record_id)
    else:
        patient = pseudonyms.patient(record.patient_id, record.site)
        key = pseudonyms.patient_key(record.patient_id, record.site)
    record_id = pseudonyms.of("record", item.record_id)
    labels, left_out = stored_labels(record.labels, options.columns)
    return quality | {
        "record_id": f"{record_id}@{window.start}" if window.start else record_id,
        "patient_id": patient,
        "site": record.site,
        "age": stored_age(record.age, over_89=options.keep_ages_over_89),
        "sex": record.sex,
        "ejection_fraction": labels.pop("ejection_fraction", None),
        "format": record.provenance.get("format") or known_suffix(item.path.name),
        "original_rate_hz": record.sampling_rate_hz,
        "original_timesteps": record.signal.shape[1],
        "start_timestep": window.start,
        "invalid_share": window.invalid_share,
        "quantisation_error_uv": pending.recording.samples.error_uv,
        "flags": ";".join(sorted(set(flags))),
        "labels": labels | _acquisition(record),
        "left_out": ";".join(left_out),
        "row": pending.slot,
        "position": pending.position,
        "segments": _segments(item, record, pseudonyms),
        "patient_key": key,
    }


def _acquisition(record: EcgRecord) -> dict[str, Label]:
    """What the source says of the device and its filters, which differ between hospitals."""
    return {name: value for name in ACQUISITION if (value := getattr(record, name)) is not None}


def stored_labels(
    labels: dict[str, Label], named: Collection[str]
) -> tuple[dict[str, Label], list[str]]:
    """Select the fields of a recording that enter a store: known to be safe, or named by the user.

    Args:
        labels: as a reader found them.
        named: fields that the user wants in the store as they are.
    Returns:
        the labels of the store: the ejection fraction, codes of diagnoses, and named fields; which
        of `FREE_TEXT` and `OTHERS` stay out.
    """
    kept: dict[str, Label] = {}
    left: set[str] = set()
    for name, value in labels.items():
        is_fraction = name == "ejection_fraction" and is_percent(value)
        if is_fraction or (name in named and name not in ROW_TYPES):
            kept[name] = value
        elif name == "diagnosis" and isinstance(value, str):
            codes, has_text = _codes_of(value)
            if codes:
                kept[name] = codes
            if has_text:
                left.add(FREE_TEXT)
        elif value is not None:
            left.add(OTHERS)
    return kept, sorted(left)


def _segments(item: InputFile, record: EcgRecord, pseudonyms: Pseudonyms) -> str | None:
    """Pseudonyms of the segments that a record was joined from, in JSON: they may be inputs too."""
    if not record.segments:
        return None
    folder = item.record_id.rpartition("/")[0]
    names = [f"{folder}/{name}" if folder else name for name in record.segments]
    return json.dumps([pseudonyms.of("record", name) for name in names])


def _refusal(item: InputFile, error: FormatError | ShapeError, pseudonyms: Pseudonyms) -> Refusal:
    """An input that the store does not take: only a reason of `errors.Reason` enters the store."""
    reason: Reason = (
        error.reason if isinstance(error, FormatError) else "cannot be read as a 12-lead ECG"
    )
    record_id = pseudonyms.of("record", item.record_id)
    return Refusal(
        row=(record_id, known_suffix(item.path.name), reason),
        # The date of what is refused is not kept.
        source=(
            *(record_id, printable(item.place), "", item.record_id, ""),
            *(_one_line(str(error)), str(item.num_bytes), str(item.mtime_ns)),
        ),
    )


def _one_line(text: str) -> str:
    """An error as one short line, in characters that a UTF-8 file can hold."""
    line = " ".join(text[: 2 * _LONGEST_DETAIL].split())
    line = line if len(line) <= _LONGEST_DETAIL else f"{line[:_LONGEST_DETAIL]} ..."
    return line.encode("utf-8", errors="backslashreplace").decode()
