"""Ways to run one training step: ours with one thing changed each, and the plain reference."""

# B records, N patches, P padded patch length, C leads, T timesteps

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from ecgfast_kernels.mask import random_mask
from torch import Tensor, nn

from ecgfast import log
from ecgfast.bench.reference_mae import ReferenceMae
from ecgfast.config import Config
from ecgfast.model.attention import Backend
from ecgfast.model.attention_choice import choose_for_model
from ecgfast.model.mae import MaskedAutoencoder
from ecgfast.model.patch import PADDED
from ecgfast.model.vit import Kernels, set_fused
from ecgfast.train.distributed import Precision, Ranks, spread
from ecgfast.train.optim import build_optimizer, is_decayed

Step = Callable[[], Tensor]  # one update; returns the loss, still on the device
LEARNING_RATE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Our step with its choices.

    Attributes:
        name: the provider in the rows.
        attention: kernel of every block.
        compiled: torch.compile per block.
        kernels: who runs masking, embedding, unshuffling and the loss.
        fused: our own kernels between a block's matrix products.
        weights: "sharded" is the trainer's own path (FSDP2, fp32 weights gathered as bf16);
            "copy" keeps a bf16 model beside fp32 master weights, for one GPU only.
        graph: the whole step as one CUDA graph; needs weights="copy".
        autotune: let Inductor time its own matrix products, with GELU fused into them, against
            cuBLAS: minutes of compilation; needs weights="copy".
    """

    name: str = "ecgfast"
    attention: Backend = "auto"
    compiled: bool = True
    kernels: Kernels = "auto"
    fused: bool = False
    weights: Literal["sharded", "copy"] = "sharded"
    graph: bool = False
    autotune: bool = False


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The plain masked autoencoder: eager as published, or with SDPA and torch.compile."""

    name: str
    compiled: bool


def build_step(
    variant: Variant | Reference, config: Config, ranks: Ranks, *, microbatch: int
) -> Step:
    """Build model, optimizer and random input of one variant on the ranks' device."""
    if isinstance(variant, Reference):
        return _reference_step(variant, config, ranks.device, microbatch)
    masks = _Masks(config, ranks.device, microbatch)
    patches = random_patches(config, ranks.device, microbatch)
    with ranks.device:  # drawn on the device: which numbers they are does not matter here
        model = MaskedAutoencoder(config.model, kernels=variant.kernels)
    choices = choose_for_model(
        config.model,
        variant.attention,
        ranks.device,
        num_keep=masks.num_keep,
        dtype=torch.bfloat16 if ranks.device.type == "cuda" else torch.float32,
    )
    for part, choice in choices.items():
        log.info(f"{variant.name}: {part} attention {choice.backend}: {choice.reason}")
        if variant.attention not in ("auto", choice.backend):
            raise RuntimeError(f"{variant.attention} cannot run the {part}")
    model.set_attention(encoder=choices["encoder"].backend, decoder=choices["decoder"].backend)
    set_fused(model, variant.fused)
    if variant.weights == "sharded":
        return _sharded_step(variant, config, ranks, model, patches, masks)
    return _copy_step(variant, config, ranks.device, model, patches, masks)


def random_patches(config: Config, device: torch.device, microbatch: int) -> Tensor:
    """Z-scored-like patches (B, N, 256) fp16 whose padding is zero."""
    patches = torch.randn(microbatch, config.model.num_patches, PADDED, device=device)
    patches[..., config.model.patch_timesteps :] = 0
    return patches.half()


class _Masks:
    """Fresh masks for every step, as in training."""

    def __init__(self, config: Config, device: torch.device, microbatch: int) -> None:
        self._records = torch.arange(microbatch, device=device)
        self._epochs = itertools.count()
        self._num_patches = config.model.num_patches
        self.num_keep = int(self._num_patches * (1 - config.mask.ratio))

    def draw(self, kernels: Kernels) -> tuple[Tensor, Tensor, Tensor]:
        return random_mask(
            self._records,
            seed=0,
            epoch=next(self._epochs),
            num_patches=self._num_patches,
            num_keep=self.num_keep,
            backend=kernels,
        )


