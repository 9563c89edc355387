"""Each Triton op beside its eager and its compiled PyTorch reference, at ViT-Large's shapes.

Calls are replayed from a CUDA graph and the L2 cache is overwritten before each: the GPU's time for
cold data, without Python's. The end-to-end effect is the step case's ``ecgfast-kernels-reference``.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ecgfast import log
from ecgfast.bench.block_cases import block_cases
from ecgfast.bench.kernel_cases import OpCase, op_cases
from ecgfast.bench.peaks import measure_peaks
from ecgfast.bench.rows import Row, make_row
from ecgfast.bench.timing import per_second, time_interleaved

PROVIDERS = ("ecgfast", "torch-eager", "torch-compiled")
_REPEATS = {"cuda": 50, "cpu": 5}
# bf16 on both sides, rounded at different places: two roundings of 2^-8 of the largest value.
_AGREEMENT = 2**-7

_Call = Callable[[], Any]


def measure_kernels(device: str) -> Iterator[Row]:
    """Measure every op, forward alone and with backward.

    On a CPU, where Triton has only an interpreter, the two PyTorch variants are measured.

    Args:
        device: "cpu" or "cuda".
    Raises:
        RuntimeError: an op disagrees with its reference; no time of a wrong kernel is reported.
    """
    peak_rows = measure_peaks(device)
    yield from peak_rows
    peaks = {row.unit: row.p50 for row in peak_rows}
    providers = PROVIDERS if device == "cuda" else PROVIDERS[1:]
    for case in (*op_cases(device), *block_cases(device)):
        torch._dynamo.reset()  # each case compiles anew; the limit of 8 counts them together
        functions = {name: _function(case, name) for name in providers}
        if device == "cuda":
            _check(case, functions)
            functions |= case.others
        passes: dict[str, Callable[..., Any]] = {"forward": _forward}
        if case.leaves:
            passes["forward_backward"] = _forward_backward
        for name, run in passes.items():
            calls = {p: partial(run, case, function) for p, function in functions.items()}
            yield from _measure(case, name, calls, device=device, peaks=peaks)


def _function(case: OpCase, provider: str) -> Callable[..., Any]:
    backend = "triton" if provider == "ecgfast" else "reference"
    function = partial(case.function, **case.options, backend=backend)
    if provider == "torch-compiled":
        return torch.compile(function, fullgraph=True, dynamic=False)
    return function


def _forward(case: OpCase, function: Callable[..., Any]) -> Any:  # noqa: ANN401 (an op's outputs)
    with torch.no_grad():
        return function(*case.arguments)


def _forward_backward(case: OpCase, function: Callable[..., Any]) -> tuple[Tensor, ...]:
    result = function(*case.arguments)
    outputs = result if isinstance(result, tuple) else (result,)
    leaves = [case.arguments[index] for index in case.leaves]
    # The outputs serve as their own gradients: random values, and nothing to allocate.
    return torch.autograd.grad(outputs, leaves, [output.detach() for output in outputs])


def _check(case: OpCase, functions: dict[str, Callable[..., Any]]) -> None:
    run = _forward_backward if case.leaves else _forward
    got, want = (run(case, functions[name]) for name in ("ecgfast", "torch-eager"))
    for a, b in zip(got, want, strict=True):
        error = (a.double() - b.double()).abs().max() / b.double().abs().max()
        # <=, not >, so that a NaN counts as a disagreement
        if not error.item() <= (_AGREEMENT if a.is_floating_point() else 0):
            raise RuntimeError(f"{case.name} is off its reference by {error.item():.3g}: no timing")


def _measure(
    case: OpCase, name: str, calls: Mapping[str, _Call], *, device: str, peaks: dict[str, float]
) -> Iterator[Row]:
    memory_mib = {}
    replays = {}
    for provider, call in calls.items():
        try:
            call()  # compiles
            memory_mib[provider] = _peak_memory_mib(call) if device == "cuda" else 0.0
            replays[provider] = captured(call) if device == "cuda" else call
        except RuntimeError as error:  # the others still count
            reason = str(error).strip().partition("\n")[0]
            log.warning(f"{case.name} {name} by {provider} was not measured: {reason}")
    times = time_interleaved(
        replays, device=device, repeats=_REPEATS[device], flush_cache=device == "cuda"
    )
    make = partial(make_row, case=f"{case.name}_{name}", shape=case.shape, device=device)
    for provider, times_ms in times.items():
        microseconds = [1e3 * ms for ms in times_ms]
        yield make(provider=provider, values=microseconds, metric="time", unit="us")
        yield from _rates(case, name, partial(make, provider=provider), times_ms, peaks)
        if device == "cuda":
            peak = [memory_mib[provider]]
            yield make(provider=provider, values=peak, metric="memory", unit="MiB")
    if {"ecgfast", "torch-compiled"} <= times.keys():
        pairs = zip(times["torch-compiled"], times["ecgfast"], strict=True)
        ratios = [compiled / ours for compiled, ours in pairs]
        yield make(provider="ecgfast", values=ratios, metric="speedup_over_compiled", unit="x")


def _rates(
    case: OpCase,
    name: str,
    make: Callable[..., Row],
    times_ms: list[float],
    peaks: dict[str, float],
) -> Iterator[Row]:
    with_backward = name == "forward_backward"
    num_bytes = case.forward_bytes + with_backward * case.backward_bytes
    gigabytes = per_second(times_ms, num_bytes / 1e9)
    yield make(values=gigabytes, metric="bandwidth", unit="GB/s")
    yield make(
        values=[100 * g / peaks["GB/s"] for g in gigabytes], metric="share_of_copy", unit="%"
    )
    if case.forward_flops:
        teraflops = per_second(times_ms, (1 + with_backward) * case.forward_flops / 1e12)
        yield make(values=teraflops, metric="throughput", unit="TFLOP/s")
        share = [100 * t / peaks["TFLOP/s"] for t in teraflops]
        yield make(values=share, metric="share_of_matmul", unit="%")


def _peak_memory_mib(call: _Call) -> float:
    """Memory that a call needs beyond its inputs, its outputs included."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def captured(call: _Call) -> _Call:
    """Record a call as a CUDA graph and return its replay.

    Warmed up on a side stream, as capture requires.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay
