"""Decimal samples: what devices write for an electrode that is off, and rates that are none."""

from pathlib import Path

import numpy as np
import pytest
import xml_files
from recordings import ecg_like

from ecgfast.errors import FormatError
from ecgfast.ingest import InputFile, read_record
from ecgfast.ingest.vendor.text_samples import integers_of
from ecgfast.records import INVALID, LEADS, EcgRecord

SIGNAL = ecg_like(1, seed=6, num_timesteps=600, largest=500)[0]


def read(folder: Path, content: bytes) -> EcgRecord:
    path = folder / "a.xml"
    path.write_bytes(content)
    return read_record(InputFile(record_id="a", path=path, source=folder))


def test_samples_are_as_narrow_as_they_fit() -> None:
    narrow = integers_of("-32768 0,32767", "a")
    assert narrow.dtype == np.int16
    assert narrow.tolist() == [-32768, 0, 32767]
    wide = integers_of("-32769 32768", "a")
    assert wide.dtype == np.int64
    assert wide.tolist() == [-32769, 32768]


@pytest.mark.parametrize("write", [xml_files.aecg, xml_files.cardiosoft, xml_files.schiller])
def test_an_electrode_that_is_off_is_no_measurement(write: xml_files.Write, tmp_path: Path) -> None:
    """Real aECG files have -32768 in all of V1 to V6: at 4.88 microvolt, that was -160 mV."""
    signal = SIGNAL.copy()
    signal[6:, 100:] = INVALID
    record = read(tmp_path, write(dict(zip(LEADS, signal, strict=True))))
    assert record.signal.dtype == np.int16
    np.testing.assert_array_equal(record.signal, signal)


@pytest.mark.parametrize(
    ("old", "new"), [(b'value="2.0" unit="ms"', b'value="2" unit="s"'), (b'"2.0"', b'"0.0000001"')]
)
def test_times_that_no_ecg_has_are_refused(old: bytes, new: bytes, tmp_path: Path) -> None:
    """46 real aECG files of one exporter have timesteps of 2 "s"; ecgdatakit refuses them too."""
    content = xml_files.aecg(dict(zip(LEADS, SIGNAL, strict=True)))
    assert old in content
    with pytest.raises(FormatError, match="an exporter wrote 2 ms as 2 s") as refusal:
        read(tmp_path, content.replace(old, new))
    assert refusal.value.reason == "the sampling rate is not allowed"
