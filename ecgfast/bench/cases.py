"""What `ecgfast bench` measures: one function per case, rows as they come."""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from ecgfast import log
from ecgfast.bench.rows import Row, append_rows, read_rows
from ecgfast.config import load_config
from ecgfast.errors import ConfigError
from ecgfast.store.format import refuse_inside_store

Case = Callable[[str], Iterator[Row]]  # takes "cpu" or "cuda"


def run(
    case: str,
    *,
    json: Path | None = None,
    device: str | None = None,
    preset: str | None = None,
    microbatch: int | None = None,
    variants: Sequence[str] | None = None,
) -> list[Row]:
    """Measure one case, or "all" of them, and say each number as soon as it is there.

    Args:
        case: a key of `CASES`, or "all".
        json: .jsonl file that rows are appended to, one by one: a run cut short keeps its rows.
        device: "cpu" or "cuda"; by default a GPU where there is one.
        preset: of the step; by default vit_large on a GPU, demo on a CPU.
        microbatch: records per rank of the step; by default 256 on a GPU, 8 on a CPU.
        variants: of the step, beside ours; by default those of `measure_step`.
    Raises:
        ConfigError: an unknown case, preset or variant.
        FormatError: `json` holds something else than rows.
    """
    if case != "all" and case not in CASES:
        raise ConfigError(f"unknown bench case {case!r}; allowed: {', '.join(CASES)}, all")
    if json is not None:
        refuse_inside_store(json, "--json")
        if json.exists():
            read_rows(json)  # rows behind anything else would damage it
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    cases: dict[str, Case] = {**CASES, "step": partial(step_rows, preset, microbatch, variants)}
    rows: list[Row] = []
    for name in CASES if case == "all" else (case,):
        for row in cases[name](place):
            rows.append(row)
            if os.environ.get("RANK", "0") != "0":  # under torchrun one rank speaks for all
                continue
            log.console.print(render(row), highlight=False, soft_wrap=True)
            if json is not None:
                append_rows(json, [row])
    return rows


def render(row: Row) -> str:
    """One row as a line for people."""
    what = f"{row.case} {row.preset} {row.shape}".replace("  ", " ")
    value = f"{row.p50:,.4g}" if row.p50 < 1e4 else f"{row.p50:,.0f}"
    return f"{what:<44} {row.provider:<28} {row.metric:<10} {value:>10} {row.unit}"


def step_rows(
    preset: str | None, microbatch: int | None, variants: Sequence[str] | None, device: str
) -> Iterator[Row]:
    """The peaks of the device, then the training step."""
    from ecgfast.bench.peaks import measure_peaks
    from ecgfast.bench.step import measure_step

    on_gpu = device == "cuda"
    config = load_config(preset or ("vit_large" if on_gpu else "demo"))
    records = microbatch or (256 if on_gpu else 8)
    yield from measure_peaks(device)
    yield from measure_step(config, device=device, microbatch=records, names=variants)


# Each case imports what it measures by itself: the step needs no store, the decoder no model.


def _codec(device: str) -> Iterator[Row]:
    from ecgfast.bench.codec import measure_codec

    return measure_codec(device)


def _decode(device: str) -> Iterator[Row]:
    from ecgfast.bench.decode import measure_decode

    return measure_decode(device)


def _kernels(device: str) -> Iterator[Row]:
    from ecgfast.bench.kernels import measure_kernels

    return measure_kernels(device)


def _loader(device: str) -> Iterator[Row]:
    from ecgfast.bench.loader import measure_loader

    return measure_loader(device)


CASES: dict[str, Case] = {
    "codec": _codec,
    "decode": _decode,
    "kernels": _kernels,
    "loader": _loader,
    "step": partial(step_rows, None, None, None),
}
