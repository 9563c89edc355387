"""Tasks: their losses against PyTorch and by hand, and their areas against scikit-learn."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.utils.class_weight import compute_class_weight
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, huber_loss

from ecgfast.config import load_config
from ecgfast.errors import ConfigError
from ecgfast.runs.column_task import Number, task_from, task_of
from ecgfast.settings import FinetuneConfig

RECORDS = pa.table(
    {
        "norm": [True, False, None, True, False, None],
        "mi": [1.0, 0.0, 1.0, None, 0.0, None],
    }
)
TRUTH = np.array([[1, 1], [0, 0], [np.nan, 1], [1, np.nan], [0, 0], [np.nan, np.nan]])
LOGITS = np.array([[0.3, -1.0], [0.1, 0.2], [2.0, 0.4], [-0.5, 1.0], [-2.0, 0.1], [0.0, 0.0]])
BOTH = task_of(["norm=true", "mi=1"])


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
    found = task_of(["mi=1"]).loss(ours, truth[:, None], torch.ones(number, 1))
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
    """A weight of 2 for cases, of 1 for controls; of the second target fewer are known."""
    means, given = [], TRUTH.copy()
    given[0, 1] = np.nan
    for logits, truth in zip(LOGITS.T, given.T, strict=True):
        known = ~np.isnan(truth)
        sign = np.where(truth[known] > 0, -1, 1)
        losses = np.log1p(np.exp(sign * logits[known])) * np.where(truth[known] > 0, 2, 1)
        means.append(losses.mean())
    found = BOTH.validation_loss(LOGITS, given, np.where(given > 0, 2.0, 1.0))
    assert found == pytest.approx(np.mean(means))


def test_a_split_must_have_both_classes_of_each_target() -> None:
    assert BOTH.lacking(TRUTH, "train") == ""
    only_cases = np.array([[1, 1], [0, 1], [np.nan, 1]])
    assert "controls of 'mi=1', got 3 cases and 0 controls" in BOTH.lacking(only_cases, "train")


@pytest.mark.parametrize("targets", [[], ["mi=1", "mi=1"]])
def test_targets_are_named_once(targets: list[str]) -> None:
    with pytest.raises(ConfigError, match="--target must name"):
        task_of(targets)


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


RHYTHMS = pa.table(
    {"rhythm": ["SR", "AF", None, "VT", "SR", "AF"], "ef": [55, 30, None, 40, 61, 2.5]}
)
CLASSES = task_of("rhythm", RHYTHMS)
ONE_HOT = np.array([[0, 1, 0], [1, 0, 0], [np.nan] * 3, [0, 0, 1], [0, 1, 0], [1, 0, 0]])
SAID = np.random.default_rng(4).normal(size=(6, 3))


def test_a_column_of_text_is_learned_as_classes_in_their_order() -> None:
    assert CLASSES.outputs == ("rhythm=AF", "rhythm=SR", "rhythm=VT")
    np.testing.assert_array_equal(CLASSES.truth(RHYTHMS), ONE_HOT)
    two = task_of(["rhythm"], RHYTHMS, ["SR", "AF"])
    np.testing.assert_array_equal(two.truth(RHYTHMS)[3], [np.nan, np.nan])
    assert two.outputs == ("rhythm=SR", "rhythm=AF")
    assert task_from(json.loads(json.dumps(two.identity()))) == two
    coded = pa.table({"code": [0, 1, 2, 1]})
    np.testing.assert_array_equal(
        task_of("code", coded, ["0", "1"]).truth(coded),
        [[1, 0], [0, 1], [np.nan, np.nan], [0, 1]],
    )


def test_a_column_of_numbers_is_learned_as_a_number() -> None:
    truth = np.array([[55.0], [30.0], [np.nan], [62.0]])
    number = task_of("ef", RHYTHMS).fitted(truth, FinetuneConfig())
    assert number.outputs == ("ef",)
    assert number.identity() == {"target": "ef", "scale": [49.0, np.std([55, 30, 62], ddof=1)]}
    assert task_from(json.loads(json.dumps(number.identity()))) == number
    np.testing.assert_array_equal(number.truth(RHYTHMS)[:, 0], [55, 30, np.nan, 40, 61, 2.5])


def test_an_ejection_fraction_that_is_a_limit_is_no_number() -> None:
    table = pa.table(
        {
            "ejection_fraction": [55.0, 37.5, 39.0, 60.0],
            "ejection_fraction_given": [None, "35-40", "<40", ">=60"],
        }
    )
    truth = task_of("ejection_fraction", table).truth(table)[:, 0]
    np.testing.assert_array_equal(truth, [55, 37.5, np.nan, np.nan])


@pytest.mark.parametrize(
    ("targets", "classes", "message"),
    [
        (["ef", "rhythm=AF"], [], r"^--target ef is a column, which stands alone, got ef, rhythm="),
        (["flag"], [], r"^--target flag is a yes/no column; take 'flag=true'"),
        (["rythm"], [], r"^column 'rythm' is not in the store; did you mean rhythm"),
        (
            ["rhythm"],
            ["AF"],
            r"must be 2 to 50, each once, got 1; name those to learn",
        ),
        (["rhythm"], ["AF", "AF"], r"must be 2 to 50, each once, got 2"),
        (["rhythm=AF", "rhythm = 'AF'"], [], r"each once, got rhythm=AF, rhythm = 'AF'$"),
        (["rhythm=AF"], ["AF", "SR"], r"^--classes are those of a column, got --target rhythm=AF"),
    ],
)
def test_what_is_no_target_is_named(targets: list[str], classes: list[str], message: str) -> None:
    table = RHYTHMS.append_column("flag", pa.array([True] * 6))
    with pytest.raises(ConfigError, match=message):
        task_of(targets, table, classes)


def test_classes_have_pytorchs_cross_entropy_and_scikit_learns_weights() -> None:
    known = ~np.isnan(ONE_HOT[:, 0])
    logits, truth = torch.tensor(SAID[known], requires_grad=True), torch.tensor(ONE_HOT[known])
    found = CLASSES.loss(logits, truth, torch.ones_like(truth))
    classes = ONE_HOT[known].argmax(axis=1)
    assert found.item() == pytest.approx(cross_entropy(logits, torch.tensor(classes)).item())
    assert CLASSES.validation_loss(SAID, ONE_HOT, np.ones_like(ONE_HOT)) == pytest.approx(
        found.item()
    )
    weights = CLASSES.class_weights(ONE_HOT)[:, 1]
    expected = compute_class_weight("balanced", classes=np.arange(3), y=classes)
    np.testing.assert_allclose(weights, expected)
    weighted = CLASSES.loss(logits, truth, torch.tensor(weights).expand_as(truth)).item()
    theirs = cross_entropy(
        logits, torch.tensor(classes), weight=torch.tensor(expected), reduction="sum"
    )
    assert weighted == pytest.approx(theirs.item() / known.sum())
    assert CLASSES.validation_loss(SAID, ONE_HOT, np.tile(weights, (6, 1))) == pytest.approx(
        weighted
    )
    np.testing.assert_allclose(
        CLASSES.first_logits(ONE_HOT, np.ones_like(ONE_HOT)).exp(), [2 / 5, 2 / 5, 1 / 5]
    )


def test_the_log_odds_of_a_class_are_those_of_its_probability() -> None:
    logits = torch.tensor(SAID)
    probability = CLASSES.predictions(logits)
    assert torch.allclose(probability.sum(dim=1), torch.ones(6, dtype=torch.float64))
    assert torch.allclose(CLASSES.log_odds(logits), torch.logit(probability))
    known = ~np.isnan(ONE_HOT[:, 0])
    expected = roc_auc_score(
        ONE_HOT[known].argmax(axis=1), probability[known], multi_class="ovr", average="macro"
    )
    assert CLASSES.area(SAID, ONE_HOT) == pytest.approx(expected)


def test_a_class_that_a_split_lacks_is_named() -> None:
    assert CLASSES.lacking(ONE_HOT, "train") == ""
    assert "got no record of VT (--classes" in CLASSES.lacking(ONE_HOT[:3], "valid")
    names, number = CLASSES.strata(ONE_HOT, np.array([0, 1, 3, 5]))
    assert names == ("AF", "SR", "VT")  # two records of training, one, and one
    assert number[[0, 1, 3]].tolist() == [1, 0, 2]


def test_a_number_has_the_loss_of_its_standardised_value() -> None:
    number = Number(targets=("ef",), mean=50.0, sd=10.0)
    truth, logits = np.array([[60.0], [np.nan], [45.0]]), np.array([0.5, 9.0, -1.0])
    assert number.validation_loss(logits, truth, np.ones_like(truth)) == pytest.approx(0.25)
    weight = torch.tensor([[1.5], [0.0], [1.5]])
    loss = number.loss(torch.tensor(logits), torch.tensor(np.nan_to_num(truth)), weight)
    assert loss.item() == pytest.approx(0.25)
    assert number.predictions(torch.tensor(logits)).tolist() == [55.0, 140.0, 40.0]
    assert number.first_logits(truth, truth).item() == 0.0
    found = number.on_validation(np.array([40.0, 50, 60]), np.array([42.0, 50, 55]))
    assert found["val_mae"] == pytest.approx(7 / 3)
    assert found["val_r2"] == pytest.approx(r2_score([40, 50, 60], [42, 50, 55]))
    few = load_config("demo", ["finetune.labels_per_class=3"]).finetune
    assert number.refused(few).startswith("finetune.labels_per_class must be unset for ef, a numb")
    assert CLASSES.refused(few) == ""


def test_a_number_may_have_pytorchs_huber_loss() -> None:
    settings = load_config("demo", ["finetune.number_loss=huber"]).finetune
    truth = np.array([[60.0], [np.nan], [45.0], [80.0]])
    number = Number(targets=("ef",)).fitted(truth, settings)
    known = ~np.isnan(truth[:, 0])
    logits = torch.tensor([2.5, 0.0, -0.9, 0.7], dtype=torch.float64)
    value = (torch.tensor(truth[:, 0]) - number.mean) / number.sd
    expected = huber_loss(logits[known], value[known]).item()
    assert ((logits - value).abs()[known] > 1).tolist() == [True, False, False]
    assert number.validation_loss(logits.numpy(), truth, np.ones_like(truth)) == pytest.approx(
        expected
    )
    weight = torch.tensor(known[:, None] * 4 / 3)
    loss = number.loss(logits, torch.tensor(np.nan_to_num(truth)), weight)
    assert loss.item() == pytest.approx(expected)
    assert number.loss_name == "Huber loss of standardised values"
    facts = {**number.identity(), "finetune.number_loss": "huber"}
    assert task_from(json.loads(json.dumps(facts))) == number
    for other in (BOTH, CLASSES, task_of(["mi=1"])):
        assert other.refused(settings).startswith(
            f"finetune.number_loss is of a target that is a number, got huber for {other.name};"
        )
