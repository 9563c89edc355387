"""Ranks, and how a model is spread over them: master weights, compiled blocks, FSDP2."""

import atexit
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from ecgfast.errors import ConfigError, EcgfastError
from ecgfast.runs.inference import choose_device
from ecgfast.train.replicas import GradientBuckets
from ecgfast.vocabulary import Mesh, Parallel, Precision

T = TypeVar("T")
USER_ERROR = 2  # exit status
_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_MASTER = "_ecgfast_master"  # attribute of a bf16 parameter
_BUCKETS = "_ecgfast_buckets"  # attribute of a model that every rank holds


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among its peers.

    Attributes:
        rank: in [0, world_size).
        world_size: number of processes.
        device: where this rank's model lives.
        mesh: the ranks' devices, with two dimensions (machines, ranks of each) where each machine
            holds a whole copy; None for a single process, which has nothing to shard.
        host_mesh: the same ranks on the CPU, for checkpoints; None where `mesh` is.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    mesh: DeviceMesh | None = None
    host_mesh: DeviceMesh | None = None

    @property
    def is_main(self) -> bool:
        """Whether this rank writes logs and files."""
        return self.rank == 0

    def sum_(self, values: Tensor) -> Tensor:
        """Add `values` over the ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.world_size > 1:
            on_gpu = self.device.type == "cuda"
            dist.barrier(device_ids=[self.device.index] if on_gpu else None)

    def ask_main(self, decide: Callable[[], T]) -> T:
        """Return on every rank what `decide` returns on rank 0; its result is sent as a pickle.

        Raises:
            EcgfastError: `decide` refused. Rank 0 says why; the others end with the same status
                and no word, so that the user reads it once.
        """
        if self.world_size == 1:
            return decide()
        outcome: list[T | EcgfastError | None] = [None]
        if self.is_main:
            try:
                outcome[0] = decide()
            except EcgfastError as error:
                outcome[0] = error
        dist.broadcast_object_list(outcome, src=0, device=torch.device("cpu"))
        answer = outcome[0]
        if isinstance(answer, EcgfastError):
            if self.is_main:
                raise answer
            raise SystemExit(USER_ERROR)
        return cast(T, answer)

    def side_group(self) -> dist.ProcessGroup | None:
        """Return a CPU group of all ranks for work beside the training step; collective."""
        return None if self.mesh is None else dist.new_group(backend="gloo")


def _sleeps(thread: Path) -> bool:
    try:
        return thread.joinpath("stat").read_text().rpartition(")")[2].split()[0] in "SI"
    except OSError:  # it has ended
        return True


def _wait_for_threads(limit_s: float = 5.0) -> None:
    """Wait until every other thread of this process sleeps.

    Gloo's threads free the tensors of a collective after it has returned, for which they need the
    interpreter. One that comes to this while the interpreter ends aborts the process.
    """
    end = time.monotonic() + limit_s
    busy = True
    while busy and time.monotonic() < end:
        time.sleep(0.01)  # lets go of the interpreter's lock, so that a thread can take it
        threads = Path("/proc/self/task").glob("*")
        busy = not all(_sleeps(thread) for thread in threads if thread.name != str(os.getpid()))


@contextmanager
def join(
    device: str | None = None, *, mesh: Mesh = "auto", mesh_of_one: bool = False
) -> Iterator[Ranks]:
    """Join the ranks that torchrun started, or be the only one.

    Args:
        device: "cpu", "cuda" or "cuda:N"; by default a GPU where there is one.
        mesh: "flat" shards weights over all ranks, "hybrid" over those of each machine, so that
            between machines only a machine's share of the gradients travels; "auto" is hybrid where
            there are several machines.
        mesh_of_one: give a single process a mesh too, so that FSDP2 can be measured on it.
    Raises:
        ConfigError: no such device, or a hybrid mesh of machines that are not alike.
        BackendUnavailableError: a GPU was asked for and there is none.
    """
    chosen = choose_device(device)
    launched = "WORLD_SIZE" in os.environ and "RANK" in os.environ
    world_size = int(os.environ["WORLD_SIZE"]) if launched else 1
    if world_size == 1 and not mesh_of_one:
        yield Ranks(device=chosen)
        return
    shape = _mesh_shape(mesh, world_size)
    names = ("machine", "rank")[-len(shape) :]
    backend = "gloo" if chosen.type == "cpu" else "cpu:gloo,cuda:nccl"
    if world_size > 1:
        dist.init_process_group(backend)
    else:
        store = dist.HashStore()  # type: ignore[attr-defined]  # absent from __all__
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        devices = init_device_mesh(chosen.type, shape, mesh_dim_names=names)
        yield Ranks(
            rank=dist.get_rank(),
            world_size=world_size,
            device=chosen,
            mesh=devices,
            host_mesh=devices
            if chosen.type == "cpu"
            else init_device_mesh("cpu", shape, mesh_dim_names=names),
        )
    finally:
        atexit.register(_wait_for_threads)
        dist.destroy_process_group()


def _mesh_shape(mesh: Mesh, world_size: int) -> tuple[int, ...]:
    """(ranks,), or (machines, ranks of each)."""
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    machines, rest = divmod(world_size, local_size)
    alike = rest == 0 and machines > 1
    if mesh == "hybrid" and not alike:
        raise ConfigError(
            f"train.mesh=hybrid needs several machines with equally many ranks, got {world_size} "
            f"ranks, {local_size} of them here; take train.mesh=flat"
        )
    if mesh == "flat" or not alike or local_size == 1:
        return (world_size,)
    return machines, local_size


@contextmanager
def repeatable(deterministic: bool) -> Iterator[None]:
    """Choose algorithms that give the same bits every time; enter it before the GPU is used.

    Args:
        deterministic: the setting; nothing happens when it is off.
    """
    if not deterministic:
        yield
        return
    # Inductor otherwise times several kernels per reduction, and another one may win next time.
    import torch._inductor.config as inductor

    memory = torch.utils.deterministic
    before = torch.get_deterministic_debug_mode(), memory.fill_uninitialized_memory  # type: ignore[attr-defined]  # missing in the stubs
    workspace = os.environ.get(_WORKSPACE)
    os.environ.setdefault(_WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        # absent from older versions, which time fewer kernels
        with (
            inductor.patch(deterministic=True)
            if hasattr(inductor, "deterministic")
            else nullcontext()
        ):
            yield
    finally:
        torch.set_deterministic_debug_mode(before[0])
        memory.fill_uninitialized_memory = before[1]  # type: ignore[attr-defined]
        if workspace is None:
            del os.environ[_WORKSPACE]


def spread(
    model: nn.Module,
    ranks: Ranks,
    *,
    precision: Precision,
    compile_blocks: bool,
    parallel: Parallel = "fsdp",
) -> nn.Module:
    """Move a model to its device, compile its blocks, and share it between the ranks, in place.

    A block is an entry of any `nn.ModuleList`. The full model must be initialised before: drawn on
    shards, the weights would depend on the world size. Either way `master` finds the fp32 weights
    behind each parameter: several ranks shard them with FSDP2, which gathers bf16 copies; one rank,
    and each of several replicas, keeps them beside a bf16 model, where FSDP2 would make the GPU
    wait for the host.

    Args:
        model: fp32 parameters, equal on every rank.
        ranks: who shares it.
        precision: bf16 computes on bf16 copies of the weights; gradients are added up in fp32.
        compile_blocks: compile each block's forward, with static shapes.
        parallel: what several ranks do; replicas hold the whole model each.
    """
    model.to(ranks.device)
    sharded = ranks.mesh is not None and parallel == "fsdp"
    if not sharded and precision == "bf16":
        _keep_masters(model)
    blocks = [b for m in model.modules() if isinstance(m, nn.ModuleList) for b in m]
    for block in blocks if compile_blocks else ():
        # `forward` and not the module: FSDP's hooks must stay outside of the graph
        block.forward = torch.compile(block.forward, fullgraph=True, dynamic=False)
    if sharded:
        assert ranks.mesh is not None
        _shard(model, blocks, ranks.mesh, precision)
    elif ranks.mesh is not None:
        setattr(model, _BUCKETS, GradientBuckets(model, every_pass=precision == "bf16"))
    return model


def master(parameter: Tensor) -> Tensor:
    """Return the fp32 weights that the optimizer updates: a copy beside bf16, or `parameter`."""
    weights: Tensor = getattr(parameter, _MASTER, parameter)
    return weights


def accumulate(model: nn.Module, *, last: bool) -> None:
    """Announce a microbatch: gradients are reduced, and weights let go, after the last one only."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
        model.set_reshard_after_backward(last)
    buckets: GradientBuckets | None = getattr(model, _BUCKETS, None)
    if buckets is not None:
        buckets.averaging = last or buckets.every_pass


