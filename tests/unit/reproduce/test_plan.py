"""Plans are read, refused with one clear error, and made of a store's hospitals."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from training_runs import make_store

from ecgfast.errors import ConfigError, ResumeError
from ecgfast.labels.selection import selected
from ecgfast.reproduce.cells import Cell, cells_of, outcome_of
from ecgfast.reproduce.plan import Finetuning, Model, Plan, Pretraining, check
from ecgfast.reproduce.run import make_plan, reproduce
from ecgfast.reproduce.study import default_plan, one_of
from ecgfast.store.reader import StoreReader, open_store

PLAN = Plan(
    preset="demo",
    settings=('data.engine="cpu"',),
    sites=("1", "2"),
    pretraining=(Pretraining(name="A", select="site=1", include_test=True),),
    model=(
        Model(name="ViT-A", init="A", settings=("model.pool=mean",)),
        Model(name="CNN", init="random", preset="cnn"),
    ),
    finetuning=(Finetuning(name="T", select="site=1", models=("ViT-A", "CNN")),),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StoreReader:
    """Eight hospitals, each with cases and controls in every split."""
    folder = tmp_path_factory.mktemp("eight")
    return open_store(make_store(folder, num_records=240, num_sites=8))


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    for plan in (PLAN, replace(PLAN, fractions=(0.03, 0.1, 1.0))):
        path.write_text(plan.to_toml())
        assert Plan.read(path) == plan


def test_a_plan_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(
        'sites = ["1"]\n[[pretraining]]\nname = "all"\n'
        '[[model]]\nname = "V"\ninit = "all"\n[[finetuning]]\nname = "F"\nmodels = ["V"]\n'
    )
    assert Plan.read(path) == Plan(
        target="ejection_fraction<40",
        preset="vit_large",
        sites=("1",),
        pretraining=(Pretraining(name="all", select=None, include_test=False),),
        model=(Model(name="V", init="all"),),
        finetuning=(Finetuning(name="F", models=("V",)),),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('sites = ["1"\n', "is not valid TOML"),
        ('target = 3\nsites = ["1"]\n', "target must be a text in quotes, got 3$"),
        ('sits = ["1"]\n', "unknown key sits, did you mean 'sites'"),
        ('sites = []\n[[model]]\nname = "a"\n', "model 1: init is missing"),
        (
            'sites = []\n[[model]]\nname = "a"\ninit = "random"\nfrozn = true\n',
            "model 1: unknown key frozn, did you mean 'frozen'\\?; allowed: name, init",
        ),
        (
            'sites = []\n[[pretraining]]\nname = "../a"\n',
            "pretraining 1: name must be letters, digits, .*got '../a'",
        ),
        ('sites = []\nseeds = 0\n', "seeds must be 1 to 100, got 0$"),
        ('sites = []\nseeds = 100000000\n', "seeds must be 1 to 100, got 100000000$"),
        ('sites = []\nseeds = 1.5\n', "seeds must be a whole number, got 1.5$"),
        ('sites = "1"\n', r"sites must be a list in \[ \], got '1'$"),
        ('sites = ["1", 2]\n', "sites 2 must be a text in quotes, got 2$"),
        ('sites = []\nmodel = [3]\n', r"model 1 must be a section \[\[ \]\], got 3$"),
        (
            'sites = []\n[[model]]\nname = "a"\ninit = "random"\nfrozen = "no"\n',
            "model 1: frozen must be true or false, got 'no'$",
        ),
        (
            'sites = []\n[[model]]\nname = "a"\ninit = "random"\nsettings = ["a=1", 2]\n',
            "model 1: settings 2 must be a text in quotes, got 2$",
        ),
        ('sites = []\nfractions = []\n', r"fractions must be numbers above 0 .* got \[\]"),
        ('sites = []\nfractions = [0.1, 2]\n', r"fractions must be .* at most 1, .* got \[0.1, 2"),
        ('sites = []\nfractions = [0.1, 0.1]\n', "fractions must be .*, each once, got"),
        ('sites = []\nfractions = [0.1, "1"]\n', "fractions 2 must be a number, got '1'$"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        Plan.read(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def changed(part: str, **values: object) -> Plan:
    """The plan with other values in the first entry of a part."""
    first, *rest = getattr(PLAN, part)
    return replace(PLAN, **{part: (replace(first, **values), *rest)})


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (changed("pretraining", select="ward=1"), "pretraining 'A': column 'ward' is not in"),
        (changed("pretraining", select="age>3"), "pretraining 'A': select 'age>3' has no record"),
        (changed("pretraining", settings=("train.epoch=1",)), "pretraining 'A': unknown setting"),
        (changed("model", init="B"), "model 'ViT-A': init 'B'.*allowed: random, imagenet-mae, A"),
        (changed("model", preset="vit"), "model 'ViT-A': unknown preset 'vit'"),
        (changed("model", name="CNN"), "model 'CNN' stands twice"),
        (changed("finetuning", models=("ViT-B",)), "'T': no model 'ViT-B', did you mean 'ViT-A'"),
        (changed("finetuning", models=("CNN", "CNN")), "'T': a model stands twice"),
        (changed("finetuning", select="site=9"), "finetuning 'T': split 'train' must hold cases"),
        (
            changed("finetuning", select="site=1 and ejection_fraction<40"),
            "finetuning 'T': split 'train' must hold cases and controls .*0 controls",
        ),
        (replace(PLAN, target="lvsd=true"), "finetuning 'T': column 'lvsd' is not in the store"),
        (
            replace(changed("model", settings=("finetune.label_fraction=0.5",)), fractions=(0.1,)),
            r"model 'ViT-A': fractions \[0.1\] and finetune.label_fraction=0.5 in settings; take",
        ),
        (replace(PLAN, sites=("1", "Ulm")), "sites: .* has no site 'Ulm'"),
        (replace(PLAN, sites=()), "sites is empty; name the hospitals"),
        (changed("finetuning", models=()), "finetuning 'T': models is empty; .*: ViT-A, CNN"),
    ],
)
def test_what_cannot_be_done_on_a_store_is_refused(
    store: StoreReader, plan: Plan, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        check(plan, store)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (
            changed("pretraining", settings=("train.batch_size=500",)),
            r"pretraining 'A': \d+ records .* global batch has 500; .* lower train.batch_size",
        ),
        (
            changed("model", settings=("finetune.batch_size=500",)),
            r"model 'ViT-A' on finetuning 'T': \d+ records .* 500; .* lower finetune.batch_size",
        ),
    ],
)
def test_a_set_that_fills_no_batch_is_refused_before_anything_begins(
    store: StoreReader, tmp_path: Path, plan: Plan, message: str
) -> None:
    check(plan, store)  # so that the plan is written, to be edited
    with pytest.raises(ConfigError, match=message):
        reproduce(store.path, tmp_path, plan, device="cpu")
    assert not any(tmp_path.iterdir())


def test_a_plan_that_can_be_done(store: StoreReader) -> None:
    check(PLAN, store)


def test_the_settings_of_a_column() -> None:
    plan = replace(PLAN, recipe="best_practice")
    chosen = plan.of_finetuning(replace(PLAN.model[0], frozen=True))
    assert (chosen.preset, chosen.recipe) == ("demo", "best_practice")
    config = chosen.config()
    assert (config.model.encoder_width, config.model.pool) == (128, "mean")
    assert (config.finetune.frozen, config.finetune.probe_epochs) == (True, 0)
    assert config.finetune.schedule == "cosine"
    plan = replace(plan, settings=("train.seed=5",))
    chosen = plan.of_finetuning(replace(PLAN.model[1], recipe="paper"), repeat=2)
    assert (chosen.config().model.kind, chosen.config().train.seed) == ("cnn", 7)
    assert chosen.options() == (
        *("--preset", "cnn", "--recipe", "paper"),
        *("--set", "train.seed=5", "--set", "train.seed=7"),
    )


def test_eight_hospitals_get_the_columns_of_the_study(store: StoreReader) -> None:
    plan = default_plan(store)
    assert plan.sites == tuple("12345678")
    assert [(each.name, each.select) for each in plan.pretraining] == [
        ("Dataset1", "site=1"),
        ("Dataset2", "site in (1, 2, 3)"),
    ]
    assert [(each.name, each.select) for each in plan.finetuning] == [
        ("Train1", "site=1"),
        ("Train2", "site in (1, 2, 3)"),
    ]
    study = ["CNN", "ViT-ImageNet", "ViT-Dataset1", "ViT-Dataset2"]  # its table, left to right
    beyond = ["ViT-random", "probe-Dataset1", "probe-Dataset2", "probe-random"]
    assert plan.finetuning[0].models == (study[0], *study[2:], *beyond)
    assert plan.finetuning[1].models == (*study, *beyond)
    assert {model.name: (model.init, model.frozen) for model in plan.model} == {
        "CNN": ("random", False),
        "ViT-ImageNet": ("imagenet-mae", False),
        "ViT-Dataset1": ("Dataset1", False),
        "ViT-Dataset2": ("Dataset2", False),
        "ViT-random": ("random", False),
        "probe-Dataset1": ("Dataset1", True),
        "probe-Dataset2": ("Dataset2", True),
        "probe-random": ("random", True),
    }
    assert plan.model[0].preset == "cnn"


def test_a_hospital_without_cases_teaches_nothing(store: StoreReader) -> None:
    plan = default_plan(store, target="ejection_fraction<40 and site!=1")
    assert plan.finetuning[0].select == "site=2"
    assert plan.sites == tuple("12345678")
    untuned = default_plan(store, target="ejection_fraction<40 and (site!=1 or split!=valid)")
    assert untuned.finetuning[0].select == "site=2"  # nothing there could choose the weights
    with pytest.raises(ConfigError, match=r"no hospital of .* has cases and controls"):
        default_plan(store, target="ejection_fraction<0")


def test_two_hospitals_have_one_set(tmp_path: Path) -> None:
    """With both in a set, no hospital would be external."""
    plan = default_plan(open_store(make_store(tmp_path)))
    assert [each.name for each in plan.finetuning] == ["Train1"]
    assert "ViT-ImageNet" in plan.finetuning[0].models


@pytest.mark.parametrize("name", ["and", "not", "a, b", 'the "Old"', "St. Mary's", "(x) <b>"])
def test_the_expression_of_a_hospital_selects_it_alone(name: str) -> None:
    sites = pa.table({"site": ["1", name, "2", None]})
    assert selected(sites, one_of([name])).tolist() == [False, True, False, False]
    assert selected(sites, one_of(["1", name])).tolist() == [True, True, False, False]


def test_a_hospital_that_no_expression_can_hold_is_named() -> None:
    with pytest.raises(ConfigError, match=r"both kinds of quotes, got .*; rename it") as error:
        one_of(["1", """St. "Mary's", A"""])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["{", "[]", '{"state": "finished", "identity": 3}'])
def test_a_damaged_outcome_is_one_clear_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "cell.json").write_text(text)
    with pytest.raises(ResumeError, match=r"cell\.json is damaged: .*; delete it, its cell is"):
        outcome_of(tmp_path / "cell")


def test_a_plan_that_was_edited_is_kept_as_it_is(store: StoreReader, tmp_path: Path) -> None:
    out, kept = tmp_path / "out", tmp_path / "out" / "plan.toml"
    made = make_plan(store.path, out)
    assert Plan.read(kept) == made == default_plan(store)
    edited = f"# mine\n{PLAN.to_toml()}"
    kept.write_text(edited)
    assert make_plan(store.path, out) == PLAN
    assert kept.read_text() == edited
    other = tmp_path / "other.toml"
    other.write_text(f"# other\n{made.to_toml()}")
    assert make_plan(store.path, out, plan=other) == made
    assert kept.read_text() == other.read_text()


def test_options_replace_what_the_plan_has(store: StoreReader, tmp_path: Path) -> None:
    wanted = {"preset": "vit_tiny", "recipe": "best_practice", "settings": ["train.seed=3"]}
    wanted |= {"fractions": (0.5, 1.0)}
    for _ in range(2):  # given again, they change nothing more
        plan = make_plan(store.path, tmp_path, **wanted, seeds=2, target="ejection_fraction<50")
        assert Plan.read(tmp_path / "plan.toml") == plan
        assert (plan.preset, plan.recipe, plan.settings, plan.seeds, plan.target) == (
            "vit_tiny", "best_practice", ("train.seed=3",), 2, "ejection_fraction<50",
        )  # fmt: skip
        assert plan.fractions == (0.5, 1.0)
    assert make_plan(store.path, tmp_path) == plan
    with pytest.raises(ConfigError, match=r"^plan: seeds must be 1 to 100, got 101$"):
        make_plan(store.path, tmp_path, seeds=101)


def finetunings(plan: Plan, store: StoreReader, out: Path) -> dict[str, Cell]:
    return {c.folder.name: c for c in cells_of(plan, store, out) if c.kind == "finetune"}


def test_fractions_and_seeds_are_cells_of_their_own(store: StoreReader, tmp_path: Path) -> None:
    plan = replace(
        changed("finetuning", models=("CNN",)),
        settings=("finetune.batch_size=8",),
        fractions=(0.3, 1.0),
        seeds=2,
    )
    found = finetunings(plan, store, tmp_path)
    assert [(name, cell.column) for name, cell in found.items()] == [
        ("CNN.T.fraction0.3", "CNN, T, fraction 0.3"),
        ("CNN.T.fraction0.3.seed1", "CNN, T, fraction 0.3, seed 1"),
        ("CNN.T", "CNN, T"),
        ("CNN.T.seed1", "CNN, T, seed 1"),
    ]
    assert {cell.line for cell in found.values()} == {"CNN, T"}
    few, other, everything, _ = found.values()
    assert few.words[-4:-2] == ("--set", "finetune.label_fraction=0.3")
    assert other.words[-6:-2] == (
        *("--set", "finetune.label_fraction=0.3"),
        *("--set", "train.seed=1"),
    )
    assert not any("label_fraction" in word for word in everything.words)
    assert few.identity["finetune.label_fraction"] == few.fraction == 0.3
    labels = [cell.identity["labels"] for cell in found.values()]
    assert len(set(labels)) == 3  # with all labels, both seeds learn from the same records
    before = finetunings(replace(plan, fractions=(1.0,)), store, tmp_path)
    assert before["CNN.T"] == everything


def test_fractions_that_cannot_teach_are_left_out_and_said_once(
    store: StoreReader,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ecgfast.log.logger.propagate", True)
    plan = replace(PLAN, fractions=(0.01, 0.3), seeds=3)
    found = finetunings(plan, store, tmp_path)
    assert {cell.fraction for cell in found.values()} == {0.3}
    assert len(found) == 6
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("plan: finetuning 'T': left out: finetune.label_fraction=0.01 leaves no")
    assert "take at least 0." in line
