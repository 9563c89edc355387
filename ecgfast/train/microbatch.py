"""Pieces of a batch: how many records one forward pass takes, and its replay as a CUDA graph."""

from collections.abc import Callable, Iterator
from typing import Generic, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ecgfast import log
from ecgfast.data.batch import Batch
from ecgfast.errors import ConfigError
from ecgfast.train.distributed import Ranks, master
from ecgfast.vocabulary import Precision

LARGEST_ON_GPU = 1024  # GEMMs gain nothing beyond 512, but AdamW is 5 % of a 256-record step
LARGEST_ON_CPU = 32
PROBED = (8, 16)  # records; memory is linear in the microbatch
SHARE = 0.85  # of the free memory, for fragmentation


def rank_share(batch_size: int, ranks: Ranks, *, key: str = "train.batch_size") -> int:
    """Return the records of a global batch that each rank takes.

    Raises:
        ConfigError: the ranks cannot share it equally.
    """
    if batch_size % ranks.world_size:
        raise ConfigError(
            f"{key} must be a multiple of the {ranks.world_size} ranks, got {batch_size}; "
            "change it or the number of processes"
        )
    return batch_size // ranks.world_size


def choose_microbatch(
    asked: int | Literal["auto"],
    share: int,
    ranks: Ranks,
    *,
    before: int | None,
    probe: Callable[[int], None],
) -> int:
    """Resolve the microbatch of a run.

    Args:
        asked: the setting.
        share: records of one rank in a global batch.
        ranks: all of them call this and get the same answer.
        before: what the run used up to its checkpoint, None at the start.
        probe: runs forward and backward over that many records.
    Returns:
        a divisor of `share`, so that the mean over equal pieces is the mean over records.
    Raises:
        ConfigError: the number asked for does not divide `share`.
    """
    if asked != "auto":
        return require_divisor(asked, share)
    if before is not None and share % before == 0:
        return before
    if ranks.device.type == "cpu":
        return largest_divisor(share, LARGEST_ON_CPU)
    fitting = _fitting_records(ranks, probe)
    chosen = largest_divisor(share, max(1, min(LARGEST_ON_GPU, fitting)))
    log.info(f"train.microbatch: {chosen} of {share} records per rank; about {fitting} would fit")
    return chosen


def require_divisor(asked: int, share: int) -> int:
    """Return the microbatch asked for.

    Raises:
        ConfigError: it does not divide `share`.
    """
    if share % asked:
        raise ConfigError(
            f"train.microbatch must divide the {share} records that each rank takes of a batch, "
            f"got {asked}; use one of {_divisors(share, share)}"
        )
    return asked


def largest_divisor(number: int, largest: int) -> int:
    """Return the largest divisor of `number` that is at most `largest`."""
    return _divisors(number, largest)[-1]


def split(batch: Batch, microbatch: int) -> Iterator[Batch]:
    """Cut a batch into equal pieces, without a copy."""
    num_records = len(batch.record_index)
    assert num_records % microbatch == 0, f"{microbatch} does not divide {num_records}"
    for start in range(0, num_records, microbatch):
        rows = slice(start, start + microbatch)
        yield Batch(
            patches=batch.patches[rows], record_index=batch.record_index[rows], epoch=batch.epoch
        )


