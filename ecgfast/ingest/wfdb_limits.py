"""What must hold before the wfdb package may open a record: plain, regular, bounded files."""

from pathlib import Path

from ecgfast.errors import FormatError
from ecgfast.ingest.files import MAX_BYTES, check_regular, check_values
from ecgfast.ingest.wfdb_header import WfdbHeader

_NOT_IN_NAMES = set("/\\\0:")  # the package takes A::B and S3://B for addresses


def check_for_package(path: Path, header: WfdbHeader) -> None:
    """Refuse a record that would make the package wait, open what is no file, or fill the memory.

    Args:
        path: the .hea file.
        header: parsed, without segments.
    Raises:
        FormatError: a file of the record is no regular file beside its header, or the record has
            too many values.
        OSError: a file cannot be looked at.
    """
    held = 0
    for file_name in {spec.file_name for spec in header.signals} - {"~"}:  # ~ has no samples
        if file_name in {"", ".", ".."} or set(file_name) & _NOT_IN_NAMES:
            raise FormatError(
                f"signal file is {file_name!r}, allowed a plain name beside the header",
                reason="the header is damaged",
            )
        num_bytes = check_regular(path.with_name(file_name))
        if num_bytes > MAX_BYTES:
            raise FormatError(
                f"{file_name}: got {num_bytes:,} bytes, allowed {MAX_BYTES:,}; cut the recording "
                "into shorter records",
                reason="the file is too large",
            )
        held += num_bytes
    skew = max((spec.skew for spec in header.signals), default=0)
    per_frame = sum(spec.samples_per_frame for spec in header.signals)
    check_values(header.num_timesteps + skew, per_frame, path.name)
    if header.num_timesteps == 0:
        check_values(held, 1, path.name)  # no format has more samples than bytes
