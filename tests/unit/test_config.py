"""Settings: presets, overrides, errors that name the nearest key, and TOML out and in."""

import re
import tomllib
from dataclasses import fields, replace
from pathlib import Path

import pytest

from ecgfast.config import (
    Config,
    config_from_dict,
    config_to_toml,
    ignored_settings,
    load_config,
    preset_names,
)
from ecgfast.errors import ConfigError
from ecgfast.settings import (
    OF_ONE_KIND,
    SECTIONS,
    AugmentConfig,
    FinetuneConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    free_on_resume,
)
from ecgfast.vocabulary import RunKind


@pytest.mark.parametrize("name", preset_names())
def test_presets_survive_toml(name: str) -> None:
    config = load_config(name, ["train.max_steps=7", "finetune.learning_rates=[1e-3]"])
    assert config_from_dict(tomllib.loads(config_to_toml(config))) == config


@pytest.mark.parametrize(
    "text", ["heart \U0001f600", "Ж é", 'a"b\\c', "tab\t\x01\x1b\x7f\n\r", "\u2028"]
)
def test_any_text_survives_toml(text: str) -> None:
    config = Config(preset=text)
    assert config_from_dict(tomllib.loads(config_to_toml(config))) == config


def test_a_file_name_that_is_no_utf8_gives_readable_toml() -> None:
    written = config_to_toml(Config(preset="caf\udce9.toml")).encode()
    assert tomllib.loads(written.decode())["preset"] == "caf?.toml"


def test_defaults_are_the_studys() -> None:
    config = load_config("vit_large")
    assert (config.train.epochs, config.train.batch_size, config.mask.ratio) == (1600, 1024, 0.75)
    assert (config.optim.beta1, config.optim.beta2) == (0.9, 0.95)
    assert (config.optim.base_lr, config.optim.weight_decay) == (1.5e-4, 0.05)
    assert config.finetune.learning_rates == (1e-4, 3e-5, 1e-5)
    assert config.model.num_patches == 240
    assert Config() == load_config("vit_large")


def test_leads_are_in_the_order_of_a_record_and_counted(tmp_path: Path) -> None:
    config = load_config("demo", ["data.leads=['V1', 'aVF', 'I']"])
    assert config.data.leads == ("I", "aVF", "V1")
    assert (config.model.num_leads, config.model.num_patches) == (3, 60)
    assert config_from_dict(tomllib.loads(config_to_toml(config))) == config
    (tmp_path / "run.toml").write_text(config_to_toml(config))
    other = load_config(str(tmp_path / "run.toml"), ["data.leads=['V5']"])
    assert (other.data.leads, other.model.num_leads) == (("V5",), 1)


