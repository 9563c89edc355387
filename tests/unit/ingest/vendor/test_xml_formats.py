"""What every reader of vendor XML does, on documents of our own writers."""

import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import xml_files
from damage import check_damage, outcome
from recordings import ecg_like
from xml_files import NAME, PATIENT, Leads

from ecgfast.errors import FormatError
from ecgfast.ingest import FORMATS, InputFile, format_of, read_record
from ecgfast.ingest.format import Format, Head
from ecgfast.ingest.vendor import (
    aecg_xml,
    cardiosoft_xml,
    eli_xml,
    muse_xml,
    philips_xml,
    schiller_xml,
)
from ecgfast.records import LEADS, EcgRecord

SIGNAL = ecg_like(1, seed=5, num_timesteps=1000, largest=500)[0]


class Kind(NamedTuple):
    """A format, how a document of it is written, and what its reader says of that document."""

    format: Format
    write: Callable[..., bytes]
    code: str
    scale_uv: float
    offset_adc: float
    device: str
    filters: tuple[float | None, float | None, float | None]
    age: float = 61
    second: str = "17"


KINDS = [
    Kind(muse_xml.FORMAT, xml_files.muse, "muse-xml", 4.88, 0, "mac-5500", (0.05, 150, 0)),
    Kind(
        aecg_xml.FORMAT, xml_files.aecg, "aecg-xml", 2.5, 10, "eli-380", (0.05, None, None), age=60
    ),
    Kind(
        philips_xml.FORMAT, xml_files.philips, "philips-xml", 5, 0, "pagewriter-touch",
        (0.05, 150, 60),
    ),
    Kind(
        cardiosoft_xml.FORMAT, xml_files.cardiosoft, "cardiosoft-xml", 5, 0, "mac-2000",
        (None, 40, 50), second="07",
    ),
    Kind(eli_xml.FORMAT, xml_files.eli, "eli-xml", 2.5, 0, "eli-280", (None, 150, None)),
    Kind(schiller_xml.FORMAT, xml_files.schiller, "schiller-xml", 5, 0, "at-102", (None,) * 3),
]  # fmt: skip

every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.code)


def leads_of(signal: np.ndarray = SIGNAL, names: tuple[str, ...] = LEADS) -> Leads:
    return {name: signal[LEADS.index(name)] for name in names}


def read(folder: Path, content: bytes) -> EcgRecord:
    path = folder / "a.xml"
    path.write_bytes(content)
    return read_record(InputFile(record_id="a", path=path, source=folder))


def reason(folder: Path, content: bytes) -> str:
    with pytest.raises(FormatError) as refusal:
        read(folder, content)
    assert NAME not in str(refusal.value)
    return refusal.value.reason


def test_every_xml_format_is_tried_here() -> None:
    tried = {kind.format.name for kind in KINDS}
    assert tried == {each.name for each in FORMATS if "XML" in each.name}


@every_kind
def test_samples_and_fields_come_out_and_nothing_else(kind: Kind, tmp_path: Path) -> None:
    record = read(tmp_path, kind.write(leads_of()))
    np.testing.assert_array_equal(record.signal, SIGNAL)
    assert record.signal.dtype == np.int16
    np.testing.assert_allclose(record.scale_uv, kind.scale_uv)
    np.testing.assert_allclose(record.offset_adc, kind.offset_adc, rtol=1e-6)
    assert record.sampling_rate_hz == 500
    assert (record.patient_id, record.site, record.age, record.sex) == (
        PATIENT, None, kind.age, "female",
    )  # fmt: skip
    assert record.provenance == {
        "format": kind.code,
        "recorded": f"2019-02-28 10:35:{kind.second}",
    }
    assert record.device == kind.device
    assert (record.high_pass_hz, record.low_pass_hz, record.notch_hz) == kind.filters
    assert (record.flags, record.labels, record.segments) == ((), {}, ())
    assert NAME not in repr(record)


@every_kind
def test_the_content_alone_is_recognised(kind: Kind) -> None:
    content = kind.write(leads_of())
    assert format_of(Head(content[:3000], "a.dcm")) is kind.format
    comment = b"<!-- " + b"x" * 40_000 + b" -->"
    root = ET.fromstring(content)
    assert format_of(Head(comment + ET.tostring(root)[:9000], "a")) is kind.format
    other = content.replace(root.tag.rpartition("}")[2].encode(), b"invoice")
    if other != content:  # in UTF-16 the name is written otherwise
        assert format_of(Head(other, "a.xml")) is None


@every_kind
def test_leads_go_by_name(kind: Kind, tmp_path: Path) -> None:
    order = ("V6", "V1", "aVF", "II", "V2", "aVL", "V3", "I", "V4", "III", "V5", "aVR")
    record = read(tmp_path, kind.write(leads_of(names=order)))
    np.testing.assert_array_equal(record.signal, SIGNAL)


