"""Real recordings through convert: nothing lost, every digit as the file holds it."""

import csv
from pathlib import Path

import numpy as np
import pytest
import wfdb
from recordings import convert_quietly

import ecgfast
from ecgfast.convert.run import ConvertSummary
from ecgfast.records import LEADS
from ecgfast.store.info import describe
from ecgfast.store.verify import verify_store

REFUSED_BY_WFDB = ("E00009", "E00015", "E00018", "E00793")


@pytest.fixture(scope="module")
def made(
    shared_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, ConvertSummary]:
    out = tmp_path_factory.mktemp("real") / "store"
    sources = [shared_data / "ludb", shared_data / "ptbxl/hr_gt", shared_data / "cinc2020"]
    return out, convert_quietly(sources, out, keep_identifiers=True, workers=2)


def source_of(out: Path) -> dict[str, Path]:
    with out.with_name("store.sources.csv").open() as file:
        return {line["record_id"]: Path(line["source"]) for line in csv.DictReader(file)}


def read_samples(header: Path) -> tuple[float, np.ndarray]:
    """Rate and (12, T) ADC units in our lead order, parsed here from format 16 in one file.

    Four of the headers are refused by the wfdb package, so it cannot be the oracle for all.
    """
    lines = [line for line in header.read_text().splitlines() if line and line[0] != "#"]
    record, signals = lines[0].split(), [line.split() for line in lines[1:13]]
    data = (header.parent / signals[0][0]).read_bytes()
    start = int(signals[0][1].partition("+")[2] or 0)
    samples = np.frombuffer(data, "<i2", offset=start).reshape(-1, len(signals))
    names = [signal[-1].lower() for signal in signals]
    order = [names.index(lead.lower()) for lead in LEADS]
    return float(record[2]), samples[:, order].T


def test_inputs_are_converted_or_quarantined(
    made: tuple[Path, ConvertSummary], shared_data: Path
) -> None:
    out, summary = made
    folders = ("ludb", "ptbxl/hr_gt", "cinc2020")
    headers = [path for name in folders for path in (shared_data / name).rglob("*.hea")]
    assert summary.num_inputs == len(headers)
    assert summary.num_converted + summary.num_quarantined == len(headers)
    with (out / "quarantine.csv").open() as file:
        refused = list(csv.DictReader(file))
    assert len(refused) == summary.num_quarantined
    assert all(line["reason"] for line in refused)
    assert set(REFUSED_BY_WFDB) <= set(ecgfast.open_store(out).records["record_id"].to_pylist())
    assert sum(describe(out).reasons.values()) == summary.num_quarantined


def test_every_digit(made: tuple[Path, ConvertSummary]) -> None:
    out, _ = made
    store, sources = ecgfast.open_store(out), source_of(made[0])
    compared = 0
    for number, name in enumerate(store.records["record_id"].to_pylist()):
        rate, samples = read_samples(sources[name])
        if rate == 500 and samples.shape[1] >= 5000 and not (samples[:, :5000] == -32768).any():
            np.testing.assert_array_equal(store.read([number])[0], samples[:, :5000], err_msg=name)
            compared += 1
    assert compared >= 250


def test_microvolt_agree_with_wfdb(made: tuple[Path, ConvertSummary]) -> None:
    out, _ = made
    store, sources = ecgfast.open_store(out), source_of(out)
    names = store.records["record_id"].to_pylist()
    for number in range(0, len(names), 10):
        if names[number].endswith(REFUSED_BY_WFDB):
            continue
        oracle = wfdb.rdrecord(str(sources[names[number]].with_suffix("")))
        if oracle.fs != 500:
            continue
        order = [[s.lower() for s in oracle.sig_name].index(lead.lower()) for lead in LEADS]
        adc = store.read([number])[0].astype(np.float64)
        ours = (adc - store.offset_adc[number][:, None]) * store.scale_uv[number][:, None]
        theirs = 1000 * oracle.p_signal[:5000, order].T
        np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=1e-3, err_msg=names[number])


def test_sound_and_small(made: tuple[Path, ConvertSummary]) -> None:
    assert verify_store(made[0]) == []
    assert describe(made[0]).ratio > 4.7


@pytest.mark.parametrize(("folder", "least"), [("ludb", 4.8), ("ptbxl/hr_gt", 4.4)])
def test_codec_ratio(folder: str, least: float, shared_data: Path, tmp_path: Path) -> None:
    convert_quietly([shared_data / folder], tmp_path / "store")
    assert describe(tmp_path / "store").ratio >= least
