"""The cells of a plan, in the order of their needs; then the table."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ecgfast import log
from ecgfast.errors import BusyError
from ecgfast.reproduce.cells import Cell, Outcome, cells_of, is_finished, outcome_of
from ecgfast.reproduce.plan import TARGET, Plan, check
from ecgfast.reproduce.process import Place, run_cell
from ecgfast.reproduce.study import default_plan
from ecgfast.reproduce.table import write_table
from ecgfast.store.durable import exclusive, write_durably
from ecgfast.store.reader import open_store
from ecgfast.train.run_folder import warn_of_a_cpu

PLAN = "plan.toml"
_POLL_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Summary:
    """How far an experiment is.

    Attributes:
        num_finished: cells.
        failed: name of a cell -> why it failed, or which cell it needs that did.
        no_weights: name of a cell -> which ImageNet weights are missing.
        left: name of a cell -> why it is not done yet, and by whom it will be.
        table: path of table3.md; None while cells are left.
    """

    num_finished: int
    failed: Mapping[str, str]
    no_weights: Mapping[str, str]
    left: Mapping[str, str]
    table: Path | None

    @property
    def reasons(self) -> Iterator[str]:
        """A line for each cell that is not finished."""
        for name, reason in self.failed.items():
            yield f"{name} failed: {reason}"
        for name, reason in self.no_weights.items():
            yield f"{name} has no ImageNet weights: {reason}"
        for name, reason in self.left.items():
            yield f"{name} is left: {reason}"

    def __str__(self) -> str:
        counts = {
            "finished": self.num_finished,
            "failed": len(self.failed),
            "without ImageNet weights": len(self.no_weights),
            "left": len(self.left),
        }
        words = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
        if self.left:
            return f"cells: {words}; run it again when the other processes have ended"
        return f"cells: {words}" + ("" if self.table is None else f"; {self.table}")


def make_plan(
    store: Path,
    out: Path,
    *,
    plan: Path | None = None,
    target: str | None = None,
    preset: str | None = None,
    recipe: str | None = None,
    settings: Sequence[str] | None = None,
    fractions: Sequence[float] | None = None,
    seeds: int | None = None,
) -> Plan:
    """Take a plan, or make the study's; check it, and keep it as OUT/plan.toml.

    Args:
        store: a finished store with labels and splits.
        out: folder of the experiment, created.
        plan: a TOML file; None takes OUT/plan.toml, or the study's columns where there is none.
        target: what a case is; this and the following replace what the plan has, None keeps it.
        preset: of the vision transformers.
        recipe: of fine-tuning.
        settings: of all runs, as in ``--set``.
        fractions: of the patients with labels, for each of which every model is fine-tuned.
        seeds: fine-tunings of each model on each set and fraction.
    Raises:
        ConfigError: the plan cannot be carried out on the store.
    """
    reader = open_store(store)
    kept = out / PLAN
    source = plan or (kept if kept.exists() else None)
    found = Plan.read(source) if source else default_plan(reader, target=target or TARGET)
    changed = found.changed(
        target=target or found.target,
        preset=preset or found.preset,
        recipe=recipe or found.recipe,
        settings=found.settings if settings is None else tuple(settings),
        fractions=found.fractions if fractions is None else tuple(fractions),
        seeds=found.seeds if seeds is None else seeds,
    )
    check(changed, reader)
    text = source.read_bytes() if source and changed == found else changed.to_toml().encode()
    out.mkdir(parents=True, exist_ok=True)
    if not kept.exists() or kept.read_bytes() != text:
        write_durably(kept, [text], shared=True)  # by each part of a job array
    return changed


def reproduce(
    store: Path,
    out: Path,
    plan: Plan,
    *,
    part: tuple[int, int] = (0, 1),
    device: str | None = None,
    ranks: int = 1,
    executor: Executor | None = None,
) -> Summary:
    """Do the cells of a plan that are not finished; when none is left, write table and report.

    A cell that another process has, or that needs one which is not finished, is passed over: run
    it again when that has ended.

    Args:
        store: path of the store.
        out: folder of the experiment; several machines may share it.
        plan: from `make_plan`.
        part: number from 0, and number of parts: a share of the pretrainings and of the columns.
        device: "cpu", "cuda" or "cuda:N"; by default a GPU where there is one.
        ranks: processes of a training, each with its GPU.
        executor: does the cells instead of this process, as many at a time as it likes.
    Raises:
        ResumeError: a finished cell is of another plan.
    """
    reader = open_store(store)
    if executor is None:
        warn_of_a_cpu(plan.preset, device)
    place = Place(store=store.resolve(), device=device, ranks=ranks, strict=log.is_strict())
    cells = cells_of(plan, reader, out.resolve())
    done = sum(map(is_finished, cells))  # refuses those of another plan before anything is begun
    log.info(f"{done} of {len(cells)} cells are finished")
    own = _share(cells, *part)
    outcomes = _run(own, place, executor or _Here(), _Board(cells, own))
    summary = _summary(cells, outcomes)
    if summary.left:
        return summary
    with _waiting_for(out / ".lock", out):
        return replace(summary, table=write_table(plan, reader, cells, out))


def _share(cells: Sequence[Cell], number: int, count: int) -> list[Cell]:
    """Every count-th pretraining and every count-th column, with its evaluation."""
    parts: list[list[Cell]] = []
    for cell in cells:
        if cell.kind == "evaluate":
            parts[-1].append(cell)
        else:
            parts.append([cell])
    return [cell for index, part in enumerate(parts) if index % count == number for cell in part]


class _Here(Executor):
    """Does what it is given at once, in this thread, which signals come to."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:  # noqa: ANN401 (as its parent)
        future: Future[Any] = Future()
        future.set_result(fn(*args, **options))
        return future


