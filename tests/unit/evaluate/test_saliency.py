"""Occlusion by patch: against a model whose answer is known, and which records are drawn."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from recordings import make_store
from report_pages import fixed, html_of
from torch import Tensor, nn
from toy import toy_meta

from ecgfast.config import load_config
from ecgfast.evaluate import planning
from ecgfast.evaluate.saliency import drawn_patches, middle_records, occlusion, saliencies
from ecgfast.runs.ecg_paper import _AGAINST, _FOR
from ecgfast.runs.loading import LoadedRun
from ecgfast.store.reader import open_store


class Weighted(nn.Module):
    """A logit that is a weighted sum of the record's values."""

    def __init__(self, weight_NP: Tensor) -> None:
        super().__init__()
        self.weight_NP = weight_NP

    def forward(self, patches_BNP: Tensor) -> Tensor:
        return (patches_BNP * self.weight_NP).sum(dim=(1, 2))


def test_a_change_is_what_the_patch_adds_to_a_straight_line() -> None:
    generator = torch.Generator().manual_seed(0)
    patches_NP = torch.zeros(240, 256)
    patches_NP[:, :250] = torch.randn(240, 250, generator=generator)
    weight_NP = torch.randn(240, 256, generator=generator)
    places = [3, 77, 239]
    got = occlusion(Weighted(weight_NP), patches_NP, places)
    for change, place in zip(got, places, strict=True):
        values = patches_NP[place, :250].double().numpy()
        line = np.linspace(values[0], values[-1], 250)
        expected = ((values - line) * weight_NP[place, :250].double().numpy()).sum()
        assert change == pytest.approx(expected, abs=1e-3)


def test_what_is_drawn_is_a_quarter_of_each_lead_and_the_whole_of_lead_ii() -> None:
    expected = [20 * lead + 5 * (lead // 3) + column for lead in range(12) for column in range(5)]
    expected += [20 + column for column in range(20)]
    assert drawn_patches() == sorted(set(expected))
    assert len(drawn_patches()) == 75


def test_of_each_kind_of_answer_the_middle_record_is_taken() -> None:
    rows = np.array([3, 5, 8, 9, 11, 12, 20])
    is_case = np.array([True, True, True, False, False, False, True])
    probability = np.array([0.9, 0.6, 0.7, 0.1, 0.2, 0.8, 0.3])
    assert middle_records(rows, is_case, probability, 0.5) == {
        "case above the threshold": 8,
        "control above the threshold": 12,
        "case below the threshold": 20,
        "control below the threshold": 11,
    }
    at = middle_records(rows[:3], is_case[:3], probability[:3], 0.6)
    assert at == {"case above the threshold": 8}  # 0.6 itself is a finding
    assert middle_records(rows, is_case, probability, None) == {"case": 8, "control": 11}
    assert middle_records(rows[:0], is_case[:0], probability[:0], 0.5) == {}
    same = np.full(7, 0.5)
    assert middle_records(rows[::-1], is_case[::-1], same, None) == {"case": 8, "control": 11}


def test_a_report_draws_four_ecgs_of_the_first_run_and_two_of_others(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    store = open_store(make_store(tmp_path_factory.mktemp("saliency"), 8)[0])
    weight_NP = torch.zeros(240, 256)
    weight_NP[0, :250], weight_NP[20, :250] = 1, -1  # begin of lead I, and of lead II
    is_case, probability = np.arange(8) % 2 == 0, np.linspace(1, 0, 8)
    runs = [
        LoadedRun(
            name=name, path=tmp_path_factory.getbasetemp(), model=lambda: Weighted(weight_NP),
            config=load_config("cnn"), meta=toy_meta("finetune"), register=None,
        )
        for name in ("A", "B", "untested", "unknown")
    ]  # fmt: skip
    cohorts = {"site 1": {"A": np.arange(8), "B": np.arange(8), "untested": np.arange(0)}}
    plan = planning.TestPlan(
        target="x=1", is_case=is_case, patients=np.arange(8), cohorts=cohorts, notes=()
    )
    results: Any = SimpleNamespace(
        plan=plan, names=list(cohorts["site 1"]),
        fixed=dict.fromkeys(cohorts["site 1"], fixed(0.5)),
        scores=dict.fromkeys(cohorts["site 1"], probability),
    )  # fmt: skip
    views = saliencies(runs, results, store)
    assert [(view["name"], len(view["figures"])) for view in views] == [("A", 4), ("B", 2)]
    chosen = middle_records(np.arange(8), is_case, probability, 0.5)
    assert [view["kind"] for view in views[0]["figures"]] == list(chosen)
    for view, row in zip(views[0]["figures"], chosen.values(), strict=True):
        patches = view["figure"].axes[0].patches
        # of those that change nothing there is no more than a transparent rectangle
        shown = [each for each in patches if each.get_alpha() and each.get_width() == 12.5]
        # lead I, which speaks for a case where it bulges, is in the first strip; II in the last
        for lead, sign, strip in ((0, 1, max), (1, -1, min)):
            begin = store.read(np.array([row]))[0, lead, :250].astype(float)
            bulge = (begin - np.linspace(begin[0], begin[-1], 250)).sum()
            drawn = strip(shown, key=lambda each: each.get_y())
            colour = _FOR if sign * bulge > 0 else _AGAINST
            assert tuple(np.round(drawn.get_facecolor()[:3], 2)) == tuple(np.round(rgb(colour), 2))
        assert all(each.get_x() == 30 for each in shown)  # the first half second of a strip
        assert {each.get_height() for each in shown} <= {7.0, -7.0}
    html = html_of(saliencies=views)
    assert "Tested ECGs of site 1, of each kind" in html
    assert "threshold 0.5, Youden" in html
    assert html.count("<figure>") == 6
    assert "Control below the threshold." in html


def rgb(colour: str) -> tuple[float, ...]:
    return tuple(int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
