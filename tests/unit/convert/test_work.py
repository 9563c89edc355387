"""What a worker makes of good and bad files; no readable name enters the store."""

import csv
import errno
import hashlib
import os
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from disk_calls import recorded_calls
from numpy.typing import NDArray
from recordings import convert_quietly, ecg_like, snapshot, write_wfdb

import ecgfast
from ecgfast.convert import work
from ecgfast.convert.plan import ConvertOptions, PlannedInput
from ecgfast.convert.work import EncodedRecord, Refusal, encode_inputs
from ecgfast.errors import EcgfastError, FormatError, Reason
from ecgfast.ingest.inventory import discover
from ecgfast.records import LEADS
from ecgfast.store.patients import Pseudonyms
from ecgfast.vocabulary import Codec


def test_quality_flags(tmp_path: Path) -> None:
    good, flat, high, low, clipped, large = ecg_like(6, seed=0, largest=500)
    flat[8] = 17
    high[2] += 40  # 200 microvolt off
    low[2] -= 30
    clipped[6] = np.clip(10 * clipped[6], -400, 400)  # 2 mV
    large *= 5
    for name, signal in zip("abcdef", (good, flat, high, low, clipped, large), strict=True):
        write_wfdb(tmp_path / "in" / name, signal)
    convert_quietly([tmp_path / "in"], tmp_path / "store")
    records = ecgfast.open_store(tmp_path / "store").records
    # The sharp beats of `large` are taken for those of a pacemaker.
    assert records["flags"].to_pylist() == ["no_patient_id"] * 5 + ["no_patient_id;pacing"]
    assert records["quality"].to_pylist() == [
        *("", "flat_lead", "einthoven", "einthoven"),
        *("noise;saturated", "amplitude;noise;off_scale"),
    ]
    leads = ["", "flat_lead=V3", "", "", "noise=V1;saturated=V1"]
    assert records["quality_leads"].to_pylist()[:5] == leads
    assert records["einthoven_uv"].to_pylist() == [0, 0, 200, 150, 0, 0]
    summary = convert_quietly([tmp_path / "in"], tmp_path / "strict", quality="strict")
    assert (summary.num_converted, summary.num_quarantined) == (1, 5)
    reasons = (tmp_path / "strict/quarantine.csv").read_text()
    for flag in ("flat_lead", "einthoven", "saturated", "amplitude"):
        assert f"signal check: {flag}" in reasons


def test_inputs_are_converted_or_quarantined(tmp_path: Path) -> None:
    write_wfdb(tmp_path / "in/good", ecg_like(1, seed=0)[0])
    write_wfdb(tmp_path / "in/short", ecg_like(1, seed=0)[0, :, :100])
    write_wfdb(tmp_path / "in/torn", ecg_like(1, seed=0)[0])
    torn = tmp_path / "in/torn.dat"
    torn.write_bytes(torn.read_bytes()[:1000])
    summary = convert_quietly([tmp_path / "in"], tmp_path / "store", on_bad="fail")
    assert (summary.num_inputs, summary.num_converted, summary.num_quarantined) == (3, 1, 2)
    assert summary.failed
    assert not convert_quietly([tmp_path / "in"], tmp_path / "store").failed


def test_nothing_converted(tmp_path: Path) -> None:
    write_wfdb(tmp_path / "in/short", ecg_like(1, seed=0)[0, :, :100])
    with pytest.raises(FormatError, match="none of 1 inputs"):
        convert_quietly([tmp_path / "in"], tmp_path / "store")


def test_names_stay_out_of_the_store(tmp_path: Path) -> None:
    signal = ecg_like(1, seed=0)[0]
    write_wfdb(tmp_path / "Jane_Doe/Doe_1960", signal, comments=["patient: MRN4711"])
    write_wfdb(tmp_path / "Jane_Doe/Doe_1961", signal[:, :50])
    write_wfdb(tmp_path / "Jane_Doe/Doe_1962", signal, leads=[f"lead{n}" for n in range(12)])
    (tmp_path / "Jane_Doe/Doe_1962.dat").unlink()
    (tmp_path / "Jane_Doe/x1.hea").write_text("Jane Doe 12 500 5000\n")
    (tmp_path / "Jane_Doe/x2.hea").write_text("Doe 12 -5 5000 12:00 01/02/1960\n")
    (tmp_path / "Jane_Doe/x3.hea").write_text("r 1 500\nDoe.x 16 much/mV 16 0 0 0 0 Doe\n")
    (tmp_path / "Jane_Doe/x4.hea").write_text(
        "r 12 500 5000\n" + "".join(f"Doe_1951.xyz 16 200 16 0 0 0 0 {lead}\n" for lead in LEADS)
    )
    (tmp_path / "Jane_Doe/x5.npy").write_bytes(b"Jane Doe, born 1951")
    np.save(tmp_path / "Jane_Doe/x6.npy", signal)
    (tmp_path / "Jane_Doe/x6.json").write_text('{"sampling_rate_hz": "Jane Doe", "scale_uv": 1}')
    np.save(tmp_path / "Jane_Doe/x7.npy", signal)
    (tmp_path / "Jane_Doe/x7.json").write_text(
        '{"sampling_rate_hz": 500, "scale_uv": 1, "patient_id": "Jane Doe \\ud800"}'
    )
    convert_quietly([tmp_path / "Jane_Doe"], tmp_path / "store")
    content = b"".join(snapshot(tmp_path / "store").values())
    for name in (b"Doe", b"Jane", b"4711", b"1951", bytes(tmp_path)):
        assert name not in content
    beside = tmp_path / "store.sources.csv"
    assert "Doe_1960.hea" in beside.read_text()
    assert beside.stat().st_mode & 0o777 == 0o600
    lines = {line["record"]: line for line in csv.DictReader(beside.read_text().splitlines())}
    assert "Doe_1951.xyz is missing" in lines["x4"]["detail"]
    assert "Jane Doe \\ud800" in lines["x7"]["detail"]
    assert lines["Doe_1960"]["detail"] == ""
    refused = list(csv.DictReader((tmp_path / "store/quarantine.csv").read_text().splitlines()))
    assert len(refused) == 9
    assert {line["reason"] for line in refused} <= set(get_args(Reason))


