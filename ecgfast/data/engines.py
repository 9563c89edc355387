"""Engines `cpu`, whose threads decode ahead, and `resident`, which holds a cohort in GPU memory.

Engine `resident` reads every chunk once while it loads and checks it (checksum and structure), so
that a batch needs no check and is one kernel. Shapes: R records held, B records of a batch, C
leads, T timesteps, N patches.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from ecgfast_kernels import codec
from ecgfast_kernels.codec import cuda as codec_cuda
from numpy.typing import NDArray
from torch import Tensor

from ecgfast import log
from ecgfast.data.batch import HostBuffers, Source, made_ahead, to_device
from ecgfast.data.host_copy import Neighbours, host_copy, register
from ecgfast.errors import BackendUnavailableError, CorruptStoreError
from ecgfast.store.reader import Chunks, StoreReader

AHEAD = 2  # batches made in advance; one hides the decode, the second evens out a slow disk
_SLICE = 512  # records decoded at a time while loading: 61 MB of int16

# patches, record_index, and on a GPU an event after their copies
_Made = tuple[Tensor, Tensor, torch.cuda.Event | None]


class CpuEngine:
    """Reads, decodes and normalises on the host.

    Args:
        source: records, normalisation, device and threads.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        # Two batches are made at a time where there are two threads: one is read, one decoded.
        self._num_workers = min(source.num_threads, AHEAD)
        self._num_threads = source.num_threads // self._num_workers
        self._buffers = HostBuffers()
        self._copy_stream: torch.cuda.Stream | None = None
        if source.device.type == "cuda":
            self._copy_stream = torch.cuda.Stream(source.device)

    def batches(self, schedule: Sequence[NDArray[np.int64]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (patches (B, N, 256) fp16, record_index (B,) int64) for each entry.

        Raises:
            CorruptStoreError: a record is damaged.
        """
        made = made_ahead(self._make, schedule, depth=AHEAD, num_threads=self._num_workers)
        with closing(made):
            for batch in made:
                yield self._receive(*batch)

    def _make(self, index_B: NDArray[np.int64]) -> _Made:
        shape, device = self._source.batch_shape(len(index_B)), self._source.device
        if self._copy_stream is None:
            out_BNP = self._buffers.take(shape)
            self._decode(index_B, out_BNP)
            return torch.from_numpy(out_BNP), torch.from_numpy(index_B.copy()), None
        pinned = torch.empty(shape, dtype=torch.float16, pin_memory=True)
        self._decode(index_B, pinned.numpy())
        with torch.cuda.stream(self._copy_stream):
            patches = pinned.to(device, non_blocking=True)
            record_index = to_device(index_B, device)
            return patches, record_index, self._copy_stream.record_event()

    def _decode(self, index_B: NDArray[np.int64], out_BNP: NDArray[np.float16]) -> None:
        store, threads = self._source.store, self._num_threads
        moments = self._source.mean[index_B], self._source.rstd[index_B]
        if store.codec != "ecgpack":
            signal_BCT = store.read(index_B, num_threads=threads)
            codec.patches_from_int16(signal_BCT, *moments, out=out_BNP, num_threads=threads)
            return
        try:
            codec.decode_patches(
                *store.read_chunks(index_B),
                *moments,
                num_timesteps=store.num_timesteps,
                out=out_BNP,
                num_threads=threads,
            )
        except codec.CodecError:
            store.read(index_B)  # names the record and its shard
            raise

    def _receive(
        self, patches: Tensor, record_index: Tensor, copied: torch.cuda.Event | None
    ) -> tuple[Tensor, Tensor]:
        if copied is not None:
            current = torch.cuda.current_stream(self._source.device)
            current.wait_event(copied)
            patches.record_stream(current)  # the allocator must not reuse them while in use here
            record_index.record_stream(current)
        return patches, record_index


class _Held(Protocol):
    """Records in memory; `slots` count in the order of loading."""

    def fill(self, slots_B: Tensor, out_BNP: Tensor, status_B: Tensor) -> None:
        """Write the patches of some records, queued on the current stream of a GPU."""


class ResidentEngine:
    """Holds the selected records where batches are made.

    Args:
        source: records, normalisation and device; its threads check the records at the start.
        index: (R,) store rows to hold.
        budget_gib: GPU memory that the records may take; beyond it they stay in pinned host memory
            and the kernel reads them over the bus. None: no limit.
        neighbours: ranks of this machine, which share one copy in host memory.
    Raises:
        BackendUnavailableError: a GPU is requested, but the CUDA decoder was not built.
        CorruptStoreError: a record is damaged.
    """

    def __init__(
        self,
        source: Source,
        *,
        index: NDArray[np.int64],
        budget_gib: float | None = None,
        neighbours: Neighbours | None = None,
    ) -> None:
        device = source.device
        if device.type == "cuda" and not codec_cuda.is_built():
            raise BackendUnavailableError(
                "engine=resident needs the CUDA decoder, which was not built; install nvcc (pip "
                "install 'ecgfast[cuda]' brings it) and reinstall ecgfast, or take engine=cpu"
            )
        self._source = source
        self._buffers = HostBuffers()
        self._slot_of = np.full(len(source.store), -1, np.int64)
        self._slot_of[index] = np.arange(len(index))
        load = _load_chunks if source.store.codec == "ecgpack" else _load_signal
        self._held: _Held = load(source, index, budget_gib, neighbours)
        if device.type == "cuda":  # batches may be requested on another stream than this one
            torch.cuda.current_stream(device).synchronize()

    def batches(self, schedule: Sequence[NDArray[np.int64]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (patches (B, N, 256) fp16, record_index (B,) int64) for each entry of `schedule`.

        The order of all batches goes to the device at once; after that nothing waits until the end.
        On a GPU, take all batches of a schedule on the same stream.

        Raises:
            CorruptStoreError: at the end, if a record could not be decoded after all.
        """
        if len(schedule) == 0:
            return
        device = self._source.device
        rows = np.concatenate(schedule)
        assert (self._slot_of[rows] >= 0).all(), "the schedule visits records that are not held"
        record_index, slots = to_device(rows, device), to_device(self._slot_of[rows], device)
        status = torch.zeros(len(rows), dtype=torch.int32, device=device)
        start = 0
        for entry in schedule:
            stop = start + len(entry)
            patches = self._output(len(entry))
            self._held.fill(slots[start:stop], patches, status[start:stop])
            yield patches, record_index[start:stop]
            start = stop
        bad = torch.nonzero(status).flatten().tolist()
        if bad:
            raise CorruptStoreError(
                f"record {rows[bad[0]]} could not be decoded on {device} (status "
                f"{int(status[bad[0]])}) though it was sound when it was loaded; check the memory"
            )

    def _output(self, num_records: int) -> Tensor:
        shape = self._source.batch_shape(num_records)
        if self._source.device.type == "cuda":
            return torch.empty(shape, dtype=torch.float16, device=self._source.device)
        return torch.from_numpy(self._buffers.take(shape))


def resident_bytes(store: StoreReader) -> int:
    """Memory that all records of a store take when they are resident.

    Args:
        store: an open store; only ecgpack stays packed.
    """
    if store.codec == "ecgpack":
        return store.num_bytes
    return len(store) * store.num_leads * store.num_timesteps * 2


@dataclass(frozen=True, kw_only=True, eq=False)
class _HeldChunks:
    """ecgpack chunks as they are in the store."""

    chunks: codec_cuda.ResidentChunks
    mean: Tensor  # (R, C)
    rstd: Tensor

    def fill(self, slots_B: Tensor, out_BNP: Tensor, status_B: Tensor) -> None:
        if out_BNP.is_cuda:
            codec_cuda.decode_patches(
                self.chunks, slots_B, self.mean, self.rstd, out=out_BNP, status=status_B
            )
            return
        codec.decode_patches(
            self.chunks.bytes.numpy(),
            self.chunks.offsets[slots_B].numpy(),
            self.chunks.lengths[slots_B].numpy(),
            self.mean[slots_B].numpy(),
            self.rstd[slots_B].numpy(),
            num_timesteps=self.chunks.num_timesteps,
            out=out_BNP.numpy(),
            check=False,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _HeldSignal:
    """Decoded int16 records: stores without a codec, or with zstd, which no kernel here decodes."""

    signal: Tensor  # (R, C, T)
    mean: Tensor  # (R, C)
    rstd: Tensor

    def fill(self, slots_B: Tensor, out_BNP: Tensor, status_B: Tensor) -> None:
        if out_BNP.is_cuda:
            codec_cuda.gather_patches(
                self.signal, slots_B, self.mean, self.rstd, out=out_BNP, status=status_B
            )
            return
        codec.patches_from_int16(
            self.signal[slots_B].numpy(),
            self.mean[slots_B].numpy(),
            self.rstd[slots_B].numpy(),
            out=out_BNP.numpy(),
        )


def _load_chunks(
    source: Source,
    index: NDArray[np.int64],
    budget_gib: float | None,
    neighbours: Neighbours | None,
) -> _HeldChunks:
    store, device = source.store, source.device

    def load() -> Chunks:
        chunks = store.load_chunks(index)
        _check_chunks(source, index, *chunks)
        return chunks

    buffer, offsets, lengths = host_copy(load, neighbours)
    return _HeldChunks(
        chunks=codec_cuda.ResidentChunks(
            bytes=_placed(buffer, device, budget_gib, is_shared=neighbours is not None),
            offsets=offsets.to(device),
            lengths=lengths.to(device),
            num_leads=store.num_leads,
            num_timesteps=store.num_timesteps,
        ),
        mean=to_device(source.mean[index], device),
        rstd=to_device(source.rstd[index], device),
    )


def _check_chunks(
    source: Source,
    index: NDArray[np.int64],
    buffer: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    lengths: NDArray[np.int64],
) -> None:
    """Decode everything once on the host: the kernel compares no checksums."""
    store = source.store
    scratch = np.empty((min(_SLICE, len(index)), store.num_leads, store.num_timesteps), np.int16)
    for start in range(0, len(index), _SLICE):
        part = slice(start, start + _SLICE)
        try:
            codec.decode(
                buffer,
                offsets[part],
                lengths[part],
                num_leads=store.num_leads,
                num_timesteps=store.num_timesteps,
                out=scratch[: len(offsets[part])],
                num_threads=source.num_threads,
            )
        except codec.CodecError as error:
            record = index[start + max(error.index, 0)]
            raise CorruptStoreError(
                f"{store.path}: record {record} is damaged ({error}); run `ecgfast verify`"
            ) from error


def _load_signal(
    source: Source,
    index: NDArray[np.int64],
    budget_gib: float | None,
    neighbours: Neighbours | None,
) -> _HeldSignal:
    store, device = source.store, source.device

    def load() -> tuple[NDArray[np.int16]]:
        return (store.read(index),)

    (signal_RCT,) = host_copy(load, neighbours)
    return _HeldSignal(
        signal=_placed(signal_RCT, device, budget_gib, is_shared=neighbours is not None),
        mean=to_device(source.mean[index], device),
        rstd=to_device(source.rstd[index], device),
    )


def _placed(
    host: Tensor, device: torch.device, budget_gib: float | None, *, is_shared: bool
) -> Tensor:
    """Records on the device, or pinned on the host where they exceed the budget."""
    if device.type == "cuda" and budget_gib is not None and host.nbytes > budget_gib * 2**30:
        log.warning(
            f"engine resident: {host.nbytes / 2**30:.1f} GiB exceed the budget of {budget_gib:.1f} "
            "GiB of GPU memory, so they stay in pinned host memory, at the speed of the bus"
        )
        return register(host) if is_shared else host.pin_memory()
    return host.to(device)
