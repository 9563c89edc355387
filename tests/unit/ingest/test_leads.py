"""Leads are found by name, never by position, and derived exactly."""

import re

import numpy as np
import pytest

from ecgfast.errors import FormatError
from ecgfast.ingest.leads import arrange_leads, lead_position, plan_leads, required_leads
from ecgfast.records import INVALID, LEADS


@pytest.mark.parametrize(
    ("name", "position"),
    [
        ("I", 0),
        ("avr", 3),
        (" V6 ", 11),
        ("Lead II", 1),
        ("MDC_ECG_LEAD_AVF", 5),
        ("ECG V3", 8),
        ("Lead I (Einthoven)", 0),
        ("aVR, augmented voltage, right", 3),
        ("aVL, augmented voltage, left", 4),
        ("aVF, augmented voltage, foot", 5),
        ("DI", 0),
        ("DII", 1),
        ("DIII", 2),
        ("D1", 0),
        ("D2", 1),
        ("d3", 2),
        ("EKG I", 0),
        ("V4-REF", 9),
        ("ECG  Lead V5", 10),
        ("-aVR", None),
        ("aVR (inverted)", None),
        ("Lead -aVR", None),
        ("V4 right", None),
        ("V4, right", None),
        ("V4R", None),
        ("V4-V5", None),
        ("ECG", None),
        ("ECG 1", None),
        ("D4", None),
        ("I II", None),
        ("MLII", None),
        ("V", None),
        ("vx", None),
        ("", None),
    ],
)
def test_lead_names(name: str, position: int | None) -> None:
    assert lead_position(name) == position


def test_order_of_the_file_does_not_matter() -> None:
    names = ["pleth", *(LEADS[i] for i in (0, 1, 2, 3, 5, 4, 6, 7, 8, 9, 10, 11))]  # MIMIC's order
    signal = np.arange(13, dtype=np.int16)[:, None] * np.ones(4, np.int16)
    scale = [float("nan"), *np.arange(1.0, 13.0)]
    leads = arrange_leads(plan_leads(names, "f"), signal, scale, [0.0] * 13, "f")
    expected = [1, 2, 3, 4, 6, 5, 7, 8, 9, 10, 11, 12]
    assert leads.signal[:, 0].tolist() == expected
    assert leads.scale_uv.tolist() == expected
    assert leads.flags == ()


def test_a_lead_that_is_no_voltage_is_refused() -> None:
    scale = [1.0] * 11 + [float("nan")]
    with pytest.raises(FormatError, match="unit of lead V6"):
        arrange_leads(plan_leads(LEADS, "f"), np.zeros((12, 4), np.int16), scale, [0.0] * 12, "f")


def test_a_lead_twice_is_refused() -> None:
    with pytest.raises(FormatError, match="lead V1 occurs twice"):
        plan_leads([*LEADS, "v1"], "f")


@pytest.mark.parametrize(("again", "lead"), [("DI", "I"), ("D3", "III"), ("V4-REF", "V4")])
def test_two_spellings_of_one_lead_are_refused(again: str, lead: str) -> None:
    with pytest.raises(FormatError, match=f"lead {lead} occurs twice"):
        plan_leads([*LEADS, again], "f")


def test_chest_leads_cannot_be_derived() -> None:
    with pytest.raises(FormatError, match="no lead V2, V4"):
        plan_leads([lead for lead in LEADS if lead not in ("V2", "V4", "III")], "f")


EIGHT = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")


def test_limb_leads_from_i_and_ii_with_baseline() -> None:
    signal = np.zeros((8, 4), np.int16)
    signal[0] = [110, 101, 100, INVALID]
    signal[1] = [150, 104, 97, 100]
    leads = arrange_leads(plan_leads(EIGHT, "f"), signal, [2.0] * 8, [100.0] * 8, "f")
    assert leads.flags == ("leads_derived",)
    assert leads.signal.dtype == np.int16
    assert leads.signal[2].tolist() == [140, 103, 97, INVALID]  # II - I + 100
    assert leads.signal[3].tolist() == [70, 98, 102, INVALID]  # -floor((I + II) / 2) + 100
    assert leads.signal[4].tolist() == [85, 99, 102, INVALID]  # I - floor(II / 2) + 100
    assert leads.signal[5].tolist() == [145, 104, 97, INVALID]  # II - floor(I / 2) + 100
    assert leads.signal[6:].tolist() == signal[2:].tolist()


