"""The kernels as training launches them, for the compiler: `compile_kernels.py` compiles them.

Shapes and block sizes are those of ViT-Large in bf16 (and the GEMMs in fp32).
"""

from dataclasses import dataclass, field
from typing import Any

import triton.language as tl
from ecgfast_kernels.ops import adamw_triton as adamw
from ecgfast_kernels.ops import attention_triton as attention
from ecgfast_kernels.ops import gelu_triton as gelu
from ecgfast_kernels.ops import masked_loss_triton as loss
from ecgfast_kernels.ops import masking_triton as masking
from ecgfast_kernels.ops import norm_triton as norm
from ecgfast_kernels.ops import patch_embed_triton as embed
from ecgfast_kernels.ops.library import config_for

LENGTHS = {"L": 250, "P": 256}
LOSS_SHAPE = {
    **LENGTHS,
    "STRIDE_B": 241 * 256,
    "STRIDE_N": 256,
    "PRED_IS_PADDED": True,
    "NORM": True,
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """A kernel, the element types of its pointers, and its constants."""

    name: str
    kernel: Any
    pointers: dict[str, str]  # argument -> "*bf16" ...
    constants: dict[str, Any]
    config: dict[str, Any] = field(default_factory=lambda: {"num_warps": 4, "num_stages": 3})
    wide: tuple[str, ...] = ()  # int64 scalars; the others are int32


def jobs(arch: int) -> list[Job]:
    """Every kernel as training on `arch` launches it."""
    found = [*_gemm_jobs(arch, "bf16", 16), *_gemm_jobs(arch, "fp32", 32)]
    found += [*_copy_jobs(arch), *_loss_jobs(arch), *_attention_jobs(arch), *_pointwise_jobs(arch)]
    mask_pointers = {"record_index_ptr": "*i64", "ids_keep_ptr": "*i64", "ids_restore_ptr": "*i64"}
    mask = Job(
        name="random_mask",
        kernel=masking.mask_kernel,
        pointers=mask_pointers | {"mask_ptr": "*i1"},
        constants={"BLOCK_N": 256},
        config=config_for("random_mask", arch=arch, bits=64),
        wide=("seed", "epoch"),
    )
    return [mask, *_adamw_jobs(arch), *found, *_product_jobs(arch)]


def _adamw_jobs(arch: int) -> list[Job]:
    """Of one backward pass, and of as many as the trainer reads at once."""
    pointers = {"table_ptr": "*i64", "block_ptr": "*i32"}
    names = ("decay_ptr", "factor_ptr", "skipped_ptr", "partial_ptr")
    pointers |= dict.fromkeys(names, "*fp32")
    shared = {"pointers": pointers, "config": config_for("adamw", arch=arch, bits=16)}
    found = []
    for passes in (1, 4):
        constants = {"GRADIENT": tl.bfloat16, "PASSES": passes}
        copy = {"COPY": tl.bfloat16}
        found += [
            Job(
                name=f"adamw_{passes}",
                kernel=adamw.step_kernel,
                constants=constants | copy,
                **shared,
            ),
            Job(
                name=f"squares_of_sums_{passes}",
                kernel=adamw.squares_kernel,
                constants=constants,
                **shared,
            ),
        ]
    return found


def _gemm_jobs(arch: int, dtype: str, bits: int) -> list[Job]:
    data = {"patches_ptr": "*fp16", "ids_keep_ptr": "*i64", "pos_ptr": "*fp32"}
    parameters = ("weight_ptr", "bias_ptr", "cls_token_ptr", "tokens_ptr")
    forward, backward = (
        config_for(f"patch_embed_{direction}", arch=arch, bits=bits)
        for direction in ("forward", "backward")
    )
    for config in (forward, backward):
        config.pop("PROGRAMS")
    return [
        Job(
            name=f"patch_embed_forward_{dtype}",
            kernel=embed.forward_kernel,
            pointers=data | dict.fromkeys(parameters, f"*{dtype}"),
            constants=LENGTHS,
            config=forward,
        ),
        Job(
            name=f"patch_embed_backward_{dtype}",
            kernel=embed.weight_gradient_kernel,
            pointers=data | {"grad_ptr": f"*{dtype}", "partial_ptr": "*fp32"},
            constants=LENGTHS,
            config=backward,
        ),
    ]


def _copy_jobs(arch: int) -> list[Job]:
    outputs = dict.fromkeys(("weight_ptr", "bias_ptr", "cls_token_ptr"), "*bf16")
    tokens = dict.fromkeys(("tokens_ptr", "mask_token_ptr", "out_ptr"), "*bf16")
    grads = dict.fromkeys(("grad_ptr", "grad_tokens_ptr"), "*bf16")
    restore = {"ids_restore_ptr": "*i64"}
    return [
        Job(
            name="patch_embed_reduce",
            kernel=embed.reduce_kernel,
            pointers=outputs | {"partial_ptr": "*fp32"},
            constants=LENGTHS | {"SPLITS": 8, "BLOCK": 512},
        ),
        Job(
            name="unshuffle_forward",
            kernel=masking.forward_kernel,
            pointers=tokens | restore | {"pos_ptr": "*fp32"},
            constants={},
            config=config_for("unshuffle_forward", arch=arch, bits=16),
        ),
        Job(
            name="unshuffle_backward",
            kernel=masking.backward_kernel,
            pointers=grads | restore | {"partial_ptr": "*fp32"},
            constants={},
            config=config_for("unshuffle_backward", arch=arch, bits=16),
        ),
        Job(
            name="column_sums",
            kernel=norm.column_sums_kernel,
            pointers={"partial": "*fp32", "out": "*bf16"},
            constants={},
            config=config_for("column_sums", arch=arch, bits=32),
        ),
    ]


def _loss_jobs(arch: int) -> list[Job]:
    data = {"pred_ptr": "*bf16", "patches_ptr": "*fp16", "mask_ptr": "*i1"}
    shares = {"sum_ptr": "*fp32", "count_ptr": "*i32"}
    config = config_for("masked_mse", arch=arch, bits=16)
    results = {"loss_ptr": "*fp32", "num_removed_ptr": "*i32"}
    grads = {"grad_ptr": "*fp32", "num_removed_ptr": "*i32", "grad_pred_ptr": "*bf16"}
    return [
        Job(
            name="masked_mse_forward",
            kernel=loss.forward_kernel,
            pointers=data | shares,
            constants=LOSS_SHAPE,
            config=config,
        ),
        Job(
            name="masked_mse_finish",
            kernel=loss.finish_kernel,
            pointers=shares | results,
            constants={"L": 250, "BLOCK": 1024},
        ),
        Job(
            name="masked_mse_backward",
            kernel=loss.backward_kernel,
            pointers=data | grads,
            constants=LOSS_SHAPE,
            config=config,
        ),
    ]


def _attention_jobs(arch: int) -> list[Job]:
    """Encoder (61 tokens, heads of 64), decoder (241, 32) and fine-tuning (241, 64)."""
    pointers = {"lse": "*fp32", "grad_bias": "*fp32"}
    pointers |= dict.fromkeys(("qkv", "out", "grad", "grad_qkv"), "*bf16")
    found = []
    for tokens, head, length in ((61, 64, "short"), (241, 32, "long"), (241, 64, "long")):
        keys = 64 if length == "short" else 256
        forward = config_for(f"attention_forward_{length}", arch=arch, bits=16)
        backward = config_for(f"attention_backward_{length}_{head}", arch=arch, bits=16)
        halves, one_pass = forward.pop("HALVES"), backward.pop("ONE_PASS")
        tiles = attention.backward_one_pass_kernel if one_pass else attention.backward_tiles_kernel
        one_tile = tokens <= backward["BLOCK"]
        found += [
            Job(
                name=f"attention_forward_{tokens}x{head}",
                kernel=attention.forward_halves_kernel if halves else attention.forward_kernel,
                pointers=pointers,
                constants={"HEAD": head, "BLOCK_N": keys // 2 if halves else keys},
                config=forward,
            ),
            Job(
                name=f"attention_backward_{tokens}x{head}",
                kernel=attention.backward_one_tile_kernel if one_tile else tiles,
                pointers=pointers,
                constants={"HEAD": head} | ({"BLOCK_N": keys} if one_pass else {}),
                config=backward,
            ),
        ]
    return found


def _pointwise_jobs(arch: int) -> list[Job]:
    names = ("stream", "branch", "branch_bias", "weight", "bias", "total", "out", "grad_total")
    rows = dict.fromkeys((*names, "grad_out", "grad_stream", "grad", "x", "grad_x"), "*bf16")
    rows |= dict.fromkeys(("mean", "rstd", "partial"), "*fp32")
    kernels = {
        "add_layer_norm_forward": norm.forward_kernel,
        "add_layer_norm_backward": norm.backward_kernel,
        "bias_gelu_forward": gelu.forward_kernel,
        "bias_gelu_backward": gelu.backward_kernel,
    }
    widths = {"add_layer_norm": {"_narrow": 512, "_wide": 1024}, "bias_gelu": {"": 0}}
    found = []
    for name, kernel in kernels.items():
        for suffix, width in widths[name.rpartition("_")[0]].items():
            config = config_for(f"{name}{suffix}", arch=arch, bits=16)
            config.pop("PROGRAMS", None)
            if width:
                config |= {"BLOCK_R": config.pop("ELEMENTS") // width, "BLOCK_D": width}
            job = Job(name=name + suffix, kernel=kernel, pointers=rows, constants={}, config=config)
            found.append(job)
    return found


def _product_jobs(arch: int) -> list[Job]:
    found: list[Job] = []
    if arch < 90:  # tiles move by TMA
        return found
    for name, forward in (("linear_gelu_forward", True), ("linear_gelu_backward", False)):
        config = config_for(name, arch=arch, bits=16)
        m, n, k = (config[f"BLOCK_{axis}"] for axis in "MNK")
        blocks = {"a": (m, k), "b": (n, k) if forward else (k, n)}
        blocks |= dict.fromkeys(("out", "slope"), (m, n // 2))
        types = {arg: f"tensordesc<bf16[{r}, {c}]>" for arg, (r, c) in blocks.items()}
        job = Job(
            name=name,
            kernel=gelu.product_kernel,
            pointers={"bias": "*bf16", "partial": "*fp32"} | types,
            constants={"FORWARD": forward, "PROGRAMS": config.pop("PROGRAMS")},
            config=config,
        )
        found.append(job)
    return found
