"""Random changes of records: by value, and the same whatever else is in the batch."""

import numpy as np
import pytest
import torch
from ecgfast_kernels.codec.philox import ORDER_DOMAIN, philox4x32, split_seed
from torch import Tensor

from ecgfast.model.draws import Draws, Dropout, Purpose, augmented, kept_paths
from ecgfast.model.vit import unpatchify
from ecgfast.settings import AugmentConfig

RECORDS = [5, 2**33 + 1, 0, 77]


def draws(records: list[int] = RECORDS, *, epoch: int = 3, seed: int = 9) -> Draws:
    return Draws(seed=seed, record_index=torch.tensor(records), epoch=epoch)


def many(number: int = 2000) -> Draws:
    return draws(list(range(number)))


def patches(num_records: int = 4) -> Tensor:
    """Records whose value is lead + timestep / 5000 + 1, so that every place is known."""
    lead_C1, time_T = np.arange(12)[:, None], np.arange(5000)
    signal = torch.from_numpy((lead_C1 + time_T / 5000 + 1).astype(np.float32))
    records = signal.reshape(1, 240, 250).repeat(num_records, 1, 1)
    return torch.nn.functional.pad(records, (0, 6))


def changed(source: Draws, **settings: float) -> Tensor:
    """(B, 12, 5000) of `patches`, and nothing in the padding."""
    config = AugmentConfig(**settings)  # type: ignore[arg-type]  # counts among them
    out = augmented(patches(len(source.record_index)), source, config, num_leads=12)
    assert out[..., 250:].abs().max() == 0
    return unpatchify(out, num_leads=12)


SIGNAL = unpatchify(patches(1), num_leads=12)[0]


def test_numbers_are_philox_of_seed_record_epoch_and_purpose() -> None:
    uniform = draws().uniform(Purpose.NOISE, 6).numpy()
    domain = ORDER_DOMAIN + 3 * 2**24
    for row, record in enumerate(RECORDS):
        words = [
            philox4x32((record & 0xFFFFFFFF, record >> 32, 3, domain + k), split_seed(9))
            for k in range(2)
        ]
        expected = [int(word) / 2**32 for four in words for word in four][:6]
        assert uniform[row] == pytest.approx(expected, abs=2**-24)


def test_no_two_purposes_share_numbers() -> None:
    drawn = [draws().uniform(purpose, 8) for purpose in Purpose]
    assert all(not torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])
    ends = sorted(purpose.domain for purpose in Purpose)
    assert ends[0] > ORDER_DOMAIN
    assert ends[-1] + 2**24 < 2**32


def test_a_record_is_changed_alike_in_any_batch_and_anew_in_each_epoch() -> None:
    everything = {"shift_timesteps": 100, "lead_dropout": 0.3, "noise": 0.1}
    together, alone = changed(draws(), **everything), changed(draws([77]), **everything)
    assert torch.equal(together[3], alone[0])
    assert not torch.equal(together[0], together[1])
    for other in (draws([77], epoch=4), draws([77], seed=10)):
        assert not torch.equal(changed(other, **everything), alone)


def test_normal_numbers_are_normal() -> None:
    normal = many(500).normal(Purpose.NOISE, 401).double()
    assert normal.shape == (500, 401)
    assert abs(normal.mean()) < 0.01
    assert normal.var().item() == pytest.approx(1, abs=0.02)
    assert (normal.abs() > 1.96).double().mean().item() == pytest.approx(0.05, abs=0.003)


def test_defaults_change_nothing() -> None:
    before = patches()
    assert augmented(before, draws(), AugmentConfig(), num_leads=12) is before


def test_a_shift_moves_all_leads_together_and_zeros_in() -> None:
    found = set()
    for record in changed(many(300), shift_timesteps=3):
        shift = int((record[0] != 0).nonzero()[0]) or int((record[0] != 0).sum()) - 5000
        expected = torch.zeros_like(SIGNAL)
        if shift >= 0:
            expected[:, shift:] = SIGNAL[:, : 5000 - shift]
        else:
            expected[:, :shift] = SIGNAL[:, -shift:]
        assert torch.equal(record, expected)
        found.add(shift)
    assert found == set(range(-3, 4))


def test_leads_are_lost_whole_and_never_all() -> None:
    some = changed(many(1000), lead_dropout=0.25)
    lost = (some == 0).all(-1)
    assert torch.equal(some, SIGNAL * ~lost[..., None])
    assert lost.double().mean().item() == pytest.approx(0.25, abs=0.02)
    most = changed(many(200), lead_dropout=0.999)
    assert ((most != 0).any(-1).sum(1) >= 1).all()


def test_noise_has_the_deviation_asked_for() -> None:
    noise = changed(draws(), noise=0.5) - SIGNAL
    assert noise.std().item() == pytest.approx(0.5, rel=0.01)
    assert abs(noise.mean().item()) < 0.01


def test_fp16_patches_stay_fp16() -> None:
    half = patches().half()
    assert augmented(half, draws(), AugmentConfig(noise=0.1), num_leads=12).dtype == torch.float16


def test_paths_are_left_out_more_often_in_later_blocks() -> None:
    assert kept_paths(draws(), 0.0, 4) is None
    kept = kept_paths(many(4000), 0.4, 4)
    assert kept is not None
    assert kept.shape == (4, 2, 4000)
    for block in range(4):
        share = 0.1 * (block + 1)
        assert kept[block].unique().tolist() == pytest.approx([0, 1 / (1 - share)])
        assert (kept[block] == 0).double().mean().item() == pytest.approx(share, abs=0.02)
    assert not torch.equal(kept[3, 0], kept[3, 1])


def test_dropout_is_for_training_alone() -> None:
    layer, features = Dropout(0.5, 1), torch.ones(4, 600)
    dropped = layer(features, draws())
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert dropped.mean().item() == pytest.approx(1, abs=0.1)
    assert torch.equal(layer(features, draws()), dropped)
    assert not torch.equal(Dropout(0.5, 0)(features, draws()), dropped)  # another layer
    assert torch.equal(layer.eval()(features, None), features)


def test_dropout_of_layers_of_other_widths_shares_no_numbers() -> None:
    wide, narrow = (Dropout(0.5, n)(torch.ones(500, w), many(500)) for n, w in ((0, 64), (1, 32)))
    same = [(narrow == wide[:, at : at + 32]).float().mean().item() for at in range(33)]
    assert max(same) < 0.6  # by chance 0.5
