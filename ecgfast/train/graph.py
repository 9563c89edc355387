"""Forward and backward of a microbatch as one CUDA graph: the host starts it, and is never late."""

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from ecgfast.data.batch import Batch
from ecgfast.errors import ConfigError
from ecgfast.train.distributed import Ranks, master
from ecgfast.vocabulary import Precision

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
