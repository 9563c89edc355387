"""predict scores raw files exactly as the store's windows are, and says what the run has seen."""

import csv
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from recordings import KEY, convert_quietly, ecg_like, write_wfdb

import ecgfast
from ecgfast.cli import main
from ecgfast.config import load_config
from ecgfast.errors import ConfigError, EcgfastError
from ecgfast.labels.commands import label_store
from ecgfast.predict import Predictor, write_predictions
from ecgfast.predictor import EcgModel
from ecgfast.runs.inference import check_weights
from ecgfast.runs.loading import load_run
from ecgfast.store.reader import open_store
from ecgfast.train.finetune import finetune

TARGET = "ejection_fraction<40"
LENGTHS = (5000, 3500, 12500, 5000)  # 10 s, 7 s, 25 s
SPLITS = ("train", "train", "valid", "test")
NUM_RECORDS = 24


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings of 7, 10 and 25 seconds with offsets, padded and cut into all their windows."""
    folder = tmp_path_factory.mktemp("lengths")
    lines = ["record_id,split,ejection_fraction"]
    for number in range(NUM_RECORDS):
        length = LENGTHS[number % 4]
        signal = ecg_like(1, seed=number, num_timesteps=length)[0]
        signal[6:] += 500  # what padding with zeros would show in the statistics of a lead
        if number == 2:
            signal[:, 5000:5100] = -32768  # too much is missing of its second window
        write_wfdb(folder / f"in/r{number:02d}", signal, comments=[f"patient: {number}"])
        # in rounds of eight, so that every split has cases and controls
        lines.append(f"r{number:02d},{SPLITS[number % 4]},{30 if number % 8 < 4 else 60}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    convert_quietly([folder / "in"], folder / "store", short="pad", window="all")
    label_store(folder / "store", folder / "labels.csv", split="column")
    return folder / "store"


@pytest.fixture(scope="module", params=["record_lead", "cohort_lead"])
def run(
    request: pytest.FixtureRequest,
    store: Path,
    tiny: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    settings = [f"data.normalise={request.param}", "finetune.epochs=1", "finetune.batch_size=4"]
    config = load_config(str(tiny), [*settings, "finetune.learning_rates=[1e-2]"])
    out = tmp_path_factory.mktemp("run") / request.param
    return finetune(store, out, preset=config, init="random", target=TARGET, device="cpu")


def table(path: Path) -> dict[tuple[str, float], dict[str, str]]:
    """File stem and second -> line of each window that has a probability."""
    with path.open() as file:
        return {
            (Path(line["file"]).stem, float(line["start_s"])): line
            for line in csv.DictReader(file)
            if line["probability"]
        }


def test_each_window_has_the_probability_that_the_store_gives_it(
    run: Path, store: Path, tmp_path: Path
) -> None:
    write_predictions(run, [store.with_name("in")], tmp_path / "out.csv")
    lines = table(tmp_path / "out.csv")
    opened = open_store(store)
    loaded = load_run(run, opened)
    expected = loaded.probabilities(opened, np.arange(len(opened)))
    with store.with_name("store.sources.csv").open() as file:
        name_of = {line["record_id"]: line["record"] for line in csv.DictReader(file)}
    starts = opened.records["start_timestep"].to_pylist()
    stored = set()
    for row, (record_id, start) in enumerate(
        zip(opened.records["record_id"].to_pylist(), starts, strict=True)
    ):
        key = (name_of[record_id], start / 500)
        stored.add(key)
        line = lines[key]
        # batches of another size round apart; the columns have six digits
        assert float(line["probability"]) == pytest.approx(expected[row], abs=2e-5)
        assert line["target"] == TARGET
        if abs(expected[row] - loaded.meta.threshold) > 2e-5:  # the record that it was taken from
            finding = expected[row] > loaded.meta.threshold
            assert line["finding"] == ("yes" if finding else "no")
        assert float(line["threshold"]) == pytest.approx(loaded.meta.threshold, abs=1e-6)
    assert set(lines) == stored
    assert len({round(value, 3) for value in expected}) > 5  # a model that separates records


def test_a_file_with_one_bad_window_is_usable(run: Path, store: Path, tmp_path: Path) -> None:
    write_wfdb(tmp_path / "gap", np.full((12, 5000), -32768, np.int16))
    files = [store.with_name("in") / "r02.hea", tmp_path / "gap.hea"]
    assert write_predictions(run, files, tmp_path / "out.csv").num_refused == 1  # the gap alone
    with (tmp_path / "out.csv").open() as file:
        shares = [line["probability"] for line in csv.DictReader(file)]
    assert [bool(share) for share in shares] == [False, True, False]


def test_ecgs_of_training_are_said(run: Path, store: Path, tmp_path: Path) -> None:
    write_predictions(run, [store.with_name("in")], tmp_path / "out.csv")
    for (name, _), line in table(tmp_path / "out.csv").items():
        taught = SPLITS[int(name[1:]) % 4] in {"train", "valid"}
        assert ("learned_from" in line["note"].split()) is taught


def test_other_ecgs_of_their_patients_are_said_with_the_key(
    run: Path, store: Path, tmp_path: Path
) -> None:
    for patient in (0, 3):  # learned from, and tested
        signal = ecg_like(1, seed=900 + patient)[0]
        write_wfdb(tmp_path / f"new/p{patient}", signal, comments=[f"patient: {patient}"])
    key = store.with_name("store.key")
    command = ["predict", str(run), str(tmp_path / "new"), "--out", str(tmp_path / "out.csv")]
    assert main(command) == 0
    assert [line["note"] for line in table(tmp_path / "out.csv").values()] == ["", ""]
    assert main([*command, "--key-file", str(key)]) == 0
    notes = [line["note"] for line in table(tmp_path / "out.csv").values()]
    assert notes == ["learned_from", ""]
    (tmp_path / "other.key").write_text(KEY[::-1])
    with pytest.raises(ConfigError, match="it is not the key of the store that the run was"):
        Predictor(run, tmp_path / "other.key")


def lines_of(path: Path) -> dict[str, dict[str, str]]:
    with path.open() as file:
        return {Path(line["file"]).stem: line for line in csv.DictReader(file)}


def test_signal_checks_are_in_the_note_as_convert_has_them(run: Path, tmp_path: Path) -> None:
    good, flat, wrong, large = ecg_like(4, seed=77, largest=500)
    flat[4] = 0
    wrong[2] += 40  # 200 microvolt off
    large *= 5
    signals = {"good": good, "flat": flat, "wrong": wrong, "large": large}
    for name, values in signals.items():
        write_wfdb(tmp_path / "in" / name, values)
    write_predictions(run, [tmp_path / "in"], tmp_path / "out.csv")
    notes = {name: line["note"] for name, line in lines_of(tmp_path / "out.csv").items()}
    found = {"flat": "flat_lead", "wrong": "einthoven"}
    found["large"] = "amplitude noise off_scale"
    assert notes == {"good": "", **found}


def test_one_odd_file_is_one_line(run: Path, tmp_path: Path) -> None:
    for name in ("a", "c"):
        write_wfdb(tmp_path / "in" / name, ecg_like(1, seed=77)[0])
    np.save(tmp_path / "in/b.npy", np.zeros((12, 5000), np.int16))
    (tmp_path / "in/b.json").write_text("[" * 100_000)
    assert write_predictions(run, [tmp_path / "in"], tmp_path / "out.csv").num_refused == 1
    lines = lines_of(tmp_path / "out.csv")
    assert [bool(lines[name]["probability"]) for name in "abc"] == [True, False, True]
    assert "b.json: cannot be read as JSON" in lines["b"]["note"]


def test_files_of_one_name_are_lines_of_their_own(run: Path, tmp_path: Path) -> None:
    for folder in ("1", "2"):
        write_wfdb(tmp_path / folder / "a", ecg_like(1, seed=77)[0])
    for name in ("empty.hea", "empty.npy"):
        (tmp_path / "1" / name).touch()
    folders = [tmp_path / "1", tmp_path / "2"]
    assert write_predictions(run, folders, tmp_path / "out.csv") == (4, 2)
    with (tmp_path / "out.csv").open() as file:
        found = {line["file"]: line for line in csv.DictReader(file)}
    scored = [name for name, line in found.items() if line["probability"]]
    assert sorted(scored) == [str(tmp_path / "1/a.hea"), str(tmp_path / "2/a.hea")]
    assert "empty.npy: is empty" in found[str(tmp_path / "1/empty.npy")]["note"]


@pytest.mark.parametrize("name", ["ecg.npy", "ecg.json", "r.hea", "r.dat"])
def test_no_input_is_written_over(run: Path, tmp_path: Path, name: str) -> None:
    write_wfdb(tmp_path / "r", ecg_like(1, seed=77)[0])
    np.save(tmp_path / "ecg.npy", ecg_like(1, seed=78)[0])
    (tmp_path / "ecg.json").write_text('{"sampling_rate_hz": 500, "scale_uv": 1}')
    before = (tmp_path / name).read_bytes()
    with pytest.raises(ConfigError, match="exists and is no table of predict"):
        write_predictions(run, [tmp_path], tmp_path / name)
    assert (tmp_path / name).read_bytes() == before


def test_a_table_is_whole_or_the_one_before(run: Path, tmp_path: Path) -> None:
    write_wfdb(tmp_path / "in/r", ecg_like(1, seed=77)[0])
    write_predictions(run, [tmp_path / "in"], tmp_path / "out.csv")
    before = (tmp_path / "out.csv").read_bytes()
    for number in range(20):
        write_wfdb(tmp_path / f"in/s{number}", ecg_like(1, seed=number)[0])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails with EFBIG
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, limits[1]))
        with pytest.raises(EcgfastError, match="disk full"):
            write_predictions(run, [tmp_path / "in"], tmp_path / "out.csv")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / "out.csv").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out.csv"]
    assert write_predictions(run, [tmp_path / "in"], tmp_path / "out.csv").num_refused == 0
    assert len(lines_of(tmp_path / "out.csv")) == 21


def test_names_on_the_screen_are_shown_and_not_obeyed(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_wfdb(tmp_path / "in/\x1b[2Ja\nb", ecg_like(1, seed=77)[0])
    write_predictions(run, [tmp_path / "in"])
    header, line = capsys.readouterr().out.splitlines()
    assert header.startswith("file,")
    assert r"/\x1b[2Ja\nb.hea," in line


def test_weights_that_are_no_numbers_are_refused() -> None:
    model = torch.nn.Linear(2, 2)
    check_weights(model, Path("run"))
    with torch.no_grad():
        model.bias[1] = torch.nan
    with pytest.raises(ConfigError, match="run has weights that are not finite"):
        check_weights(model, Path("run"))


def test_a_score_that_is_no_number_is_said_and_finds_nothing(
    run: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EcgModel, "scores", lambda _, patches: np.full(len(patches), np.nan))
    write_predictions(run, [store.with_name("in") / "r00.hea"], tmp_path / "out.csv")
    line = lines_of(tmp_path / "out.csv")["r00"]
    assert (line["probability"], line["finding"]) == ("", "")
    assert "no_number" in line["note"].split()


def test_a_closed_screen_takes_no_lines_and_is_no_error(
    run: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ecgfast predict ... >&-`: Python then has no standard output at all."""
    monkeypatch.setattr(sys, "stdout", None)
    assert write_predictions(run, [store.with_name("in") / "r00.hea"]).num_refused == 0


