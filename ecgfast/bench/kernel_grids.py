"""Block sizes worth trying for each kernel."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from ecgfast.bench import kernel_calls as calls
from ecgfast.bench.kernel_calls import Call

Config = dict[str, int | None]


@dataclass(frozen=True, kw_only=True)
class Search:
    """Candidates of one kernel and the call that runs it.

    Attributes:
        op: key of the table of block sizes.
        bits: size of the elements that the row is for.
        prepare: makes the inputs for a device ("cpu" or "cuda"), and returns the call.
        candidates: rows to try.
    """

    op: str
    bits: int = 16
    prepare: Callable[[str], Call]
    candidates: tuple[Config, ...]


def _configs(names: str, *rows: tuple[int | None, ...], last: str = "") -> tuple[Config, ...]:
    keys = [*names.split(), "num_warps", "num_stages", *last.split()]
    return tuple(dict(zip(keys, row, strict=True)) for row in rows)


# 160 columns are the most that two tiles in turns hold without a stack, in either direction.
QUACK_TILES: tuple[Config, ...] = tuple(
    {"tile_M": m, "tile_N": n, "cluster_M": cluster, "cluster_N": 3 - cluster, "pingpong": turns}
    for m, n, cluster, turns in (
        (128, 160, 2, 1),
        (128, 192, 2, 1),
        (128, 256, 2, 0),
        (128, 256, 1, 0),
        (256, 128, 2, 0),
    )
)

# The most valuable first, should time run out: the patch embedding is held against torch.compile,
# norms and GELUs decide whether the fused blocks pay, the rest was near its limit.
# PROGRAMS are multiples of the 132 multiprocessors of an H100, or a little under one.
SEARCHES = (
    Search(
        op="patch_embed_backward",
        prepare=calls.patch_embed_backward,
        candidates=_configs(
            "BLOCK_R BLOCK_D BLOCK_P PROGRAMS",
            (64, 128, 128, 132, 8, 4),
            (64, 128, 128, 132, 8, 3),
            (128, 128, 128, 132, 8, 3),
            (64, 256, 128, 132, 8, 4),
            (64, 256, 128, 132, 8, 3),
            (32, 256, 128, 132, 8, 4),
            (64, 64, 128, 264, 4, 4),
            (64, 128, 64, 264, 4, 4),
            (64, 64, 256, 132, 8, 4),
        ),
    ),
    Search(
        op="patch_embed_forward",
        prepare=calls.patch_embed_forward,
        candidates=_configs(
            "BLOCK_R BLOCK_D BLOCK_P PROGRAMS",
            (128, 128, 64, 132, 8, 3),
            (64, 128, 64, 132, 8, 3),
            (64, 128, 128, 132, 8, 3),
            (64, 128, 64, 132, 8, 4),
            (64, 64, 64, 264, 4, 3),
            (64, 64, 64, 264, 8, 3),
            (32, 64, 64, 264, 4, 3),
            (128, 64, 64, 264, 8, 2),
            (128, 64, 64, 132, 8, 3),
        ),
    ),
    Search(
        op="add_layer_norm_backward_narrow",
        prepare=calls.decoder_layer(calls.norm_backward),
        candidates=_configs(
            "ELEMENTS PROGRAMS STAGES",
            (1024, 792, 1, 4, 1),
            (1024, 528, 2, 4, 1),
            (1024, 528, 2, 2, 1),
            (1024, 528, 1, 2, 1),
            (512, 1056, 1, 2, 1),
            (512, 1584, 1, 1, 1),
            (2048, 264, 1, 4, 1),
        ),
    ),
    Search(
        op="add_layer_norm_backward_wide",
        prepare=calls.encoder_layer(calls.norm_backward),
        candidates=_configs(
            "ELEMENTS PROGRAMS STAGES",
            (1024, 792, 1, 4, 1),
            (1024, 528, 2, 4, 1),
            (1024, 528, 1, 2, 1),
            (2048, 528, 2, 4, 1),
            (2048, 528, 1, 4, 1),
            (4096, 264, 1, 4, 1),
        ),
    ),
    Search(
        op="add_layer_norm_forward_narrow",
        prepare=calls.decoder_layer(calls.norm_forward),
        candidates=_configs(
            "ELEMENTS", (4096, 4, 1), (2048, 4, 1), (1024, 2, 1), (512, 1, 1), (1024, 1, 1)
        ),
    ),
    Search(
        op="add_layer_norm_forward_wide",
        prepare=calls.encoder_layer(calls.norm_forward),
        candidates=_configs("ELEMENTS", (2048, 4, 1), (1024, 4, 1), (1024, 2, 1), (2048, 2, 1)),
    ),
    Search(
        op="linear_gelu_forward",
        prepare=calls.encoder_layer(calls.linear_gelu_forward),
        candidates=_configs(
            "BLOCK_M BLOCK_N BLOCK_K PROGRAMS",
            (128, 256, 64, 132, 8, 3),
            (128, 256, 64, 132, 8, 4),
            (128, 128, 64, 132, 8, 4),
            (128, 128, 64, 264, 4, 3),
            (256, 128, 64, 132, 8, 3),
        ),
    ),
    Search(
        op="linear_gelu_backward",
        prepare=calls.encoder_layer(calls.linear_gelu_backward),
        candidates=_configs(
            "BLOCK_M BLOCK_N BLOCK_K PROGRAMS",
            (128, 256, 64, 132, 8, 3),
            (128, 256, 64, 132, 8, 4),
            (128, 128, 64, 132, 8, 4),
            (128, 128, 64, 264, 4, 3),
            (256, 128, 64, 132, 8, 3),
        ),
    ),
    Search(
        op="linear_gelu_quack_forward",
        prepare=calls.encoder_layer(partial(calls.linear_gelu_forward, provider="quack")),
        candidates=QUACK_TILES,
    ),
    Search(
        op="linear_gelu_quack_backward",
        prepare=calls.encoder_layer(partial(calls.linear_gelu_backward, provider="quack")),
        candidates=QUACK_TILES,
    ),
    Search(
        op="column_sums",
        bits=32,
        prepare=calls.column_sums,
        candidates=_configs(
            "BLOCK_R BLOCK_C", (64, 32, 4, 1), (128, 32, 8, 1), (128, 16, 4, 1), (32, 32, 4, 1)
        ),
    ),
    Search(
        op="bias_gelu_backward",
        prepare=calls.layers(calls.gelu_backward),
        candidates=_configs(
            "BLOCK_R BLOCK_C ROWS STAGES",
            (4, 512, 128, 1, 4, 1),
            (4, 512, 64, 1, 4, 1),
            (4, 512, 64, 3, 4, 1),
            (2, 512, 64, 3, 4, 1),
            (8, 256, 128, 2, 4, 1),
            (4, 1024, 64, 2, 8, 1),
            (2, 1024, 32, 1, 4, 1),
            (8, 512, 128, 2, 8, 1),
        ),
    ),
    Search(
        op="bias_gelu_forward",
        prepare=calls.layers(calls.gelu_forward),
        candidates=_configs(
            "BLOCK_R BLOCK_C", (4, 512, 4, 1), (2, 512, 4, 1), (8, 512, 4, 1), (4, 1024, 8, 1)
        ),
    ),
    Search(
        op="adamw",
        prepare=calls.adamw,
        candidates=_configs("BLOCK", (2048, 8, 1), (1024, 4, 1), (2048, 4, 1), (4096, 8, 1)),
    ),
    Search(
        op="attention_backward_long_32",
        prepare=calls.decoder_layer(calls.attention_backward),
        candidates=_configs(
            "BLOCK ONE_PASS",
            (64, 1, 8, 1),
            (32, 1, 8, 1),
            (64, 0, 4, 1),
            (64, 0, 4, 2),
            (64, 0, 8, 2),
            (128, 0, 8, 1),
        ),
    ),
    Search(
        op="attention_forward_long",
        prepare=calls.decoder_layer(calls.attention_forward),
        candidates=_configs(
            "BLOCK_M HALVES",
            (64, 1, 4, 1, 128),  # 16 bytes of stack, twice the programs on a multiprocessor
            (64, 1, 4, 1, None),
            (128, 1, 8, 1, 128),
            (64, 0, 4, 1, None),
            (64, 0, 4, 3, None),
            (64, 0, 8, 2, None),
            last="maxnreg",
        ),
    ),
    Search(
        op="attention_backward_short_64",
        prepare=calls.encoder_layer(calls.attention_backward),
        candidates=_configs(
            "BLOCK ONE_PASS",
            (64, 0, 4, 1),
            (64, 0, 4, 2),
            (64, 0, 4, 3),
            (64, 0, 8, 1),
            (32, 1, 4, 1),
        ),
    ),
    Search(
        op="attention_forward_short",
        prepare=calls.encoder_layer(calls.attention_forward),
        candidates=_configs(
            "BLOCK_M HALVES", (64, 0, 4, 1), (64, 0, 4, 2), (64, 0, 4, 3), (32, 0, 4, 3)
        ),
    ),
    Search(
        op="attention_backward_long_64",
        prepare=calls.finetuned_layer(calls.attention_backward),
        candidates=_configs(
            "BLOCK ONE_PASS",
            (32, 1, 8, 1),
            (64, 0, 8, 1),
            (64, 0, 8, 2),
            (64, 0, 4, 1),
            (32, 0, 4, 2),
        ),
    ),
    Search(
        op="unshuffle_backward",
        prepare=calls.unshuffle_backward,
        candidates=_configs(
            "BLOCK_T BLOCK_E", (16, 256, 4, 2), (16, 256, 4, 4), (16, 128, 4, 3), (8, 512, 4, 3)
        ),
    ),
    Search(
        op="unshuffle_forward",
        prepare=calls.unshuffle_forward,
        candidates=_configs(
            "BLOCK_T BLOCK_E", (8, 512, 4, 1), (4, 512, 4, 1), (16, 512, 8, 1), (16, 256, 4, 1)
        ),
    ),
    Search(
        op="masked_mse",
        prepare=calls.masked_mse,
        candidates=_configs("BLOCK_R", (8, 4, 1), (4, 4, 1), (16, 8, 1), (4, 2, 1)),
    ),
    Search(
        op="random_mask",
        bits=64,
        prepare=calls.random_mask,
        candidates=_configs("BLOCK_B", (1, 1, 1), (2, 1, 1), (4, 4, 1), (1, 2, 1)),
    ),
)