def _run(
    cells: Sequence[Cell], place: Place, executor: Executor, board: "_Board"
) -> dict[str, Outcome]:
    """Do every cell whose needs are finished, once; by name, what became of those."""
    outcomes: dict[str, Outcome] = {}
    waiting: dict[Future[Outcome], Cell] = {}
    rest = [cell for cell in cells if not is_finished(cell)]
    while True:
        ready = next((cell for cell in rest if all(map(is_finished, cell.needs))), None)
        if ready is not None:
            rest.remove(ready)
            board.begins(ready)
            waiting[executor.submit(run_cell, ready, place)] = ready
        elif not waiting:
            return outcomes
        # at once while there is more to give, else until one ends
        limit_s = None if ready is None else 0
        for future in wait(waiting, timeout=limit_s, return_when=FIRST_COMPLETED).done:
            cell = waiting.pop(future)
            outcomes[cell.name] = future.result()
            board.ended(cell, outcomes[cell.name])


def _summary(cells: Sequence[Cell], outcomes: Mapping[str, Outcome]) -> Summary:
    found: dict[str, dict[str, str]] = {"failed": {}, "no weights": {}, "left": {}}
    states: dict[str, str] = {}
    num_finished = 0
    for cell in cells:
        state, why = _state(cell, outcomes.get(cell.name), states)
        states[cell.name] = state
        if state == "finished":
            num_finished += 1
        else:
            found[state][cell.name] = why
    return Summary(
        num_finished=num_finished,
        failed=found["failed"],
        no_weights=found["no weights"],
        left=found["left"],
        table=None,
    )


def _state(cell: Cell, outcome: Outcome | None, states: Mapping[str, str]) -> tuple[str, str]:
    """What a cell is, and why."""
    if is_finished(cell):
        return "finished", ""
    for need in cell.needs:
        if states[need.name] != "finished":
            return states[need.name], f"it needs {need.name}"
    if outcome is not None and outcome.state == "busy":
        return "left", "another process does it"
    outcome = outcome or outcome_of(cell.folder)
    if outcome is None or outcome.state == "finished":
        return "left", "another part does it, or the next start"
    return outcome.state, outcome.reason


class _Board:
    """Lines on how far it is: cells done and running, hours left."""

    def __init__(self, cells: Sequence[Cell], own: Sequence[Cell]) -> None:
        self._cells, self._own = cells, own
        self._running: list[str] = []

    def begins(self, cell: Cell) -> None:
        """Show that a cell begins."""
        self._running.append(cell.name)
        self._show()

    def ended(self, cell: Cell, outcome: Outcome) -> None:
        """Show what became of it."""
        self._running.remove(cell.name)
        if outcome.state == "finished":
            log.info(f"{cell.name} is finished, {_hours(outcome.seconds)} in all")
        else:
            log.warning(f"{cell.name}: {outcome.state}: {outcome.reason}")
        if self._running:
            self._show()

    def _show(self) -> None:
        done = sum(map(is_finished, self._cells))
        log.info(
            f"{done} of {len(self._cells)} cells done, running {', '.join(self._running)}; "
            f"{self._left()}"
        )

    def _left(self) -> str:
        """Work that is left, by the mean time of finished cells of a kind."""
        left_s = 0.0
        seconds: dict[str, list[float]] = {}
        for cell in self._cells:
            if is_finished(cell) and (found := outcome_of(cell.folder)):
                seconds.setdefault(cell.kind, []).append(found.seconds)
        for cell in self._own:
            if not is_finished(cell):
                if cell.kind not in seconds:
                    return f"time left is known after the first {cell.kind}"
                left_s += sum(seconds[cell.kind]) / len(seconds[cell.kind])
        return f"{_hours(left_s)} of work left"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 360 else f"{seconds:.0f} s"


@contextmanager
def _waiting_for(lock: Path, what: Path) -> Iterator[None]:
    """Be the only process that writes something, as soon as the one before has done it."""
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(exclusive(lock, what))
                break
            except BusyError:
                time.sleep(_POLL_S)
        yield
