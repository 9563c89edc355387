"""The CUDA decoder's logic, emulated lane by lane on a CPU, against the NumPy reference."""

import shutil

import numpy as np
import pytest
from codec_records import CORNERS, damage, signal_of, status_of
from ecgfast_kernels import codec
from ecgfast_kernels.codec.format import FLAG_RAW, FLAG_WIDE
from ecgfast_kernels.codec.reference import decode_chunk
from emulator import Emulator, aligned, pack
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ecgfast.bench.codec import ecg_like

RANGE = 100  # ECGFAST_RANGE of codec.h


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("no C++ compiler")
    return Emulator.build(tmp_path_factory.mktemp("emulator"))


@pytest.mark.parametrize("shape", [(12, 1000), (1, 250), (3, 500), (16, 250), (7, 750)])
@pytest.mark.parametrize("kind", CORNERS)
def test_every_kind_of_signal_comes_back(
    emulator: Emulator, kind: str, shape: tuple[int, int]
) -> None:
    signal = signal_of(kind, *shape)
    (chunk,) = codec.encode(signal[None])
    buffer, offsets = pack([chunk])
    out, status = emulator.decode(buffer, offsets, np.array([len(chunk)]), shape)
    assert not status.any()
    np.testing.assert_array_equal(out[0], signal)


def test_the_wide_column_table(emulator: Emulator) -> None:
    shape = (3, 65_500)
    signal = np.random.default_rng(5).integers(-4096, 4096, shape).astype(np.int16)
    (chunk,) = codec.encode(signal[None])
    assert chunk[3] == FLAG_WIDE
    buffer, offsets = pack([chunk])
    out, status = emulator.decode(buffer, offsets, np.array([len(chunk)]), shape)
    assert not status.any()
    np.testing.assert_array_equal(out[0], signal)


def test_the_kinds_reach_the_corners() -> None:
    kinds = {kind: codec.encode(signal_of(kind, 12, 500)[None])[0] for kind in ("noise", "ecg")}
    assert kinds["noise"][3] == FLAG_RAW
    assert kinds["ecg"][3] == 0
    quanta = [codec.encode(signal_of(k, 12, 500)[None])[0][3] for k in ("rounded", "truncated")]
    assert quanta == [0, 2]


@pytest.mark.parametrize("gap", [0, 1, 7, 15])
def test_patches_are_those_of_the_cpu_at_any_alignment(emulator: Emulator, gap: int) -> None:
    signal = ecg_like(4, seed=gap, num_timesteps=500)
    signal[2] = np.random.default_rng(0).integers(-32768, 32768, (12, 500))  # a RAW chunk
    signal[3, 5] = 17  # a flat lead: its factor is 0
    chunks = codec.encode(signal)
    buffer, offsets = pack(chunks, gap=gap)
    lengths = np.array([len(chunk) for chunk in chunks])
    mean, std = codec.lead_statistics(signal)
    rstd = np.divide(1, std, out=np.zeros_like(std), where=std > 0)
    records = np.array([3, 0, 2, 2, 1, 0])
    out, status = emulator.decode_patches(buffer, offsets, lengths, (12, 500), mean, rstd, records)
    expected = codec.decode_patches(buffer, offsets, lengths, mean, rstd, num_timesteps=500)
    assert not status.any()
    np.testing.assert_array_equal(out.view(np.int16), expected[records].view(np.int16))


def test_values_too_large_for_fp16_become_infinite_as_on_the_cpu(emulator: Emulator) -> None:
    signal = signal_of("square", 2, 250)[None]
    chunks = codec.encode(signal)
    buffer, offsets = pack(chunks)
    lengths = np.array([len(chunks[0])])
    mean, rstd = np.zeros((1, 2), np.float32), np.full((1, 2), 7.5, np.float32)
    out, _ = emulator.decode_patches(buffer, offsets, lengths, (2, 250), mean, rstd)
    expected = codec.decode_patches(buffer, offsets, lengths, mean, rstd, num_timesteps=250)
    np.testing.assert_array_equal(out.view(np.int16), expected.view(np.int16))


def test_gathering_decoded_records_gives_the_same_patches(emulator: Emulator) -> None:
    signal = aligned(5 * 12 * 1000 * 2).view(np.int16).reshape(5, 12, 1000)
    signal[:] = ecg_like(5, seed=1, num_timesteps=1000)
    mean, std = codec.lead_statistics(signal)
    records = np.array([4, 4, 0, 5, -1])
    out, status = emulator.gather_patches(signal, records, mean, 1 / std)
    expected = codec.patches_from_int16(signal, mean, 1 / std)
    np.testing.assert_array_equal(out[:3].view(np.int16), expected[records[:3]].view(np.int16))
    assert status.tolist() == [0, 0, 0, RANGE, RANGE]
    assert not out[3:].any()


