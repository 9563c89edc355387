"""Tasks: their losses against PyTorch and by hand, and their areas against scikit-learn."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.metrics import roc_auc_score
from sklearn.utils.class_weight import compute_class_weight
from torch.nn.functional import binary_cross_entropy_with_logits

from ecgfast.errors import ConfigError
from ecgfast.runs.task import task_of

RECORDS = pa.table(
    {
        "norm": [True, False, None, True, False, None],
        "mi": [1.0, 0.0, 1.0, None, 0.0, None],
    }
)
TRUTH = np.array([[1, 1], [0, 0], [np.nan, 1], [1, np.nan], [0, 0], [np.nan, np.nan]])
LOGITS = np.array([[0.3, -1.0], [0.1, 0.2], [2.0, 0.4], [-0.5, 1.0], [-2.0, 0.1], [0.0, 0.0]])
BOTH = task_of("binary", ["norm=true", "mi=1"])


def test_a_label_that_is_not_known_is_no_control() -> None:
    np.testing.assert_array_equal(BOTH.truth(RECORDS), TRUTH)
    assert BOTH.outputs == ("norm=true", "mi=1")
    assert BOTH.counts(TRUTH) == [{"cases": 2, "controls": 2}, {"cases": 2, "controls": 2}]


def test_the_loss_of_validation_is_the_mean_over_the_targets_of_their_known_labels() -> None:
    means = []
    for number in (0, 1):
        known = ~np.isnan(TRUTH[:, number])
        logits, truth = (torch.tensor(table[known, number]) for table in (LOGITS, TRUTH))
        means.append(binary_cross_entropy_with_logits(logits, truth).item())
    found = BOTH.validation_loss(LOGITS, TRUTH, np.ones_like(TRUTH))
    assert found == pytest.approx(np.mean(means), rel=1e-12)


def test_what_is_not_known_has_no_gradient() -> None:
    logits = torch.tensor(LOGITS, dtype=torch.float32, requires_grad=True)
    weight = torch.tensor(~np.isnan(TRUTH), dtype=torch.float32)
    truth = torch.tensor(np.nan_to_num(TRUTH), dtype=torch.float32)
    BOTH.loss(logits, truth, weight).backward()
    assert logits.grad is not None
    np.testing.assert_array_equal(logits.grad.numpy() != 0, ~np.isnan(TRUTH))


@pytest.mark.parametrize("number", [3, 6, 64])
def test_one_target_has_the_loss_and_gradient_of_plain_cross_entropy_bit_for_bit(
    number: int,
) -> None:
    generator = torch.Generator().manual_seed(number)
    plain = torch.randn(number, generator=generator).requires_grad_()
    ours = plain.detach().clone().requires_grad_()
    truth = (torch.rand(number, generator=generator) < 0.3).float()
    expected = binary_cross_entropy_with_logits(plain, truth)
    found = task_of("binary", ["mi=1"]).loss(ours, truth[:, None], torch.ones(number, 1))
    for loss in (expected, found):
        loss.backward()
    assert torch.equal(expected, found)
    assert plain.grad is not None
    assert ours.grad is not None
    assert torch.equal(plain.grad, ours.grad)


def test_the_area_of_several_targets_is_their_mean() -> None:
    areas = []
    for number in (0, 1):
        known = ~np.isnan(TRUTH[:, number])
        areas.append(roc_auc_score(TRUTH[known, number], LOGITS[known, number]))
    assert BOTH.area(LOGITS, TRUTH) == pytest.approx(np.mean(areas))


def test_a_target_without_cases_or_controls_has_no_area_in_the_mean() -> None:
    only_cases = TRUTH.copy()
    only_cases[:, 1] = 1
    known = ~np.isnan(TRUTH[:, 0])
    expected = roc_auc_score(TRUTH[known, 0], LOGITS[known, 0])
    assert BOTH.area(LOGITS, only_cases) == pytest.approx(expected)
    assert BOTH.area(LOGITS, np.ones_like(TRUTH)) is None


def test_the_loss_of_validation_weighs_each_label() -> None:
    """A weight of 2 for cases, of 1 for controls."""
    means = []
    for logits, truth in zip(LOGITS.T, TRUTH.T, strict=True):
        known = ~np.isnan(truth)
        sign = np.where(truth[known] > 0, -1, 1)
        losses = np.log1p(np.exp(sign * logits[known])) * np.where(truth[known] > 0, 2, 1)
        means.append(losses.mean())
    found = BOTH.validation_loss(LOGITS, TRUTH, np.where(TRUTH > 0, 2.0, 1.0))
    assert found == pytest.approx(np.mean(means))


def test_a_split_must_have_both_classes_of_each_target() -> None:
    assert BOTH.lacking(TRUTH, "train") == ""
    only_cases = np.array([[1, 1], [0, 1], [np.nan, 1]])
    assert "controls of 'mi=1', got 3 cases and 0 controls" in BOTH.lacking(only_cases, "train")


@pytest.mark.parametrize("targets", [[], ["mi=1", "mi=1"]])
def test_targets_are_named_once(targets: list[str]) -> None:
    with pytest.raises(ConfigError, match="--target must name"):
        task_of("binary", targets)


def test_balanced_weights_are_scikit_learns() -> None:
    truth = np.array([[1, 0], [0, 1], [0, 1], [0, np.nan], [0, 1]])
    for found, column in zip(BOTH.class_weights(truth), truth.T, strict=True):
        y = column[~np.isnan(column)]
        expected = compute_class_weight("balanced", classes=np.array([0.0, 1.0]), y=y)
        np.testing.assert_allclose(found, expected)


def test_a_head_begins_at_the_prevalence_as_the_loss_weighs_it() -> None:
    truth = np.array([[1, 0], [0, 1], [0, 1], [0, np.nan]])
    plain = BOTH.first_logits(truth, np.ones_like(truth))
    np.testing.assert_allclose(plain.sigmoid(), [1 / 4, 2 / 3])
    weighted = np.array([[3.0, 2.0], [1.0, 1.0], [1.0, 1.0], [1.0, 9.0]])
    np.testing.assert_allclose(BOTH.first_logits(truth, weighted).sigmoid(), [1 / 2, 1 / 2])
