"""Open data sets in their published layouts: labels, folds, refusals, and the table of AUROCs."""

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import open_data
import pytest
from sklearn.metrics import roc_auc_score
from training_runs import make_store, preset

from ecgfast.cli import main
from ecgfast.config import load_config
from ecgfast.errors import ConfigError
from ecgfast.evaluate.discrimination import delong
from ecgfast.labels.commands import label_store
from ecgfast.recipes.catalogue import recipe_named, recipes
from ecgfast.recipes.run import Prepared, config_for, describe, prepare, table_of, train
from ecgfast.runs.loading import load_run
from ecgfast.store.reader import StoreReader, open_store
from ecgfast.vocabulary import RecipeName

PTB_XL_500 = Path(__file__).parents[4] / "shared/data/ptbxl500"
NUM = open_data.NUM_RECORDS


def write(name: str, folder: Path) -> None:
    """A data set as it is published."""
    if name == "echonext":
        open_data.echonext(folder, recipe_named(name).targets)
    else:
        writer: Callable[[Path], None] = getattr(open_data, name.replace("-", "_"))
        writer(folder)


def prepared(name: str, tmp_path: Path) -> StoreReader:
    write(name, tmp_path / "in")
    return open_store(
        prepare(recipe_named(name), tmp_path / "in", tmp_path / "out", workers=1).store
    )


def by_number(store: StoreReader, column: str, number_of: Callable[[str], int]) -> list[object]:
    """Cells of a column in the order of the published records' numbers."""
    with store.path.with_name(f"{store.path.name}.sources.csv").open(encoding="utf-8") as file:
        names = {line["record_id"]: line["record"] for line in csv.DictReader(file)}
    cells = dict(
        zip(store.records["record_id"].to_pylist(), store.records[column].to_pylist(), strict=True)
    )
    return [cells[own] for own in sorted(cells, key=lambda own: number_of(names[own]))]


def last_digits(name: str) -> int:
    return int("".join(c for c in name.rpartition("/")[2] if c.isdigit()))


def test_the_catalogue_has_what_the_command_line_names() -> None:
    assert tuple(each.name for each in recipes()) == get_args(RecipeName)
    for each in recipes():
        page = describe(each)
        for words in (each.url, each.licence, "core-hours", "h (vit_base: 1600 epochs"):
            assert words in page
        assert f"ecgfast recipe {each.name} {each.name} --out" in page