@pytest.mark.parametrize(
    ("offset", "length"),
    [(-1, 20), (-16, 100), (0, 1 << 40), (10**6, 16), (1 << 62, 1 << 62), (0, -5)],
)
def test_chunks_outside_the_buffer_are_refused(
    emulator: Emulator, offset: int, length: int
) -> None:
    (chunk,) = codec.encode(signal_of("ecg", 3, 250)[None])
    buffer, _ = pack([chunk])
    out, status = emulator.decode(buffer, np.array([offset]), np.array([length]), (3, 250))
    assert status.tolist() == [RANGE]
    assert not out.any()


def test_a_record_number_outside_the_table_is_refused(emulator: Emulator) -> None:
    signal = signal_of("ecg", 3, 250)
    chunks = codec.encode(signal[None])
    buffer, offsets = pack(chunks)
    lengths, records = np.array([len(chunks[0])]), np.array([0, 1, -1])
    out, status = emulator.decode(buffer, offsets, lengths, (3, 250), records)
    assert status.tolist() == [0, RANGE, RANGE]
    np.testing.assert_array_equal(out[0], signal)
    assert not out[1:].any()


@pytest.mark.parametrize("num_timesteps", [250, 750])
@pytest.mark.parametrize("kind", ["ecg", "noise", "rounded", "spikes"])
def test_hostile_bytes_never_lead_outside_and_get_the_reference_status(
    emulator: Emulator, kind: str, num_timesteps: int
) -> None:
    shape, rng = (12, num_timesteps), np.random.default_rng(99)
    (good,) = codec.encode(signal_of(kind, *shape)[None])
    chunks = [damage(good, rng) for _ in range(50)]
    buffer, offsets = pack(chunks, gap=3)
    lengths = np.array([len(chunk) for chunk in chunks])
    out, status = emulator.decode(buffer, offsets, lengths, shape)
    expected = [status_of(chunk, shape) for chunk in chunks]
    for chunk, got, code, values in zip(chunks, status.tolist(), expected, out, strict=True):
        if code >= 7 and num_timesteps > 250:
            assert 7 <= got <= 9  # the code of one of the bad columns
        else:
            assert got == code
        if code == 0:
            np.testing.assert_array_equal(values, decode_chunk(chunk, check=False))
        elif code < 6:
            assert not values.any()


@pytest.mark.parametrize(
    ("ends", "code"),
    [((400, 2, 500), 6), ((2, 400, 300), 6), ((0, 0, 0), 9), ((10, 10, 10), 9), ((0, 0, 65535), 9)],
)
def test_column_tables_that_lie(emulator: Emulator, ends: tuple[int, ...], code: int) -> None:
    """Ends that descend, or that give a column less than its head or more than any can take.

    The chunk is cut or filled to the last end, so that nothing but the columns is wrong.
    """
    shape, head = (12, 750), 24
    (good,) = codec.encode(signal_of("ecg", *shape)[None])
    table = np.array(ends, "<u2").tobytes()
    length = head + 4 * ends[-1]
    data = (good[:16] + table + good[22:])[:length].ljust(length, b"\x5a")
    assert status_of(data, shape) == code
    buffer, offsets = pack([data])
    _, status = emulator.decode(buffer, offsets, np.array([len(data)]), shape)
    assert status.tolist() == [code]


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_integers_come_back(emulator: Emulator, data: st.DataObject) -> None:
    num_leads = data.draw(st.integers(1, 16))
    seed = data.draw(st.integers(0, 2**32 - 1))
    bits = data.draw(st.integers(1, 16))
    rng = np.random.default_rng(seed)
    noise = rng.integers(-(1 << bits - 1), 1 << bits - 1, (num_leads, 250))
    smooth = np.cumsum(noise, axis=1) if data.draw(st.booleans()) else noise
    signal = smooth.astype(np.int16)
    (chunk,) = codec.encode(signal[None])
    buffer, offsets = pack([chunk])
    out, status = emulator.decode(buffer, offsets, np.array([len(chunk)]), signal.shape)
    assert not status.any()
    np.testing.assert_array_equal(out[0], signal)
