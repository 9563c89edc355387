"""Reconstructions: the model's own loss, and back to millivolt; probabilities of no record."""

from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from changed_stores import change_lead_value
from ecgfast_kernels.ops.masking import random_mask
from matplotlib.figure import Figure
from recordings import convert_quietly, ecg_like, make_store, write_wfdb
from report_pages import html_of
from toy import toy_meta

from ecgfast.config import Config, load_config
from ecgfast.convert import convert
from ecgfast.data.loader import build_loader
from ecgfast.data.normalise import Normalisation
from ecgfast.errors import ConfigError
from ecgfast.evaluate import reconstructions
from ecgfast.evaluate.reconstructions import reconstruct, row_of
from ecgfast.ingest.synthetic import write_cohort
from ecgfast.model.mae import MaskedAutoencoder
from ecgfast.runs.ecg_paper import draw
from ecgfast.runs.inference import (
    Reconstruction,
    _denormalise,
    fill_in,
    in_millivolt,
    score_rows,
)
from ecgfast.runs.loading import LoadedRun
from ecgfast.store.reader import StoreReader, open_store

ROWS = np.array([3, 0, 7])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StoreReader:
    folder = tmp_path_factory.mktemp("reconstruct")
    write_cohort(folder / "cohort", num_records=8, num_sites=2, seed=0)
    for header in (folder / "cohort").rglob("*.hea"):  # 0 mV at 100 ADC units
        header.write_text(header.read_text().replace("(0)/mV", "(100)/mV"))
    convert([folder / "cohort"], folder / "store", codec="none", workers=1)
    return open_store(folder / "store")


def tiny(
    normalise: str = "record_lead", *, norm_patch_loss: bool = True
) -> tuple[MaskedAutoencoder, Config]:
    parts = ("encoder", "decoder")
    sizes = [f"model.{p}_{w}" for p in parts for w in ("width=32", "depth=1", "heads=2")]
    config = load_config("demo", [*sizes, f"data.normalise={normalise}"])
    torch.manual_seed(0)
    return MaskedAutoencoder(config.model, norm_patch_loss=norm_patch_loss).eval(), config


def normalisation(config: Config) -> Normalisation:
    return Normalisation(mode=config.data.normalise)


@pytest.mark.parametrize("norm_patch_loss", [True, False])
def test_the_error_is_the_training_loss_of_the_same_masks(
    store: StoreReader, norm_patch_loss: bool
) -> None:
    model, config = tiny(norm_patch_loss=norm_patch_loss)
    results = fill_in(model, config, normalisation(config), store, ROWS)
    assert [result.row for result in results] == ROWS.tolist()
    (batch,) = build_loader(store, batch_size=3, select=ROWS, shuffle=False, engine="cpu")
    masks = random_mask(
        torch.from_numpy(ROWS),
        seed=config.train.seed,
        epoch=0xFFFFFFFF,  # which no training reaches
        num_patches=240,
        num_keep=60,
    )
    with torch.inference_mode():
        loss, _ = model(batch.patches.float(), *masks)
    assert np.mean([result.loss for result in results]) == pytest.approx(float(loss), rel=1e-5)


@pytest.mark.parametrize("mode", ["record_lead", "record", "none"])
def test_the_original_is_in_millivolt_and_a_zero_prediction_is_the_mean(
    store: StoreReader, mode: str
) -> None:
    model, config = tiny(mode, norm_patch_loss=False)
    torch.nn.init.zeros_(model.decoder_pred.weight)
    torch.nn.init.zeros_(model.decoder_pred.bias)
    assert (store.offset_adc[ROWS] == 100).all()
    for result in fill_in(model, config, normalisation(config), store, ROWS):
        scale, offset = store.scale_uv[result.row][:, None], store.offset_adc[result.row][:, None]
        adc = store.read([result.row])[0]
        np.testing.assert_allclose(result.original_mv, (adc - offset) * scale / 1000, atol=1e-6)
        middle = offset if mode == "none" else adc.mean(axis=1, keepdims=True)
        expected = np.broadcast_to((middle - offset) * scale / 1000, adc.shape)
        np.testing.assert_allclose(result.filled_mv, expected, atol=1e-5)


def test_a_right_prediction_gives_the_record_back() -> None:
    target = torch.randn(2, 240, 250) * 3 + 1
    normalised = (target - target.mean(-1, keepdim=True)) / target.std(-1, keepdim=True)
    mask = torch.zeros(2, 240, dtype=torch.bool)
    mask[:, ::2] = True
    loss, filled = _denormalise(normalised, target, mask, True)
    assert loss.max() < 1e-8
    torch.testing.assert_close(filled, target, atol=1e-4, rtol=1e-4)


def test_a_title_has_pseudonym_and_error_and_says_that_data_are_synthetic(
    store: StoreReader,
) -> None:
    model, config = tiny()
    result = fill_in(model, config, normalisation(config), store, ROWS)[0]
    titles = [text.get_text() for text in draw(store, result, ("II",)).axes[0].texts]
    pseudonym = store.records["record_id"][ROWS[0]].as_py()[:16]
    assert f"SYNTHETIC   record {pseudonym}   75% masked, error {result.loss:.2f}" in titles


def test_a_title_never_has_a_readable_id(tmp_path: Path) -> None:
    """Pictures of a store that keeps ids lie in reports and runs, which leave the hospital."""
    write_wfdb(tmp_path / "in/DOE_JANE_1951", ecg_like(1, seed=0)[0])
    convert_quietly([tmp_path / "in"], tmp_path / "store", keep_identifiers=True)
    store = open_store(tmp_path / "store")
    model, config = tiny()
    result = fill_in(model, config, normalisation(config), store, np.array([0]))[0]
    titles = [text.get_text() for text in draw(store, result, ("II",)).axes[0].texts]
    assert f"record in row 0   75% masked, error {result.loss:.2f}" in titles
    assert not any("DOE" in title for title in titles)


