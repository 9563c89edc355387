"""Engine `dali`: chunks read by a thread of ours, decoded by our operator in a DALI pipeline.

Each call of `batches` builds a pipeline that starts at its first entry, so that resume needs no
state of DALI's. Shapes: B records of a batch, C leads, T timesteps, N patches.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import import_module
from typing import Any, Protocol, cast

import numpy as np
import torch
import torch.utils.dlpack
from ecgfast_kernels import codec
from ecgfast_kernels.codec_format import FLAG_RAW, NO_QUANTUM, Header
from numpy.typing import NDArray
from torch import Tensor

from ecgfast.data.dali_plugin import load_plugin
from ecgfast.errors import CorruptStoreError
from ecgfast.store.reader import StoreReader

_READ_AHEAD = 3  # batches of encoded bytes, about 0.6 MB each at 256 records
_CRC = slice(12, 16)  # the checksum's own bytes in a chunk

# B chunks (bytes,) uint8; mean and rstd (B, C) float32
_Encoded = tuple[list[NDArray[np.uint8]], NDArray[np.float32], NDArray[np.float32]]


class _Output(Protocol):
    """A batch in DALI's memory."""

    def as_tensor(self) -> object:
        """The samples as one array that speaks DLPack."""


class _Pipeline(Protocol):
    """What we use of nvidia.dali.Pipeline."""

    def run(self, stream: torch.cuda.Stream | None) -> Sequence[_Output]:
        """The next batch, ready in the order of `stream`; host-synchronous without one."""


class DaliEngine:
    """Feeds encoded records to a DALI pipeline and hands its output to PyTorch.

    Args:
        store: an open store.
        mean: (R, C) float32 ADC units, subtracted.
        rstd: (R, C) float32, multiplied.
        device: where batches go; the operator runs there.
        num_threads: DALI's CPU threads.
    Raises:
        BackendUnavailableError: DALI is missing, or its operator could not be built.
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
        self._gpu: int | None = None
        if device.type == "cuda":
            self._gpu = torch.cuda.current_device() if device.index is None else device.index
        load_plugin(self._gpu)

    def batches(self, schedule: Sequence[NDArray[np.int64]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (patches (B, N, 256) fp16, record_index (B,) int64) for each entry of `schedule`.

        Raises:
            CorruptStoreError: a record is damaged.
        """
        if len(schedule) == 0:
            return
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="ecgfast-read") as pool:
            source = _read_ahead(pool, self._read, schedule)
            pipeline = self._build_pipeline(source, max(len(entry) for entry in schedule))
            stream = None if self._gpu is None else torch.cuda.current_stream(self._device)
            statuses = []
            for entry in schedule:
                patches, status = (_copy(output) for output in pipeline.run(stream))
                if self._gpu is None:
                    self._check(entry, status)
                statuses.append(status)
                yield patches, torch.from_numpy(entry.copy()).to(self._device)
        # On a GPU reading a status waits for the kernel, so all are read here. The checksums were
        # compared before the upload.
        for entry, status in zip(schedule, statuses, strict=True):
            self._check(entry, status)

    def _build_pipeline(self, source: Iterator[_Encoded], batch_size: int) -> _Pipeline:
        dali: Any = import_module("nvidia.dali")  # ecg_decode is known at run time only
        pipeline = dali.Pipeline(
            batch_size=batch_size,
            num_threads=self._num_threads,
            device_id=self._gpu,
            prefetch_queue_depth=2,
        )
        with pipeline:
            inputs = dali.fn.external_source(
                source=source,
                num_outputs=3,
                dtype=[dali.types.UINT8, dali.types.FLOAT, dali.types.FLOAT],
                ndim=[1, 1, 1],
            )
            if self._gpu is not None:
                inputs = [item.gpu() for item in inputs]
            decoded = dali.fn.ecg_decode(
                *inputs,
                num_leads=self._store.num_leads,
                num_timesteps=self._store.num_timesteps,
            )
            pipeline.set_outputs(*decoded)
        pipeline.build()
        return cast(_Pipeline, pipeline)

    def _read(self, index_B: NDArray[np.int64]) -> _Encoded:
        if self._store.codec == "ecgpack":
            buffer, offsets, lengths = self._store.read_chunks(index_B)
            pairs = zip(offsets.tolist(), lengths.tolist(), strict=True)
            chunks = [buffer[start : start + length] for start, length in pairs]
            if self._gpu is not None:  # the CPU operator compares the checksum itself
                for record, chunk in zip(index_B.tolist(), chunks, strict=True):
                    self._check_crc(record, chunk)
        else:
            chunks = [_as_raw_chunk(record) for record in self._store.read(index_B)]
        return chunks, self._mean[index_B], self._rstd[index_B]

    def _check_crc(self, record: int, chunk: NDArray[np.uint8]) -> None:
        stored = int.from_bytes(chunk[_CRC].tobytes(), "little")
        zeroed = chunk.copy()
        zeroed[_CRC] = 0
        if len(chunk) < _CRC.stop or codec.crc32c(zeroed) != stored:
            raise self._damage(record, 4)

    def _check(self, entry: NDArray[np.int64], status: Tensor) -> None:
        bad = torch.nonzero(status).flatten().tolist()
        if bad:
            raise self._damage(int(entry[bad[0]]), int(status[bad[0]]))

    def _damage(self, record: int, code: int) -> CorruptStoreError:
        reason = codec.CodecError.from_code(code)
        return CorruptStoreError(f"{self._store.path}: record {record} is damaged: {reason}")


def _copy(output: _Output) -> Tensor:
    """To PyTorch, and out of the buffer that DALI overwrites in a later run."""
    return torch.utils.dlpack.from_dlpack(output.as_tensor()).clone()


def _read_ahead(
    pool: ThreadPoolExecutor,
    read: Callable[[NDArray[np.int64]], _Encoded],
    schedule: Sequence[NDArray[np.int64]],
) -> Iterator[_Encoded]:
    pending: deque[Future[_Encoded]] = deque()
    for entry in schedule:
        pending.append(pool.submit(read, entry))
        if len(pending) > _READ_AHEAD:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _as_raw_chunk(signal_CT: NDArray[np.int16]) -> NDArray[np.uint8]:
    """A decoded record in the form that the operator takes: an ecgpack chunk of the RAW kind."""
    num_leads, num_timesteps = signal_CT.shape
    header = Header(
        flags=FLAG_RAW, num_timesteps=num_timesteps, num_leads=num_leads, quantum=NO_QUANTUM
    )
    chunk = np.frombuffer(bytearray(header.pack() + signal_CT.tobytes()), np.uint8)
    chunk[_CRC] = np.frombuffer(codec.crc32c(chunk).to_bytes(4, "little"), np.uint8)
    return chunk
