"""Engine `dali`: chunks read by a thread of ours, decoded by our operator in a DALI pipeline.

Each call of `batches` builds a pipeline that starts at its first entry, so that resume needs no
state of DALI's. Shapes: B records of a batch, C leads, T timesteps, N patches.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from importlib import import_module
from typing import Any, Protocol, cast

import numpy as np
import torch
import torch.utils.dlpack
from ecgfast_kernels import codec
from numpy.typing import NDArray
from torch import Tensor

from ecgfast.data.batch import Source, made_ahead, to_device
from ecgfast.data.dali.build import load_plugin
from ecgfast.errors import CorruptStoreError
from ecgfast.store.reader import Chunks

_READ_AHEAD = 3  # batches of encoded bytes, about 6 MB each at 256 records

# Chunks (bytes,) uint8, offsets and lengths (B,) int64; mean and rstd (B, C) float32
_Encoded = tuple[NDArray[np.generic], ...]


class _Output(Protocol):
    """A batch in DALI's memory."""

    def as_tensor(self) -> object:
        """The samples as one array that supports DLPack."""


class _Pipeline(Protocol):
    """What we use of nvidia.dali.Pipeline."""

    def run(self, stream: torch.cuda.Stream | None) -> Sequence[_Output]:
        """The next batch, ready in the order of `stream`; host-synchronous without one."""


class DaliEngine:
    """Feeds encoded records to a DALI pipeline and hands its output to PyTorch.

    Args:
        source: records, normalisation, device (the operator runs there) and DALI's CPU threads.
    Raises:
        BackendUnavailableError: DALI is missing, or its operator could not be built.
    """

    def __init__(self, source: Source) -> None:
        device = source.device
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        self._source = replace(source, device=device)
        self._gpu: int | None = device.index if device.type == "cuda" else None
        # DALI would map and unmap the output of every batch; from this size on it keeps memory
        # instead, and the kernel has no fresh pages to clear. Read once, at DALI's first use.
        os.environ.setdefault("DALI_MALLOC_POOL_THRESHOLD", "1M")
        load_plugin(self._gpu)

    def batches(self, schedule: Sequence[NDArray[np.int64]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (patches (B, N, 256) fp16, record_index (B,) int64) for each entry of `schedule`.

        Raises:
            CorruptStoreError: a record is damaged.
        """
        if len(schedule) == 0:
            return
        device = self._source.device
        rows = np.concatenate(schedule)
        # at once, because an upload of each batch would wait for the GPU each time
        record_index = to_device(rows, device)
        statuses: list[Tensor] = []
        start = 0
        with closing(made_ahead(self._read, schedule, depth=_READ_AHEAD)) as encoded:
            pipeline = self._build_pipeline(encoded)
            for entry in schedule:
                stop = start + len(entry)
                stream = None if self._gpu is None else torch.cuda.current_stream(device)
                patches, status = map(_to_torch, pipeline.run(stream))
                if self._gpu is None:
                    self._check(entry, status)
                else:  # reading it would wait for the kernel
                    statuses.append(status)
                yield patches, record_index[start:stop]
                start = stop
        if statuses:  # checksums were compared before the upload, so this finds our own bugs
            self._check(rows, torch.cat(statuses))

    def _build_pipeline(self, batches: Iterator[_Encoded]) -> _Pipeline:
        dali: Any = import_module("nvidia.dali")  # ecg_decode is known at run time only
        integers, floats = [dali.types.INT64] * 2, [dali.types.FLOAT] * 2
        pipeline = dali.Pipeline(
            batch_size=1,  # all records of a batch are one sample: nothing is done per record
            num_threads=self._source.num_threads,
            device_id=self._gpu,
            prefetch_queue_depth=2,
            exec_dynamic=True,  # outputs stay valid as long as they are held
        )
        with pipeline:
            inputs = dali.fn.external_source(
                source=([array[None] for array in batch] for batch in batches),
                num_outputs=5,
                dtype=[dali.types.UINT8, *integers, *floats],
                ndim=[1, 1, 1, 2, 2],
            )
            if self._gpu is not None:
                inputs = [item.gpu() for item in inputs]
            decoded = dali.fn.ecg_decode(
                *inputs,
                num_leads=self._source.store.num_leads,
                num_timesteps=self._source.store.num_timesteps,
            )
            pipeline.set_outputs(*decoded)
        pipeline.build()
        return cast(_Pipeline, pipeline)

    def _read(self, index_B: NDArray[np.int64]) -> _Encoded:
        source = self._source
        if source.store.codec == "ecgpack":
            chunks = source.store.read_chunks(index_B)
            if self._gpu is not None:  # the CPU operator compares the checksums itself
                self._check_crc(index_B, chunks)
        else:
            chunks = codec.raw_chunks(source.store.read(index_B))
        return *chunks, source.mean[index_B], source.rstd[index_B]

    def _check_crc(self, index_B: NDArray[np.int64], chunks: Chunks) -> None:
        try:
            codec.check_crcs(*chunks)
        except codec.CodecError as error:
            raise self._damage(int(index_B[error.index]), error.code) from None

    def _check(self, entry: NDArray[np.int64], status: Tensor) -> None:
        bad = torch.nonzero(status).flatten().tolist()
        if bad:
            raise self._damage(int(entry[bad[0]]), int(status[bad[0]]))

    def _damage(self, record: int, code: int) -> CorruptStoreError:
        reason = codec.CodecError.from_code(code)
        return CorruptStoreError(f"{self._source.store.path}: record {record} is damaged: {reason}")


def _to_torch(output: _Output) -> Tensor:
    """PyTorch's view of DALI's memory on the host, a copy on a GPU.

    DALI's allocator knows one stream; PyTorch's follows a tensor through all that use it.
    """
    tensor = torch.utils.dlpack.from_dlpack(output.as_tensor())[0]
    return tensor.clone() if tensor.is_cuda else tensor
