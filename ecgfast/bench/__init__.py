"""Measured rates: `ecgfast bench` runs a case and prints its rows as they come."""

import os
import sys
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import torch

from ecgfast import log
from ecgfast.bench.measuring import Row, append_rows, read_rows, render
from ecgfast.errors import ConfigError
from ecgfast.store.format import refuse_inside_store

CASES = {  # module and function; each imports what it measures, as the decoder needs no model
    "codec": ("codec", "measure_codec"),
    "decode": ("codec", "measure_decode"),
    "kernels": ("kernels", "measure_kernels"),
    "loader": ("loader", "measure_loader"),
    "step": ("step", "measure_step"),
    "embed": ("step", "measure_embed"),
}
_ON_GPUS = ("decode", "kernels")  # these cases have no meaning on a CPU
_BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(
    case: str, *, json: Path | None = None, device: str | None = None, **of_step: object
) -> list[Row]:
    """Measure one case, or "all" of them, and print each number as soon as it is there.

    Args:
        case: one of `CASES`, or "all".
        json: .jsonl file that rows are appended to, one by one: a run cut short keeps its rows.
        device: "cpu" or "cuda"; by default a GPU where there is one.
        of_step: `preset`, `microbatch` and `variants` of `measure_step`.
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
    rows: list[Row] = []
    for name in CASES if case == "all" else (case,):
        if name in _ON_GPUS and place != "cuda":
            log.warning(f"{name} was not measured: it needs a GPU")
            continue
        module, function = CASES[name]
        measure = getattr(import_module(f"ecgfast.bench.{module}"), function)
        rows += show(measure(place, **(of_step if name == "step" else {})), json)
    return rows


def show(rows: Iterable[Row], json: Path | None) -> list[Row]:
    """Print rows as they come and append them to a file; under torchrun only on one rank."""
    kept: list[Row] = []
    for row in rows:
        kept.append(row)
        if os.environ.get("RANK", "0") == "0":
            log.console.print(render(row), highlight=False, soft_wrap=True)
            if json is not None:
                append_rows(json, [row])
    return kept


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
