"""Forward and backward of a microbatch as one CUDA graph: the host starts it, and is never late."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ecgfast.data.batch import Batch
from ecgfast.errors import ConfigError
from ecgfast.train.distributed import Precision, Ranks, master

WARM_UP = 3  # passes before recording: the first one compiles, the next ones still allocate


class MicrobatchGraph:
    """Records loss and gradients of a microbatch at the first call, replays them from then on.

    Inputs are drawn outside of the graph and copied into fixed buffers. The gradients of every
    replay lie in the same memory: `MasterAdamW.collect` takes them out before the next one.

    Args:
        model: bf16 copies of fp32 weights, on one GPU.
        inputs_of: tensors that the loss of some records depends on, always of the same shapes.
        loss_of: mean loss from these tensors, a scalar.
        num_pieces: microbatches of a step; the recorded loss is divided by it.
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
        assert all(master(p) is not p for p in self._parameters), "a graph needs bf16 copies"
        self._inputs_of = inputs_of
        self._loss_of = loss_of
        self._num_pieces = num_pieces
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Tensor, ...] = ()
        self._gradients: list[Tensor | None] = []
        self._loss = torch.zeros(())

    def __call__(self, piece: Batch) -> Tensor:
        """Set the model's gradients from a microbatch; return its share of the step's loss."""
        inputs = self._inputs_of(piece)
        if self._graph is None:
            self._graph = self._record(inputs)
        for fixed, fresh in zip(self._inputs, inputs, strict=True):
            fixed.copy_(fresh)
        self._graph.replay()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        return self._loss.clone()  # the next replay writes here again

    def _record(self, inputs: tuple[Tensor, ...]) -> torch.cuda.CUDAGraph:
        self._inputs = tuple(tensor.clone() for tensor in inputs)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self._run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # other threads load records and write checkpoints meanwhile: their calls are not ours
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._loss = self._run()
        self._gradients = [parameter.grad for parameter in self._parameters]
        return graph

    def _run(self) -> Tensor:
        for parameter in self._parameters:
            parameter.grad = None  # so that the recorded pass writes new ones, and adds to none
        loss = self._loss_of(*self._inputs) / self._num_pieces
        loss.backward()
        return loss.detach()


def require_graphable(ranks: Ranks, precision: Precision) -> None:
    """Check that a CUDA graph can be recorded here.

    Raises:
        ConfigError: on a CPU, on several ranks, or in fp32.
    """
    if ranks.device.type != "cuda" or ranks.world_size > 1 or precision != "bf16":
        raise ConfigError(
            f"train.cuda_graph must be false on {ranks.world_size} x {ranks.device.type} in "
            f"{precision}: it needs one GPU and bf16; set train.cuda_graph=false"
        )