def _fitting_records(ranks: Ranks, probe: Callable[[int], None]) -> int:
    peaks = []
    for num_records in (PROBED[0], *PROBED):  # the first run also allocates gradients
        torch.cuda.synchronize(ranks.device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(ranks.device)
        with torch.compiler.set_stance("force_eager"):  # needs more than compiled code, never less
            probe(num_records)
        torch.cuda.synchronize(ranks.device)
        peaks.append(torch.cuda.max_memory_allocated(ranks.device))
    per_record = max(1, (peaks[2] - peaks[1]) // (PROBED[1] - PROBED[0]))
    fixed = peaks[1] - PROBED[0] * per_record
    torch.cuda.empty_cache()
    held = torch.cuda.memory_allocated(ranks.device)
    free, _ = torch.cuda.mem_get_info(ranks.device)
    fitting = torch.tensor(int((SHARE * (free + held) - fixed) / per_record), device=ranks.device)
    if ranks.world_size > 1:
        dist.all_reduce(fitting, dist.ReduceOp.MIN)
    torch.cuda.reset_peak_memory_stats(ranks.device)
    return int(fitting)


def _divisors(number: int, largest: int) -> list[int]:
    return [d for d in range(1, min(number, largest) + 1) if number % d == 0]


R = TypeVar("R")
WARM_UP = 3  # passes before recording: the first one compiles, the next ones still allocate


class Recorded(Generic[R]):
    """Records a function of tensors as a CUDA graph at the first call, replays it from then on.

    Inputs are copied into fixed buffers; the result is the same memory at every call.

    Args:
        function: must have run before the first call, so that nothing is left to compile.
    """

    def __init__(self, function: Callable[..., R]) -> None:
        self._function = function
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Tensor, ...] = ()
        self._result: R

    @property
    def exists(self) -> bool:
        """Whether the function was recorded."""
        return self._graph is not None

    def __call__(self, *inputs: Tensor) -> R:
        """Compute the function of these inputs, which have the shapes of the first call's."""
        if self._graph is None:
            self._inputs = tuple(tensor.clone() for tensor in inputs)
            graph = torch.cuda.CUDAGraph()
            # other threads load records and write checkpoints meanwhile: their calls are not ours
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._result = self._function(*self._inputs)
            self._graph = graph
        for fixed, fresh in zip(self._inputs, inputs, strict=True):
            fixed.copy_(fresh)
        self._graph.replay()
        return self._result


class MicrobatchGraph:
    """Records loss and gradients of a microbatch at the first call, replays them from then on.

    Inputs are drawn outside of the graph. The gradients of every replay lie in the same memory:
    `MasterAdamW.collect` takes them out before the next one, or the one-pass update reads them.

    Args:
        model: in bf16, spread over the GPUs.
        inputs_of: tensors that the loss of some records depends on, always of the same shapes.
        loss_of: mean loss from these tensors, a scalar.
        num_pieces: microbatches of a step; the recorded loss is divided by it.

    Raises:
        ConfigError: shards, whose gradients FSDP2 adds up in another way in the last microbatch.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs_of: Callable[[Batch], tuple[Tensor, ...]],
        loss_of: Callable[..., Tensor],
        *,
        num_pieces: int,
    ) -> None:
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        if num_pieces > 1 and any(master(p) is p for p in self._parameters):
            raise ConfigError(
                f"train.cuda_graph with train.parallel=fsdp on several GPUs takes one microbatch "
                f"per step, got {num_pieces}; set train.parallel=replicas, a larger "
                "train.microbatch, or train.cuda_graph=false"
            )
        self._inputs_of = inputs_of
        self._loss_of = loss_of
        self._num_pieces = num_pieces
        self._recorded = Recorded(self._run)
        self._gradients: list[Tensor | None] = []

    def __call__(self, piece: Batch) -> Tensor:
        """Set the model's gradients from a microbatch; return its share of the step's loss."""
        inputs = self._inputs_of(piece)
        if self._recorded.exists:
            loss = self._recorded(*inputs)
        else:
            self._warm_up(inputs)
            loss = self._recorded(*inputs)
            self._gradients = [parameter.grad for parameter in self._parameters]
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        return loss.clone()  # the next replay writes here again

    def _warm_up(self, inputs: tuple[Tensor, ...]) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self._run(*inputs)
        torch.cuda.current_stream().wait_stream(side)

    def _run(self, *inputs: Tensor) -> Tensor:
        for parameter in self._parameters:
            parameter.grad = None  # so that the recorded pass writes new ones, and adds to none
        loss = self._loss_of(*inputs) / self._num_pieces
        loss.backward()
        return loss.detach()


def require_graphable(ranks: Ranks, precision: Precision) -> None:
    """Check that a CUDA graph can be recorded here.

    Raises:
        ConfigError: on a CPU, or in fp32.
    """
    if ranks.device.type != "cuda" or precision != "bf16":
        raise ConfigError(
            f"train.cuda_graph must be false on {ranks.world_size} x {ranks.device.type} in "
            f"{precision}: it needs a GPU and bf16; set train.cuda_graph=false"
        )