def test_the_last_override_wins() -> None:
    config = load_config("demo", ["train.seed=1", "optim.base_lr=2", "train.seed=3"])
    assert config.train.seed == 3
    assert config.optim.base_lr == 2.0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.batchsize=1", "train.batchsize, did you mean 'batch_size'"),
        ("optimizer.base_lr=1", "optimizer, did you mean 'optim'"),
        ("train.batch_size=0", "train.batch_size must be at least 1, got 0"),
        ("train.batch_size=1.5", "train.batch_size must be an integer, got 1.5"),
        ("train.batch_size=true", "train.batch_size must be an integer, got True"),
        ("train.microbatch=many", "an integer or one of 'auto', got 'many'"),
        ("train.val_fraction=1", r"train.val_fraction must be in \[0, 1\), got 1.0"),
        ("mask.ratio=1.2", r"mask.ratio must be in \[0, 1\), got 1.2"),
        ("optim.base_lr=fast", "optim.base_lr must be a number, got 'fast'"),
        ("train.max_steps=0", "train.max_steps must be at least 1, got 0"),
        ("train.milestone_every=-1", "train.milestone_every must be at least 1, got -1"),
        ("train.clip_norm=0", "train.clip_norm must be above 0, got 0"),
        ("optim.base_lr=nan", "optim.base_lr must be above 0, got nan"),
        ("optim.beta2=1", r"optim.beta2 must be in \[0, 1\), got 1.0"),
        ("optim.warmup_epochs=inf", "optim.warmup_epochs must be at least 0, got inf"),
        ("data.num_threads=0", "data.num_threads must be at least 1, got 0"),
        ("data.resident_budget_gib=-1", "data.resident_budget_gib must be 'auto' or at least 0"),
        ("data.leads=I", "data.leads must be a list of names or unset, got 'I'"),
        ("data.leads=['I', 'V7']", "data.leads must be one or more of I, II, .*, got I, V7"),
        ("data.leads=['I', 'I']", "V6, each once, got I, I"),
        ("data.leads=[]", "each once, got none"),
        ("model.encoder_heads=0", "model.encoder_heads must be at least 1, got 0"),
        ("model.patch_timesteps=125", "must be 250, as long .* columns, got 125; leave it out"),
        (
            "model.num_timesteps=5100",
            "must be a multiple of 250, got 5100; a store's is 5000",
        ),
        ("finetune.learning_rates=[]", r"one or more numbers above 0, got \[\]"),
        ("finetune.patience=0", "finetune.patience must be at least 1, got 0"),
        ("train.seed=1\nx=2", "train.seed must be an integer"),
        ("finetune.label_fraction=0", "label_fraction must be above 0 and at most 1, got 0.0"),
        ("finetune.label_fraction=1.5", "label_fraction must be above 0 and at most 1, got 1.5"),
        ("finetune.labels_per_class=0", "finetune.labels_per_class must be at least 1, got 0"),
        ("finetune.number_loss=l1", "must be one of 'squared', 'huber', got 'l1'"),
        ("finetune.class_weights=sqrt", "must be one of 'none', 'balanced', got 'sqrt'"),
        ("finetune.layer_decay=0", "layer_decay must be above 0 and at most 1, got 0.0"),
        ("finetune.layer_decay=1.1", "layer_decay must be above 0 and at most 1, got 1.1"),
        ("finetune.drop_path=1", r"finetune.drop_path must be in \[0, 1\), got 1.0"),
        ("finetune.schedule=linear", "must be one of 'constant', 'cosine', got 'linear'"),
        ("finetune.probe_epochs=-1", "finetune.probe_epochs must be at least 0, got -1"),
        ("augment.lead_dropout=1", r"augment.lead_dropout must be in \[0, 1\), got 1.0"),
        (
            "augment.shift_timesteps=2501",
            r"shift_timesteps must be in \[0, 2500\], half a record.* got 2501",
        ),
        ("augment.shift_timesteps=0.5", "augment.shift_timesteps must be an integer, got 0.5"),
        ("preset=tiny", "choose a preset with --preset"),
        ("recipe=paper", "choose a recipe with --recipe"),
        ("train=3", "train is a section, got the value 3"),
        ("train.seed", "--set needs section.name=value, got 'train.seed'"),
    ],
)
def test_wrong_settings_are_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("demo", [override])


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown preset 'vit_larg', did you mean 'vit_large'"):
        load_config("vit_larg")


def test_the_papers_recipe_is_the_default() -> None:
    assert preset_names("recipe") == ["best_practice", "paper"]
    assert load_config("vit_large", recipe="paper") == load_config("vit_large")


def test_a_recipe_lies_over_the_preset_and_below_what_is_set(tmp_path: Path) -> None:
    config = load_config("demo", ["finetune.epochs=2"], recipe="best_practice")
    assert (config.preset, config.recipe, config.finetune.epochs) == ("demo", "best_practice", 2)
    assert (config.finetune.layer_decay, config.model.pool) == (0.75, "lead_mean_max")
    assert config.model.encoder_width == load_config("demo").model.encoder_width
    written = tmp_path / "run.toml"
    written.write_text(config_to_toml(config))
    assert load_config(str(written)).finetune == config.finetune
    back = load_config(str(written), recipe="paper")
    assert (back.finetune, back.augment) == (FinetuneConfig(), AugmentConfig())
    mine = tmp_path / "mine.toml"
    mine.write_text("fused = 'separate'\n[augment]\nnoise = 0.5\n")
    config = load_config("demo", recipe=str(mine))
    assert (config.recipe, config.fused, config.augment.noise) == ("mine.toml", "separate", 0.5)


def test_wrong_recipes_are_named() -> None:
    with pytest.raises(ConfigError, match=r"'papers', did you mean 'paper'.*: best_practice, pap"):
        load_config("demo", recipe="papers")
    with pytest.raises(ConfigError, match=r"^no recipe file none\.toml; name an existing"):
        load_config("demo", recipe="none.toml")
    with pytest.raises(ConfigError, match=r"must be 0 with finetune.frozen.* got 3; set one"):
        FinetuneConfig(frozen=True, probe_epochs=3)
    with pytest.raises(ConfigError, match=r"labels_per_class must be unset with .* got 5 and 0.1"):
        load_config("demo", ["finetune.labels_per_class=5", "finetune.label_fraction=0.1"])


@pytest.mark.parametrize("kind", ["preset", "recipe"])
def test_a_wrong_key_names_its_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[finetune]\nepoch = 3\n")
    chosen = {"preset": "demo", kind: str(path)}
    with pytest.raises(ConfigError) as error:
        load_config(chosen["preset"], recipe=chosen.get("recipe"))
    assert str(error.value).startswith(f"{kind} {path}: unknown setting finetune.epoch, did you me")


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"paper, or a TOML file, whose name ends in \.toml$"):
        load_config("demo", recipe=str(tmp_path))


