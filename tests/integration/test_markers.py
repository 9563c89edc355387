"""Every name, path, comment, key and cell of the inputs is a marker: none leaves by default.

All commands run on inputs full of markers; then every byte that they wrote and every line that they
printed is searched. Sites, age groups and the ejection fraction are meant to enter a store.
"""

import csv
import json
import re
import socket
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import wfdb
from marked_files import write_marked
from markers import MARKER, Markers, search
from recordings import ecg_like, write_wfdb

from ecgfast.cli import main
from ecgfast.records import LEADS

NUM_ROWS = 40  # of the batch that is trained on
TINY = """
[model]
encoder_width = 32
encoder_depth = 1
encoder_heads = 2
decoder_width = 32
decoder_depth = 1
decoder_heads = 2
[train]
batch_size = 4
max_steps = 2
val_every = 1
val_fraction = 0.1
[finetune]
epochs = 1
batch_size = 8
learning_rates = [1e-3]
"""
pytestmark = pytest.mark.slow


def write_inputs(folder: Path, mark: Markers) -> Path:
    """Write recordings of every kind, good and bad; returns the source."""
    source = folder / mark("source folder") / mark("folder")
    signals = ecg_like(8, seed=0)
    sections = ["<diagnoses>:", mark("diagnosis"), f"Dr. {mark('below the diagnosis')}"]
    comments = [
        f"patient: {mark('patient id of a header')}",
        f"patient name: {mark('unknown comment')}",
        f"birth date: {mark('date comment')}",
        mark("comment without a key"),
        f"<{mark('tag')}>: {mark('value of a tag')}",
        "Age: 103",
        "Sex: F",
        *sections,
    ]
    write_wfdb(source / mark("record"), signals[0], comments=comments, date="08:00 10/05/1951")
    named = source / mark("header with another name")
    write_wfdb(named, signals[1], comments=[f"Dx: 426783006, {mark('item of a diagnosis')}"])
    header = named.with_suffix(".hea")
    data = mark("signal file")
    named.with_suffix(".dat").rename(source / f"{data}.dat")
    lines = header.read_text().replace(f"{named.name}.dat", f"{data}.dat").splitlines()
    lines[0] = lines[0].replace(named.name, mark("name in a header"))
    header.write_text("\n".join(lines) + "\n")
    extra = np.concatenate([signals[2], signals[2][:1]])
    write_wfdb(source / mark("13 leads"), extra, leads=[*LEADS, mark("description of a lead")])
    for storage in ("24", "212"):
        wfdb.wrsamp(
            mark(f"record in format {storage}"),
            fs=500,
            units=["mV"] * 12,
            sig_name=list(LEADS),
            d_signal=signals[3].T.astype(np.int64) // 8,
            fmt=[storage] * 12,
            adc_gain=[200.0] * 12,
            baseline=[0] * 12,
            comments=[f"{mark('key of a comment')}: {mark('value of a comment')}"],
            write_dir=str(source),
        )
    write_marked(source / mark("folder of vendors"), mark)
    _write_arrays(source, signals, mark)
    _write_refused(source, signals, mark)
    for suffix in (".xml", ".pdf", ".dat", ".txt"):
        (source / f"{mark(f'passed over {suffix}')}{suffix}").write_text(mark(f"in {suffix}"))
    return source


def _write_arrays(source: Path, signals: np.ndarray, mark: Markers) -> None:
    facts = {"sampling_rate_hz": 500, "scale_uv": 5.0}
    personal = {
        "patient_id": mark("patient id of a sidecar"),
        "patient_name": mark("sidecar value"),
        mark("sidecar key"): True,
        mark("key of 0 and 1"): 1,
        "mrn": mark.number("sidecar number"),
        "device": {mark("nested key"): [mark("nested value"), mark.number("nested number")]},
        "diagnosis": mark("diagnosis of a sidecar"),
        "sex": mark("sex of a sidecar"),
        "recorded": mark("date of a sidecar"),
    }
    one = source / mark("array")
    np.save(f"{one}.npy", signals[4])
    Path(f"{one}.json").write_text(json.dumps({**facts, **personal}))
    simple = {name: value for name, value in personal.items() if name != "device"}
    np.savez(source / mark("archive"), signal=signals[5], **facts, **simple)
    batch = source / mark("folder of a batch")
    batch.mkdir()
    np.save(batch / "batch.npy", ecg_like(NUM_ROWS, seed=1))
    shared = {**facts, **personal, "patient_id": None, "site": "north"}
    (batch / "signals.json").write_text(json.dumps(shared))