@every_kind
def test_limb_leads_are_derived_where_they_are_absent(kind: Kind, tmp_path: Path) -> None:
    names = ("I", "II", *LEADS[6:])
    record = read(tmp_path, kind.write(leads_of(names=names)))
    one, two = SIGNAL[0].astype(int) - int(kind.offset_adc), SIGNAL[1] - int(kind.offset_adc)
    limb = [two - one, -((one + two) // 2), one - two // 2, two - one // 2]
    np.testing.assert_array_equal(record.signal[2:6] - int(kind.offset_adc), limb)
    np.testing.assert_array_equal(record.signal[6:], SIGNAL[6:])
    assert record.flags == ("leads_derived",)


@every_kind
def test_a_lead_that_is_missing_refuses_the_file(kind: Kind, tmp_path: Path) -> None:
    content = kind.write(leads_of(names=(*LEADS[:7], *LEADS[8:])))
    assert reason(tmp_path, content) == "a lead is missing"


@every_kind
def test_fewer_leads_are_read_where_that_is_allowed(kind: Kind, tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_bytes(kind.write(leads_of(names=("V1", "I", "V4"))))
    item = InputFile(record_id="a", path=tmp_path / "a.xml", source=tmp_path)
    record = read_record(item, leads=[0, 6])
    np.testing.assert_array_equal(record.signal[[0, 6, 9]], SIGNAL[[0, 6, 9]])
    assert record.missing == (1, 2, 3, 4, 5, 7, 8, 10, 11)
    assert record.flags == ()
    assert read_record(item, allow_missing=True).missing == record.missing
    with pytest.raises(FormatError, match=r"holds none of the leads V5|no lead at all"):
        read_record(item, leads=[10], allow_missing=True)
    with pytest.raises(FormatError, match="no lead II, got"):
        read_record(item, leads=[0, 1])


@every_kind
def test_names_of_other_signals_are_not_repeated(kind: Kind, tmp_path: Path) -> None:
    signals = {NAME: SIGNAL[0], **leads_of(names=LEADS[:9])}
    assert reason(tmp_path, kind.write(signals)) == "a lead is missing"
    signals = {**leads_of(), NAME: SIGNAL[0]}
    np.testing.assert_array_equal(read(tmp_path, kind.write(signals)).signal, SIGNAL)


@every_kind
@pytest.mark.parametrize("rate", [250, 1000])
def test_other_sampling_rates(kind: Kind, tmp_path: Path, rate: int) -> None:
    record = read(tmp_path, kind.write(leads_of(), rate=rate))
    assert record.sampling_rate_hz == rate
    np.testing.assert_array_equal(record.signal, SIGNAL)


@every_kind
def test_a_lead_that_is_shorter_refuses_the_file(kind: Kind, tmp_path: Path) -> None:
    content = kind.write({**leads_of(), "V3": SIGNAL[8, :-1]})
    assert reason(tmp_path, content) in {"a signal file is cut short", "the file is damaged"}


@every_kind
def test_a_document_that_is_cut_short_is_damaged(kind: Kind, tmp_path: Path) -> None:
    content = kind.write(leads_of())
    for end in range(600, len(content) - 8, len(content) // 40):
        assert reason(tmp_path, content[:end]) == "the file is damaged"


@every_kind
def test_an_entity_refuses_the_file_and_nothing_is_fetched(kind: Kind, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text(NAME)
    text = ET.tostring(ET.fromstring(kind.write(leads_of())), encoding="unicode")
    levels = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10))
    for entity in (
        f'<!ENTITY e0 "{NAME}">{levels}',
        f'<!ENTITY e9 SYSTEM "file://{tmp_path}/secret.txt">',
        f'<!ENTITY % e9 SYSTEM "file://{tmp_path}/secret.txt"> %e9;<!ENTITY e9 "x">',
    ):
        bomb = f"<!DOCTYPE x [{entity}]>{text.replace('>', '>&e9;', 1)}"
        assert format_of(Head(bomb.encode(), "a.xml")) is kind.format
        assert reason(tmp_path, bomb.encode()) == "the file is damaged"


Place = tuple[ET.Element, str | None]  # an element, and one of its attributes or its text


def places_of(root: ET.Element) -> list[Place]:
    """Every text and attribute of a document; of those in a dozen leads, the last."""
    found: dict[tuple[str, str | None], ET.Element] = {}
    for element in root.iter():
        for key in (None, *element.keys()):
            found[element.tag, key] = element
    assert len(found) > 20
    return [(element, key) for (_, key), element in found.items()]


def text_at(place: Place) -> str | None:
    element, key = place
    return element.text if key is None else element.get(key)


def put(place: Place, text: str | None) -> None:
    element, key = place
    if key is None:
        element.text = text
    elif text is not None:
        element.set(key, text)


@every_kind
def test_no_text_of_a_document_gets_out(kind: Kind, tmp_path: Path) -> None:
    """Each text and each attribute in turn is a name: it comes out in no field and no error."""
    root = ET.fromstring(kind.write(leads_of()))
    for place in places_of(root):
        before = text_at(place)
        put(place, "Aquarius 4711")
        try:
            shown = repr(read(tmp_path, ET.tostring(root)))
        except FormatError as error:
            shown = f"{error} {error.reason}"
        put(place, before)
        assert ("Aquarius" in shown) == (before == PATIENT), place


@every_kind
@pytest.mark.parametrize("cases", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_damage_ends_in_a_record_or_one_refusal(kind: Kind, tmp_path: Path, cases: int) -> None:
    path = tmp_path / "a.xml"
    path.write_bytes(kind.write(leads_of(SIGNAL[:, :200])))
    outcomes = check_damage(kind.format.read, path, cases=cases, secrets=(NAME, PATIENT))
    assert outcomes["the file is damaged"] > cases / 10
    assert outcomes["read"] > 0


@every_kind
def test_other_values_end_in_a_record_or_one_refusal(kind: Kind, tmp_path: Path) -> None:
    """Well-formed documents with one wrong value: damage seldom gets that far."""
    root = ET.fromstring(kind.write(leads_of(SIGNAL[:, :200])))
    path = tmp_path / "a.xml"
    outcomes: set[str] = set()
    for place in places_of(root):
        before = text_at(place)
        for value in ("", "-1", "0", "1e9", "1e308", "nan", "9" * 400, "1,2,x", "0.001", "AAAA"):
            put(place, value)
            path.write_bytes(ET.tostring(root))
            outcomes.add(outcome(kind.format.read, path, None)[0])
        put(place, before)
    assert {"read", "the file is damaged"} < outcomes
    assert len(outcomes) >= 4