@pytest.mark.parametrize("preset", ["cnn", "resnet1d_wang"])
def test_a_preset_of_a_cnn_has_no_transformer(preset: str) -> None:
    with pytest.raises(ConfigError, match=f"preset {preset} describes a {preset} and has no sizes"):
        load_config(preset, ["model.kind=vit"])
    assert load_config("demo", ["model.kind=cnn", "model.kind=vit"]).model.kind == "vit"
    assert load_config(preset, ["model.kind=cnn"]).model.kind == "cnn"


def test_what_another_kind_of_model_uses_is_said_to_be_ignored() -> None:
    given = [
        "model.dense_dropout=0.1",
        "model.filters=8",
        "finetune.layer_decay=0.5",
        "train.seed=1",
        "fused=off",
    ]
    said = {kind: ignored_settings(load_config("demo", [f"model.kind={kind}"]), given)
            for kind in ("vit", "cnn", "resnet1d_wang")}  # fmt: skip
    assert said == {
        "vit": "a vit ignores model.dense_dropout, model.filters",
        "cnn": "a cnn ignores model.filters, finetune.layer_decay, fused",
        "resnet1d_wang": "a resnet1d_wang ignores model.dense_dropout, finetune.layer_decay, fused",
    }
    assert ignored_settings(load_config("demo"), ["model.pool=mean", "train.seed=1"]) == ""


def test_of_a_preset_file_the_name_alone_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[train]\nepochs = 3\n")
    config = load_config(str(path))
    assert (config.preset, config.train.epochs) == ("mine.toml", 3)


def test_settings_made_in_python_are_checked_too() -> None:
    with pytest.raises(ConfigError, match=r"^optim.beta1 must be in \[0, 1\), got 2.0$"):
        OptimConfig(beta1=2)
    with pytest.raises(ConfigError, match=r"^train.seed must be in \[0, 2\^63\), got -1$"):
        replace(TrainConfig(), seed=-1)
    with pytest.raises(ConfigError, match=r"^unknown setting model.heads; allowed: model.kind, "):
        ModelConfig(heads=3)  # type: ignore[call-arg]  # meant


def test_whole_numbers_stay_whole_where_a_setting_may_be_unset_or_auto() -> None:
    overrides = ["train.clip_norm=1", "data.resident_budget_gib=2", "optim.min_lr=0"]
    text = config_to_toml(load_config("demo", overrides))
    assert "\nclip_norm = 1\n" in text
    assert "\nresident_budget_gib = 2\n" in text
    assert "\nmin_lr = 0.0\n" in text


def test_what_a_resumed_run_may_change() -> None:
    """Whoever adds a setting decides it; all others must be those of the run."""
    assert free_on_resume() == {
        *("preset", "recipe", "kernels", "attention", "fused", "model.kind"),
        *("train.max_steps", "train.microbatch", "train.precision", "train.compile"),
        *("train.cuda_graph", "train.parallel", "train.mesh", "train.log_every", "train.val_every"),
        *("train.checkpoint_every", "train.checkpoint_keep", "train.milestone_every"),
        *("train.probe", "train.probe_every"),
        *("optim.one_pass", "data.engine", "data.resident_budget_gib", "data.num_threads"),
        "data.cache_dir",
    }


def test_the_page_says_what_a_resumed_run_may_change() -> None:
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    text = page.split("These may change on a resume:", 1)[1].split("These must be", 1)[0]
    said = {name.rpartition(".")[2] for name in re.findall("`([a-z_0-9.]+)`", text)}
    compared = {"attention", "model.kind", "train.precision"}  # by what they mean there
    assert said == {name.rpartition(".")[2] for name in free_on_resume() - compared}


@pytest.mark.parametrize(
    ("kind", "begin"), [("finetune", "Fine-tuning ignores"), ("pretrain", "Pretraining ignores")]
)
def test_the_page_says_what_a_kind_of_run_ignores(kind: RunKind, begin: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    text = page.split(begin, 1)[1].split("\n\n")[0]
    ignored = {
        f"{section}.{field.name}"
        for section, cls in SECTIONS.items()
        for field in fields(cls)
        if field.metadata["only"] not in (None, kind)
    }
    sections = {section for section, only in OF_ONE_KIND.items() if only != kind}
    assert set(re.findall("`([a-z_0-9.]+)`", text)) == ignored
    assert set(re.findall(r"`\[([a-z]+)\]`", text)) == sections
    whole = {
        f"{section}.{field.name}" for section in sections for field in fields(SECTIONS[section])
    }
    assert ignored | whole <= free_on_resume(kind)


def test_every_setting_has_a_line_on_what_it_means() -> None:
    own = [field for field in fields(Config) if field.name not in SECTIONS]
    for field in [*own, *(field for cls in SECTIONS.values() for field in fields(cls))]:
        meaning = field.metadata["meaning"]
        assert meaning.endswith("."), field.name
        assert "\n" not in meaning, field.name
