"""The flow of inclusion: boxes, what was left out at each, and what each run made of the rest."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from report_pages import html_of
from two_hospitals import TARGET, make, rows_of

from ecgfast.evaluate import planning
from ecgfast.evaluate.flow import MOST_REASONS, Branch, Flow, Step, _files, flow
from ecgfast.runs.register import Register
from ecgfast.store.reader import StoreReader


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StoreReader:
    return make(tmp_path_factory.mktemp("flow"))


def run(name: str, register: Register | None) -> Any:
    return SimpleNamespace(name=name, register=register)


def test_the_flow_from_files_to_tested_records(store: StoreReader) -> None:
    train, valid = rows_of(store, "1", "train"), rows_of(store, "1", "valid")
    register = Register.of(store, {"train": train, "valid": valid})
    pretrained = Register.of(store, {"pretrain": np.arange(9), "heldout": np.arange(9, 11)})
    tested = rows_of(store, "3", "train", "test")[:3]
    results: Any = SimpleNamespace(
        names=["A", "B"],
        plan=planning.TestPlan(
            target=TARGET, is_case=np.arange(16) == tested[0], patients=np.arange(16) // 2 * 2,
            notes=(), cohorts={"site 3, external": dict.fromkeys("AB", tested)},
        ),
    )  # fmt: skip
    runs = [run("A", register), run("MAE", pretrained), run("B", register), run("old", None)]
    found = flow(store, runs, results)
    assert list(found.steps) == [
        Step(name="files below the sources", number=32, left_out=[]),
        Step(name="recordings", number=16, left_out=[]),
        Step(name="records of ten seconds", number=16, left_out=[f"1 have no label of {TARGET}"]),
        Step(
            name="with a label", number=15,
            left_out=["split by patient: 6 train, 4 valid, 5 test"],
        ),
    ]  # fmt: skip
    learned, read, unknown = found.branches
    assert learned.names == ["A", "B"]
    patients = len({row // 2 for row in tested})
    assert list(learned.lines) == [
        "trained on: 2", "validated on: 2", "labels of: site 1",
        f"tested on: 3 of {patients} patients, 1 of them cases",
        "never tested on: patients that it learned from; at their sites, all but the test split",
    ]  # fmt: skip
    assert read == Branch(
        names=["MAE"], lines=("read without labels: 9", "held out of that reading: 2")
    )
    assert list(unknown.lines) == ["whose ECGs it read is not known"]
    without = flow(store, [run("MAE", pretrained)], None)
    assert [step.name for step in without.steps][-1] == "records of ten seconds"
    assert without.branches == [read]


def test_refusals_are_counted_by_reason_and_the_rarest_are_summed_up() -> None:
    reasons = {f"reason {number}": number for number in range(1, MOST_REASONS + 3)}
    info: Any = SimpleNamespace(passed_over={}, reasons=reasons, num_inputs=100, num_files=None)
    (recordings,) = _files(info)
    assert recordings.left_out[0] == "10 refused: reason 10"
    assert len(recordings.left_out) == MOST_REASONS + 1
    assert recordings.left_out[-1] == "3 refused for other reasons"


def test_the_diagram_escapes_what_it_shows() -> None:
    diagram = Flow(
        steps=[Step(name="recordings", number=1234, left_out=["5 refused: a < b"])],
        branches=[Branch(names=["<A>", "B"], lines=["trained on: 2"])],
    )
    html = html_of(flow=diagram)
    assert '<div class="box"><b>1,234</b> recordings</div>' in html
    assert "<li>5 refused: a &lt; b</li>" in html
    assert "<b>&lt;A&gt;; B</b>" in html
