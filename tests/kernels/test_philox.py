"""Philox against its authors' test vectors."""

import numpy as np
import pytest
import torch
from ecgfast_kernels.codec.philox import philox4x32, philox_rounds, split_seed

# Random123 1.14, tests/kat_vectors, lines "philox4x32 10".
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_known_answers(
    counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]
) -> None:
    assert tuple(int(word) for word in philox4x32(counter, key)) == words


def test_torch_and_numpy_agree_across_blocks() -> None:
    count = 40_000  # more than two of the blocks that the NumPy path works in
    counter = np.random.default_rng(0).integers(0, 1 << 32, size=(4, count), dtype=np.uint32)
    key = split_seed(0x1234_5678_9ABC_DEF0)
    from_numpy = np.stack(philox4x32(counter, key))
    words = [torch.from_numpy(word.astype(np.int64)) for word in counter]
    from_torch = torch.stack(philox_rounds(words, key)).numpy()
    np.testing.assert_array_equal(from_numpy, from_torch)


def test_counters_broadcast() -> None:
    record = np.arange(5, dtype=np.uint32)[:, None]
    words = philox4x32((record, 0, 7, np.arange(3, dtype=np.uint32)), (1, 2))
    alone = philox4x32((4, 0, 7, 2), (1, 2))
    assert words[0].shape == (5, 3)
    assert [int(word[4, 2]) for word in words] == [int(word) for word in alone]


@pytest.mark.parametrize("seed", [-1, 1 << 63])
def test_seed_out_of_range(seed: int) -> None:
    with pytest.raises(ValueError, match="seed must be in"):
        split_seed(seed)
