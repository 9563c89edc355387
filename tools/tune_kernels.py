"""Measure block sizes of the kernels on this GPU and write the fastest into the table.

    python tools/tune_kernels.py [--only patch_embed_forward,...] [--seconds 80]

ViT-Large's shapes in bf16, CUDA graphs, cold L2; most of the time is compilation. The table is
written after each kernel, so that a run cut short keeps what it found. Rows of other architectures
stay as they are. A candidate whose results differ from those of the row in use is not timed.
"""

import argparse
import json
import re
import sys
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import NamedTuple
from unittest.mock import patch

import torch
from ecgfast_kernels.ops import library
from ecgfast_kernels.ops.adamw import factors
from ecgfast_kernels.ops.fused_block import gelu_mlp
from torch import Tensor
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from ecgfast.bench.kernels import (
    AGREEMENT,
    Case,
    block_cases,
    captured,
    difference,
    forward,
    forward_backward,
    kernel_cases,
)
from ecgfast.bench.measuring import Call, time_interleaved

Config = dict[str, int | None]
REPEATS = 30

# Kernel, and the bench case that runs it, forward alone for a kernel called so: what else a case
# runs costs the same for every candidate. Then candidates, their values in the order of
# tuning.json. The most valuable first, should time run out: the patch embedding is held against
# torch.compile, norms and GELUs decide whether the fused blocks pay, the rest was near its limit.
# PROGRAMS are multiples of the 132 multiprocessors of an H100, or a little under one. Of quack's
# tiles, 160 columns are the most that two in turns hold without a stack. maxnreg 128 costs
# attention 16 bytes of stack, and doubles the programs on a multiprocessor.
TABLE = """
patch_embed_backward patch_embed_masked
    64 128 128 132 8 4, 64 128 128 132 8 3, 128 128 128 132 8 3, 64 256 128 132 8 4
    64 256 128 132 8 3, 32 256 128 132 8 4, 64 64 128 264 4 4, 64 128 64 264 4 4
    64 64 256 132 8 4
patch_embed_forward patch_embed_masked
    128 128 64 132 8 3, 64 128 64 132 8 3, 64 128 128 132 8 3, 64 128 64 132 8 4
    64 64 64 264 4 3, 64 64 64 264 8 3, 32 64 64 264 4 3, 128 64 64 264 8 2, 128 64 64 132 8 3
add_layer_norm_backward_narrow add_layer_norm_decoder
    1024 792 1 4 1, 1024 528 2 4 1, 1024 528 2 2 1, 1024 528 1 2 1, 512 1056 1 2 1
    512 1584 1 1 1, 2048 264 1 4 1
add_layer_norm_backward_wide add_layer_norm_encoder
    1024 792 1 4 1, 1024 528 2 4 1, 1024 528 1 2 1, 2048 528 2 4 1, 2048 528 1 4 1
    4096 264 1 4 1
add_layer_norm_forward_narrow add_layer_norm_decoder
    4096 4 1, 2048 4 1, 1024 2 1, 512 1 1, 1024 1 1
add_layer_norm_forward_wide add_layer_norm_encoder
    2048 4 1, 1024 4 1, 1024 2 1, 2048 2 1
linear_gelu_forward gelu_mlp_encoder
    128 256 64 132 8 3, 128 256 64 132 8 4, 128 128 64 132 8 4, 128 128 64 264 4 3
    256 128 64 132 8 3
linear_gelu_backward gelu_mlp_encoder
    128 256 64 132 8 3, 128 256 64 132 8 4, 128 128 64 132 8 4, 128 128 64 264 4 3
    256 128 64 132 8 3
linear_gelu_quack_forward quack_encoder
    128 160 2 1 1, 128 192 2 1 1, 128 256 2 1 0, 128 256 1 2 0, 256 128 2 1 0
linear_gelu_quack_backward quack_encoder
    128 160 2 1 1, 128 192 2 1 1, 128 256 2 1 0, 128 256 1 2 0, 256 128 2 1 0
column_sums add_layer_norm_encoder
    64 32 4 1, 128 32 8 1, 128 16 4 1, 32 32 4 1
bias_gelu_backward bias_gelu_encoder
    4 512 128 1 4 1, 4 512 64 1 4 1, 4 512 64 3 4 1, 2 512 64 3 4 1, 8 256 128 2 4 1
    4 1024 64 2 8 1, 2 1024 32 1 4 1, 8 512 128 2 8 1
bias_gelu_forward bias_gelu_encoder
    4 512 4 1, 2 512 4 1, 8 512 4 1, 4 1024 8 1
adamw adamw
    2048 8 1, 1024 4 1, 2048 4 1, 4096 8 1
attention_backward_long_32 short_attention_decoder
    64 1 8 1, 32 1 8 1, 64 0 4 1, 64 0 4 2, 64 0 8 2, 128 0 8 1
attention_forward_long short_attention_decoder
    64 1 4 1 128, 64 1 4 1 -, 128 1 8 1 128, 64 0 4 1 -, 64 0 4 3 -, 64 0 8 2 -
attention_backward_short_64 short_attention_encoder
    64 0 4 1, 64 0 4 2, 64 0 4 3, 64 0 8 1, 32 1 4 1
attention_forward_short short_attention_encoder
    64 0 4 1, 64 0 4 2, 64 0 4 3, 32 0 4 3
attention_backward_long_64 short_attention_finetuned
    32 1 8 1, 64 0 8 1, 64 0 8 2, 64 0 4 1, 32 0 4 2
unshuffle_backward unshuffle
    16 256 4 2, 16 256 4 4, 16 128 4 3, 8 512 4 3
unshuffle_forward unshuffle
    8 512 4 1, 4 512 4 1, 16 512 8 1, 16 256 4 1
masked_mse masked_mse
    8 4 1, 4 4 1, 16 8 1, 4 2 1
random_mask random_mask
    1 1 1, 2 1 1, 4 4 1, 1 2 1
"""


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
    """Read `TABLE`."""
    found: list[Search] = []
    for line in TABLE.strip().splitlines():
        if not line.startswith(" "):
            found.append(Search(*line.split(), []))
            keys = list(library.table()[found[-1].kernel]["interpreter"])
            continue
        for row in line.split(","):
            values = (None if v == "-" else int(v) for v in row.split())
            found[-1].candidates.append(dict(zip(keys, values, strict=True)))
    return found


