"""Measure block sizes of the kernels on this GPU and write the fastest into the table.

    python tools/tune_kernels.py [--only patch_embed_forward,...] [--seconds 80]

ViT-Large's shapes in bf16, CUDA graphs, cold L2; most of the time is compilation. The table is
written after each kernel, so that a run cut short keeps what it found. Rows of other architectures
stay as they are. A candidate whose results differ from those of the row in use is not timed.
"""

import json
import re
import sys
import time
import tomllib
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Annotated, NamedTuple
from unittest.mock import patch

import torch
import typer
from ecgfast_kernels.ops import library
from ecgfast_kernels.ops.adamw import factors
from ecgfast_kernels.ops.fused_block import gelu_mlp
from torch import Tensor
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from ecgfast.bench import Call, kernels, time_interleaved
from ecgfast.bench.kernels import Case

Config = dict[str, int | None]
REPEATS = 30
CANDIDATES = Path(__file__).with_suffix(".toml")


class Search(NamedTuple):
    """Candidates of one kernel: its key in the table, and the case that runs it."""

    kernel: str
    case: str
    candidates: list[Config]

    @property
    def bits(self) -> int:
        """Size of the elements that the row is for."""
        return {"column_sums": 32, "random_mask": 64}.get(self.kernel, 16)


def searches() -> list[Search]:
    """Read the candidates of every kernel, the most valuable kernel first."""
    found: list[Search] = []
    for kernel, entry in tomllib.loads(CANDIDATES.read_text(encoding="utf-8")).items():
        keys = list(library.table()[kernel]["interpreter"])
        rows = ([None if v < 0 else v for v in row] for row in entry["candidates"])
        configs = [dict(zip(keys, row, strict=True)) for row in rows]
        found.append(Search(kernel, entry["case"], configs))
    return found


def cases(device: str) -> dict[str, Case]:
    """The bench's cases, and those of fine-tuning's lengths, of quack, and of the optimizer."""
    found = kernels.kernel_cases(device)
    found += kernels.block_cases("finetuned", 64 if device == "cuda" else 1, 241, 16, 64, device)
    named = {case.name: case for case in (*found, _adamw(device))}
    ours = partial(gelu_mlp, provider="quack")
    return {**named, "quack_encoder": named["gelu_mlp_encoder"]._replace(ours=ours)}


def _adamw(device: str) -> Case:
    shapes = [(1024, 4096)] * 16 if device == "cuda" else [(3, 100)]
    weights, exp_avg = ([torch.randn(s, device=device) for s in shapes] for _ in range(2))
    exp_avg_sq = [torch.rand(s, device=device) for s in shapes]
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    copies, gradients = ([torch.randn_like(w, dtype=dtype) for w in weights] for _ in range(2))
    lists = (weights, copies, gradients, exp_avg, exp_avg_sq)
    one, zero = torch.ones((), device=device), torch.zeros((), device=device)
    # a learning rate of 0: calls that are compared and timed start from the same weights
    shared = factors(one, one, betas=(0.9, 0.95), learning_rate=0.0)

    def call() -> tuple[Tensor, ...]:
        torch.ops.ecgfast.adamw_(*lists, [0.05] * len(shapes), 0.9, 0.95, 1e-8, shared, zero)
        return tuple(copies)

    return Case("adamw", "", call, call, (), (), (0, 0))


def call_of(search: Search, case: Case) -> Call:
    """Return the pass of a case that runs a kernel."""
    alone = "forward" in search.kernel or not case.leaves
    return partial(kernels.forward if alone else kernels.forward_backward, case, case.ours)


def main(
    only: Annotated[str, typer.Option(help="Kernels, comma-separated.")] = "",
    seconds: Annotated[float, typer.Option(help="Begin no search after these.")] = 600,
    copy: Annotated[Path | None, typer.Option(help="Write the new table here too.")] = None,
) -> None:
    """Search each kernel in turn, as long as there is time."""
    every = {search.kernel: search for search in searches()}
    if unknown := sorted(set(filter(None, only.split(","))) - set(every)):
        sys.exit(f"error: unknown kernel {unknown[0]!r}; allowed: {', '.join(every)}")
    if not torch.cuda.is_available():
        sys.exit("error: tuning measures a CUDA device, and there is none")
    major, minor = torch.cuda.get_device_capability()
    end, every_case = time.monotonic() + seconds, cases("cuda")
    for search in (every[kernel] for kernel in every if not only or kernel in only.split(",")):
        if time.monotonic() > end:
            print(f"{search.kernel}: not searched, {seconds:.0f} s are over")
            continue
        if "quack" in search.kernel and find_spec("quack") is None:
            print(f"{search.kernel}: left out: needs quack")
            continue
        before = library.config_for(search.kernel, arch=10 * major + minor, bits=search.bits)
        row = f"sm{major}{minor}-{search.bits}bit"
        library.table()[search.kernel][row] = fastest(search, every_case[search.case], row, before)
        for path in filter(None, (Path(library.__file__).parent / library.FILE_NAME, copy)):
            path.write_text(render(library.table()), encoding="utf-8")


def fastest(search: Search, case: Case, row: str, before: Config) -> Config:
    """Time every candidate that fits the GPU and the row in use, in turns; return the best."""
    rows, call = library.table()[search.kernel], call_of(search, case)
    with patch.dict(rows, {row: before}):
        want = [tensor.clone() for tensor in call()]
    replays: dict[str, Call] = {}
    for config in (before, *search.candidates):
        with patch.dict(rows, {row: config}):
            try:
                if (off := kernels.difference(call(), want)) <= kernels.AGREEMENT:
                    replays[json.dumps(config)] = kernels.captured(call)
                else:
                    print(f"{search.kernel} {config}: differs by {off:.3g} of the largest value")
            except (OutOfResources, CompilationError, PTXASError, ValueError) as error:
                print(f"{search.kernel} {config}: {error}")
    times = time_interleaved(replays, device="cuda", repeats=REPEATS, flush_cache=True)
    ranked = sorted((median(values), name) for name, values in times.items())
    for ms, name in ranked:
        used = "  (in use)" if name == json.dumps(before) else ""
        print(f"{search.kernel} {1e3 * ms:8.1f} us  {name}{used}", flush=True)
    best: Config = json.loads(ranked[0][1])
    return best


def render(table: dict[str, dict[str, Config]]) -> str:
    """The table as JSON with one line per row, so that a change is one line of a diff."""
    text = re.sub(r"(?<=\{)\n {6}|\n {4}(?=\})", "", json.dumps(table, indent=2))
    return text.replace("\n      ", " ") + "\n"


if __name__ == "__main__":
    typer.run(main)