def test_a_reader_that_has_enough_ends_predict_quietly(run: Path, store: Path) -> None:
    command = [sys.executable, "-m", "ecgfast", "predict", str(run), str(store.with_name("in"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(b"file,")
        process.stdout.close()
        said = process.stderr.read().decode()
    assert "error" not in said.lower()
    assert "Traceback" not in said


def test_windows_of_a_recording_are_averaged_and_their_spread_is_shown(
    run: Path, store: Path, tmp_path: Path
) -> None:
    source = store.with_name("in")
    files = [source / f"r0{number}.hea" for number in (0, 2, 6)]  # 10 s; 25 s, one with a gap
    write_wfdb(tmp_path / "gap", np.full((12, 5000), -32768, np.int16))
    files.append(tmp_path / "gap.hea")
    write_predictions(run, files, tmp_path / "windows.csv")
    single = table(tmp_path / "windows.csv")
    command = ["predict", str(run), *map(str, files), "--average"]
    assert main([*command, "--out", str(tmp_path / "mean.csv")]) == 0
    lines = lines_of(tmp_path / "mean.csv")
    assert sorted(lines) == ["gap", "r00", "r02", "r06"]
    first, second = (float(single["r06", start]["probability"]) for start in (0.0, 10.0))
    assert first != second
    mean = lines["r06"]
    assert mean["windows"] == "2"
    assert float(mean["probability"]) == pytest.approx((first + second) / 2, abs=2e-6)
    assert float(mean["sd"]) == pytest.approx(abs(first - second) / 2**0.5, abs=2e-6)
    assert [float(mean[name]) for name in ("lowest", "highest")] == sorted([first, second])
    found = float(mean["probability"]) >= float(mean["threshold"])
    assert mean["finding"] == ("yes" if found else "no")
    assert "windows_left_out" not in mean["note"].split()
    for name, words in (("r00", False), ("r02", True)):  # one window each
        line = lines[name]
        assert (line["windows"], line["sd"]) == ("1", "")
        assert line["probability"] == single[name, 0.0]["probability"] == line["lowest"]
        assert ("windows_left_out" in line["note"].split()) is words
    gap = lines["gap"]
    assert [gap[name] for name in ("probability", "windows", "lowest")] == ["", "0", ""]
    assert "marked invalid" in gap["note"]


def test_a_report_takes_the_windows_of_a_recording_together(
    run: Path, store: Path, tmp_path: Path
) -> None:
    command = ["evaluate", str(run), str(store), "--out"]
    assert main([*command, str(tmp_path / "windows")]) == 0
    assert main([*command, str(tmp_path / "recordings"), "--average"]) == 0
    windows, recordings = (
        pq.read_table(tmp_path / name / "scores.parquet").to_pylist()
        for name in ("windows", "recordings")
    )
    assert {line["split"] for line in windows} == {"test"}  # of 10 s each, so that each is one
    assert [line["probability"] for line in recordings] == [line["probability"] for line in windows]
    assert {line["windows_count"] for line in recordings} == {1}
    assert "windows_count" not in windows[0]
    assert "windows averaged in" in (tmp_path / "recordings" / "report.html").read_text()


@pytest.mark.parametrize("rate_hz", [250, 360, 1000])
def test_other_rates_are_resampled_as_in_the_store(run: Path, tmp_path: Path, rate_hz: int) -> None:
    """The same smooth ECG at another rate, and the store that convert makes of it."""
    seconds = np.arange(10 * rate_hz) / rate_hz
    waves = [np.sin(2 * np.pi * (1 + lead / 4) * seconds + lead) for lead in range(12)]
    write_wfdb(tmp_path / "in/r", np.rint(1000 * np.array(waves)).astype(np.int16), rate=rate_hz)
    convert_quietly([tmp_path / "in"], tmp_path / "store", short="pad", window="all")
    opened = open_store(tmp_path / "store")
    (expected,) = load_run(run, opened).probabilities(opened, np.arange(1))
    write_predictions(run, [tmp_path / "in"], tmp_path / "out.csv")
    line = lines_of(tmp_path / "out.csv")["r"]
    assert float(line["probability"]) == pytest.approx(expected, abs=2e-5)
    assert "resampled" in line["note"].split()
    at_500 = np.arange(5000) / 500
    same = [1000 * np.sin(2 * np.pi * (1 + lead / 4) * at_500 + lead) for lead in range(12)]
    microvolt = np.rint(1000 * np.array(waves)) * 5
    (of_array,) = ecgfast.load_model(run).predict(microvolt, sampling_rate_hz=rate_hz)
    assert of_array == pytest.approx(expected, abs=2e-4)
    (of_500,) = EcgModel.predict(ecgfast.load_model(run), np.array(same) * 4.88)
    assert float(line["probability"]) == pytest.approx(of_500, abs=5e-3)
