"""random_mask: which patches of each record stay visible, the same on every device.

Shapes: B records, N patches, K kept patches.
"""

import torch
from torch import Tensor

from ecgfast_kernels.ops import library, reference
from ecgfast_kernels.ops.backend import resolve

_Masks = tuple[Tensor, Tensor, Tensor]


def random_mask(
    record_index_B: Tensor,
    *,
    seed: int,
    epoch: int,
    num_patches: int,
    num_keep: int,
    backend: str = "auto",
) -> _Masks:
    """Choose `num_keep` of `num_patches` patches per record, uniformly at random.

    Patch n of a record gets a 32-bit Philox key (word n % 4 of the block with counter (record,
    epoch, n // 4) under the key `seed`); the smallest keys stay, ties by the lower index. The
    choice depends on nothing else: not on the batch, the rank, the device or a generator's state.

    Args:
        record_index_B: (B,) int64, indices into the store.
        seed: in [0, 2^63).
        epoch: in [0, 2^32).
        num_patches: N.
        num_keep: K, in [1, N].
        backend: "auto", "triton" or "reference".
    Returns:
        ids_keep (B, K) int64, ascending. ids_restore (B, N) int64: the position of each patch in
        [kept ascending, removed ascending]. mask (B, N) bool, True = removed.
    Raises:
        ValueError: an argument is out of range.
    Source: He et al. 2022, section 3 (random sampling without replacement).
    """
    library.require(
        record_index_B.ndim == 1 and record_index_B.dtype == torch.int64,
        f"record_index must be int64 (B,), got {record_index_B.dtype} "
        f"{tuple(record_index_B.shape)}",
    )
    library.require(
        1 <= num_keep <= num_patches,
        f"num_keep must be in [1, {num_patches}], got {num_keep}; lower the mask ratio",
    )
    library.require(0 <= seed < 1 << 63, f"seed must be in [0, 2^63), got {seed}")
    library.require(0 <= epoch < 1 << 32, f"epoch must be in [0, 2^32), got {epoch}")
    if resolve(backend, record_index_B.device) == "triton":
        masks: _Masks = torch.ops.ecgfast.random_mask(
            record_index_B, seed, epoch, num_patches, num_keep
        )
        return masks
    return reference.random_mask(
        record_index_B, seed=seed, epoch=epoch, num_patches=num_patches, num_keep=num_keep
    )


def _triton(
    record_index_B: Tensor, seed: int, epoch: int, num_patches: int, num_keep: int
) -> _Masks:
    from ecgfast_kernels.ops import mask_triton

    return mask_triton.random_mask(record_index_B, seed, epoch, num_patches, num_keep)


def _reference(
    record_index_B: Tensor, seed: int, epoch: int, num_patches: int, num_keep: int
) -> _Masks:
    return reference.random_mask(
        record_index_B, seed=seed, epoch=epoch, num_patches=num_patches, num_keep=num_keep
    )


def _fake(record_index_B: Tensor, seed: int, epoch: int, num_patches: int, num_keep: int) -> _Masks:
    batch = record_index_B.shape[0]
    return (
        record_index_B.new_empty(batch, num_keep),
        record_index_B.new_empty(batch, num_patches),
        record_index_B.new_empty(batch, num_patches, dtype=torch.bool),
    )


library.register(
    "random_mask(Tensor record_index, int seed, int epoch, int num_patches, int num_keep)"
    " -> (Tensor, Tensor, Tensor)",
    triton=_triton,
    reference=_reference,
    fake=_fake,
)
