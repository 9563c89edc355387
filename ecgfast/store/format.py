"""What a store looks like on disk: names, shapes, and its chunks, one record each, by codec."""

from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
from ecgfast_kernels import codec as ecgpack
from ecgfast_kernels.codec import CodecError, crc32c
from numpy.typing import NDArray

from ecgfast.errors import ConfigError
from ecgfast.records import NUM_LEADS, NUM_TIMESTEPS
from ecgfast.vocabulary import Codec

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = "ecgfast-store"
FORMAT_VERSION = 2
CODECS: tuple[Codec, ...] = get_args(Codec)
ECGPACK = "ecgfast.ecgpack"  # the codec's name in zarr.json
ZSTD_LEVEL = 3

SHARD_RECORDS = 1024
CHUNK_SHAPE = (1, NUM_LEADS, NUM_TIMESTEPS)
SHARD_SHAPE = (SHARD_RECORDS, NUM_LEADS, NUM_TIMESTEPS)
RECORD_BYTES = NUM_LEADS * NUM_TIMESTEPS * 2  # of the signal as int16
LEAD_ARRAYS = ("scale_uv", "offset_adc", "lead_mean", "lead_std")  # float32 (N, 12)

ROW_TYPES = {  # columns of records.parquet, with the names that Arrow has for types
    "record_id": "string",
    "patient_id": "string",
    "site": "string",
    "split": "string",
    "fold": "int64",
    "age": "float64",
    "sex": "string",
    "ejection_fraction": "float64",
    "format": "string",
    "original_rate_hz": "float64",
    "original_timesteps": "int64",
    "start_timestep": "int64",
    "invalid_share": "float64",
    "quantisation_error_uv": "float64",
    "einthoven_uv": "float64",
    "amplitude_uv": "float64",
    "noise_uv": "float64",
    "wander_uv": "float64",
    "mains_uv": "float64",
    "pacing_spikes": "int64",
    "quality": "string",
    "quality_leads": "string",
    "flags": "string",
    "content": "string",
    "duplicate_of": "string",
    "row": "int64",
}
# Columns beside those where a source has them: what recorded the ECG, and its filters.
ACQUISITION = ("device", "high_pass_hz", "low_pass_hz", "notch_hz")
# Columns that labels make beside those: what a cell held in place of a number, such as "<40"; the
# day of the recording, moved by a secret number of days that is the patient's own.
EF_GIVEN, SHIFTED_DATE = "ejection_fraction_given", "shifted_date"
# Columns that only the end of a conversion needs beside those; they enter no store. "position" is
# the number of the input, "labels" and "segments" are JSON.
PENDING_TYPES = {
    "labels": "string",
    "position": "int64",
    "patient_key": "string",
    "fingerprint": "binary",
    "segments": "string",
    "left_out": "string",
}
PSEUDONYM = "patient_pseudonym"  # column beside readable ids, for what may leave the store
SOURCES_COLUMNS = (  # beside the store
    *("record_id", "source", "recorded", "record", "patient"),
    "detail",  # why an input was refused, in words that can hold names
    *(
        "bytes",
        "mtime_ns",
    ),  # of its files when they were listed: `--append` finds those that changed
)
QUARANTINE_COLUMNS = ("record_id", "format", "reason")

MANIFEST = "manifest.json"
RECORDS = "records.parquet"
NEXT = ".next"  # ends the name of a file that is to replace one; counts if the manifest says so
NEXT_RECORDS = RECORDS + NEXT
QUARANTINE = "quarantine.csv"
SHARDS = "shards.parquet"
ERASING = "erasing.json"  # while records are erased; nothing else may open the store then
SIGNALS = "signals.zarr"
SCHEMES = ("s3://", "gs://", "az://", "https://", "http://", "file://")  # of addresses


def address_of(path: str | Path) -> str | None:
    """The address that a path was made of; None for a folder or file of this machine."""
    scheme, colon, rest = str(path).partition(":/")
    if not colon or f"{scheme}://" not in SCHEMES:
        return None
    return f"{scheme}://{'/' if scheme == 'file' else ''}{rest.strip('/')}"


def shard_name(shard: int) -> str:
    """Path of one shard file of the signal, relative to the store."""
    return f"{SIGNALS}/signal/c.{shard}.0.0"


def lead_chunk_name(array: str, shard: int) -> str:
    """Path of the chunk of a (N, 12) array that belongs to one shard, relative to the store."""
    return f"{SIGNALS}/{array}/c.{shard}.0"


def shard_files(shard: int) -> dict[str, str]:
    """Array -> path of its file of one shard, relative to the store."""
    leads = {array: lead_chunk_name(array, shard) for array in LEAD_ARRAYS}
    return {"signal": shard_name(shard), **leads}


