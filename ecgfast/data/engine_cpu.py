"""Engine `cpu`: native threads decode ahead while the model works on the batch before."""

from collections.abc import Iterator, Sequence
from contextlib import closing

import numpy as np
import torch
from ecgfast_kernels import codec
from numpy.typing import NDArray
from torch import Tensor

from ecgfast.data.batch import HostBuffers, Source, made_ahead, to_device

AHEAD = 2  # batches made in advance; one hides the decode, the second evens out a slow disk

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
