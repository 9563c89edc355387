"""How many records one forward pass takes: as asked, as before, or what the memory holds."""

from collections.abc import Callable, Iterator
from typing import Literal

import torch
import torch.distributed as dist

from ecgfast import log
from ecgfast.data.batch import Batch
from ecgfast.errors import ConfigError
from ecgfast.train.distributed import Ranks

LARGEST_ON_GPU = 1024  # GEMMs gain nothing beyond 512, but AdamW is 5 % of a 256-record step
LARGEST_ON_CPU = 32
PROBED = (8, 16)  # records; memory is linear in the microbatch
SHARE = 0.85  # of the free memory, for fragmentation


def choose_microbatch(
    asked: int | Literal["auto"],
    share: int,
    ranks: Ranks,
    *,
    before: int | None,
    probe: Callable[[int], None],
) -> int:
    """Resolve the microbatch of a run.

    Args:
        asked: the setting.
        share: records of one rank in a global batch.
        ranks: all of them call this and get the same answer.
        before: what the run used up to its checkpoint, None at the start.
        probe: runs forward and backward over that many records.
    Returns:
        a divisor of `share`, so that the mean over equal pieces is the mean over records.
    Raises:
        ConfigError: the number asked for does not divide `share`.
    """
    if asked != "auto":
        return require_divisor(asked, share)
    if before is not None and share % before == 0:
        return before
    if ranks.device.type == "cpu":
        return largest_divisor(share, LARGEST_ON_CPU)
    fitting = _fitting_records(ranks, probe)
    chosen = largest_divisor(share, max(1, min(LARGEST_ON_GPU, fitting)))
    log.info(f"train.microbatch: {chosen} of {share} records per rank; about {fitting} would fit")
    return chosen


def require_divisor(asked: int, share: int) -> int:
    """Return the microbatch asked for.

    Raises:
        ConfigError: it does not divide `share`.
    """
    if share % asked:
        raise ConfigError(
            f"train.microbatch must divide the {share} records that each rank takes of a batch, "
            f"got {asked}; use one of {_divisors(share, share)}"
        )
    return asked


def largest_divisor(number: int, largest: int) -> int:
    """Return the largest divisor of `number` that is at most `largest`."""
    return _divisors(number, largest)[-1]


def split(batch: Batch, microbatch: int) -> Iterator[Batch]:
    """Cut a batch into equal pieces, without a copy."""
    num_records = len(batch.record_index)
    assert num_records % microbatch == 0, f"{microbatch} does not divide {num_records}"
    for start in range(0, num_records, microbatch):
        rows = slice(start, start + microbatch)
        yield Batch(
            patches=batch.patches[rows], record_index=batch.record_index[rows], epoch=batch.epoch
        )


def _fitting_records(ranks: Ranks, probe: Callable[[int], None]) -> int:
    peaks = []
    for num_records in (PROBED[0], *PROBED):  # the first run also allocates gradients
        torch.cuda.synchronize(ranks.device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(ranks.device)
        with torch.compiler.set_stance("force_eager"):  # needs more than compiled code, never less
            probe(num_records)
        torch.cuda.synchronize(ranks.device)
        peaks.append(torch.cuda.max_memory_allocated(ranks.device))
    per_record = max(1, (peaks[2] - peaks[1]) // (PROBED[1] - PROBED[0]))
    fixed = peaks[1] - PROBED[0] * per_record
    torch.cuda.empty_cache()
    held = torch.cuda.memory_allocated(ranks.device)
    free, _ = torch.cuda.mem_get_info(ranks.device)
    fitting = torch.tensor(int((SHARE * (free + held) - fixed) / per_record), device=ranks.device)
    if ranks.world_size > 1:
        dist.all_reduce(fitting, dist.ReduceOp.MIN)
    torch.cuda.reset_peak_memory_stats(ranks.device)
    return int(fitting)


def _divisors(number: int, largest: int) -> list[int]:
    return [d for d in range(1, min(number, largest) + 1) if number % d == 0]
