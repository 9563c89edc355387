"""Models of some leads: their patches alone are encoded, at the positions that they have among all.

The reference is a model of all leads that is told to keep the patches of some, as masks tell it.
"""

import pytest
import torch
from small_mae import SMALL, small_model
from torch import Tensor

from ecgfast.config import load_config
from ecgfast.data.batch import patches_of_leads
from ecgfast.errors import ShapeError
from ecgfast.model.build import build_classifier, build_model
from ecgfast.model.cnn import EcgCnn, ResNet1dWang
from ecgfast.model.mae import MaskedAutoencoder
from ecgfast.model.vit import Encoder
from ecgfast.settings import ModelConfig

TWELVE = ModelConfig(
    encoder_width=16, encoder_depth=2, encoder_heads=2, decoder_width=8, decoder_depth=1,
    decoder_heads=2, num_timesteps=1000,
)  # fmt: skip
COLUMNS = 4
LEADS = (1, 6)  # II and V1
PLACES = [lead * COLUMNS + column for lead in LEADS for column in range(COLUMNS)]


def patches(num_records: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    made = torch.randn(num_records, TWELVE.num_patches, 256, generator=generator).double()
    made[..., 250:] = 0
    return made


def both_models() -> tuple[MaskedAutoencoder, MaskedAutoencoder]:
    """One of all leads, and one of some with its weights."""
    whole, some = MaskedAutoencoder(TWELVE).double(), MaskedAutoencoder(TWELVE, leads=LEADS)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    some.double().load_state_dict(whole.state_dict(), strict=True)
    return whole, some


def test_tokens_are_those_of_a_model_that_keeps_these_patches() -> None:
    whole, some = both_models()
    given = patches(3)
    ids = torch.tensor(PLACES).repeat(3, 1)
    expected = whole.encode_kept(given, ids)
    found = some.encode(patches_of_leads(given, torch.tensor(LEADS)))
    assert found.shape == (3, 1 + len(PLACES), 16)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    whole.set_leads(LEADS)
    again = whole.encode(patches_of_leads(given, torch.tensor(LEADS)))
    torch.testing.assert_close(again, expected, rtol=1e-12, atol=1e-12)


def test_what_the_other_leads_hold_does_not_matter() -> None:
    _, some = both_models()
    given, other = patches(2), patches(2)
    other[:, [n for n in range(48) if n not in PLACES]] = float("nan")
    ids = torch.tensor([[0, 5]] * 2), torch.tensor([[0, 2, 3, 4, 5, 1, 6, 7]] * 2)
    mask = torch.tensor([[False, True, True, True, True, False, True, True]] * 2)
    taken = (patches_of_leads(each, torch.tensor(LEADS)) for each in (given, other))
    (loss, predicted), (loss_again, _) = (some(each, *ids, mask) for each in taken)
    assert predicted.shape == (2, 8, 250)
    assert torch.isfinite(loss)
    assert torch.equal(loss, loss_again)


def test_the_decoder_too_has_the_positions_among_all() -> None:
    whole, some = both_models()
    rows = [0, *(1 + place for place in PLACES)]
    assert torch.equal(some.positions(some.decoder_pos_embed), whole.decoder_pos_embed[0, rows])


def test_records_of_all_leads_are_refused() -> None:
    _, some = both_models()
    with pytest.raises(ShapeError, match=r"must be \(B, 8, 256\), got \(3, 48, 256\)"):
        some.encode(patches(3))


def test_a_model_of_all_leads_has_no_rows_to_look_up() -> None:
    assert small_model().token_rows is None
    assert "token_rows" not in MaskedAutoencoder(TWELVE, leads=LEADS).state_dict()
    assert Encoder(SMALL).num_patches == 12


def test_the_setting_makes_the_models() -> None:
    settings = ["data.leads=['V1','II']", "model.num_timesteps=1000"]
    model = build_model(load_config("demo", settings))
    assert (model.num_patches, model.config.num_leads) == (8, 2)
    assert build_classifier(load_config("demo", settings)).encoder.num_patches == 8
    cnn = build_classifier(load_config("cnn", ["data.leads=['V1','II']"]))
    assert isinstance(cnn.encoder, EcgCnn)
    assert [m.kernel_size for m in cnn.encoder.spatial if isinstance(m, torch.nn.Conv2d)] == [
        (2, 1)
    ]
    assert cnn.eval()(torch.zeros(1, 40, 256)).shape == (1,)
    wang = build_classifier(load_config("resnet1d_wang", ["data.leads=['V1','II']"]))
    assert isinstance(wang.encoder, ResNet1dWang)
    assert wang.eval()(torch.zeros(1, 40, 256)).shape == (1,)
