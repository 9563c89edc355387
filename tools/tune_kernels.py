"""Measure block sizes of the kernels on this GPU and write the fastest into the table.

    python tools/tune_kernels.py [--only patch_embed_forward,...] [--dry-run]

ViT-Large's shapes in bf16, CUDA graphs, cold L2. About two minutes, most of it compilation. Rows of
other architectures and of kernels that are not tuned here stay as they are.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ecgfast_kernels import tuning
from torch import Tensor
from triton.runtime.errors import OutOfResources

from ecgfast.bench.kernel_cases import OpCase, op_cases
from ecgfast.bench.kernels import captured
from ecgfast.bench.timing import time_interleaved

REPEATS = 30
Config = dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Search:
    """Candidates of one kernel and the call that runs it."""

    op: str
    case: str  # of `op_cases`
    backward: bool
    bits: int
    candidates: tuple[Config, ...]


def _configs(names: str, *rows: tuple[int, ...]) -> tuple[Config, ...]:
    keys = [*names.split(), "num_warps", "num_stages"]
    return tuple(dict(zip(keys, row, strict=True)) for row in rows)


SEARCHES = (
    Search(
        op="random_mask",
        case="random_mask",
        backward=False,
        bits=64,
        candidates=_configs("BLOCK_B", (1, 1, 1), (2, 1, 1), (4, 4, 1), (1, 2, 1)),
    ),
    Search(
        op="patch_embed_forward",
        case="patch_embed_masked",
        backward=False,
        bits=16,
        candidates=_configs(
            "BLOCK_R BLOCK_D BLOCK_P",
            (128, 128, 64, 8, 3),
            (128, 128, 64, 4, 3),
            (64, 128, 64, 4, 3),
            (128, 64, 64, 4, 3),
            (64, 256, 64, 8, 3),
            (128, 256, 64, 8, 3),
            (64, 128, 128, 4, 2),
            (128, 128, 128, 8, 2),
            (64, 64, 128, 4, 2),
        ),
    ),
    Search(
        op="patch_embed_backward",
        case="patch_embed_masked",
        backward=True,
        bits=16,
        candidates=_configs(
            "BLOCK_R BLOCK_D BLOCK_P PROGRAMS",
            (64, 128, 128, 128, 8, 3),
            (64, 128, 128, 256, 8, 3),
            (64, 128, 128, 256, 4, 3),
            (32, 128, 128, 256, 4, 4),
            (128, 128, 128, 128, 8, 2),
            (64, 128, 256, 128, 8, 3),
            (64, 64, 256, 128, 8, 3),
            (64, 64, 256, 256, 8, 3),
            (64, 64, 128, 256, 4, 3),
        ),
    ),
    Search(
        op="unshuffle_forward",
        case="unshuffle",
        backward=False,
        bits=16,
        candidates=_configs(
            "BLOCK_T BLOCK_E", (8, 512, 4, 1), (4, 512, 4, 1), (16, 512, 8, 1), (16, 256, 4, 1)
        ),
    ),
    Search(
        op="unshuffle_backward",
        case="unshuffle",
        backward=True,
        bits=16,
        candidates=_configs(
            "BLOCK_T BLOCK_E",
            (16, 256, 4, 2),
            (16, 256, 4, 4),
            (16, 128, 4, 3),
            (32, 128, 4, 3),
            (8, 512, 4, 3),
            (16, 512, 8, 3),
        ),
    ),
    Search(
        op="masked_mse",
        case="masked_mse",
        backward=True,
        bits=16,
        candidates=_configs("BLOCK_R", (8, 4, 1), (4, 4, 1), (16, 4, 1), (16, 8, 1), (4, 2, 1)),
    ),
)


def main() -> None:
    """Search each kernel in turn; write the table at the end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", help="kernels, comma-separated; all by default")
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    arguments = parser.parse_args()
    wanted = arguments.only.split(",") if arguments.only else [s.op for s in SEARCHES]
    major, minor = torch.cuda.get_device_capability()
    cases = {case.name: case for case in op_cases("cuda")}
    for search in SEARCHES:
        if search.op in wanted:
            row = f"sm{10 * major + minor}-{search.bits}bit"
            tuning.table()[search.op][row] = fastest(search, row, _call(search, cases[search.case]))
    text = render(tuning.table())
    if arguments.dry_run:
        print(text)
    else:
        (Path(tuning.__file__).parent / tuning.FILE_NAME).write_text(text, encoding="utf-8")


def fastest(search: Search, row: str, call: Callable[[], Any]) -> Config:
    """Time every candidate that fits the GPU, in turns, and return the best."""
    replays: dict[str, Callable[[], Any]] = {}
    for config in search.candidates:
        with _in_table(search.op, row, config):
            try:
                replays[json.dumps(config)] = captured(call)
            except OutOfResources as error:
                print(f"{search.op} {config}: {error}")
    times = time_interleaved(replays, device="cuda", repeats=REPEATS, flush_cache=True)
    medians = {name: sorted(values)[len(values) // 2] for name, values in times.items()}
    for name in sorted(medians, key=lambda key: medians[key]):
        print(f"{search.op} {1e3 * medians[name]:8.1f} us  {name}", flush=True)
    best: Config = json.loads(min(medians, key=lambda key: medians[key]))
    return best


def render(table: dict[str, dict[str, Config]]) -> str:
    """The table as JSON with one line per row, so that a change is one line of a diff."""
    ops = []
    for op, rows in table.items():
        lines = ",\n".join(f'    "{row}": {json.dumps(config)}' for row, config in rows.items())
        ops.append(f'  "{op}": {{\n{lines}\n  }}')
    return "{\n" + ",\n".join(ops) + "\n}\n"


def _call(search: Search, case: OpCase) -> Callable[[], Any]:
    def forward() -> Any:  # noqa: ANN401 (an op's outputs)
        return case.function(*case.arguments, **case.options, backend="triton")

    if not search.backward:
        return torch.no_grad()(forward)
    output: Tensor = forward()
    leaves = [case.arguments[index] for index in case.leaves]
    grad = output.detach().clone()
    return lambda: torch.autograd.grad(forward(), leaves, grad)


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
