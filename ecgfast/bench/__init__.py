"""Measured rates: `ecgfast bench` runs a case and prints its rows as they come."""

import os
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from itertools import chain
from pathlib import Path
from typing import Any

from ecgfast import log
from ecgfast.bench.rows import Row, append_rows, read_rows, render
from ecgfast.errors import ConfigError
from ecgfast.store.format import refuse_inside_store

CASES = ("codec", "decode", "kernels", "loader", "step")
_BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(
    case: str,
    *,
    json: Path | None = None,
    device: str | None = None,
    preset: str | None = None,
    microbatch: int | None = None,
    variants: Sequence[str] | None = None,
) -> list[Row]:
    """Measure one case, or "all" of them, and print each number as soon as it is there.

    Args:
        case: one of `CASES`, or "all".
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
    rows: list[Row] = []
    for name in CASES if case == "all" else (case,):
        for row in _measure(name, device, preset, microbatch, variants):
            rows.append(row)
            if os.environ.get("RANK", "0") != "0":  # under torchrun only one rank prints
                continue
            log.console.print(render(row), highlight=False, soft_wrap=True)
            if json is not None:
                append_rows(json, [row])
    return rows


def _measure(
    case: str,
    device: str | None,
    preset: str | None,
    microbatch: int | None,
    variants: Sequence[str] | None,
) -> Iterator[Row]:
    """Start a case, which imports what it measures by itself: the decoder needs no model."""
    import torch

    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if case == "codec":
        from ecgfast.bench.codec import measure_codec

        return measure_codec()
    if case == "decode":
        from ecgfast.bench.codec import measure_decode

        return measure_decode(place)
    if case == "kernels":
        from ecgfast.bench.kernels import measure_kernels

        return measure_kernels(place)
    if case == "loader":
        from ecgfast.bench.loader import measure_loader

        return measure_loader(place)
    from ecgfast.bench.step import measure_step
    from ecgfast.bench.timing import measure_peaks
    from ecgfast.config import load_config

    on_gpu = place == "cuda"
    config = load_config(preset or ("vit_large" if on_gpu else "demo"))
    records = microbatch or (256 if on_gpu else 8)
    steps = measure_step(config, device=place, microbatch=records, names=variants)
    return chain(measure_peaks(place), steps)


@cache
def peers_module(name: str) -> Any:  # noqa: ANN401 (a module of its own names)
    """Load a module of `benchmarks/` with peers of a case; None where only the package is there.

    The peers are no part of the package: it must not depend on other codecs and other models.
    """
    path = _BENCHMARKS / f"{name}.py"
    spec = spec_from_file_location(name, path) if path.is_file() else None
    if spec is None or spec.loader is None:
        log.warning(f"no {path}: the peers are left out; run from a checkout of the source")
        return None
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
