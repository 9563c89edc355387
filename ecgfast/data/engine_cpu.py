"""Engine `cpu`: native threads decode ahead while the model works on the batch before."""

import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from ecgfast_kernels import codec
from numpy.typing import NDArray
from torch import Tensor

from ecgfast.data.batch import PADDED_PATCH
from ecgfast.store.reader import StoreReader

AHEAD = 2  # batches decoded in advance; one hides the decode, the second evens out a slow disk


class CpuEngine:
    """Reads, decodes and normalises on the host.

    Args:
        store: an open store.
        mean: (R, C) float32 ADC units, subtracted.
        rstd: (R, C) float32, multiplied.
        device: where batches go.
        num_threads: decoding threads.
    """

    def __init__(
        self,
        store: StoreReader,
        *,
        mean: NDArray[np.float32],
        rstd: NDArray[np.float32],
        device: torch.device,
        num_threads: int,
    ) -> None:
        self._store = store
        self._mean = mean
        self._rstd = rstd
        self._device = device
        self._num_threads = num_threads
        self._buffers: list[NDArray[np.float16]] = []
        self._copy_stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._copy_stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def batches(self, schedule: Sequence[NDArray[np.int64]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (patches (B, N, 256) fp16, record_index (B,) int64) for each entry."""
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="ecgfast-decode") as pool:
            pending: deque[Future[tuple[Tensor, Tensor]]] = deque()
            try:
                for index in schedule:
                    pending.append(pool.submit(self._load, index))
                    if len(pending) > AHEAD:
                        yield self._receive(pending.popleft())
                while pending:
                    yield self._receive(pending.popleft())
            finally:  # the consumer stopped early: do not decode what nobody will read
                for future in pending:
                    future.cancel()

    def _load(self, index_B: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        num_patches = self._store.num_leads * self._store.num_timesteps // codec.COLUMN_TIMESTEPS
        shape = (len(index_B), num_patches, PADDED_PATCH)
        record_index = torch.from_numpy(index_B.copy())
        if self._copy_stream is None:
            out_BNP = self._host_buffer(shape)
            self._decode(index_B, out_BNP)
            return torch.from_numpy(out_BNP), record_index
        patches = torch.empty(shape, dtype=torch.float16, pin_memory=True)
        self._decode(index_B, patches.numpy())
        with torch.cuda.stream(self._copy_stream):
            # pin_memory hands the pinned block back only after the copy's stream has passed it
            return (
                patches.to(self._device, non_blocking=True),
                record_index.pin_memory().to(self._device, non_blocking=True),
            )

    def _host_buffer(self, shape: tuple[int, ...]) -> NDArray[np.float16]:
        """Take a buffer that no tensor uses any more: fresh pages cost a third of the decode."""
        for buffer in self._buffers:
            unused = sys.getrefcount(buffer) == 3  # the list, `buffer`, and the call's argument
            if unused and buffer.shape == shape:
                return buffer
        self._buffers = [b for b in self._buffers if b.shape == shape]
        self._buffers.append(np.empty(shape, np.float16))
        return self._buffers[-1]

    def _decode(self, index_B: NDArray[np.int64], out_BNP: NDArray[np.float16]) -> None:
        mean_BC, rstd_BC = self._mean[index_B], self._rstd[index_B]
        threads = self._num_threads
        if self._store.codec != "ecgpack":
            signal_BCT = self._store.read(index_B, num_threads=threads)
            codec.patches_from_int16(signal_BCT, mean_BC, rstd_BC, out=out_BNP, num_threads=threads)
            return
        buffer, offsets, lengths = self._store.read_chunks(index_B)
        try:
            codec.decode_patches(
                buffer,
                offsets,
                lengths,
                mean_BC,
                rstd_BC,
                num_timesteps=self._store.num_timesteps,
                out=out_BNP,
                num_threads=threads,
            )
        except codec.CodecError:
            self._store.read(index_B)  # names the record and its shard
            raise

    def _receive(self, future: Future[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        patches, record_index = future.result()
        if self._copy_stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._copy_stream)
            patches.record_stream(current)  # the allocator must not reuse them while in use here
            record_index.record_stream(current)
        return patches, record_index