def test_a_reason_is_short_and_soon_there(tmp_path: Path) -> None:
    write_wfdb(tmp_path / "in/good", ecg_like(1, seed=0)[0])
    junk = "x" * 1_000_000  # a pattern over all of it would take hours
    (tmp_path / "in/junk.npy").write_bytes(b"")
    (tmp_path / "in/signals.json").write_text(f'{{"sampling_rate_hz": "{junk}"}}')
    summary = convert_quietly([tmp_path / "in"], tmp_path / "store")
    assert summary.num_quarantined == 1
    assert (tmp_path / "store.sources.csv").stat().st_size < 2000


def test_keep_identifiers(tmp_path: Path) -> None:
    write_wfdb(tmp_path / "in/x/y", ecg_like(1, seed=0)[0], comments=["patient: P7"])
    convert_quietly([tmp_path / "in"], tmp_path / "store", keep_identifiers=True)
    records = ecgfast.open_store(tmp_path / "store").records
    assert (records["record_id"][0].as_py(), records["patient_id"][0].as_py()) == ("x/y", "P7")


def test_one_key_gives_one_pseudonym_in_two_stores(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_wfdb(tmp_path / name / "r", ecg_like(1, seed=0)[0], comments=["patient: P7"])
        convert_quietly([tmp_path / name], tmp_path / f"store_{name}", key_file=tmp_path / "key")
    patients = {
        ecgfast.open_store(tmp_path / f"store_{name}").records["patient_id"][0].as_py()
        for name in ("a", "b")
    }
    key = bytes.fromhex((tmp_path / "key").read_text())
    assert patients == {Pseudonyms(key).of("patient", "P7")}


def planned(folder: Path, windows: int) -> list[PlannedInput]:
    return [
        PlannedInput(item, position, range(windows * position, windows * (position + 1)))
        for position, item in enumerate(discover([folder]))
    ]


def test_a_unit_takes_the_windows_of_its_own_slots(tmp_path: Path) -> None:
    """A recording can begin in the unit before, and end in the next one."""
    for number, signal in enumerate(ecg_like(2, seed=0, num_timesteps=15_000)):
        write_wfdb(tmp_path / f"in/r{number}", signal)
    inputs, options = planned(tmp_path / "in", 3), ConvertOptions(codec="none", window="all")
    whole, part = (
        [
            record
            for block in encode_inputs(inputs, slots, options, Pseudonyms(bytes(32)))
            for record in block
            if isinstance(record, EncodedRecord)
        ]
        for slots in (range(6), range(2, 5))
    )
    assert [each.row["start_timestep"] for each in whole] == [0, 5000, 10_000] * 2
    assert [each.row["start_timestep"] for each in part] == [10_000, 0, 5000]
    assert [each.row["row"] for each in part] == [2, 3, 4]
    assert [each.chunk for each in part] == [each.chunk for each in whole[2:5]]


def test_a_recording_of_other_length_than_planned_is_refused_in_its_first_slot(
    tmp_path: Path,
) -> None:
    write_wfdb(tmp_path / "in/r", ecg_like(1, seed=0, num_timesteps=15_000)[0])
    inputs, options = planned(tmp_path / "in", 4), ConvertOptions(window="all")
    ((refusal,),) = encode_inputs(inputs, range(4), options, Pseudonyms(bytes(32)))
    assert isinstance(refusal, Refusal)
    assert refusal.row[2] == "it has not as many windows as were planned"
    assert "it has 3 windows, 4 when the inputs were listed" in refusal.source[5]
    assert [*encode_inputs(inputs, range(1, 4), options, Pseudonyms(bytes(32)))] == [[]]


@pytest.mark.parametrize("is_retried", [False, True])
def test_refusals_and_long_recordings_among_records_move_no_signal(
    is_retried: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most records are read where they are encoded, also when a block is encoded one by one."""
    wanted: dict[str, NDArray[np.int16]] = {}
    for number, signal in enumerate(ecg_like(40, seed=2, num_timesteps=15_000)):
        path = tmp_path / f"in/r{number:02d}"
        order = 1 if number % 5 else -1  # the last lead first: put right by a copy
        windows = range(0, 15_000 if number % 11 == 4 else 5000, 5000)
        write_wfdb(path, signal[::order, : windows.stop], leads=LEADS[::order])
        if number % 7 == 3:  # read, then refused for its checksum
            header = path.with_suffix(".hea")
            header.write_text(header.read_text().replace("0 0 0 0 I\n", "0 0 1 0 I\n"))
            continue
        for start in windows:
            name = f"{path.name}@{start}" if start else path.name
            wanted[name] = signal[:, start : start + 5000]
    if is_retried:
        encode = work.encode_chunks

        def only_one(codec: Codec, signal_NCT: NDArray[np.int16]) -> list[bytes]:
            if len(signal_NCT) > 1:
                raise ValueError(len(signal_NCT))
            return encode(codec, signal_NCT)

        monkeypatch.setattr(work, "encode_chunks", only_one)
    sources, out = [tmp_path / "in"], tmp_path / "store"
    convert_quietly(sources, out, window="all", keep_identifiers=True)
    store = ecgfast.open_store(out)
    assert store.records["record_id"].to_pylist() == [*wanted]
    np.testing.assert_array_equal(store.read(range(len(wanted))), [*wanted.values()])


def test_a_convert_resumes_inside_a_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard ends with the fourth of 15 windows of a recording; the next one meets a full disk."""
    signal = ecg_like(1, seed=0, num_timesteps=75_000)[0]
    write_wfdb(tmp_path / "in/r00", signal)
    header = (tmp_path / "in/r00.hea").read_text()
    for number in range(1, 70):
        (tmp_path / f"in/r{number:02d}.hea").write_text(header)
    convert_quietly([tmp_path / "in"], tmp_path / "whole/store", window="all")
    replace = os.replace

    def full(old: Path, new: Path) -> None:
        if new.name == "c.1.0.0":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(old, new)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(EcgfastError, match="disk full"):
        convert_quietly([tmp_path / "in"], tmp_path / "again/store", window="all")
    monkeypatch.undo()
    summary = convert_quietly([tmp_path / "in"], tmp_path / "again/store", window="all")
    assert (summary.num_converted, summary.num_records) == (70, 1050)
    assert snapshot(tmp_path / "again") == snapshot(tmp_path / "whole")


def test_a_finished_convert_leaves_a_store_its_key_and_its_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest, which makes a folder a store, is the last name that appears in it."""
    write_wfdb(tmp_path / "in/r", ecg_like(1, seed=0)[0])
    (tmp_path / "out").mkdir()
    calls = recorded_calls(tmp_path / "out", monkeypatch)
    convert_quietly([tmp_path / "in"], tmp_path / "out/store")
    names = ["store", "store.fingerprints", "store.key", "store.sources.csv"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    renamed = [call.split(" to ")[1] for call in calls if call.startswith("rename")]
    assert renamed[-1] == "store/manifest.json"
    assert calls[-1] == "fsync store/"


def test_a_source_that_goes_away_is_not_quarantined(tmp_path: Path) -> None:
    write_wfdb(tmp_path / "share/r", ecg_like(1, seed=0)[0])
    inputs = planned(tmp_path / "share", 1)
    (tmp_path / "share").rename(tmp_path / "gone")
    with pytest.raises(EcgfastError, match="has gone"):
        list(encode_inputs(inputs, range(1), ConvertOptions(), Pseudonyms(bytes(32))))


def test_statistics_leave_padding_and_holes_out(tmp_path: Path) -> None:
    signal = ecg_like(1, seed=0, largest=500)[0, :, :4000]
    signal[5, 10:20] = -32768
    write_wfdb(tmp_path / "in/r", signal)
    convert_quietly([tmp_path / "in"], tmp_path / "store", short="pad")
    store = ecgfast.open_store(tmp_path / "store")
    kept = np.delete(signal[5].astype(np.float64), range(10, 20))
    assert store.lead_mean[0, 5] == pytest.approx(kept.mean(), rel=1e-6)
    assert store.lead_std[0, 5] == pytest.approx(kept.std(), rel=1e-6)
    assert store.records["flags"][0].as_py() == "interpolated;no_patient_id;padded"


def test_records_of_one_patient_get_the_split_of_his_readable_id(tmp_path: Path) -> None:
    """The lowest 15 % of the patients' hashes are test, the next valid: of 10 patients 2 and 2."""
    for number, signal in enumerate(ecg_like(40, seed=1)):
        write_wfdb(tmp_path / f"in/r{number}", signal, comments=[f"patient: {number % 10}"])
    convert_quietly([tmp_path / "in"], tmp_path / "store", keep_identifiers=True)
    records = ecgfast.open_store(tmp_path / "store").records
    pairs = set(zip(records["patient_id"].to_pylist(), records["split"].to_pylist(), strict=True))
    order = sorted(map(str, range(10)), key=lambda patient: digest(f"ecgfast split 0\0{patient}"))
    splits = ["test"] * 2 + ["valid"] * 2 + ["train"] * 6
    assert pairs == set(zip(order, splits, strict=True))


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
