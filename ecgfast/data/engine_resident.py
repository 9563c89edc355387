"""Engine `resident`: a whole cohort, packed, in GPU memory; a batch is one kernel.

Loading reads every chunk once and checks it (checksum and structure), so that a batch needs no
check. Shapes: R records held, B records of a batch, C leads, T timesteps, N patches.
"""

import os
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from ecgfast_kernels import codec, codec_cuda
from numpy.typing import NDArray
from torch import Tensor

from ecgfast import log
from ecgfast.data.batch import PADDED_PATCH
from ecgfast.errors import BackendUnavailableError, CorruptStoreError
from ecgfast.store.reader import StoreReader

_SLICE = 4096  # records loaded and checked at a time; 0.5 GB of int16


class _Held(Protocol):
    """Records in memory; `slots` count in the order of loading."""

    def fill(self, slots_B: Tensor, out_BNP: Tensor, status_B: Tensor) -> None:
        """Write the patches of some records, queued on the current stream of a GPU."""


class ResidentEngine:
    """Holds the selected records where batches are made.

    Args:
        store: an open store.
        index: (R,) store rows to hold.
        mean: (num_records, C) float32 ADC units, subtracted.
        rstd: (num_records, C) float32, multiplied.
        device: where batches go.
        budget_gib: GPU memory that the records may take; beyond it they stay in pinned host memory
            and the kernel reads them over the bus. None: no limit.
    Raises:
        BackendUnavailableError: a GPU is asked for, but the CUDA decoder was not built.
        CorruptStoreError: a record is damaged.
    """

    def __init__(
        self,
        store: StoreReader,
        *,
        index: NDArray[np.int64],
        mean: NDArray[np.float32],
        rstd: NDArray[np.float32],
        device: torch.device,
        budget_gib: float | None = None,
    ) -> None:
        if device.type == "cuda" and not codec_cuda.is_built():
            raise BackendUnavailableError(
                "engine=resident needs the CUDA decoder, which was not built; install nvcc (pip "
                "install 'ecgfast[cuda]' brings it) and reinstall ecgfast, or take engine=cpu"
            )
        self._device = device
        self._num_patches = store.num_leads * store.num_timesteps // codec.COLUMN_TIMESTEPS
        self._slot_of = np.full(len(store), -1, np.int64)
        self._slot_of[index] = np.arange(len(index))
        moments = (_to(mean[index], device), _to(rstd[index], device))
        load = _load_chunks if store.codec == "ecgpack" else _load_signal
        self._held: _Held = load(store, index, moments, device, budget_gib)

    def batches(self, schedule: Sequence[NDArray[np.int64]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (patches (B, N, 256) fp16, record_index (B,) int64) for each entry of `schedule`.

        The order of all batches goes to the device at once; after that nothing waits until the end.

        Raises:
            CorruptStoreError: at the end, if a record could not be decoded after all.
        """
        if len(schedule) == 0:
            return
        rows = np.concatenate(schedule)
        assert (self._slot_of[rows] >= 0).all(), "the schedule visits records that are not held"
        record_index, slots = _to(rows, self._device), _to(self._slot_of[rows], self._device)
        status = torch.zeros(len(rows), dtype=torch.int32, device=self._device)
        start = 0
        for entry in schedule:
            stop = start + len(entry)
            shape = (len(entry), self._num_patches, PADDED_PATCH)
            patches = torch.empty(shape, dtype=torch.float16, device=self._device)
            self._held.fill(slots[start:stop], patches, status[start:stop])
            yield patches, record_index[start:stop]
            start = stop
        bad = torch.nonzero(status).flatten().tolist()
        if bad:
            raise CorruptStoreError(
                f"record {rows[bad[0]]} could not be decoded on {self._device} (status "
                f"{int(status[bad[0]])}) though it was sound when it was loaded; check the memory"
            )


def resident_bytes(store: StoreReader) -> int:
    """Memory that all records of a store take when they are resident.

    Args:
        store: an open store; only ecgpack stays packed.
    """
    if store.codec == "ecgpack":
        return store.num_bytes
    return len(store) * store.num_leads * store.num_timesteps * 2


class _HeldChunks:
    """ecgpack chunks as they lie in the store."""

    def __init__(self, chunks: codec_cuda.ResidentChunks, moments: tuple[Tensor, Tensor]) -> None:
        self._chunks = chunks
        self._mean, self._rstd = moments

    def fill(self, slots_B: Tensor, out_BNP: Tensor, status_B: Tensor) -> None:
        if out_BNP.is_cuda:
            codec_cuda.decode_patches(
                self._chunks, slots_B, self._mean, self._rstd, out=out_BNP, status=status_B
            )
            return
        codec.decode_patches(
            self._chunks.bytes.numpy(),
            self._chunks.offsets[slots_B].numpy(),
            self._chunks.lengths[slots_B].numpy(),
            self._mean[slots_B].numpy(),
            self._rstd[slots_B].numpy(),
            num_timesteps=self._chunks.num_timesteps,
            out=out_BNP.numpy(),
            check=False,
        )


class _HeldSignal:
    """Decoded int16 records: stores without a codec, or with zstd, which no kernel here decodes."""

    def __init__(self, signal_RCT: Tensor, moments: tuple[Tensor, Tensor]) -> None:
        self._signal = signal_RCT
        self._mean, self._rstd = moments

    def fill(self, slots_B: Tensor, out_BNP: Tensor, status_B: Tensor) -> None:
        if out_BNP.is_cuda:
            codec_cuda.gather_patches(
                self._signal, slots_B, self._mean, self._rstd, out=out_BNP, status=status_B
            )
            return
        codec.patches_from_int16(
            self._signal[slots_B].numpy(),
            self._mean[slots_B].numpy(),
            self._rstd[slots_B].numpy(),
            out=out_BNP.numpy(),
        )


def _load_chunks(
    store: StoreReader,
    index: NDArray[np.int64],
    moments: tuple[Tensor, Tensor],
    device: torch.device,
    budget_gib: float | None,
) -> _HeldChunks:
    buffer, offsets, lengths = store.load_chunks(index)
    num_leads, num_timesteps = store.num_leads, store.num_timesteps
    scratch = np.empty((min(_SLICE, len(index)), num_leads, num_timesteps), np.int16)
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    for start in range(0, len(index), _SLICE):
        part = slice(start, start + _SLICE)
        try:
            codec.decode(
                buffer,
                offsets[part],
                lengths[part],
                num_leads=num_leads,
                num_timesteps=num_timesteps,
                out=scratch[: len(offsets[part])],
                num_threads=threads,
            )
        except codec.CodecError as error:
            record = index[start + max(error.index, 0)]
            raise CorruptStoreError(
                f"{store.path}: record {record} is damaged ({error}); run `ecgfast verify`"
            ) from error
    chunks = codec_cuda.ResidentChunks(
        bytes=_place(torch.from_numpy(buffer), device, budget_gib),
        offsets=_to(offsets, device),
        lengths=_to(lengths, device),
        num_leads=num_leads,
        num_timesteps=num_timesteps,
    )
    return _HeldChunks(chunks, moments)


def _load_signal(
    store: StoreReader,
    index: NDArray[np.int64],
    moments: tuple[Tensor, Tensor],
    device: torch.device,
    budget_gib: float | None,
) -> _HeldSignal:
    shape = (len(index), store.num_leads, store.num_timesteps)
    room = _room(int(np.prod(shape)) * 2, device, budget_gib)
    signal_RCT = room.view(torch.int16).view(shape)
    for start in range(0, len(index), _SLICE):
        part = slice(start, start + _SLICE)
        signal_RCT[part].copy_(torch.from_numpy(store.read(index[part])))
    return _HeldSignal(signal_RCT, moments)


def _place(data: Tensor, device: torch.device, budget_gib: float | None) -> Tensor:
    return _room(data.numel(), device, budget_gib).copy_(data)


def _room(num_bytes: int, device: torch.device, budget_gib: float | None) -> Tensor:
    """Bytes on the device, or pinned on the host where they exceed the budget."""
    if device.type == "cuda" and budget_gib is not None and num_bytes > budget_gib * 2**30:
        log.warning(
            f"engine resident: {num_bytes / 2**30:.1f} GiB exceed the budget of {budget_gib:.1f} "
            "GiB of GPU memory, so they stay in pinned host memory, at the speed of the bus"
        )
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
    return torch.empty(num_bytes, dtype=torch.uint8, device=device)


def _to(array: NDArray[np.generic], device: torch.device) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type != "cuda":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)