def test_a_file_may_lack_leads_where_others_are_asked_for() -> None:
    names = ("V1", "II", "aVF")
    with required_leads([1, 5]):
        plan = plan_leads(names, "f")
    assert plan == (-1, 1, -1, -1, -1, 2, 0, -1, -1, -1, -1, -1)
    signal = np.array([[7, 8], [5, 6], [3, 4]], np.int16)
    leads = arrange_leads(plan, signal, [1.0, 2.0, 3.0], [9.0, 8.0, 7.0], "f")
    assert leads.missing == (0, 2, 3, 4, 7, 8, 9, 10, 11)  # without I, III does not follow
    assert leads.flags == ()
    assert leads.signal[[1, 5, 6]].tolist() == [[5, 6], [3, 4], [7, 8]]
    assert leads.scale_uv[[1, 5, 6]].tolist() == [2.0, 3.0, 1.0]
    assert leads.offset_adc[[1, 5, 6]].tolist() == [8.0, 7.0, 9.0]
    microvolt = (leads.signal - leads.offset_adc[:, None]) * leads.scale_uv[:, None]
    assert not microvolt[list(leads.missing)].any()
    with pytest.raises(FormatError, match=r"no lead I, V2, .* all 12 standard leads are needed"):
        plan_leads(names, "f")


@pytest.mark.parametrize(
    ("required", "names", "lost"),
    [
        ([1, 6], ("I", "II"), "no lead V1, got I, II; those asked for are needed"),
        ([2], ("II", "V1"), "no lead III, got II, V1"),
        ([], ("Pleth",), "no lead at all, got Pleth"),
    ],
)
def test_what_is_asked_for_must_be_there(
    required: list[int], names: tuple[str, ...], lost: str
) -> None:
    with required_leads(required), pytest.raises(FormatError, match=lost):
        plan_leads(names, "f")
    with required_leads([2]):
        assert plan_leads(("I", "II"), "f") == (0, 1, *[-1] * 10)


def test_different_gains_are_derived_in_microvolt() -> None:
    signal = np.full((8, 2), 10, np.int16)
    signal[0, 1] = INVALID
    scale = [1.0, 3.0, *[1.0] * 6]
    leads = arrange_leads(plan_leads(EIGHT, "f"), signal, scale, [0.0] * 8, "f")
    assert leads.signal.dtype == np.float32
    np.testing.assert_array_equal(leads.signal[:6, 0], [10, 30, 20, -20, -5, 25])
    assert np.isnan(leads.signal[[0, 2, 3, 4, 5], 1]).all()
    assert leads.scale_uv.tolist() == [1.0] * 12


def test_different_baselines_are_derived_in_microvolt() -> None:
    signal = np.full((8, 1), 10, np.int16)
    offset = [0.0, 4.0, *[0.0] * 6]
    leads = arrange_leads(plan_leads(EIGHT, "f"), signal, [2.0] * 8, offset, "f")
    # I is 20 microvolt, II is 12
    np.testing.assert_array_equal(leads.signal[:6, 0], [20, 12, -8, -16, 14, 2])
    assert leads.signal[6:].tolist() == [[20.0]] * 6
    assert (set(leads.scale_uv), set(leads.offset_adc)) == ({1}, {0})


def test_the_largest_derived_value_is_32767() -> None:
    signal = np.zeros((8, 1), np.int16)
    signal[0], signal[1] = -16384, 16383
    leads = arrange_leads(plan_leads(EIGHT, "f"), signal, [1.0] * 8, [0.0] * 8, "f")
    assert leads.signal[2].tolist() == [32767]
    signal[1] = 16384  # its sum would wrap to the marker of invalid timesteps
    with pytest.raises(FormatError, match=r"III derived .* 32768 digits, allowed 32767"):
        arrange_leads(plan_leads(EIGHT, "f"), signal, [1.0] * 8, [0.0] * 8, "f")