def test_a_mask_covers_three_quarters_in_whole_patches(store: StoreReader) -> None:
    model, config = tiny()
    for result in fill_in(model, config, normalisation(config), store, ROWS):
        patches = result.mask.reshape(12, 20, 250)
        assert (patches == patches[..., :1]).all()
        assert patches[..., 0].sum() == 180


def test_a_record_is_named_by_its_id_or_a_beginning_of_it_alone(store: StoreReader) -> None:
    names = store.records["record_id"].to_pylist()
    for row, name in enumerate(names):
        assert row_of(store, name) == row_of(store, name[:16]) == row
    with pytest.raises(ConfigError, match=f"8 records of .* such as {names[0]} and {names[1]}"):
        row_of(store, "")
    with pytest.raises(ConfigError, match="no record 'xyz'"):
        row_of(store, "xyz")


def test_a_whole_id_is_no_beginning_of_others(tmp_path: Path) -> None:
    signal_NCT = ecg_like(3, seed=0)
    for name, signal in zip(("1", "10", "2"), signal_NCT, strict=True):
        write_wfdb(tmp_path / "in" / name, signal)
    convert_quietly([tmp_path / "in"], tmp_path / "store", keep_identifiers=True)
    store = open_store(tmp_path / "store")
    found = store.read(np.array([row_of(store, "1")]))
    np.testing.assert_array_equal(found[0], signal_NCT[0])


def test_flat_and_inverted_leads_come_back_to_millivolt(tmp_path: Path) -> None:
    path, signal_NCT = make_store(tmp_path, 2)
    change_lead_value(path, "lead_std", 1, 3, 0)  # as of a flat lead, which is 0 when normalised
    change_lead_value(path, "scale_uv", 1, 4, -2.5)
    store = open_store(path)
    pred_BNP = torch.ones(1, 240, 250)
    (result,) = in_millivolt(
        store,
        torch.tensor([1]),
        torch.zeros(1, 240, 256),
        pred_BNP,
        torch.zeros(1, 240, dtype=torch.bool),
        normalisation=Normalisation(),
        norm_patch=False,
    )
    scale_C = np.array([5.0] * 4 + [-2.5] + [5.0] * 7)
    np.testing.assert_allclose(result.original_mv, signal_NCT[1] * scale_C[:, None] / 1000)
    mean_C, std_C = signal_NCT[1].mean(axis=1), signal_NCT[1].std(axis=1)
    std_C[3], std_C[4] = 0, -std_C[4]  # upside down: one deviation up is one down on the disk
    expected_C = (mean_C + std_C) * scale_C / 1000
    np.testing.assert_allclose(result.filled_mv, expected_C[:, None].repeat(5000, 1), rtol=1e-4)
    assert result.loss == 0  # nothing was removed


def test_the_loss_of_one_removed_patch_is_its_own() -> None:
    mask = torch.zeros(1, 240, dtype=torch.bool)
    mask[0, 7] = True
    pred = torch.zeros(1, 240, 250)
    pred[0, 7] = 3
    assert _denormalise(pred, torch.zeros(1, 240, 250), mask, False)[0].tolist() == [9]


def test_a_report_takes_records_of_the_whole_store_and_draws_the_middle_one(
    store: StoreReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, config = tiny()
    run = LoadedRun(
        name="MAE",
        path=Path("run"),
        model=lambda: model,
        config=config,
        meta=toy_meta(),
        register=None,
    )
    drawn = []

    def remember(store: StoreReader, result: Reconstruction, *leads: tuple[str, ...]) -> Figure:
        drawn.append(result.row)
        return Figure()  # a real one takes seconds

    monkeypatch.setattr(reconstructions, "NUM_SAMPLED", 3)
    monkeypatch.setattr(reconstructions, "draw", remember)
    monkeypatch.setattr(reconstructions, "draw_overlaid", remember)
    view = reconstructions.reconstruction(run, store)
    html, error = html_of(reconstructions=[view]), view["error"]
    again = fill_in(model, config, normalisation(config), store, np.array([0, 2, 4]))
    losses = {result.loss: result.row for result in again}
    assert error == pytest.approx(np.mean(list(losses)))
    in_order = [losses[loss] for loss in sorted(losses)]  # of three, the deciles are the ends
    assert drawn == [*in_order, in_order[1], in_order[1]]
    assert [each["kind"] for each in view["overlaid"]] == ["best decile", "median", "worst decile"]
    assert [each["error"] for each in view["overlaid"]] == sorted(losses)
    assert f"of 3 records of which nobody knows whether pretraining read them: {error:.3f}" in html


def test_a_picture_replaces_nothing_but_a_picture(store: StoreReader, tmp_path: Path) -> None:
    ecg = tmp_path / "ecg.dat"
    ecg.write_bytes(b"12 leads")
    with pytest.raises(ConfigError, match=f"--out {ecg} exists and is no picture"):
        reconstruct(tmp_path / "run", store.path, record_id="r", out=ecg)
    assert ecg.read_bytes() == b"12 leads"
    ecg.write_bytes(b"\x89PNG, an earlier one")
    with pytest.raises(ConfigError, match="no record"):
        reconstruct(tmp_path / "run", store.path, record_id="zz", out=ecg)


def test_no_record_has_no_probability() -> None:
    """Not even the store is looked at."""
    rows, store = np.zeros(0, np.int64), cast(StoreReader, None)
    found = score_rows(
        torch.nn.Identity(), store, rows, Normalisation(), meaning=torch.sigmoid, name="a"
    )
    assert found.shape == (0,)
