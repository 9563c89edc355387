"""Gradients of replicas: averaged over the ranks in flat buckets, while the backward pass runs."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET_BYTES = 200 << 20  # eight blocks of ViT-Large in bf16
_ALIGNMENT = 16  # bytes: what a kernel reads at once


class GradientBuckets:
    """Averages every gradient of a model over all ranks, which hold the same weights.

    Gradients that have arrived are copied to a flat buffer; when it is full, one all-reduce adds it
    up on a stream of its own, and `backward` ends when all of them have. Afterwards `grad` of each
    parameter is a view of its buffer. Buckets go out in the same order on every rank and in every
    step, so that a CUDA graph can hold the whole.

    Args:
        model: on its device, parameters of one dtype.
        every_pass: each backward pass is averaged, because its gradients are taken out after it;
            else `grad` adds up on each rank and `averaging` says which pass is the last.
        bucket_bytes: a buffer takes no further parameter beyond this size.
    """

    def __init__(
        self, model: nn.Module, *, every_pass: bool, bucket_bytes: int = BUCKET_BYTES
    ) -> None:
        self.every_pass = every_pass
        self.averaging = True
        # what a model uses last gets its gradient first
        parameters = [p for p in reversed(list(model.parameters())) if p.requires_grad]
        self._buckets = [_Bucket(group) for group in _groups(parameters, bucket_bytes)]
        self._num_sent = 0
        for bucket in self._buckets:
            for parameter in bucket.parameters:
                parameter.register_post_accumulate_grad_hook(partial(self._arrived, bucket))

    def _arrived(self, bucket: "_Bucket", _: Tensor) -> None:
        if not self.averaging:
            return
        if self._num_sent == 0 and all(b.is_untouched for b in self._buckets):
            engine = torch.autograd.Variable._execution_engine
            engine.queue_callback(self._finish)  # at the end of this backward pass
        bucket.num_arrived += 1
        while self._num_sent < len(self._buckets) and self._buckets[self._num_sent].is_full:
            self._buckets[self._num_sent].send()
            self._num_sent += 1

    def _finish(self) -> None:
        assert self._num_sent == len(self._buckets), "a parameter got no gradient"
        for bucket in self._buckets:
            bucket.receive()
        self._num_sent = 0


class _Bucket:
    """Gradients of some parameters, one after the other in a flat buffer."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = parameters
        self.num_arrived = 0
        first = parameters[0]
        step = _ALIGNMENT // first.element_size()
        sizes = [-(-p.numel() // step) * step for p in parameters]
        self._flat = torch.zeros(sum(sizes), dtype=first.dtype, device=first.device)
        pieces = zip(self._flat.split(sizes), parameters, strict=True)
        self._views = [piece[: p.numel()].view(p.shape) for piece, p in pieces]
        self._work: dist.Work | None = None

    @property
    def is_untouched(self) -> bool:
        return self.num_arrived == 0

    @property
    def is_full(self) -> bool:
        return self.num_arrived == len(self.parameters)

    @torch.no_grad()
    def send(self) -> None:
        """Begin the all-reduce; the parameters' gradients are views of the buffer from here on."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        torch._foreach_copy_(self._views, gradients)
        self._flat.div_(dist.get_world_size())  # before the sum, which cannot overflow then
        self._work = dist.all_reduce(self._flat, async_op=True)
        for parameter, view in zip(self.parameters, self._views, strict=True):
            parameter.grad = view

    def receive(self) -> None:
        """Wait for the sum: on a GPU the stream waits, the host does not."""
        assert self._work is not None
        self._work.wait()
        self._work = None
        self.num_arrived = 0


def _groups(parameters: Sequence[Tensor], bucket_bytes: int) -> Iterator[list[Tensor]]:
    group: list[Tensor] = []
    filled = 0
    for parameter in parameters:
        if group and filled + parameter.nbytes > bucket_bytes:
            yield group
            group, filled = [], 0
        group.append(parameter)
        filled += parameter.nbytes
    yield group
