"""Text below a line of lead names, as spreadsheets, pandas and exports write it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import check_damage

from ecgfast.errors import FormatError
from ecgfast.ingest import read_record
from ecgfast.ingest.format import Head
from ecgfast.ingest.inventory import discover, take_inventory
from ecgfast.ingest.vendor import text_columns
from ecgfast.ingest.vendor.text_columns import FORMAT
from ecgfast.records import LEADS

SIGNAL = np.random.default_rng(0).integers(-900, 900, (12, 60)).astype(np.int16)


def lines(values_TS: Any, separator: str = ",", form: str = "{}") -> str:
    return "".join(separator.join(form.format(each) for each in row) + "\n" for row in values_TS)


def write(path: Path, text: str, **changes: Any) -> Path:
    path.write_bytes(text.encode("latin-1"))
    meta = {"sampling_rate_hz": 500, "scale_uv": 4.88, **changes}
    path.with_suffix(".json").write_text(json.dumps(meta))
    return path


def read(path: Path) -> Any:
    return FORMAT.read(path, "r", None)


@pytest.mark.parametrize("separator", [",", ";", "\t", " "])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_integers_are_adc_units(tmp_path: Path, separator: str, end: str) -> None:
    text = separator.join(f'"{lead}"' for lead in LEADS) + "\n" + lines(SIGNAL.T, separator)
    write(tmp_path / "a.csv", text.replace("\n", end))
    (item,) = discover([tmp_path])
    record = read_record(item)
    assert record.signal.dtype == np.int16
    np.testing.assert_array_equal(record.signal, SIGNAL)
    np.testing.assert_allclose(record.scale_uv, 4.88)
    assert record.provenance == {"format": "text"}


@pytest.mark.parametrize(("separator", "comma"), [(",", "."), (";", ","), ("\t", ",")])
def test_decimal_points_and_commas(tmp_path: Path, separator: str, comma: str) -> None:
    text = (
        separator.join(LEADS) + "\n" + lines(SIGNAL.T / 8, separator, "{:.3f}").replace(".", comma)
    )
    record = read(write(tmp_path / "a.txt", text, scale_uv=1000))
    assert record.signal.dtype == np.float32
    np.testing.assert_array_equal(record.signal, SIGNAL * np.float32(125))


ODD_CELLS = (
    *("", "nan", "-Infinity", "1e999", "NA", "null", "+5", " 5 ", "0x1F", "1_0", "1e", "1E5", ".5"),
    *("5.", "-0", "--1", "- 3", "1 2", "\xa05", "5\0", '"5"', "#5", "nan(1)", "5f", "007", "1,2"),
    *("1\r", "1\r\n2", "1;2", "true", "\x0b5", "5\x85", "2.2250738585072011e-308", "1e-400"),
)


def test_arrow_and_numpy_read_alike() -> None:
    """What Arrow takes, NumPy takes with the same bits; Arrow takes all plain tables."""
    rng = np.random.default_rng(1)
    taken = 0
    for case in range(600):
        separator = str(rng.choice([",", ";", "\t"]))
        end = str(rng.choice(["\n", "\n", "\r\n", "\r", "\n\n"]))
        digits = int(rng.integers(0, 25))
        table = rng.normal(0, 10.0 ** rng.integers(-300, 300), (int(rng.integers(1, 6)), 9))
        cells = [[f"{each:.{digits}e}" for each in row] for row in table]
        if case % 2:
            cells[int(rng.integers(len(cells)))][int(rng.integers(9))] = str(rng.choice(ODD_CELLS))
        body = end.join(separator.join(row) for row in cells)
        columns = sorted(rng.choice(9, 8, replace=False).tolist())
        plain = text_columns._plain_table(body, separator, columns, 9)
        assert plain is not None or case % 2 or end == "\r"
        if plain is not None:
            theirs = text_columns._any_table(body, separator, columns, "a.csv")
            assert plain.tobytes() == theirs.tobytes(), body
            taken += 1
    assert taken > 250
    for body, separator in (("1 2", None), ("\xef\xbb\xbf1,2\n3,4", ",")):
        assert text_columns._plain_table(body, separator, [0, 1], 2) is None


def test_leads_go_by_name_among_other_columns(tmp_path: Path) -> None:
    names = ["time", *reversed(LEADS), "note"]
    rows = [[f"00:0{at}", *row[::-1], "x"] for at, row in enumerate(SIGNAL.T)]
    path = write(tmp_path / "a.csv", ",".join(names) + "\n" + lines(rows), leads=list(LEADS))
    np.testing.assert_array_equal(read(path).signal, SIGNAL)
    rows = [[row[0], row[1], *row[6:]] for row in SIGNAL.T]
    names = ["DI", "DII", *LEADS[6:]]
    record = read(write(tmp_path / "b.csv", ",".join(names) + "\n" + lines(rows)))
    np.testing.assert_array_equal(record.signal[2], SIGNAL[1] - SIGNAL[0])
    assert record.flags == ("leads_derived",)


def test_missing_numbers_are_invalid_where_they_say_so(tmp_path: Path) -> None:
    text = ",".join(LEADS) + "\n" + lines(SIGNAL.T)
    first = text.index("\n") + 1
    text = text[:first] + "nan" + text[text.index(",", first) :]
    signal = read(write(tmp_path / "a.csv", text)).signal
    assert np.isnan(signal[0, 0])
    assert np.isnan(signal).sum() == 1


def test_cells_that_are_no_number_refuse_and_are_not_repeated(tmp_path: Path) -> None:
    for cell in ("Jane Doe", ""):
        text = ",".join(LEADS) + "\n" + lines(SIGNAL.T) + cell + ",1" * 11 + "\n"
        with pytest.raises(FormatError, match="a cell is no number") as refusal:
            read(write(tmp_path / "a.csv", text))
        assert "Jane" not in str(refusal.value)
    with pytest.raises(FormatError, match="fewer cells than the first one"):
        read(write(tmp_path / "a.csv", ",".join(LEADS) + "\n" + "1," * 5 + "\n"))


def test_a_file_of_names_alone_has_no_timesteps(tmp_path: Path) -> None:
    for rest in ("", "\n", "\n\n"):
        record = read(write(tmp_path / "a.csv", ",".join(LEADS) + rest))
        assert record.signal.shape == (12, 0)  # which convert refuses


def test_other_tables_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("record_id,ejection_fraction\na,35\n")
    (tmp_path / "numbers.csv").write_text(lines(SIGNAL.T))
    (tmp_path / "long.txt").write_text(",".join(LEADS) + "," * 5000)
    write(tmp_path / "ecg.csv", ",".join(LEADS) + "\n" + lines(SIGNAL.T))
    inventory = take_inventory([tmp_path])
    assert [item.record_id for item in inventory.inputs] == ["ecg"]
    assert inventory.passed_over == {"tables and texts": 3}
    assert inventory.belonging == {"sidecars": 1}
    assert not FORMAT.recognises(Head(b"", "a.csv"))


@pytest.mark.parametrize("cases", [300, pytest.param(2000, marks=pytest.mark.slow)])
def test_damage_ends_in_a_record_or_one_refusal(tmp_path: Path, cases: int) -> None:
    path = write(tmp_path / "a.csv", ",".join(LEADS) + "\n" + lines(SIGNAL.T))
    with np.errstate(all="ignore"):
        outcomes = check_damage(FORMAT.read, path, cases=cases)
    assert outcomes["read"] > 10
    assert outcomes["the file is damaged"] > 10