def test_ptb_xl_has_its_superclasses_and_folds(tmp_path: Path) -> None:
    store = prepared("ptb-xl", tmp_path)
    expected = {"NORM": [1, 0, None], "MI": [0, 1, None], "HYP": [0, 1, None], "CD": [0, 0, None]}
    for name, cells in expected.items():
        assert by_number(store, name, last_digits) == cells * (NUM // 3)
    folds = [1 + number % 10 for number in range(NUM)]
    assert by_number(store, "fold", last_digits) == folds
    names = {10: "test", 9: "valid"}
    assert by_number(store, "split", last_digits) == [names.get(fold, "train") for fold in folds]
    assert by_number(store, "sex", last_digits) == ["male", "female"] * (NUM // 2)
    assert by_number(store, "age", last_digits)[2:5] == [50, 90, 50]
    assert len(set(store.records["patient_id"].to_pylist())) == NUM


@pytest.mark.skipif(not PTB_XL_500.exists(), reason="real recordings are not on this machine")
def test_ptb_xl_as_published(tmp_path: Path) -> None:
    """Against classes and folds that others derived from the same two tables."""
    prepare(recipe_named("ptb-xl"), PTB_XL_500, tmp_path, workers=1)
    with (PTB_XL_500 / "labels.csv").open() as file:
        theirs = {line["record_id"]: line for line in csv.DictReader(file)}
    with (tmp_path / "labels.csv").open() as file:
        ours = {line["record_id"]: line for line in csv.DictReader(file)}
    classes = recipe_named("ptb-xl").targets
    assert len(ours) == len(theirs) == 500
    for name, line in theirs.items():
        assert ours[name]["fold"] == line["strat_fold"]
        assert [ours[name][each] or "0" for each in classes] == [line[each] for each in classes]


@pytest.mark.parametrize(
    ("name", "even", "odd"), [("chapman", "AFIB", "SR"), ("cinc2021", "AF", "NSR")]
)
def test_codes_of_headers_are_targets(tmp_path: Path, name: str, even: str, odd: str) -> None:
    store = prepared(name, tmp_path)
    assert by_number(store, even, last_digits) == [1, 0] * (NUM // 2)
    assert by_number(store, odd, last_digits) == [0, 1] * (NUM // 2)
    assert by_number(store, "SB", last_digits) == [0] * NUM
    assert set(store.records["split"].to_pylist()) == {"train", "valid", "test"}
    if name == "cinc2021":
        assert by_number(store, "site", last_digits) == ["georgia", "ningbo"] * (NUM // 2)


def test_code_15_joins_exams_to_rows_of_its_files(tmp_path: Path) -> None:
    store = prepared("code-15", tmp_path)

    def number(name: str) -> int:
        part, _, row = name.partition("/")
        return int(part[-1]) * (NUM // 2) + int(row)

    assert len(store) == NUM  # the last row of each file, all zeros, is no record
    assert by_number(store, "1dAVb", number) == [True, False] * (NUM // 2)
    assert by_number(store, "sex", number) == ["female", "male"] * (NUM // 2)


def test_mimic_has_what_the_machine_measured(tmp_path: Path) -> None:
    store = prepared("mimic-iv-ecg", tmp_path)
    assert by_number(store, "atrial_fibrillation", last_digits) == [1, 0] * (NUM // 2)
    assert by_number(store, "qrs_ms", last_digits) == [96] * NUM
    assert by_number(store, "pr_ms", last_digits) == [None, 140] * (NUM // 2)
    assert by_number(store, "rr_ms", last_digits) == [800] * NUM
    assert by_number(store, "qt_ms", last_digits) == [420] * NUM


def test_mimic_with_echoes_has_ejection_fractions(tmp_path: Path) -> None:
    open_data.mimic_iv_ecg(tmp_path / "in", with_echo=True)
    found = prepare(recipe_named("mimic-iv-ecg"), tmp_path / "in", tmp_path / "out", workers=1)
    assert found.targets == ("ejection_fraction<40",)
    store = open_store(found.store)
    assert by_number(store, "ejection_fraction", last_digits) == [30, 60] * (NUM // 2)
    assert by_number(store, "qrs_ms", last_digits) == [96] * NUM  # both tables are joined


def test_a_part_that_is_missing_is_named(tmp_path: Path) -> None:
    write("code-15", tmp_path / "in")
    (tmp_path / "in/exams_part1.hdf5").unlink()
    with pytest.raises(ConfigError, match=r"has no exams_part1.hdf5, needed .* get them: wget"):
        prepare(recipe_named("code-15"), tmp_path / "in", tmp_path / "out")
    (tmp_path / "in/exams.csv").unlink()
    with pytest.raises(ConfigError, match=r"has no exams.csv, needed exams.csv, exams_part"):
        prepare(recipe_named("code-15"), tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_table_of_another_version_is_refused_before_the_convert(tmp_path: Path) -> None:
    write("echonext", tmp_path / "in")
    table = tmp_path / "in/echonext_metadata_100k.csv"
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(lines[:-2]))
    with pytest.raises(ConfigError, match="has 5 rows, and the metadata 4 lines of its split"):
        prepare(recipe_named("echonext"), tmp_path / "in", tmp_path / "out")
    table.write_text("".join(line.replace("patient_key", "patient") for line in lines))
    with pytest.raises(ConfigError, match="got no table with the columns patient_key"):
        prepare(recipe_named("echonext"), tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_echonext_trains_and_its_table_is_that_of_scikit_learn(tmp_path: Path) -> None:
    write("echonext", tmp_path / "in")
    whole = recipe_named("echonext")
    recipe = replace(whole, targets=whole.targets[:2])
    found = prepare(recipe, tmp_path / "in", tmp_path / "out", workers=1)
    settings = ["finetune.epochs=1", "finetune.batch_size=7", "finetune.learning_rates=[1e-3]"]
    config = config_for("random", None, [*settings, "model.filters=4"], "cpu")
    areas = train(found, config, init="random", device="cpu")
    store = open_store(found.store)
    splits = np.array(store.records["split"].to_pylist())
    assert [(splits == name).sum() for name in ("train", "valid", "test")] == [14, 5, 5]
    rows = np.flatnonzero(splits == "test")
    expected = []
    scores = load_run(found.run, store).probabilities(store, rows)
    for number, target in enumerate(found.targets):
        labels = np.array(store.records[target.removesuffix("=1")].to_pylist())[rows]
        assert sorted(labels) == [0, 0, 0, 1, 1]
        expected.append(roc_auc_score(labels, scores[:, number]))
    assert [areas[target].value for target in found.targets] == pytest.approx(expected)
    page = table_of(recipe, areas)
    assert f"| macro | | | {np.mean(expected):.3f} |" in page
    assert "| shd_moderate_or_greater_flag | EchoNext-Mini | 0.820 (0.809-0.831) |" in page


def test_the_table_counts_known_labels_by_patient(tmp_path: Path) -> None:
    """Six patients have two test records each; two of the records have no label."""
    path, target = make_store(tmp_path, num_sites=1), "lucky=1"
    cells = ["" if n % 11 == 5 else str(int(n % 7 < 3)) for n in range(64)]  # no ECG shows it
    lines = [f"r{number:03d},{cell}" for number, cell in enumerate(cells)]
    (tmp_path / "lucky.csv").write_text("\n".join(["record_id,lucky", *lines]) + "\n")
    label_store(path, tmp_path / "lucky.csv")
    store = open_store(path)
    once = ["finetune.epochs=1", "finetune.learning_rates=[1e-3]"]
    config = load_config(str(preset(tmp_path)), once)
    found = Prepared(out=tmp_path, targets=(target,))
    area = train(found, config, init="random", device="cpu")[target]
    split, lucky, patient = (
        np.array(store.records[name].to_pylist(), dtype=object)
        for name in ("split", "lucky", "patient_id")
    )
    known = (split == "test") & (lucky != None)  # noqa: E711 (element by element)
    score = load_run(found.run, store).probabilities(store, np.arange(len(store)))[known]
    is_case, patients = (lucky[known] == 1).astype(bool), patient[known].astype(str)
    assert len(set(patients)) < known.sum() < (split == "test").sum()
    apart, together = delong(is_case, score), delong(is_case, score, patients)
    assert (area.num_cases, area.num_controls) == (is_case.sum(), (~is_case).sum())
    assert (area.value, area.low) == pytest.approx((together.value, together.low), abs=1e-6)
    assert apart.low != pytest.approx(together.low, abs=1e-3)


def test_the_command_prints_how_to_get_a_data_set_and_how_to_train(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recipe", "chapman"]) == 0
    assert "wget -r -N -c" in capsys.readouterr().out
    assert main(["recipe", "ptb-xl", str(tmp_path)]) == 2
    assert "needs --out DIR, got none" in capsys.readouterr().err
    write("ptb-xl", tmp_path / "in")
    words = ["recipe", "ptb-xl", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    for _ in range(2):  # run again, it resumes
        assert main([*words, "--workers", "1"]) == 0
        lines = capsys.readouterr().out.splitlines()
        store = tmp_path / "out/store"
        assert lines[0].startswith(f"ecgfast finetune {store} --out {tmp_path / 'out/run'} --init")
        assert "--target NORM=1 --target MI=1 --target STTC=1" in lines[0]
        assert lines[1].startswith(f"ecgfast evaluate {tmp_path / 'out/run'} {store} --out")
