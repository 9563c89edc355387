"""Ways to run one training step: ours with one thing changed each, and the plain reference."""

# B records, N patches, P padded patch length, C leads, T timesteps

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from ecgfast_kernels.codec import PATCH_WIDTH
from torch import Tensor, nn

from ecgfast import log
from ecgfast.bench.reference_mae import ReferenceMae
from ecgfast.config import Config
from ecgfast.data.batch import Batch
from ecgfast.model.attention_choice import choose_for_model
from ecgfast.model.mae import MaskedAutoencoder
from ecgfast.train.distributed import Ranks, spread
from ecgfast.train.graph import require_graphable
from ecgfast.train.loop import train_step
from ecgfast.train.optim import build_optimizer
from ecgfast.train.pretrain import masked_loss, microbatch_graph
from ecgfast.vocabulary import AttentionKernel, Fused, Kernels, Parallel, Precision

Step = Callable[[], Tensor]  # one update; returns the loss, still on the device
LEARNING_RATE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The trainer's own step, with its choices.

    Attributes:
        name: the provider in the rows.
        attention: kernel of every block.
        compiled: torch.compile per block.
        kernels: who runs masking, embedding, unshuffling and the loss.
        fused: who does what lies between a block's matrix products.
        parallel: `train.parallel`, on a single rank too; None there leaves collectives out.
        graph: `train.cuda_graph`.
        one_pass: `optim.one_pass`.
    """

    name: str = "ecgfast"
    attention: AttentionKernel = "auto"
    compiled: bool = True
    kernels: Kernels = "auto"
    fused: Fused = "off"
    parallel: Parallel | None = None
    graph: bool = False
    one_pass: bool = False


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The plain masked autoencoder: eager as published, or with SDPA and torch.compile.

    Attributes:
        name: the provider in the rows.
        compiled: torch.compile of the whole model, SDPA and fused AdamW.
        graph: replay it from CUDA graphs ("reduce-overhead"), at its own best microbatch.
    """

    name: str
    compiled: bool
    graph: bool = False


def build_step(
    variant: Variant | Reference, config: Config, ranks: Ranks, *, microbatch: int
) -> Step:
    """Build model, optimizer and random input of one variant.

    Args:
        variant: what to build.
        config: of kind "vit".
        ranks: with a mesh also where there is one rank (`join(..., mesh_of_one=True)`).
        microbatch: records of a step, on each rank.
    """
    if isinstance(variant, Reference):
        return _reference_step(variant, config, ranks.device, microbatch)
    if ranks.world_size == 1 and variant.parallel is None:
        ranks = replace(ranks, mesh=None, host_mesh=None)
    train = replace(config.train, cuda_graph=variant.graph)
    optim = replace(config.optim, one_pass=variant.one_pass)
    config = replace(config, kernels=variant.kernels, train=train, optim=optim)
    precision: Precision = "bf16" if ranks.device.type == "cuda" else "fp32"
    if variant.graph:
        require_graphable(ranks, precision)
    model = _model(variant, config, ranks.device, precision)
    spread(
        model,
        ranks,
        precision=precision,
        compile_blocks=variant.compiled,
        parallel=variant.parallel or "fsdp",
    )
    optimizer = build_optimizer(
        model, config.optim, ranks, clip_norm=train.clip_norm, recorded=variant.graph
    )
    loss_of, graph = masked_loss(model, config), microbatch_graph(model, config, num_pieces=1)
    patches = random_patches(config, ranks.device, microbatch)
    records = torch.arange(microbatch, device=ranks.device)
    epochs = itertools.count()  # fresh masks for every step, as in training

    def step() -> Tensor:
        report = train_step(
            model,
            optimizer,
            loss_of,
            Batch(patches=patches, record_index=records, epoch=next(epochs)),
            microbatch=microbatch,
            learning_rate=LEARNING_RATE,
            graph=graph,
        )
        return report.loss

    return step


def _model(
    variant: Variant, config: Config, device: torch.device, precision: Precision
) -> MaskedAutoencoder:
    with device:  # drawn on the device: which numbers they are does not matter here
        model = MaskedAutoencoder(config.model, kernels=variant.kernels, fused=variant.fused)
    choices = choose_for_model(
        config.model,
        variant.attention,
        device,
        num_keep=model.num_keep(config.mask.ratio),
        dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
    )
    for part, choice in choices.items():
        log.info(f"{variant.name}: {part} attention {choice.backend}: {choice.reason}")
        if variant.attention not in ("auto", choice.backend):
            raise RuntimeError(f"{variant.attention} cannot run the {part}")
    model.set_attention(encoder=choices["encoder"].backend, decoder=choices["decoder"].backend)
    return model


def random_patches(config: Config, device: torch.device, microbatch: int) -> Tensor:
    """Z-scored-like patches (B, N, 256) fp16 whose padding is zero."""
    patches = torch.randn(microbatch, config.model.num_patches, PATCH_WIDTH, device=device)
    patches[..., config.model.patch_timesteps :] = 0
    return patches.half()


def _reference_step(
    variant: Reference, config: Config, device: torch.device, microbatch: int
) -> Step:
    shape = (microbatch, 1, config.model.num_leads, config.model.num_timesteps)
    signal = torch.randn(shape, device=device)
    with device:
        model: nn.Module = ReferenceMae(
            config.model, mask_ratio=config.mask.ratio, fused_attention=variant.compiled
        )
    trainable = [p for p in model.parameters() if p.requires_grad]
    betas = (config.optim.beta1, config.optim.beta2)
    optimizer = torch.optim.AdamW(
        trainable, lr=LEARNING_RATE, betas=betas, fused=True if variant.compiled else None
    )
    forward: Callable[[Tensor], Tensor] = model
    if variant.compiled:
        mode = "reduce-overhead" if variant.graph else "default"
        forward = torch.compile(model, dynamic=False, mode=mode)

    def step() -> Tensor:
        if variant.graph:
            torch.compiler.cudagraph_mark_step_begin()  # the step before is done with its memory
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            loss: Tensor = forward(signal)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step
