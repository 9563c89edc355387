"""Decode rates: ecgpack to patches and to int16, beside raw int16 that is only normalised.

Rates count decoded int16 bytes, so that every way to the same batch has the same numerator.
Shapes: R records held, B records of a batch, C leads, T timesteps, N patches.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from ecgfast_kernels import codec
from ecgfast_kernels.codec import cuda as codec_cuda
from numpy.typing import NDArray
from torch import Tensor

from ecgfast.bench.rows import Row, make_row
from ecgfast.bench.timing import per_second, time_interleaved

_LEADS, _TIMESTEPS = 12, 5000
_HELD = {"cuda": 8192, "cpu": 512}
_BATCHES = {"cuda": (256, 1024), "cpu": (256,)}
_TURNS = 16  # index sets in turn, so that no cache holds the next batch

Call = Callable[[], object]


def measure_decode(device: str, *, repeats: int = 30) -> Iterator[Row]:
    """Measure every way from records in memory to a batch on the device.

    Args:
        device: "cpu" (one thread) or "cuda".
        repeats: timed calls of each.
    """
    held = hold(ecg_like(_HELD[device], seed=1))
    for batch in _BATCHES[device]:
        calls = _gpu_calls(held, batch) if device == "cuda" else _cpu_calls(held, batch)
        times = time_interleaved(calls, device=device, repeats=repeats)
        gigabytes = batch * _LEADS * _TIMESTEPS * 2 / 1e9
        for case_and_provider, milliseconds in times.items():
            case, provider = case_and_provider.split("/")
            for unit, count in (("GB/s", gigabytes), ("records/s", float(batch))):
                yield make_row(
                    case=case,
                    provider=provider,
                    values=per_second(milliseconds, count),
                    metric="throughput",
                    unit=unit,
                    shape=f"{batch} of {_HELD[device]}, ratio {held.ratio:.1f}",
                    device=device,
                )


@dataclass(frozen=True, kw_only=True)
class Held:
    """Records in host memory, encoded and plain, with what normalises them."""

    signal: NDArray[np.int16]
    buffer: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    mean: NDArray[np.float32]
    rstd: NDArray[np.float32]

    @property
    def ratio(self) -> float:
        """Plain bytes per encoded byte."""
        return self.signal.nbytes / int(self.lengths.sum())


def hold(signal_RCT: NDArray[np.int16]) -> Held:
    """Encode records and compute their statistics."""
    chunks = codec.encode(signal_RCT)
    lengths = np.array([len(chunk) for chunk in chunks], np.int64)
    mean, std = codec.lead_statistics(signal_RCT)
    return Held(
        signal=signal_RCT,
        buffer=np.frombuffer(bytearray(b"".join(chunks)), np.uint8),
        offsets=np.cumsum(lengths) - lengths,
        lengths=lengths,
        mean=mean,
        rstd=np.divide(1, std, out=np.zeros_like(std), where=std > 0),
    )


def ecg_like(num_records: int, *, seed: int, num_timesteps: int = _TIMESTEPS) -> NDArray[np.int16]:
    """(N, 12, T) int16, 5 microvolt a digit: beats, baseline wander, noise; limb leads that add up.

    The noise is chosen so that the codec's ratio is about that of real hospital records (4.5).
    """
    rng = np.random.default_rng(seed)
    time = np.arange(num_timesteps, dtype=np.float32)
    waves = (
        (-80, 18, 20),
        (-8, 4, -25),
        (0, 5, 220),
        (9, 4, -60),
        (120, 28, 45),
    )  # at, width, gain
    out = np.empty((num_records, _LEADS, num_timesteps), np.int16)
    for record in range(num_records):
        phase = (time + rng.integers(0, 400)) % rng.integers(300, 520) - 150
        beat = np.stack([np.exp(-(((phase - at) / width) ** 2)) for at, width, _ in waves])
        gains = np.array([gain for *_, gain in waves]) * rng.uniform(0.3, 1.5, (_LEADS, len(waves)))
        wander = rng.uniform(5, 30, (_LEADS, 1)) * np.sin(time / rng.uniform(300, 900))
        noise = rng.standard_normal((_LEADS, num_timesteps), np.float32) * 4
        out[record] = np.rint(gains.astype(np.float32) @ beat + wander + noise)
    one, two = out[:, 0], out[:, 1]
    out[:, 2], out[:, 3] = two - one, -((one + two) >> 1)
    out[:, 4], out[:, 5] = one - (two >> 1), two - (one >> 1)
    return out


def _batches(num_held: int, batch: int, device: str) -> Callable[[], Tensor]:
    """Random record numbers, another set at each call."""
    rng = np.random.default_rng(0)
    sets = [
        torch.from_numpy(rng.choice(num_held, batch, replace=False)).to(device)
        for _ in range(_TURNS)
    ]
    turn = iter(range(1 << 62))
    return lambda: sets[next(turn) % _TURNS]


def _gpu_calls(held: Held, batch: int) -> dict[str, Call]:
    def upload(array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).cuda()

    chunks = codec_cuda.ResidentChunks(
        bytes=upload(held.buffer),
        offsets=upload(held.offsets),
        lengths=upload(held.lengths),
        num_leads=_LEADS,
        num_timesteps=_TIMESTEPS,
    )
    signal_RCT, mean_RC, rstd_RC = upload(held.signal), upload(held.mean), upload(held.rstd)
    records = _batches(len(held.lengths), batch, "cuda")
    status = torch.zeros(batch, dtype=torch.int32, device="cuda")
    num_patches = _LEADS * _TIMESTEPS // codec.COLUMN_TIMESTEPS
    patches = torch.empty((batch, num_patches, 256), dtype=torch.float16, device="cuda")
    decoded = torch.empty((batch, _LEADS, _TIMESTEPS), dtype=torch.int16, device="cuda")
    target = {"out": patches, "status": status}
    compiled = torch.compile(normalise_with_torch, fullgraph=True, dynamic=False)
    moments = (mean_RC, rstd_RC)
    return {
        "decode_patches/ecgfast": lambda: codec_cuda.decode_patches(
            chunks, records(), *moments, **target
        ),
        "decode_patches/raw int16, own kernel": lambda: codec_cuda.gather_patches(
            signal_RCT, records(), *moments, **target
        ),
        "decode_patches/raw int16, torch": lambda: normalise_with_torch(
            signal_RCT, records(), *moments
        ),
        "decode_patches/raw int16, torch.compile": lambda: compiled(
            signal_RCT, records(), *moments
        ),
        "decode_int16/ecgfast": lambda: codec_cuda.decode(
            chunks, records(), out=decoded, status=status
        ),
        "decode_int16/raw int16, torch": lambda: signal_RCT.index_select(0, records()),
    }


def normalise_with_torch(
    signal_RCT: Tensor, records_B: Tensor, mean_RC: Tensor, rstd_RC: Tensor
) -> Tensor:
    """(B, N, 256) fp16 patches as a PyTorch user writes them; the bits of our kernels."""
    x_BCT = signal_RCT[records_B].float()
    z_BCT = (x_BCT - mean_RC[records_B][..., None]) * rstd_RC[records_B][..., None]
    return torch.nn.functional.pad(z_BCT.half().view(len(records_B), -1, 250), (0, 6))


def _cpu_calls(held: Held, batch: int) -> dict[str, Call]:
    records = _batches(len(held.lengths), batch, "cpu")
    num_patches = _LEADS * _TIMESTEPS // codec.COLUMN_TIMESTEPS
    patches = np.empty((batch, num_patches, 256), np.float16)
    decoded = np.empty((batch, _LEADS, _TIMESTEPS), np.int16)

    def decode_patches() -> None:
        index = records().numpy()
        where = (held.buffer, held.offsets[index], held.lengths[index])
        moments = (held.mean[index], held.rstd[index])
        codec.decode_patches(*where, *moments, num_timesteps=_TIMESTEPS, out=patches)

    def raw_patches() -> None:
        index = records().numpy()
        moments = (held.mean[index], held.rstd[index])
        codec.patches_from_int16(held.signal[index], *moments, out=patches)

    def numpy_patches() -> None:
        index = records().numpy()
        x = held.signal[index].astype(np.float32)
        z = (x - held.mean[index][..., None]) * held.rstd[index][..., None]
        patches[..., :250] = z.reshape(batch, num_patches, 250)

    def decode() -> None:
        index = records().numpy()
        codec.decode(
            held.buffer,
            held.offsets[index],
            held.lengths[index],
            num_leads=_LEADS,
            num_timesteps=_TIMESTEPS,
            out=decoded,
        )

    return {
        "decode_patches/ecgfast": decode_patches,
        "decode_patches/raw int16, ecgfast": raw_patches,
        "decode_patches/raw int16, numpy": numpy_patches,
        "decode_int16/ecgfast": decode,
    }
