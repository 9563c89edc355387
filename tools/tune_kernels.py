"""Measure block sizes of the kernels on this GPU and write the fastest into the table.

    python tools/tune_kernels.py [--only patch_embed_forward,...] [--seconds 80] [--dry-run]

ViT-Large's shapes in bf16, CUDA graphs, cold L2; most of the time is compilation. The table is
written after each kernel, so that a run cut short keeps what it found. Rows of other architectures
stay as they are. A candidate whose results differ from those of the row in use is not timed.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from ecgfast_kernels.ops import tuning
from torch import Tensor
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from ecgfast.bench.kernel_calls import Call
from ecgfast.bench.kernel_grids import SEARCHES, Config, Search
from ecgfast.bench.kernels import captured
from ecgfast.bench.timing import time_interleaved

REPEATS = 30
# Another order of fp32 sums, rounded to bf16: one rounding of 2^-8 of the largest value, doubled.
AGREEMENT = 2**-7


def main() -> None:
    """Search each kernel in turn, as long as there is time."""
    arguments = parse()
    wanted = [s for s in SEARCHES if arguments.only is None or s.op in arguments.only.split(",")]
    if arguments.list:
        print("\n".join(f"{s.op:28} {len(s.candidates)} candidates" for s in wanted))
        return
    if not torch.cuda.is_available():
        sys.exit("error: tuning measures a CUDA device, and there is none; --list needs none")
    major, minor = torch.cuda.get_device_capability()
    arch = 10 * major + minor
    end = time.monotonic() + arguments.seconds
    for search in wanted:
        if time.monotonic() > end:
            print(f"{search.op}: not searched, {arguments.seconds:.0f} s are over")
            continue
        if "quack" in search.op and find_spec("quack") is None:
            print(f"{search.op}: left out: needs quack")
            continue
        before = tuning.config_for(search.op, arch=arch, bits=search.bits)
        row = f"sm{arch}-{search.bits}bit"
        tuning.table()[search.op][row] = fastest(search, row, before)
        text = render(tuning.table())
        if not arguments.dry_run:
            (Path(tuning.__file__).parent / tuning.FILE_NAME).write_text(text, encoding="utf-8")
        if arguments.copy is not None:
            arguments.copy.write_text(text, encoding="utf-8")


def parse() -> argparse.Namespace:
    """Parse the command line; a kernel without a search ends the program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", help="kernels, comma-separated; all by default")
    parser.add_argument("--seconds", type=float, default=600, help="begin no search after these")
    parser.add_argument("--dry-run", action="store_true", help="leave the table as it is")
    parser.add_argument("--copy", type=Path, help="write the new table to this file too")
    parser.add_argument("--list", action="store_true", help="name the kernels and stop")
    arguments = parser.parse_args()
    names = [search.op for search in SEARCHES]
    unknown = sorted(set(arguments.only.split(",")) - set(names)) if arguments.only else []
    if unknown:
        parser.error(f"unknown kernel {unknown[0]!r}; allowed: {', '.join(names)}")
    return arguments


def fastest(search: Search, row: str, before: Config) -> Config:
    """Time every candidate that fits the GPU and the row in use, in turns; return the best."""
    torch.manual_seed(0)
    call = search.prepare("cuda")
    with _in_table(search.op, row, before):
        want = _tensors(call())
    replays: dict[str, Call] = {}
    for config in (before, *search.candidates):
        with _in_table(search.op, row, config):
            try:
                off = _difference(_tensors(call()), want)
                if off <= AGREEMENT:
                    replays[json.dumps(config)] = captured(call)
                else:
                    print(f"{search.op} {config}: differs by {off:.3g} of the largest value")
            except (OutOfResources, CompilationError, PTXASError, ValueError) as error:
                print(f"{search.op} {config}: {error}")
    times = time_interleaved(replays, device="cuda", repeats=REPEATS, flush_cache=True)
    medians = {name: sorted(values)[len(values) // 2] for name, values in times.items()}
    ranked = sorted(medians, key=lambda name: medians[name])
    for name in ranked:
        used = "  (in use)" if name == json.dumps(before) else ""
        print(f"{search.op} {1e3 * medians[name]:8.1f} us  {name}{used}", flush=True)
    best: Config = json.loads(ranked[0])
    return best


def render(table: dict[str, dict[str, Config]]) -> str:
    """The table as JSON with one line per row, so that a change is one line of a diff."""
    ops = []
    for op, rows in table.items():
        lines = ",\n".join(f'    "{row}": {json.dumps(config)}' for row, config in rows.items())
        ops.append(f'  "{op}": {{\n{lines}\n  }}')
    return "{\n" + ",\n".join(ops) + "\n}\n"


def _tensors(result: Any) -> list[Tensor]:  # noqa: ANN401 (what an op returns, nested tuples too)
    if isinstance(result, Tensor):
        return [result.clone()]
    return [tensor for item in result for tensor in _tensors(item)]


def _difference(got: list[Tensor], want: list[Tensor]) -> float:
    """Largest difference of any output, in units of its largest value; NaN when one is."""
    gaps = [
        (a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-30)
        for a, b in zip(got, want, strict=True)
        if b.numel()
    ]
    return float(torch.stack(gaps).max())


@contextmanager
def _in_table(op: str, row: str, config: Config) -> Iterator[None]:
    rows = tuning.table()[op]
    before = rows.get(row)
    rows[row] = config
    try:
        yield
    finally:
        if before is None:
            del rows[row]
        else:
            rows[row] = before


if __name__ == "__main__":
    main()