def release(model: nn.Module) -> None:
    """Free the parameters that FSDP gathered for a forward pass without a backward pass."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def average_norm_statistics(model: nn.Module, ranks: Ranks) -> None:
    """Give all ranks the same running statistics of batch normalisation, in place."""
    if ranks.world_size == 1:
        return
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for statistic in (module.running_mean, module.running_var):
                assert statistic is not None
                ranks.sum_(statistic).div_(ranks.world_size)


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a tensor, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def num_holders(parameter: Tensor, ranks: Ranks) -> int:
    """Return how many ranks keep the same part of a parameter."""
    if not isinstance(parameter, DTensor):
        return ranks.world_size
    sizes = zip(parameter.device_mesh.shape, parameter.placements, strict=True)
    return math.prod(size for size, placement in sizes if placement.is_replicate())


def full_state(model: nn.Module) -> dict[str, Tensor]:
    """Gather a model's state dict to the CPU, unsharded, fp32; collective."""
    state = model.state_dict(keep_vars=True)  # the parameters themselves know their masters
    whole = {name: master(tensor).detach() for name, tensor in state.items()}
    return {n: (t.full_tensor() if isinstance(t, DTensor) else t).cpu() for n, t in whole.items()}


def _keep_masters(model: nn.Module) -> None:
    """Turn a model's parameters into bf16 copies of fp32 weights; buffers stay, as under FSDP2."""
    for parameter in model.parameters():
        setattr(parameter, _MASTER, parameter.detach())
        parameter.data = parameter.data.to(torch.bfloat16)


def _shard(
    model: nn.Module, blocks: Sequence[nn.Module], mesh: DeviceMesh, precision: Precision
) -> None:
    # The loop only reads the outputs, so that views among them are harmless.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if precision == "bf16" else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # the patches are also the loss targets
    )
    for module in (*blocks, model):
        # A model of this size fits: gathering once a step saves the backward's gather.
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
