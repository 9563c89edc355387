"""NumPy inputs: every shape, dtype and sidecar that the module's first lines promise."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ecgfast.errors import FormatError
from ecgfast.ingest import read_record
from ecgfast.ingest.inventory import discover
from ecgfast.ingest.numpy_files import batch_size, read_npz
from ecgfast.records import LEADS, EcgRecord

META = {"sampling_rate_hz": 500, "scale_uv": 4.88}
SIGNAL = np.random.default_rng(0).integers(-900, 900, (12, 100)).astype(np.int16)


def _read(folder: Path) -> list[EcgRecord]:
    return [read_record(item) for item in discover([folder])]


def _save(folder: Path, array: object, **meta: object) -> None:
    np.save(folder / "ecg.npy", np.asarray(array))
    (folder / "ecg.json").write_text(json.dumps({**META, **meta}))


@pytest.mark.parametrize("array", [SIGNAL, SIGNAL.T, np.asfortranarray(SIGNAL), SIGNAL.astype(int)])
def test_integers_stay_digits(tmp_path: Path, array: object) -> None:
    _save(tmp_path, array, offset_adc=7)
    (record,) = _read(tmp_path)
    assert record.signal.dtype == np.int16
    np.testing.assert_array_equal(record.signal, SIGNAL)
    assert set(record.scale_uv) == {np.float32(4.88)}
    assert set(record.offset_adc) == {np.float32(7)}
    assert record.record_id == "ecg"


def test_floats_become_microvolt(tmp_path: Path) -> None:
    _save(tmp_path, SIGNAL / 1000.0, scale_uv=1000)
    (record,) = _read(tmp_path)
    assert record.signal.dtype == np.float32
    np.testing.assert_allclose(record.signal, SIGNAL, rtol=1e-6)
    assert set(record.scale_uv) == {np.float32(1)}


def test_wide_integers_become_microvolt(tmp_path: Path) -> None:
    _save(tmp_path, SIGNAL.astype(np.int32) * 100, scale_uv=0.01)
    (record,) = _read(tmp_path)
    np.testing.assert_allclose(record.signal, SIGNAL, rtol=1e-6)


@pytest.mark.parametrize("value", [32768, -32768])
def test_a_wide_integer_is_never_taken_for_the_invalid_marker(tmp_path: Path, value: int) -> None:
    wide = SIGNAL.astype(np.int32)
    wide[3, 50] = value
    _save(tmp_path, wide, scale_uv=2)
    (record,) = _read(tmp_path)
    assert record.signal.dtype == np.float32
    assert record.signal[3, 50] == 2 * value


@pytest.mark.parametrize("value", [32767, -32767])
def test_the_widest_integers_that_stay_digits(tmp_path: Path, value: int) -> None:
    wide = SIGNAL.astype(np.int32)
    wide[3, 50] = value
    _save(tmp_path, wide)
    (record,) = _read(tmp_path)
    assert record.signal.dtype == np.int16
    assert record.signal[3, 50] == value


def test_lead_names_and_metadata(tmp_path: Path) -> None:
    _save(
        tmp_path,
        SIGNAL[::-1],
        leads=list(LEADS[::-1]),
        scale_uv=list(range(12, 0, -1)),
        patient_id=7,
        site="2",
        age=61,
        sex="F",
        ejection_fraction=35,
        note="x",
    )
    (record,) = _read(tmp_path)
    np.testing.assert_array_equal(record.signal, SIGNAL)
    assert record.scale_uv.tolist() == list(range(1, 13))
    assert (record.patient_id, record.site, record.age, record.sex) == ("7", "2", 61, "female")
    assert record.labels == {"ejection_fraction": 35.0, "note": "x"}


@pytest.mark.parametrize("order", ["C", "F"])
def test_batch_is_one_record_per_row(tmp_path: Path, order: str) -> None:
    batch = np.stack([SIGNAL, SIGNAL + 1, SIGNAL + 2])
    np.save(tmp_path / "all.npy", np.asarray(batch, order=order))  # type: ignore[call-overload]  # C or F
    (tmp_path / "signals.json").write_text(json.dumps(META))
    records = _read(tmp_path)
    assert [record.record_id for record in records] == ["all/0", "all/1", "all/2"]
    for row, record in enumerate(records):
        np.testing.assert_array_equal(record.signal, batch[row])


def test_npz_holds_its_own_metadata(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "a.npz", signal=SIGNAL, sampling_rate_hz=250.0, scale_uv=[1.0] * 12, age=300
    )
    (record,) = _read(tmp_path)
    np.testing.assert_array_equal(record.signal, SIGNAL)
    assert (record.sampling_rate_hz, record.age, record.flags) == (250, None, ("age_implausible",))


def test_files_of_an_npz_that_are_no_arrays_are_passed_over(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", signal=SIGNAL, sampling_rate_hz=500.0, scale_uv=[1.0] * 12)
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("age.txt", "41")
        archive.writestr("read.me", "of whom this is")
    (record,) = _read(tmp_path)
    assert record.age is None


@pytest.mark.parametrize(
    ("array", "meta", "reason"),
    [
        (SIGNAL[:8], {}, "shape"),
        (SIGNAL[0], {}, "shape"),
        (SIGNAL > 0, {}, "bool"),
        (SIGNAL, {"sampling_rate_hz": 0}, "sampling_rate_hz is 0"),
        (SIGNAL, {"sampling_rate_hz": 1e6}, "sampling_rate_hz is 1000000.0"),
        (SIGNAL, {"sampling_rate_hz": True}, "sampling_rate_hz is True"),
        (SIGNAL, {"sampling_rate_hz": 10**400}, r"is 10{59} \.\.\., allowed a number"),
        (SIGNAL, {"sampling_rate_hz": "x" * 59}, "is 'x{59} \\.\\.\\., allowed"),
        (SIGNAL, {"sampling_rate_hz": "x" * 58}, "is 'x{58}', allowed"),
        (SIGNAL, {"offset_adc": [0.0] * 11 + [float("inf")]}, "offset_adc is"),
        (SIGNAL, {"leads": ["I", 2]}, "allowed a list of names"),
        (SIGNAL, {"leads": "I"}, "allowed a list of names"),
        (SIGNAL, {"age": True}, "age is a bool"),
        (SIGNAL, {"site": ["2"]}, "site is a list"),
        (SIGNAL, {"ejection_fraction": True}, "ejection_fraction is True"),
        (SIGNAL, {"ejection_fraction": "about 35"}, "ejection_fraction is 'about 35'"),
        (SIGNAL, {"ejection_fraction": float("-inf")}, "ejection_fraction is -inf"),
        (SIGNAL, {"patient_id": "a\nb"}, "patient_id holds a control character"),
        (SIGNAL, {"scale_uv": "big"}, "scale_uv is 'big'"),
        (SIGNAL, {"scale_uv": [1, 2]}, "12 numbers"),
        (SIGNAL, {"scale_uv": None}, "scale_uv is None"),
        (SIGNAL, {"leads": ["x"] * 12}, "no lead I"),
    ],
)
def test_what_is_no_ecg_is_refused(
    tmp_path: Path, array: object, meta: dict[str, object], reason: str
) -> None:
    _save(tmp_path, array, **meta)
    with pytest.raises(FormatError, match=reason):
        _read(tmp_path)


@pytest.mark.parametrize(
    ("meta", "text"),
    [
        ({"troponin": 10**400}, "label 'troponin' is a number beyond 1e308"),
        ({"note": "\ud800"}, "half of a UTF-16 pair"),
        ({"\ud800": 1}, "half of a UTF-16 pair"),
        ({"patient_id": "\udc00"}, "half of a UTF-16 pair"),
    ],
)
def test_labels_that_no_table_holds_are_refused(
    tmp_path: Path, meta: dict[str, object], text: str
) -> None:
    _save(tmp_path, SIGNAL, **meta)
    with pytest.raises(FormatError, match=text):
        _read(tmp_path)


def test_without_sidecar_nothing_is_guessed(tmp_path: Path) -> None:
    np.save(tmp_path / "ecg.npy", SIGNAL)
    with pytest.raises(FormatError, match=r"write ecg\.json or signals\.json"):
        _read(tmp_path)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00", b"not an array at all"])
def test_damaged_files_are_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    (tmp_path / f"ecg{suffix}").write_bytes(content)
    (tmp_path / "ecg.json").write_text(json.dumps(META))
    text = "not a NumPy" if content or suffix == ".npz" else r"ecg\.npy: is empty"
    with pytest.raises(FormatError, match=text):
        _read(tmp_path)


def test_truncated_arrays_are_refused(tmp_path: Path) -> None:
    _save(tmp_path, np.stack([SIGNAL, SIGNAL]))
    whole = (tmp_path / "ecg.npy").read_bytes()
    (tmp_path / "ecg.npy").write_bytes(whole[:-10])
    first, second = discover([tmp_path])
    np.testing.assert_array_equal(read_record(first).signal, SIGNAL)
    with pytest.raises(FormatError, match="ends before record 1"):
        read_record(second)


def test_a_lying_batch_header_lists_no_more_than_the_file_holds(tmp_path: Path) -> None:
    _save(tmp_path, np.stack([SIGNAL, SIGNAL]))
    content = (tmp_path / "ecg.npy").read_bytes()
    lie = content.replace(b"(2, 12, 100), }" + b" " * 12, b"(2000000000000, 12, 100), }")
    assert len(lie) == len(content)
    (tmp_path / "ecg.npy").write_bytes(lie)
    assert len(discover([tmp_path])) == 3


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "ecg.npy", np.array([{"a": 1}] * 12, dtype=object), allow_pickle=True)
    (tmp_path / "ecg.json").write_text(json.dumps(META))
    with pytest.raises(FormatError, match="not a NumPy"):
        _read(tmp_path)


@pytest.mark.parametrize(
    ("value", "label"),
    [(35, 35.0), ("35.5", 35.5), (" 35 ", 35.0), (None, None), (" NA", None), ("", None)],
)
def test_ejection_fractions_of_a_sidecar(
    tmp_path: Path, value: object, label: float | None
) -> None:
    _save(tmp_path, SIGNAL, ejection_fraction=value)
    assert _read(tmp_path)[0].labels == {"ejection_fraction": label}


def test_labels_of_a_sidecar_are_numbers_and_text(tmp_path: Path) -> None:
    _save(tmp_path, SIGNAL, a=None, b="x", c=7, d=[1, "y"], e=True, f={"z": 1})
    expected = {"a": None, "b": "x", "c": 7.0, "d": '[1, "y"]', "e": 1.0, "f": '{"z": 1}'}
    assert _read(tmp_path)[0].labels == expected


def test_a_sidecar_of_its_own_goes_before_that_of_the_folder(tmp_path: Path) -> None:
    _save(tmp_path, SIGNAL, sampling_rate_hz=250)
    (tmp_path / "signals.json").write_text(json.dumps(META))
    np.save(tmp_path / "other.npy", SIGNAL)
    assert [record.sampling_rate_hz for record in _read(tmp_path)] == [250, 500]


@pytest.mark.parametrize("text", ["[]", "{", '{"scale_uv": 1, "scale_uv": 1}'])
def test_a_damaged_sidecar_is_refused(tmp_path: Path, text: str) -> None:
    np.save(tmp_path / "ecg.npy", SIGNAL)
    (tmp_path / "ecg.json").write_text(text)
    with pytest.raises(FormatError, match=r"^ecg\.json: (got a list|cannot be read as JSON)"):
        _read(tmp_path)


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((2, 5, 10), 2),  # 50 values
        ((2, 7, 7), None),
        ((1, 12, 5), 1),
        ((0, 12, 100), None),
        ((12, 100), None),
        ((2, 2, 12, 100), None),
    ],
)
def test_which_arrays_are_batches(tmp_path: Path, shape: tuple[int, ...], size: int | None) -> None:
    np.save(tmp_path / "a.npy", np.zeros(shape, np.int16))
    assert batch_size(tmp_path / "a.npy") == size


@pytest.mark.parametrize(("num_others", "taken"), [(997, True), (998, False)])
def test_an_archive_of_a_thousand_entries(tmp_path: Path, num_others: int, taken: bool) -> None:
    np.savez(tmp_path / "a.npz", signal=SIGNAL, sampling_rate_hz=500.0, scale_uv=1.0)
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        for number in range(num_others):
            archive.writestr(f"{number}.txt", "")
    if taken:
        assert sorted(read_npz(tmp_path / "a.npz")) == ["sampling_rate_hz", "scale_uv", "signal"]
        return
    with pytest.raises(FormatError, match="got over 1,000 arrays"):
        read_npz(tmp_path / "a.npz")


@pytest.mark.parametrize(("num_bytes", "taken"), [(1 << 19, True), ((1 << 19) + 1, False)])
def test_arrays_beside_the_signal_have_one_mebibyte_together(
    tmp_path: Path, num_bytes: int, taken: bool
) -> None:
    """Each with a header of 128 bytes."""
    some = np.zeros(num_bytes - 128, bool)
    np.savez(tmp_path / "a.npz", signal=SIGNAL, a=some, b=some)
    if taken:
        assert len(read_npz(tmp_path / "a.npz")["b"]) == len(some)
        return
    with pytest.raises(FormatError, match="allowed 1 MiB in all arrays together"):
        read_npz(tmp_path / "a.npz")


def test_an_archive_without_a_signal(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", ecg=SIGNAL)
    with pytest.raises(FormatError, match="one must be named 'signal'"):
        read_npz(tmp_path / "a.npz")
