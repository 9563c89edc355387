"""Host buffers: used again, but never while a tensor, a view or an array still looks at them."""

import threading

import numpy as np
import torch

from ecgfast.data.batch import HostBuffers, to_device

SHAPE = (2, 3)


def test_memory_comes_back_when_nothing_looks_at_it() -> None:
    buffers = HostBuffers()
    first = buffers.take(SHAPE)
    place = first.ctypes.data
    del first
    assert buffers.take(SHAPE).ctypes.data == place


def test_a_view_a_tensor_or_an_array_of_a_tensor_keeps_it() -> None:
    buffers = HostBuffers()
    arrays = [buffers.take(SHAPE) for _ in range(3)]
    places = {array.ctypes.data for array in arrays}
    assert len(places) == 3
    kept = (arrays[0][1:], torch.from_numpy(arrays[1])[0], torch.from_numpy(arrays[2]).numpy())
    del arrays
    assert buffers.take(SHAPE).ctypes.data not in places
    del kept
    again = [buffers.take(SHAPE) for _ in range(3)]
    assert places & {array.ctypes.data for array in again}


def test_shapes_are_kept_apart() -> None:
    buffers = HostBuffers()
    del_me = buffers.take(SHAPE)
    del del_me
    assert buffers.take((5, 7)).shape == (5, 7)
    assert buffers.take(SHAPE).shape == SHAPE


def test_threads_never_share_memory() -> None:
    buffers, clashes = HostBuffers(), []

    def work(mark: int) -> None:
        for _ in range(2000):
            mine = buffers.take(SHAPE)
            mine.fill(mark)
            if not (mine == mark).all():
                clashes.append(mark)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clashes == []


def test_to_device_keeps_the_values_of_a_strided_array() -> None:
    array = np.arange(12).reshape(3, 4)[:, ::2]
    assert to_device(array, torch.device("cpu")).tolist() == array.tolist()
