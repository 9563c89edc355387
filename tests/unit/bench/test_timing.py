"""Interleaved timing: order of calls, warm-up left out, times that mean something."""

import time

from ecgfast.bench.timing import per_second, time_interleaved


def test_variants_run_in_turns_and_warmup_is_not_counted() -> None:
    calls: list[str] = []
    times = time_interleaved(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3, warmup=2
    )
    assert "".join(calls) == "ab" * 5
    assert {name: len(ms) for name, ms in times.items()} == {"a": 3, "b": 3}


def test_times_are_milliseconds() -> None:
    times = time_interleaved({"sleep": lambda: time.sleep(0.01)}, repeats=3, warmup=0)
    assert 10 <= min(times["sleep"]) < 1000


def test_per_second() -> None:
    assert per_second([500.0, 2000.0], 256) == [512.0, 128.0]
