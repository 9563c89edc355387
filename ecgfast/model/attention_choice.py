"""Which attention kernel runs where: probed, timed once per GPU and shape, remembered on disk."""

# B records, T tokens, H heads, K width of a head

import json
import math
import os
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ecgfast import log
from ecgfast.model.attention import KERNELS, attention, explain_unavailable
from ecgfast.settings import ModelConfig
from ecgfast.vocabulary import AttentionKernel

_BATCH = 256  # records of a timing, as in a training step
_AHEAD_CYCLES = 2_000_000  # about 1 ms of GPU time in which the host queues the launches
_REPEATS = 20
_TOLERANCE = 2e-2  # bf16 has 8 bits; outputs and gradients of the probe are of order 1


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What attention kernels are chosen by."""

    num_tokens: int
    num_heads: int
    head_width: int
    dtype: torch.dtype = torch.bfloat16


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A kernel and why it was taken, for the log and for versions.json."""

    backend: AttentionKernel
    reason: str


def shapes_of(
    config: ModelConfig, *, num_keep: int, dtype: torch.dtype = torch.bfloat16
) -> dict[str, Shape]:
    """Attention shapes of a masked autoencoder: "encoder" and "decoder"."""
    return {
        "encoder": Shape(
            num_tokens=1 + num_keep,
            num_heads=config.encoder_heads,
            head_width=config.encoder_width // config.encoder_heads,
            dtype=dtype,
        ),
        "decoder": Shape(
            num_tokens=1 + config.num_patches,
            num_heads=config.decoder_heads,
            head_width=config.decoder_width // config.decoder_heads,
            dtype=dtype,
        ),
    }


def choose_attention(requested: AttentionKernel, device: torch.device, shape: Shape) -> Choice:
    """Resolve which kernel runs attention of this shape.

    Call it on rank 0 and send the answer to the others: timings differ between ranks.

    Args:
        requested: the setting `attention`.
        device: where the model will run.
        shape: of the attention.
    Raises:
        BackendUnavailableError: the requested kernel cannot run and the log is strict.
    """
    if device.type != "cuda":
        if requested not in ("auto", "math"):
            _log_fallback(requested, f"needs a CUDA device, got {device}")
        backend: AttentionKernel = "math" if requested == "math" else "auto"
        return Choice(backend=backend, reason=f"{device.type}: PyTorch's own attention")
    if requested != "auto":
        problem = probe(requested, device, shape)
        if problem is None:
            return Choice(backend=requested, reason="requested")
        _log_fallback(requested, problem)
    gpu = torch.cuda.get_device_name(device)
    return fastest(gpu, shape, lambda: time_kernels(device, shape))


def probe(backend: AttentionKernel, device: torch.device, shape: Shape) -> str | None:
    """Run a kernel forward and backward on a small input; None, or why it cannot be used."""
    if backend == "xformers":
        problem = explain_unavailable(device)
        if problem is not None:
            return problem
    qkv = _random_qkv(2, device, shape)
    expected = qkv.detach().double().requires_grad_()
    try:
        out = _forward_backward(qkv, backend)
    except Exception as error:  # compilers and drivers raise many kinds; each is a reason
        first_line = (str(error).strip() or repr(error)).splitlines()[0]
        return f"{backend} cannot run {_describe(shape)}: {first_line}"
    truth = _forward_backward(expected, "math")
    assert qkv.grad is not None
    assert expected.grad is not None
    error_out = (out - truth).abs().max().item()
    error_grad = (qkv.grad - expected.grad).abs().max().item()
    if not max(error_out, error_grad) <= _TOLERANCE * max(1.0, expected.grad.abs().max().item()):
        return (
            f"{backend} is wrong at {_describe(shape)}: off by {error_out:.2g}, in its gradient "
            f"by {error_grad:.2g}"
        )
    return None


def time_kernels(device: torch.device, shape: Shape) -> dict[AttentionKernel, float]:
    """Median milliseconds of forward and backward for each kernel that works on this GPU."""
    return {
        backend: _time_ms(backend, device, shape)
        for backend in KERNELS
        if probe(backend, device, shape) is None
    }


def fastest(gpu: str, shape: Shape, measure: Callable[[], dict[AttentionKernel, float]]) -> Choice:
    """Take the fastest kernel: from the cache, else measured now and remembered.

    Args:
        gpu: name of the device, part of the cache's key with torch's version and the shape.
        shape: of the attention.
        measure: gives milliseconds of each kernel that works.
    """
    key = f"{gpu} torch {torch.__version__} {_describe(shape)}"
    cache = _read_cache()
    if key not in cache:
        cache[key] = measure()
        _write_cache(cache)
    ranking = sorted(cache[key].items(), key=_by_time)
    listed = ", ".join(f"{name} {ms:.2f}" for name, ms in ranking)
    reason = f"fastest for {_describe(shape)} (ms: {listed})"
    return Choice(backend=ranking[0][0], reason=reason)


def cache_path() -> Path:
    """File that remembers timings: $XDG_CACHE_HOME/ecgfast/attention.json."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "ecgfast" / "attention.json"


def _by_time(item: tuple[AttentionKernel, float]) -> float:
    return item[1]


def _log_fallback(requested: AttentionKernel, problem: str) -> None:
    log.slower_path(
        f"attention={requested}", reason=problem, cure="set attention=auto to choose what works"
    )


def _random_qkv(batch: int, device: torch.device, shape: Shape) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    size = (batch, shape.num_tokens, 3, shape.num_heads, shape.head_width)
    qkv = torch.randn(size, generator=generator).to(device, shape.dtype)
    return qkv.requires_grad_()


def _forward_backward(qkv: Tensor, backend: AttentionKernel) -> Tensor:
    qkv.grad = None
    out = attention(qkv, backend)
    out.square().sum().backward()
    return out.detach()


def _time_ms(backend: AttentionKernel, device: torch.device, shape: Shape) -> float:
    qkv = _random_qkv(_BATCH, device, shape)
    times: list[float] = []
    for _ in range(_REPEATS + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        # else small shapes would time the host
        torch.cuda._sleep(_AHEAD_CYCLES)
        start.record()
        _forward_backward(qkv, backend)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times[3:])


def _describe(shape: Shape) -> str:
    dtype = str(shape.dtype).removeprefix("torch.")
    return f"T={shape.num_tokens} H={shape.num_heads} K={shape.head_width} {dtype}"


def _read_cache() -> dict[str, dict[AttentionKernel, float]]:
    """Timings so far, with a warning without those that are damaged: they are measured again."""
    path = cache_path()
    try:
        tree = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:  # a ValueError: no UTF-8, or no JSON
        log.warning(f"{path} cannot be read ({type(error).__name__}): attention is timed again")
        return {}
    entries = tree if isinstance(tree, dict) else {"": tree}
    sound = {key: times for key, times in entries.items() if _are_timings(times)}
    if len(sound) < len(entries):
        log.warning(f"{path} is damaged: attention is timed again where it is")
    return sound


def _are_timings(times: object) -> bool:
    if not isinstance(times, dict) or not times or not set(times) <= set(KERNELS):
        return False
    return all(type(ms) in (int, float) and 0 < ms < math.inf for ms in times.values())


def _write_cache(cache: Mapping[str, Mapping[AttentionKernel, float]]) -> None:
    path = cache_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(cache, indent=1), encoding="utf-8")
    temporary.replace(path)  # another process may be reading