def cases(device: str) -> dict[str, Case]:
    """The bench's cases, and those of fine-tuning's lengths, of quack, and of the optimizer."""
    found = kernel_cases(device)
    found += block_cases("finetuned", 64 if device == "cuda" else 1, 241, 16, 64, device)
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
    return partial(forward if alone else forward_backward, case, case.ours)


def main() -> None:
    """Search each kernel in turn, as long as there is time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", help="kernels, comma-separated; all by default")
    parser.add_argument("--seconds", type=float, default=600, help="begin no search after these")
    parser.add_argument("--copy", type=Path, help="write the new table to this file too")
    args = parser.parse_args()
    every = {search.kernel: search for search in searches()}
    wanted = args.only.split(",") if args.only else [*every]
    if unknown := sorted(set(wanted) - set(every)):
        parser.error(f"unknown kernel {unknown[0]!r}; allowed: {', '.join(every)}")
    if not torch.cuda.is_available():
        sys.exit("error: tuning measures a CUDA device, and there is none")
    major, minor = torch.cuda.get_device_capability()
    end, every_case = time.monotonic() + args.seconds, cases("cuda")
    for search in (search for kernel, search in every.items() if kernel in wanted):
        if time.monotonic() > end:
            print(f"{search.kernel}: not searched, {args.seconds:.0f} s are over")
            continue
        if "quack" in search.kernel and find_spec("quack") is None:
            print(f"{search.kernel}: left out: needs quack")
            continue
        before = library.config_for(search.kernel, arch=10 * major + minor, bits=search.bits)
        row = f"sm{major}{minor}-{search.bits}bit"
        library.table()[search.kernel][row] = fastest(search, every_case[search.case], row, before)
        text = render(library.table())
        for path in (Path(library.__file__).parent / library.FILE_NAME, args.copy):
            if path is not None:
                path.write_text(text, encoding="utf-8")


def fastest(search: Search, case: Case, row: str, before: Config) -> Config:
    """Time every candidate that fits the GPU and the row in use, in turns; return the best."""
    rows, call = library.table()[search.kernel], call_of(search, case)
    with patch.dict(rows, {row: before}):
        want = [tensor.clone() for tensor in call()]
    replays: dict[str, Call] = {}
    for config in (before, *search.candidates):
        with patch.dict(rows, {row: config}):
            try:
                if (off := difference(call(), want)) <= AGREEMENT:
                    replays[json.dumps(config)] = captured(call)
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
    main()
