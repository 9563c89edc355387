"""The last step of a convert: tables, metadata, and the manifest that makes the folder a store."""

import shutil
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

from ecgfast.convert.preprocess import MAX_INVALID_SHARE
from ecgfast.convert.work import Settings
from ecgfast.errors import FormatError
from ecgfast.records import NUM_TIMESTEPS, SAMPLING_RATE_HZ
from ecgfast.store.format import QUARANTINE, RECORDS, Codec, sources_beside
from ecgfast.store.manifest import Manifest, write_manifest
from ecgfast.store.metadata import write_metadata
from ecgfast.store.table import write_quarantine, write_records, write_sources
from ecgfast.store.writer import StoreWriter


def seal_converted(
    out: Path, work: Path, writer: StoreWriter, settings: Settings, request: str, num_inputs: int
) -> Manifest:
    """Seal a store that was made from files.

    Raises:
        FormatError: not one input could be converted.
    """
    quarantine = write_quarantine(out, writer.lines())
    write_sources(sources_beside(out), writer.lines())
    counts, synthetic = _counts(writer, num_inputs)
    if writer.num_records == 0:
        raise FormatError(
            f"none of {num_inputs} inputs could be converted; {out / QUARANTINE} says why for each"
        )
    records = write_records(out, writer.lines(), writer.columns)
    preprocessing = {
        "sampling_rate_hz": SAMPLING_RATE_HZ,
        "num_timesteps": NUM_TIMESTEPS,
        "window": settings.window,
        "short": settings.short,
        "max_invalid_share": MAX_INVALID_SHARE,
        "resampling": "scipy.signal.resample_poly, padtype line",
    }
    content = {
        "preprocessing": preprocessing,
        "quality": settings.quality,
        "counts": counts,
        "synthetic": synthetic,
        "identifiers": "kept" if settings.pseudonyms.keep else "pseudonyms",
        "key_fingerprint": settings.pseudonyms.fingerprint,
        "labels": None,
        "request": request,
    }
    tables = {QUARANTINE: quarantine, RECORDS: records}
    return seal(out, work, writer, settings.codec, tables, content)


def seal(
    out: Path,
    work: Path,
    writer: StoreWriter,
    codec: Codec,
    tables: dict[str, dict[str, int | str]],
    content: dict[str, Any],
) -> Manifest:
    """Write metadata and manifest, then drop the journal.

    Args:
        out: folder of the store.
        work: folder of the journal.
        writer: finished.
        codec: of the chunks.
        tables: manifest entries of records.parquet and quarantine.csv.
        content: further entries of the manifest.
    """
    metadata = write_metadata(out, codec, writer.num_records)
    manifest = write_manifest(
        out,
        content
        | {
            "codec": codec,
            "num_records": writer.num_records,
            "files": writer.files | tables | metadata,
        },
    )
    shutil.rmtree(work)
    return manifest


def _counts(writer: StoreWriter, num_inputs: int) -> tuple[dict[str, int], bool]:
    """Inputs, converted, quarantined, records; and whether any record is synthetic."""
    lines = (line for part in writer.lines() for line in part)
    seen: Counter[str] = Counter()
    synthetic = False
    for _, group in groupby(lines, key=lambda line: line["position"]):
        rows = [line["row"] for line in group if "row" in line]
        seen["converted" if rows else "quarantined"] += 1
        synthetic = synthetic or any("synthetic" in row["flags"].split(";") for row in rows)
    counts = {
        "inputs": num_inputs,
        "converted": seen["converted"],
        "quarantined": seen["quarantined"],
        "records": writer.num_records,
    }
    return counts, synthetic