def test_a_derived_lead_beyond_16_bits_is_refused() -> None:
    signal = np.zeros((8, 2), np.int16)
    signal[0], signal[1] = 30000, -30000
    with pytest.raises(FormatError, match=r"III derived .* 60000 digits, allowed 32767"):
        arrange_leads(plan_leads(EIGHT, "f"), signal, [1.0] * 8, [0.0] * 8, "f")


@pytest.mark.parametrize(
    ("scale", "flags"),
    [
        (0.01, ()),
        (100.0, ()),
        (-4.88, ()),  # turned over
        (0.0099, ("gain_implausible",)),
        (101.0, ("gain_implausible",)),
        (1e-6, ("gain_implausible",)),
        (-1e6, ("gain_implausible",)),
        (0.9e-6, None),
        (1.1e6, None),
        (0.0, None),
        (float("inf"), None),
    ],
)
def test_gains_between_picovolt_and_volt_are_taken(
    scale: float, flags: tuple[str, ...] | None
) -> None:
    """In one lead of twelve; None is refused."""
    scales = [5.0] * 11 + [scale]
    plan, signal = plan_leads(LEADS, "f"), np.ones((12, 4), np.int16)
    if flags is None:
        with pytest.raises(FormatError):
            arrange_leads(plan, signal, scales, [0.0] * 12, "f")
        return
    leads = arrange_leads(plan, signal, scales, [0.0] * 12, "f")
    assert leads.flags == flags
    assert leads.scale_uv[11] == np.float32(scale)


def test_signals_behind_the_twelve_leads_are_left_out() -> None:
    signal = np.arange(13, dtype=np.int16)[:, None] * np.ones(4, np.int16)
    names = [*LEADS, "pleth"]
    leads = arrange_leads(plan_leads(names, "f"), signal, [1.0] * 13, [0.0] * 13, "f")
    assert leads.signal[:, 0].tolist() == list(range(12))


def test_derived_leads_have_scale_and_offset_of_lead_i_wherever_it_stands() -> None:
    names = ["pleth", *EIGHT[::-1]]
    scale, offset = [float("nan"), *range(3, 9), 2.0, 2.0], [9e9, *range(6), 7.0, 7.0]
    leads = arrange_leads(plan_leads(names, "f"), np.ones((9, 4), np.int16), scale, offset, "f")
    assert leads.scale_uv.tolist() == [2] * 6 + [8, 7, 6, 5, 4, 3]
    assert leads.offset_adc.tolist() == [7] * 6 + [5, 4, 3, 2, 1, 0]
    assert leads.signal[2].tolist() == [7] * 4  # II - I + 7


def test_leads_of_no_timestep_are_derived() -> None:
    empty = np.zeros((8, 0), np.int16)
    leads = arrange_leads(plan_leads(EIGHT, "f"), empty, [2.0] * 8, [0.0] * 8, "f")
    assert leads.signal.shape == (12, 0)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_offset(sign: int) -> None:
    plan, signal = plan_leads(LEADS, "f"), np.ones((12, 4), np.int16)
    offset = [0.0] * 7 + [sign * 2.0**31] + [0.0] * 4
    leads = arrange_leads(plan, signal, [1.0] * 12, offset, "f")
    assert leads.offset_adc[7] == sign * 2**31
    offset[7] *= 1.01
    with pytest.raises(FormatError, match=r"0 microvolt of lead V2 is at the digit -?2\.16"):
        arrange_leads(plan, signal, [1.0] * 12, offset, "f")


@pytest.mark.parametrize("scale", [0.9e-6, -1.1e6, 0.0])
def test_a_gain_beyond_the_limits_is_named(scale: float) -> None:
    scales = [1e-6, -1e6] * 4 + [scale] + [1.0] * 3
    with pytest.raises(FormatError, match=re.escape(f"lead V3 is {scale:g} microvolt")):
        arrange_leads(plan_leads(LEADS, "f"), np.ones((12, 4), np.int16), scales, [0.0] * 12, "f")
