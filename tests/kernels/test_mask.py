"""random_mask: bit-equal everywhere, exactly K, uniform, independent of how a batch is cut."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from checks import DEVICE, poisoned_outputs
from ecgfast_kernels.ops.masking import random_mask
from scipy.stats import chi2
from torch import Tensor

pytestmark = pytest.mark.op

N, K = 240, 60


def masks(
    records: Sequence[int] | Tensor,
    *,
    backend: str,
    seed: int = 1,
    epoch: int = 2,
    num_patches: int = N,
    num_keep: int = K,
) -> tuple[Tensor, Tensor, Tensor]:
    with poisoned_outputs(backend):
        return random_mask(
            torch.as_tensor(records, dtype=torch.int64, device=DEVICE),
            seed=seed,
            epoch=epoch,
            num_patches=num_patches,
            num_keep=num_keep,
            backend=backend,
        )


def assert_bit_equal(got: Sequence[Tensor], want: Sequence[Tensor]) -> None:
    for name, a, b in zip(("ids_keep", "ids_restore", "mask"), got, want, strict=True):
        assert a.dtype == b.dtype, name
        assert torch.equal(a, b), name


def test_kernel_is_bit_equal_to_reference() -> None:
    records = torch.arange(1000) * 7919 + 11
    got, want = masks(records, backend="triton"), masks(records, backend="reference")
    assert_bit_equal(got, want)


@pytest.mark.parametrize(
    ("seed", "epoch", "record"),
    [(0, 0, 0), (1, 1, 1), (2**63 - 1, 2**32 - 1, 2**62 + 3), (2**32, 16, 2**32), (5, 2**31, 9)],
)
@pytest.mark.parametrize(("num_patches", "num_keep"), [(240, 60), (37, 36), (5, 1), (16, 16)])
def test_extreme_counters_and_shapes(
    seed: int, epoch: int, record: int, num_patches: int, num_keep: int
) -> None:
    settings = {"seed": seed, "epoch": epoch, "num_patches": num_patches, "num_keep": num_keep}
    records = [record, record + 1, record + 3]
    want = masks(records, backend="reference", **settings)
    assert_bit_equal(masks(records, backend="triton", **settings), want)


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_equal_keys_keep_the_lower_index(backend: str) -> None:
    # Under seed 0, epoch 0, patches 49 and 214 of record 7069 share the 209th smallest key.
    settings = {"seed": 0, "epoch": 0, "backend": backend}
    removed = masks([7069], num_keep=209, **settings)[2][0]
    assert not removed[49]
    assert removed[214]
    assert masks([7069], num_keep=208, **settings)[2][0][[49, 214]].all()
    assert not masks([7069], num_keep=210, **settings)[2][0][[49, 214]].any()


def test_outputs_describe_one_permutation() -> None:
    ids_keep, ids_restore, mask = masks(torch.arange(64), backend="reference")
    everything = torch.arange(N, device=DEVICE)
    assert torch.equal(ids_restore.sort(dim=1).values, everything.expand(64, -1))
    assert (ids_keep.diff(dim=1) > 0).all()
    assert (mask.sum(dim=1) == N - K).all()
    assert not mask.gather(1, ids_keep).any()
    assert torch.equal(ids_restore.gather(1, ids_keep), everything[:K].expand(64, -1))
    removed = torch.stack([everything[row] for row in mask])
    assert torch.equal(ids_restore.gather(1, removed), everything[K:].expand(64, -1))


def test_independent_of_batch_split_and_order() -> None:
    records = torch.randperm(50, generator=torch.Generator().manual_seed(0)) + 2**33
    whole = masks(records, backend="triton")
    parts = [masks(part, backend="triton") for part in records.split([1, 7, 13, 29])]
    assert_bit_equal([torch.cat(pieces) for pieces in zip(*parts, strict=True)], whole)
    flipped = masks(records.flip(0), backend="triton")
    assert_bit_equal([tensor.flip(0) for tensor in flipped], whole)


def test_seed_epoch_and_record_change_the_mask() -> None:
    base = masks([5], backend="reference")[0]
    assert not torch.equal(base, masks([6], backend="reference")[0])
    assert not torch.equal(base, masks([5], backend="reference", epoch=3)[0])
    assert not torch.equal(base, masks([5], backend="reference", seed=2)[0])
    assert not torch.equal(base, masks([5 + 2**32], backend="reference")[0])


def test_patches_and_pairs_are_uniform() -> None:
    count = 20_000
    kept = (~masks(torch.arange(count), backend="reference")[2]).double().cpu().numpy()
    # Each patch is kept with p = K/N; fixed K makes the N counts sum up exactly, hence N - 1
    # degrees of freedom and the factor N/(N - 1) in their common variance.
    p = K / N
    singles = kept.sum(axis=0)
    statistic = ((singles - count * p) ** 2).sum() / (count * p * (1 - p)) * (N - 1) / N
    assert chi2.sf(statistic, N - 1) > 1e-3
    # Pairs: what their counts hold beyond those of their two patches. Kept sets look alike under
    # every renaming of patches, so that all these contrasts have one variance, that of
    # x_ab - x_bc + x_cd - x_da: 4 (p2 - 2 p3 + p4) for p_n = P(n given patches are all kept).
    pairs = kept.T @ kept
    np.fill_diagonal(pairs, 0)
    own = (pairs.sum(axis=1) - pairs.sum() / (2 * (N - 1))) / (N - 2)
    contrasts = (pairs - own[:, None] - own[None, :])[np.triu_indices(N, 1)]
    p2, p3, p4 = (np.prod([(K - i) / (N - i) for i in range(n)]) for n in (2, 3, 4))
    statistic = (contrasts**2).sum() / (count * (p2 - 2 * p3 + p4))
    degrees = N * (N - 3) / 2
    assert chi2.sf(statistic, degrees) > 1e-3
    assert chi2.cdf(statistic, degrees) > 1e-3  # too even would be no chance either


def test_neighbouring_records_and_epochs_share_nothing() -> None:
    kept = (~masks(torch.arange(4000), backend="reference")[2]).double()
    later = (~masks(torch.arange(4000), backend="reference", epoch=3)[2]).double()
    expected = N * (K / N) ** 2
    for overlap in ((kept[1:] * kept[:-1]).sum(dim=1), (kept * later).sum(dim=1)):
        # One overlap is hypergeometric with standard deviation 2.9; its mean over 4000 is 0.046.
        assert abs(overlap.mean().item() - expected) < 5 * 0.046


def test_empty_batch() -> None:
    ids_keep, ids_restore, mask = masks([], backend="triton")
    assert (ids_keep.shape, ids_restore.shape, mask.shape) == ((0, K), (0, N), (0, N))


def test_opcheck_and_fullgraph() -> None:
    records = torch.arange(3, device=DEVICE)
    torch.library.opcheck(torch.ops.ecgfast.random_mask.default, (records, 1, 2, N, K))
    compiled = torch.compile(random_mask, fullgraph=True, backend="aot_eager")
    settings = {"seed": 1, "epoch": 2, "num_patches": N, "num_keep": K, "backend": "triton"}
    assert_bit_equal(compiled(records, **settings), random_mask(records, **settings))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_keep": 0}, "num_keep must be in"),
        ({"num_keep": 241}, "num_keep must be in"),
        ({"seed": -1}, "seed must be in"),
        ({"epoch": 2**32}, "epoch must be in"),
        ({"backend": "fast"}, "kernels must be auto"),
    ],
)
def test_wrong_arguments(change: dict[str, int | str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        masks([1], **({"backend": "reference"} | change))
