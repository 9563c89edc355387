"""What a worker does: read, preprocess, check and encode a batch of input files."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from ecgfast_kernels.codec import lead_statistics
from numpy.typing import NDArray

from ecgfast.convert.measures import (
    content_digests,
    einthoven_uv,
    packed_fingerprints,
    signal_flags,
)
from ecgfast.convert.plan import parse_input
from ecgfast.convert.preprocess import CutRecording, Window, check_source, read_windows
from ecgfast.errors import FormatError, Reason, ShapeError
from ecgfast.ingest import InputFile, unreadable
from ecgfast.ingest.inventory import printable
from ecgfast.ingest.kinds import known_suffix
from ecgfast.records import (
    NO_PATIENT,
    NUM_LEADS,
    NUM_TIMESTEPS,
    EcgRecord,
    codes_of,
    is_percent,
    stored_age,
)
from ecgfast.store.format import ROW_TYPES, encode_chunks
from ecgfast.store.outcomes import Cursor, EncodedRecord, Outcome, Outcomes, Refusal, in_columns
from ecgfast.store.patients import Pseudonyms, key_of_unnamed
from ecgfast.vocabulary import Codec, Quality, Short, WindowChoice

Label = str | float | None

# What stays out, in words that hold no name of a field: a sidecar's key can name a patient.
FREE_TEXT, OTHERS = "diagnoses in free text", "other fields"

_STRICT: dict[str, Reason] = {
    "flat_lead": "signal check: flat_lead; --quality flag takes it",
    "einthoven": "signal check: einthoven; --quality flag takes it",
    "saturated": "signal check: saturated; --quality flag takes it",
    "amplitude": "signal check: amplitude; --quality flag takes it",
    "interpolated": "signal check: interpolated; --quality flag takes it",
}
_BLOCK_RECORDS = 16  # two megabytes: what one step writes, the next finds in the cache
_BUFFERED_BYTES = 64 << 20  # of records whose windows are buffered: long ones are encoded at once
_LONGEST_DETAIL = 500  # characters of an error: a damaged file can bring megabytes into it

_codes_of = lru_cache(maxsize=4096)(codes_of)


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """What decides the bytes of a store, beside its inputs.

    Attributes:
        codec: of the chunks.
        window: "first" or "all" windows of longer records.
        short: "quarantine" or "pad" shorter ones.
        quality: "flag" or, "strict", quarantine what the signal checks find.
        pseudonyms: the key, whether ids stay readable, and whose they are.
        one_ecg_per_patient: records that name no patient are one patient each.
        split_seed: of the splits.
        columns: fields of the recordings that the user wants in the store as they are.
        ages_over_89: keep these apart; else they are all 90.
    """

    codec: Codec
    window: WindowChoice
    short: Short
    quality: Quality
    pseudonyms: Pseudonyms
    one_ecg_per_patient: bool = False
    split_seed: int = 0
    columns: tuple[str, ...] = ()
    ages_over_89: bool = False


# Lines of the plan, and the cursor before the first one.
InputLines = tuple[list[bytes], Cursor, ConvertOptions]


class _Pending(NamedTuple):
    """A window to be encoded: of which file and recording, and the cursor behind it."""

    item: InputFile
    position: int
    after: Cursor
    recording: CutRecording
    window: Window


def encode_lines(task: InputLines) -> Outcomes:
    """`encode_inputs` of lines of the plan: workers parse them, the one writer need not."""
    lines, start, settings = task
    return encode_inputs([parse_input(line) for line in lines], start, settings)


def encode_inputs(items: Sequence[InputFile], start: Cursor, settings: ConvertOptions) -> Outcomes:
    """Turn input files into encoded records and refusals.

    Args:
        items: the files.
        start: of the first one, with the outcomes of it that are to be left out.
        settings: what to do with them.
    Returns:
        for each file its outcomes, at least one, in order of time.
    Raises:
        EcgfastError: a whole source has gone; a single bad file is a refusal.
        OSError: the share fails; the caller stops and resumes later.
    """
    outcomes: list[Outcome] = []
    buffered: list[_Pending | Refusal] = []
    num_bytes = 0  # of the records behind the buffered windows, once for each window
    for position, item in enumerate(items, start.position):
        skipped = start.outcome if position == start.position else 0
        for each in _windows(item, position, settings)[skipped:]:
            buffered.append(each)
            num_bytes += 0 if isinstance(each, Refusal) else each.recording.samples.signal.nbytes
            if len(buffered) == _BLOCK_RECORDS:
                outcomes += _encoded(buffered, settings)
                buffered, num_bytes = [], 0
        if num_bytes > _BUFFERED_BYTES:
            outcomes += _encoded(buffered, settings)
            buffered, num_bytes = [], 0
    return in_columns([*outcomes, *_encoded(buffered, settings)])


def _windows(item: InputFile, position: int, settings: ConvertOptions) -> list[_Pending | Refusal]:
    behind = Cursor(position=position + 1)
    try:
        recording = read_windows(item, window=settings.window, short=settings.short)
    except (FormatError, ShapeError) as error:
        check_source(item.source, again="run the same command again, it goes on where it stopped")
        return [_refusal(item, behind, error, settings)]
    windows: list[_Pending | Refusal] = []
    for number, window in enumerate(recording.windows, 1):
        last = number == len(recording.windows)
        after = behind if last else Cursor(position=position, outcome=number)
        windows.append(
            _refusal(item, after, window, settings)
            if isinstance(window, FormatError)
            else _Pending(item, position, after, recording, window)
        )
    return windows


def _encoded(buffered: list[_Pending | Refusal], settings: ConvertOptions) -> list[Outcome]:
    """Encode the windows among some outcomes; one that cannot be encoded is a refusal."""
    windows = [each for each in buffered if isinstance(each, _Pending)]
    try:
        encoded = _encoded_block(windows, settings) if windows else []
    except Exception as error:  # of one of them: found by taking each alone
        if len(buffered) > 1:
            return [outcome for each in buffered for outcome in _encoded([each], settings)]
        (failed,) = windows
        return [_refusal(failed.item, failed.after, unreadable(failed.item, error), settings)]
    rest = iter(encoded)
    return [each if isinstance(each, Refusal) else next(rest) for each in buffered]


def _encoded_block(windows: list[_Pending], settings: ConvertOptions) -> list[Outcome]:
    signal_NCT = _block()[: len(windows)]
    np.stack([each.window.signal for each in windows], out=signal_NCT)
    valid_NCT = _valid(windows, signal_NCT.shape)
    mean_NC, std_NC = lead_statistics(signal_NCT, valid_NCT)
    scale_NC = np.stack([each.recording.samples.scale_uv for each in windows])
    offset_NC = np.stack([each.recording.samples.offset_adc for each in windows])
    einthoven = einthoven_uv(signal_NCT, scale_NC, offset_NC).tolist()
    checks = signal_flags(signal_NCT, valid_NCT, mean_NC, std_NC, scale_NC, einthoven)
    leads_N4C = np.stack([scale_NC, offset_NC, mean_NC, std_NC], axis=1)
    content = content_digests(signal_NCT, std_NC)
    fingerprints = packed_fingerprints(signal_NCT)
    chunks = encode_chunks(settings.codec, signal_NCT)
    result: list[Outcome] = []
    for n, pending in enumerate(windows):
        item, after = pending.item, pending.after
        row = _row(pending, settings, checks[n], einthoven[n])
        row |= {"content": content[n], "fingerprint": fingerprints[n]}
        found = [flag for flag in _STRICT if flag in row["flags"].split(";")]
        if settings.quality == "strict" and found:
            error = FormatError(f"signal check: {', '.join(found)}", reason=_STRICT[found[0]])
            result.append(_refusal(item, after, error, settings))
            continue
        result.append(
            EncodedRecord(
                after=after,
                chunk=chunks[n],
                leads=leads_N4C[n],
                row=row,
                source=printable(str(item.path)),
                recorded=pending.recording.record.provenance.get("recorded", ""),
                record=item.record_id,
            )
        )
    return result


@lru_cache(maxsize=1)
def _block() -> NDArray[np.int16]:
    """One block of signals, used again and again: fresh pages cost 70 microseconds a record."""
    return np.empty((_BLOCK_RECORDS, NUM_LEADS, NUM_TIMESTEPS), np.int16)


def _valid(windows: list[_Pending], shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
    if all(each.window.valid is None for each in windows):
        return None
    valid = np.ones(shape, bool)
    for n, each in enumerate(windows):
        if each.window.valid is not None:
            valid[n] = each.window.valid
    return valid


def _row(
    pending: _Pending, settings: ConvertOptions, checks: list[str], einthoven: float
) -> dict[str, Any]:
    item, record, window = pending.item, pending.recording.record, pending.window
    pseudonyms = settings.pseudonyms
    flags = [*window.flags, *checks]
    if record.patient_id is None:
        # Its pseudonym is its own; the flag keeps it out of splits unless the user says otherwise.
        flags.append(NO_PATIENT)
        patient = pseudonyms.of("record as patient", item.record_id)
        key = key_of_unnamed(item.record_id)
    else:
        patient = pseudonyms.patient(record.patient_id, record.site)
        key = pseudonyms.patient_key(record.patient_id, record.site)
    record_id = pseudonyms.of("record", item.record_id)
    labels, left_out = stored_labels(record.labels, settings.columns)
    return {
        "record_id": f"{record_id}@{window.start}" if window.start else record_id,
        "patient_id": patient,
        "site": record.site,
        "age": stored_age(record.age, over_89=settings.ages_over_89),
        "sex": record.sex,
        "ejection_fraction": labels.pop("ejection_fraction", None),
        "format": record.provenance.get("format", known_suffix(item.path.name)),
        "original_rate_hz": record.sampling_rate_hz,
        "original_timesteps": record.signal.shape[1],
        "start_timestep": window.start,
        "invalid_share": window.invalid_share,
        "quantisation_error_uv": pending.recording.samples.error_uv,
        "einthoven_uv": round(einthoven, 3),
        "flags": ";".join(sorted(set(flags))),
        "labels": labels | _acquisition(record),
        "left_out": ";".join(left_out),
        "position": pending.position,
        "segments": _segments(item, record, pseudonyms),
        "patient_key": key,
    }


def _acquisition(record: EcgRecord) -> dict[str, Label]:
    """What the source says of the device and its filters, which differ between hospitals."""
    names = ("device", "high_pass_hz", "low_pass_hz", "notch_hz")
    return {name: value for name in names if (value := getattr(record, name)) is not None}


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


def _refusal(
    item: InputFile, after: Cursor, error: FormatError | ShapeError, settings: ConvertOptions
) -> Refusal:
    """An input that the store does not take: only a reason of `errors.Reason` enters the store."""
    reason: Reason = (
        error.reason if isinstance(error, FormatError) else "cannot be read as a 12-lead ECG"
    )
    row = {
        "record_id": settings.pseudonyms.of("record", item.record_id),
        "format": known_suffix(item.path.name),
        "reason": reason,
    }
    return Refusal(
        after=after,
        row=row,
        source=printable(str(item.path)),
        record=item.record_id,
        detail=_one_line(str(error)),
    )


def _one_line(text: str) -> str:
    """An error as one short line, in characters that a UTF-8 file can hold."""
    line = " ".join(text[: 2 * _LONGEST_DETAIL].split())
    if len(line) > _LONGEST_DETAIL:
        line = f"{line[:_LONGEST_DETAIL]} ..."
    return line.encode("utf-8", errors="backslashreplace").decode()
