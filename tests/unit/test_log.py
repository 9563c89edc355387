"""Progress lines, strictness and the metrics file."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ecgfast import log
from ecgfast.errors import BackendUnavailableError, FormatError


def test_metrics_of_steps_after_the_resume_point_are_forgotten(tmp_path: Path) -> None:
    writer = log.MetricsWriter(tmp_path, tensorboard=False)
    for step in (10, 20, 30):
        writer.write({"step": step, "loss": step / 7})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')  # what a kill leaves

    resumed = log.MetricsWriter(tmp_path, resume_step=20, tensorboard=False)
    resumed.write({"step": 30, "loss": 1.5})
    resumed.close()

    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [10, 20, 30]
    assert rows[1]["loss"] == 20 / 7  # floats survive the rewrite bit for bit
    assert rows[2]["loss"] == 1.5


def test_a_picture_goes_to_tensorboard_alone(tmp_path: Path) -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    made, png = tmp_path / "made", io.BytesIO()
    made.mkdir()
    Image.fromarray(pixels).save(png, format="png")
    with log.MetricsWriter(made, tensorboard=True) as writer:
        writer.image("drawn", png.getvalue(), step=7)
    with log.MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.image("drawn", png.getvalue(), step=7)
    events = EventAccumulator(str(made / "tensorboard")).Reload()
    (image,) = events.Images("drawn")
    assert image.step == 7
    shown = Image.open(io.BytesIO(image.encoded_image_string))
    assert (np.asarray(shown) == pixels).all()
    assert log.read_metrics(made) == []
    assert not (tmp_path / "tensorboard").exists()


def test_a_cut_last_line_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2')
    assert log.read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]
    assert log.read_metrics(tmp_path / "nowhere") == []


def test_strict_turns_a_slower_path_into_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_strict", True)
    with pytest.raises(BackendUnavailableError, match=r"attention: no xformers; install it"):
        log.slower_path("attention", reason="no xformers", cure="install it")


def test_a_slower_path_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[str] = []
    monkeypatch.setattr(log.logger, "warning", logged.append)
    for _ in range(3):
        log.slower_path("logged once", reason="why", cure="how")
    assert logged == ["logged once: why; how"]


def test_progress_prints_plain_lines_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(log, "_PLAIN_PERIOD_S", 0.0)
    monkeypatch.setattr(log, "console", log.Console(stderr=True, force_terminal=False))
    assert list(log.track(range(4), "count", total=4)) == [0, 1, 2, 3]
    lines = capsys.readouterr().err.splitlines()
    assert lines[1].startswith("count: 2 of 4 records, 50%")
    assert len(lines) == 4


@pytest.mark.parametrize("line", ["garbage", "[1]", "{}", "\ufffd"])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(FormatError, match="line 2 is damaged"):
        log.read_metrics(tmp_path)


def test_an_event_file_of_a_resumed_run_takes_the_place_of_later_steps(tmp_path: Path) -> None:
    for resume_step, steps in ((None, (1, 2, 3)), (1, (2,))):
        with log.MetricsWriter(tmp_path, resume_step=resume_step, tensorboard=True) as writer:
            for step in steps:
                writer.write({"step": step, "loss": 10.0 * step + (resume_step or 0)})
    names = [path.name for path in (tmp_path / "tensorboard").iterdir()]
    assert len(names) == 2
    assert all(re.fullmatch(r"events\.out\.tfevents\.\d{16}\.\d+", name) for name in names)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(each.step, each.value) for each in events.Scalars("loss")] == [(1, 10), (2, 21)]


def test_metrics_are_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    with log.MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write({"step": 1, "loss": 1.0})
    (tmp_path / "metrics.tmp").symlink_to("victim")
    with log.MetricsWriter(tmp_path, resume_step=1, tensorboard=False) as writer:
        writer.write({"step": 2, "loss": 1.0})
    assert (tmp_path / "victim").read_text() == "precious"
    assert [row["step"] for row in log.read_metrics(tmp_path)] == [1, 2]


def test_names_cannot_steer_a_terminal_or_forge_a_line() -> None:
    assert log.plain("a\x1b[2Jb\nc\rd\te\x9bf\x7f") == r"a\x1b[2Jb\nc\rd\te\x9bf\x7f"
    assert (
        log.plain("site \u202eevil\u2069 \u2028 \udcff") == r"site \u202eevil\u2069 \u2028 \udcff"
    )
    assert log.plain("Müller 心 😀 $x$ <b>") == "Müller 心 😀 $x$ <b>"


def test_logged_names_are_plain(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="ecgfast"):
        log.info("read \x1b]0;x\x07.hea")
        log.warning("lost a\nb.hea")
    assert [record.getMessage() for record in caplog.records] == [
        r"read \x1b]0;x\x07.hea",
        r"lost a\nb.hea",
    ]