def _write_refused(source: Path, signals: np.ndarray, mark: Markers) -> None:
    bad = source / mark("folder of bad files")
    lead_names = [f"{mark('lead')}" for _ in LEADS]
    write_wfdb(bad / mark("without leads"), signals[6], leads=lead_names)
    lost = bad / mark("without its signal")
    write_wfdb(lost, signals[6])
    lost.with_suffix(".dat").unlink()
    (bad / f"{mark('other suffix')}.hea").write_text(
        "r 12 500 5000\n" + "".join(f"{mark('lost file')}.ecg 16 200 16 0 0 0 0 I\n" for _ in LEADS)
    )
    (bad / f"{mark('torn header')}.hea").write_text(f"{mark('word')} {mark('number of signals')}\n")
    (bad / f"{mark('text as array')}.npy").write_text(mark("text in an array"))
    (bad / f"{mark('text as archive')}.npz").write_text(mark("text in an archive"))
    np.savez(bad / mark("archive without a signal"), **{mark("array of an archive"): np.ones(3)})
    for what, facts in {
        "rate": {"sampling_rate_hz": mark("bad rate"), "scale_uv": 1},
        "scale": {"sampling_rate_hz": 500, "scale_uv": [mark("bad scale")] * 12},
        "leads": {"sampling_rate_hz": 500, "scale_uv": 1, "leads": [mark("lead name")] * 12},
        "id": {"sampling_rate_hz": 500, "scale_uv": 1, "patient_id": mark("half") + "\ud800"},
        "fraction": {"sampling_rate_hz": 500, "scale_uv": 1, "ejection_fraction": mark("text")},
    }.items():
        path = bad / mark(f"array with a bad {what}")
        np.save(f"{path}.npy", signals[7])
        Path(f"{path}.json").write_text(json.dumps(facts))
    np.save(bad / f"{mark('array without sidecar')}.npy", signals[7])
    cut = bad / mark("cut short")
    write_wfdb(cut, signals[7])
    cut.with_suffix(".dat").write_bytes(cut.with_suffix(".dat").read_bytes()[:1000])
    write_wfdb(bad / mark("too short"), signals[7][:, :100])


def write_labels(path: Path, source: Path, mark: Markers) -> None:
    """Write a table whose further columns are all markers."""
    batch = next(source.glob("*/batch.npy")).relative_to(source).with_suffix("")
    splits = ("train", "train", "train", "valid", "test")
    names = ["patient_name", mark("text column"), mark("number column"), "PatientID", "birthdate"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        columns = ["record_id", "patient_id", "split", "ejection_fraction", "lvh", "sex", "age"]
        writer.writerow([*columns, "ecg_date", *names])
        for row in range(NUM_ROWS):
            writer.writerow(
                [
                    f"{batch}/{row}",
                    f"{mark('patient of a row')}",
                    splits[row // 2 % 5],
                    30 if row % 2 else 60,
                    row % 2,
                    "F",
                    91,
                    "1951-05-10",
                    mark("cell of text"),
                    mark("cell of a marked column"),
                    mark.number("cell of numbers"),
                    mark.number("cell of ids"),
                    mark.number("cell of dates"),
                ]
            )


def run(*words: object) -> None:
    assert main([str(word) for word in words]) == 0


def run_commands(private: Path, out: Path, mark: Markers) -> Path:
    """Run every command but predict; returns the source."""
    source = write_inputs(private, mark)
    labels = private / f"{mark('file of labels')}.csv"
    write_labels(labels, source, mark)
    preset = private / mark("folder of the preset") / "tiny.toml"
    preset.parent.mkdir()
    preset.write_text(TINY)
    store, runs = out / "store", out / "runs"
    run("convert", source, "--out", store, "--workers", 2)
    run("label", store, labels, "--split", "column")
    run("convert", store, "--out", out / "copy", "--codec", "zstd", "--workers", 1)
    run("info", store)
    run("verify", store)
    run("splits", store, "--export", out / "splits.csv")
    run("pretrain", store, "--out", runs / "pretrained", "--preset", preset, "--device", "cpu")
    run(
        *("finetune", store, "--out", runs / "vit", "--init", runs / "pretrained"),
        *("--device", "cpu"),
    )
    run("evaluate", runs / "vit", runs / "pretrained", store, "--out", out / "report")
    record = pq.read_table(store / "records.parquet")["record_id"][0].as_py()
    picture = out / "record.png"
    run("reconstruct", runs / "pretrained", store, "--record", record, "--out", picture)
    return source


def test_no_marker_leaves(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    mark = Markers()
    private, out = tmp_path / "private", tmp_path / "out"
    out.mkdir()
    source = run_commands(private, out, mark)
    scores = out / "scores.csv"
    run("predict", out / "runs/vit", source, "--out", scores)
    printed = "".join(capfd.readouterr()).encode()

    ends = (".sources.csv", ".passed_over.csv", ".unmatched.csv", ".key")
    beside = {out / f"{name}{end}" for name in ("store", "copy") for end in ends}
    hits, searched = search(out, beside | {scores})
    assert hits == []
    # A table that the user named, and its columns, are shown on the console for him to choose.
    table = next(private.glob("*.csv"))
    shown = f"{table.name} {table.read_text().splitlines()[0]}".encode()
    assert set(MARKER.findall(printed)) == set(MARKER.findall(shown))
    assert host_in(out) == []
    own = str(tmp_path).encode()
    files = [path for path in (out / "runs").rglob("*") if path.is_file()]
    assert [path for path in files if own in path.read_bytes()] == []

    # The search finds what is there: these hold the names, for the hospital alone.
    assert len(mark.places) > 300
    assert searched > 10_000_000
    table = out / "store.sources.csv"
    assert table.stat().st_mode & 0o777 == 0o600
    assert len(set(MARKER.findall(table.read_bytes()))) > 50
    assert MARKER.search(scores.read_bytes())
    assert "lvh" in pq.read_table(out / "store/records.parquet").column_names
    print(f"{len(mark.places)} markers, {searched:,} bytes and {len(printed):,} printed: no hit")


def host_in(folder: Path) -> list[Path]:
    """Files whose names hold this machine's."""
    host = re.compile(rf"\b{re.escape(socket.gethostname())}\b")
    return [path for path in folder.rglob("*") if host.search(path.name)]