def _sharded_step(
    variant: Variant,
    config: Config,
    ranks: Ranks,
    model: MaskedAutoencoder,
    patches: Tensor,
    masks: _Masks,
) -> Step:
    precision: Precision = "bf16" if ranks.mesh is not None else "fp32"
    module = spread(model, ranks, precision=precision, compile_blocks=variant.compiled)
    optimizer = build_optimizer(module, config.optim, ranks)

    def step() -> Tensor:
        loss: Tensor
        loss, _ = module(patches, *masks.draw(variant.kernels))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step(loss, learning_rate=LEARNING_RATE)
        return loss.detach()

    return step


def _copy_step(
    variant: Variant,
    config: Config,
    device: torch.device,
    model: MaskedAutoencoder,
    patches: Tensor,
    masks: _Masks,
) -> Step:
    model.to(device, torch.bfloat16)
    if variant.compiled:
        options: dict[str, Any] = {"max_autotune_gemm": True} if variant.autotune else {}
        for block in (*model.blocks, *model.decoder_blocks):
            block.forward = torch.compile(
                block.forward, fullgraph=True, dynamic=False, options=options
            )
    masters = _MasterWeights(model, config, capturable=variant.graph)

    def update(keep: Tensor, restore: Tensor, mask: Tensor) -> Tensor:
        loss: Tensor
        loss, _ = model(patches, keep, restore, mask)
        loss.backward()  # type: ignore[no-untyped-call]
        masters.step()
        return loss.detach()

    if variant.graph:
        return _graphed(update, lambda: masks.draw(variant.kernels))
    return lambda: update(*masks.draw(variant.kernels))


class _MasterWeights:
    """AdamW on fp32 master weights of a bf16 model: two copies a step, no gathering."""

    def __init__(self, model: nn.Module, config: Config, *, capturable: bool) -> None:
        named = list(model.named_parameters())
        self._parameters = [p for _, p in named]
        self._working = [p.detach() for p in self._parameters]
        self._masters = [p.float().requires_grad_() for p in self._working]
        self._gradients = [torch.zeros_like(master) for master in self._masters]
        for master, gradient in zip(self._masters, self._gradients, strict=True):
            master.grad = gradient
        decays = [is_decayed(name, p) for name, p in named]
        groups = [
            {
                "params": [m for m, d in zip(self._masters, decays, strict=True) if d is decayed],
                "weight_decay": config.optim.weight_decay if decayed else 0.0,
            }
            for decayed in (True, False)
        ]
        betas = (config.optim.beta1, config.optim.beta2)
        self._adamw = torch.optim.AdamW(
            groups, lr=LEARNING_RATE, betas=betas, fused=True, capturable=capturable
        )

    @torch.no_grad()
    def step(self) -> None:
        arrived = [p.grad for p in self._parameters if p.grad is not None]
        torch._foreach_copy_(self._gradients, arrived)
        self._adamw.step()
        torch._foreach_copy_(self._working, self._masters)
        for parameter in self._parameters:
            parameter.grad = None


def _graphed(
    update: Callable[[Tensor, Tensor, Tensor], Tensor],
    draw: Callable[[], tuple[Tensor, Tensor, Tensor]],
) -> Step:
    """Record `update` once and replay it; masks come from outside, through fixed buffers."""
    buffers = draw()
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compilation and allocations of a first step cannot be recorded
        for _ in range(3):
            update(*buffers)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = update(*buffers)

    def step() -> Tensor:
        for buffer, fresh in zip(buffers, draw(), strict=True):
            buffer.copy_(fresh)
        graph.replay()
        return loss

    return step


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
    forward = torch.compile(model, dynamic=False) if variant.compiled else model

    def step() -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            loss: Tensor = forward(signal)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step