def num_shards(num_slots: int) -> int:
    """Shards that `num_slots` rows of the arrays are divided into."""
    return -(-num_slots // SHARD_RECORDS)


def beside(store: Path, suffix: str) -> Path:
    """The path STORE + suffix; a store given as . or .. is named by its folder.

    Raises:
        ConfigError: nothing can lie beside it, as with /.
    """
    named = store if store.name not in ("", "..") else store.resolve()
    if not named.name:
        raise ConfigError(f"a store must be a folder with a name, got {str(store)!r}")
    return named.with_name(named.name + suffix)


def refuse_inside_store(path: Path, option: str) -> None:
    """Refuse an output inside a store: it would be shared with it, and `verify` would refuse it.

    And one in object storage, where nothing but a store is written.

    Args:
        path: of the output.
        option: that named it.
    Raises:
        ConfigError: a folder above it, or itself, is a store; or it has an address.
    """
    if url := address_of(path):
        raise ConfigError(
            f"{option} must be on this machine, got {url}; name a folder or file here, and copy it "
            "there with any tool"
        )
    place = path.resolve()
    for folder in (place, *place.parents):
        if (folder / SIGNALS).is_dir():
            raise ConfigError(
                f"{option} {path} lies in the store {folder}, which holds nothing else and is "
                "meant to be shared; choose a place outside"
            )


def refuse_to_replace(path: Path, option: str, begins: bytes, what: str) -> None:
    """Refuse an output over a file that no earlier call wrote: it may be an ECG, or a key.

    Args:
        path: of the output.
        option: that named it.
        begins: first bytes of what is written there.
        what: that is.
    Raises:
        ConfigError: it is such a file, or a folder.
    """
    if path.is_dir():
        raise ConfigError(f"{option} {path} is a folder, allowed a file; name a {what} in it")
    if not path.is_file() or path.stat().st_size == 0:
        return
    with path.open("rb") as file:
        if file.read(len(begins)) != begins:
            raise ConfigError(
                f"{option} {path} exists and is no {what}; choose another name, or remove it"
            )


def key_beside(store: Path) -> Path:
    """The pseudonym key of a store: beside it, never in it."""
    return beside(store, ".key")


def sources_beside(store: Path) -> Path:
    """The table from record_id to readable path: beside the store, never in it."""
    return beside(store, ".sources.csv")


def passed_over_beside(store: Path) -> Path:
    """The table of examples of source files that nothing read: beside the store, never in it."""
    return beside(store, ".passed_over.csv")


def unmatched_beside(store: Path) -> Path:
    """The table of labels and records without a partner: beside the store, never in it."""
    return beside(store, ".unmatched.csv")


def work_beside(store: Path) -> Path:
    """The folder beside a store that a convert works in."""
    return beside(store, ".convert")


def changed_beside(store: Path) -> Path:
    """The table of inputs whose files changed since they were converted: beside the store."""
    return beside(store, ".changed.csv")


def erased_beside(store: Path) -> Path:
    """Keyed digests of recordings that were erased: `--append` does not take them again."""
    return beside(store, ".erased")


def fingerprints_beside(store: Path) -> Path:
    """What `--append` compares new ECGs with; made again from the signals where it is missing."""
    return beside(store, ".fingerprints")


def with_crc32c(data: bytes) -> bytes:
    """The data with its little-endian CRC32C behind it, as Zarr's crc32c codec writes it."""
    return data + crc32c(data).to_bytes(4, "little")


def encode_chunks(codec: Codec, signal_NCT: NDArray[np.int16]) -> list[bytes]:
    """Encode records, one chunk each.

    Args:
        codec: "ecgpack", "zstd" or "none".
        signal_NCT: (N, 12, 5000) int16, ADC units.
    """
    if codec == "ecgpack":
        return ecgpack.encode(signal_NCT)
    raw = (np.ascontiguousarray(record, "<i2").tobytes() for record in signal_NCT)
    if codec == "zstd":
        zstd = _zstd()
        raw = (zstd.compress(data, asbytes=True) for data in raw)
    return [with_crc32c(data) for data in raw]


def decode_chunks(
    codec: Codec,
    buffer: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    lengths: NDArray[np.int64],
    *,
    out: NDArray[np.int16] | None = None,
    check: bool = True,
    num_threads: int = 1,
) -> NDArray[np.int16]:
    """Decode the chunks that lie in a buffer.

    Args:
        codec: "ecgpack", "zstd" or "none".
        buffer: (bytes,) uint8.
        offsets: (n,) int64, first byte of each chunk in `buffer`.
        lengths: (n,) int64, bytes.
        out: (n, 12, 5000) int16 to fill, or None for a new array.
        check: compare checksums.
        num_threads: threads of the ecgpack decoder.
    Returns:
        (n, 12, 5000) int16, ADC units.
    Raises:
        CodecError: a chunk is damaged.
    """
    if codec == "ecgpack":
        return ecgpack.decode(
            buffer,
            offsets,
            lengths,
            num_leads=NUM_LEADS,
            num_timesteps=NUM_TIMESTEPS,
            out=out,
            num_threads=num_threads,
            check=check,
        )
    if out is None:
        out = np.empty((len(offsets), NUM_LEADS, NUM_TIMESTEPS), np.int16)
    zstd = _zstd() if codec == "zstd" else None
    for n, (start, length) in enumerate(zip(offsets.tolist(), lengths.tolist(), strict=True)):
        out[n] = _decode_one(buffer[start : start + length], zstd, index=n, check=check)
    return out


def _zstd() -> "pa.Codec":
    import pyarrow as pa  # no worker that encodes ecgpack needs it

    return pa.Codec("zstd", compression_level=ZSTD_LEVEL)


def _decode_one(
    chunk: NDArray[np.uint8], zstd: "pa.Codec | None", *, index: int, check: bool
) -> NDArray[np.int16]:
    data, checksum = chunk[:-4], chunk[-4:]
    if check and crc32c(data) != int.from_bytes(checksum.tobytes(), "little"):
        raise CodecError("the checksum of the chunk is wrong", index=index)
    if zstd is not None:
        try:
            data = np.frombuffer(zstd.decompress(data, RECORD_BYTES), np.uint8)
        except OSError as error:  # what pyarrow raises on a damaged frame
            raise CodecError(f"the zstd frame is damaged: {error}", index=index) from error
    if data.size != RECORD_BYTES:
        reason = f"the chunk holds {data.size} bytes, expected {RECORD_BYTES}"
        raise CodecError(reason, index=index)
    return data.view("<i2").reshape(NUM_LEADS, NUM_TIMESTEPS)
