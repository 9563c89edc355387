"""What a long run is watched for: steps that are not finite, and waiting for records."""

from pathlib import Path

import pytest
import torch

from ecgfast.errors import EcgfastError
from ecgfast.train.distributed import Ranks
from ecgfast.train.guards import NonFiniteGuard, StarvationGuard, clear_errors


def test_three_readings_in_a_row_above_five_percent_warn_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ecgfast.log.logger.propagate", True)
    guard = StarvationGuard()
    warned = []
    for percent in (6, 6, 5, 6, 6, 30, 40, 2, 50, 50, 50):
        guard.check(float(percent), engine="cpu")
        warned.append(len(caplog.messages))
    assert warned == [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]
    assert "waits 30 % of the time" in caplog.text


@pytest.mark.parametrize(
    ("readings", "expected"),
    [((6, 6, 6), [0, 0, 1]), ((6, 6, 4, 6, 6, 6), [0, 0, 0, 0, 0, 1]), ((5, 5, 5), [0, 0, 0])],
)
def test_only_the_third_reading_in_a_row_warns(
    readings: tuple[int, ...],
    expected: list[int],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ecgfast.log.logger.propagate", True)
    guard = StarvationGuard()
    warned = []
    for percent in readings:
        guard.check(float(percent), engine="cpu")
        warned.append(len(caplog.messages))
    assert warned == expected


@pytest.mark.parametrize(("microbatch", "smaller"), [(8, 4), (1, 1)])
def test_a_full_gpu_is_told_with_half_the_microbatch(
    microbatch: int, smaller: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 << 30)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 30, 4 << 30))
    message = f"microbatch={microbatch}: 3.0 GiB .* 1.0 of 4.0 GiB .*microbatch={smaller} "
    with (
        pytest.raises(EcgfastError, match=message),
        clear_errors(tmp_path, Ranks(), microbatch=microbatch),
    ):
        raise torch.OutOfMemoryError


def test_the_first_skipped_step_is_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ecgfast.log.logger.propagate", True)
    assert not NonFiniteGuard(torch.device("cpu")).wants_rollback(1.0, 1.0, step=1)
    assert caplog.messages[0].startswith("step 1: 1 steps skipped")


def test_skipped_steps_are_counted_on_the_device() -> None:
    guard = NonFiniteGuard(torch.device("cpu"))
    seen = []
    for skipped in (0.0, 1.0, 1.0, 0.0, 1.0):
        guard.count(torch.tensor(skipped))
        seen.append((guard.skipped.item(), guard.in_a_row.item()))
    assert seen == [(0, 0), (1, 1), (2, 2), (2, 0), (3, 1)]


def test_new_skipped_steps_are_told_and_known_ones_are_not(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ecgfast.log.logger.propagate", True)
    guard = NonFiniteGuard(torch.device("cpu"))
    guard.skipped += 4
    guard.resumed()
    for skipped in (4.0, 6.0, 6.0, 7.0):
        assert not guard.wants_rollback(skipped, 2.0, step=9)
    assert [message[:23] for message in caplog.messages] == [
        "step 9: 2 steps skipped",
        "step 9: 1 steps skipped",
    ]


def test_ten_in_a_row_roll_back_three_times_and_then_end_the_run() -> None:
    guard = NonFiniteGuard(torch.device("cpu"))
    assert not guard.wants_rollback(9.0, 9.0, step=9)
    for _ in range(3):
        guard.in_a_row += 10
        assert guard.wants_rollback(10.0, 10.0, step=10)
        assert guard.in_a_row.item() == 0
    with pytest.raises(EcgfastError, match=r"not finite for 10 steps, after 3 returns"):
        guard.wants_rollback(10.0, 10.0, step=40)
