"""Pictures of a pretraining run: one per validation, the same record, the same bytes again."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_runs import finish, loss_trace, start

from ecgfast import log
from ecgfast.config import load_config
from ecgfast.data.normalise import Normalisation
from ecgfast.model.build import build_model
from ecgfast.model.mae import EVALUATION_EPOCH
from ecgfast.runs.ecg_paper import draw
from ecgfast.runs.inference import fill_in
from ecgfast.store.reader import open_store
from ecgfast.train.dataset import open_loader
from ecgfast.train.distributed import Ranks
from ecgfast.train.pretrain import model_inputs, pretrain
from ecgfast.train.validation import FOLDER, Validation

SETTINGS = ("train.val_fraction=0.2", "train.max_steps=23")  # validated every 10 steps
DRAWN_AT = [10, 20, 23]


@pytest.fixture(scope="module")
def whole(store: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    return pretrain(store, run, preset=load_config(str(tiny), SETTINGS), device="cpu")


def _pictures(run: Path) -> dict[int, bytes]:
    """Everything in the folder, by step."""
    return {int(p.stem.removeprefix("step-")): p.read_bytes() for p in (run / FOLDER).iterdir()}


def _shown(run: Path) -> dict[int, bytes]:
    """What TensorBoard has, by step; a step that came twice fails."""
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0}).Reload()
    images = events.Images("reconstruction")
    assert len({image.step for image in images}) == len(images)
    return {image.step: image.encoded_image_string for image in images}


def _pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def test_each_validation_leaves_a_picture(whole: Path) -> None:
    pictures, shown = _pictures(whole), _shown(whole)
    assert sorted(pictures) == sorted(shown) == DRAWN_AT
    for step, png in pictures.items():
        assert (_pixels(png) == _pixels(shown[step])).all()
    assert len(set(pictures.values())) == len(DRAWN_AT), "the model learns, the picture does not"


def test_pictures_change_no_number(whole: Path, store: Path, tiny: Path, tmp_path: Path) -> None:
    config = load_config(str(tiny), [*SETTINGS, "train.val_every=1000"])
    run = pretrain(store, tmp_path / "run", preset=config, device="cpu")
    assert list(_pictures(run)) == DRAWN_AT[-1:]
    assert loss_trace(run) == loss_trace(whole)


def test_a_resumed_run_draws_the_same_bytes_over_the_old_ones(
    whole: Path, store: Path, tiny: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    before = load_config(str(tiny), [*SETTINGS, "train.max_steps=14"])
    pretrain(store, run, preset=before, device="cpu")
    (run / FOLDER / "step-00000020.png").write_bytes(b"of a life that was killed")
    pretrain(store, run, preset=load_config(str(tiny), SETTINGS), device="cpu", resume=True)
    (run / FOLDER / "step-00000014.png").unlink()  # where the first life ended
    assert _pictures(run) == _pictures(whole)


@pytest.mark.slow
def test_one_of_two_ranks_draws(whole: Path, store: Path, tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    command = ["pretrain", str(store), "--out", str(run), "--preset", str(tiny), *settings]
    finish(start([*command, "--device", "cpu"], ranks=2))
    pictures = _pictures(run)
    assert sorted(pictures) == sorted(_shown(run)) == DRAWN_AT
    for step, png in _pictures(whole).items():  # the losses differ in the last digits
        assert np.abs(_pixels(png) - _pixels(pictures[step])).mean() < 0.1


def test_the_first_record_is_drawn_as_the_command_draws_it_while_predictions_are_finite(
    store: Path, tiny: Path, tmp_path: Path
) -> None:
    config, reader, ranks = load_config(str(tiny)), open_store(store), Ranks()
    rows = np.array([5, 3, 8])
    model = build_model(config)
    validation = Validation(
        ranks=ranks,
        model=model,
        store=reader,
        loader=open_loader(
            reader,
            config,
            ranks,
            rows,
            batch_size=3,
            seed=0,
            normalisation=Normalisation(),
            shuffle=False,
        ),
        inputs_of=model_inputs(config, epoch=EVALUATION_EPOCH),
        microbatch=1,
        normalisation=Normalisation(),
    )
    (result,) = fill_in(model, config, Normalisation(), reader, rows[:1])
    expected = io.BytesIO()
    draw(reader, result, ("II", "V5")).savefig(expected, format="png")
    with log.MetricsWriter(tmp_path) as metrics:
        validation.loss()
        validation.draw(tmp_path, metrics, step=1)
        torch.nn.init.constant_(model.decoder_pred.bias, torch.nan)
        validation.loss()
        validation.draw(tmp_path, metrics, step=2)
    assert _pictures(tmp_path) == {1: expected.getvalue()}
    assert list(_shown(tmp_path)) == [1]
