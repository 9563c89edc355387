"""Frozen settings <- TOML preset <- ``--set section.name=value``; an unknown key is an error."""

import dataclasses
import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from ecgfast.bounds import nearest
from ecgfast.errors import ConfigError
from ecgfast.settings import SECTIONS, Config, ignored_by

__all__ = [
    "Config",
    "Overrides",
    "config_from_dict",
    "config_to_toml",
    "ignored_settings",
    "load_config",
    "preset_names",
    "toml_line",
]

Overrides = Mapping[str, Any] | Iterable[str]

_FOLDERS = {
    "preset": files("ecgfast") / "presets",
    "recipe": files("ecgfast") / "presets" / "recipes",
}


def load_config(
    preset: str | Path | Config, overrides: Overrides = (), *, recipe: str | Path | None = None
) -> Config:
    """Resolve a preset, a recipe of fine-tuning over it, and overrides of single settings.

    Args:
        preset: a name from `preset_names`, the path of a TOML file, or settings to start from.
        overrides: ``{"section.name": value}``, or ``section.name=value`` each, where values are
            TOML literals and a bare word is a string.
        recipe: "paper", "best_practice" or the path of a TOML file; None keeps the preset's.
    Raises:
        ConfigError: unknown preset, recipe or key, or a value of the wrong type; names the nearest.
    """
    if isinstance(preset, Config):
        tree, name = dataclasses.asdict(preset), preset.preset
    else:
        tree, name = _read_toml("preset", str(preset)), Path(preset).name
    kind = _kind(tree)
    if recipe is not None:
        for section, values in _read_toml("recipe", str(recipe)).items():
            if isinstance(values, dict):
                values = {**tree.get(section, {}), **values}
            tree[section] = values
        tree["recipe"] = Path(recipe).name
    for key, value, override in _pairs(overrides):
        if key in ("preset", "recipe"):
            raise ConfigError(f"--set {override}: choose a {key} with --{key}")
        _put(tree, key, value, override)
    if kind != "vit" and _kind(tree) == "vit":
        raise ConfigError(
            f"preset {name} describes a {kind} and has no sizes of a vision transformer, got "
            "model.kind=vit; take such a preset, as --preset vit_base"
        )
    # Not its folder: runs are shared, and paths name people and projects.
    return config_from_dict({**tree, "preset": name})


def _pairs(overrides: Overrides) -> Iterator[tuple[str, object, str]]:
    """Key and value of each override, and how it is called in an error."""
    if isinstance(overrides, Mapping):
        yield from ((key, value, f"{key}={value}") for key, value in overrides.items())
        return
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise ConfigError(f"--set needs section.name=value, got {override!r}")
        yield key.strip(), _parse_literal(text.strip()), override


def _kind(tree: Mapping[str, Any]) -> str:
    model = tree.get("model")
    return str(model.get("kind", "vit")) if isinstance(model, dict) else "vit"


def ignored_settings(config: Config, overrides: Overrides) -> str:
    """Which overrides a config's kind of model ignores, as a sentence; empty where none.

    Args:
        config: made with them.
        overrides: as of `load_config`.
    """
    keys = [override.partition("=")[0].strip() for override in overrides]
    ignored = [key for key in dict.fromkeys(keys) if key in ignored_by(config.model.kind)]
    return f"a {config.model.kind} ignores {', '.join(ignored)}" if ignored else ""


def config_from_dict(tree: Mapping[str, Any]) -> Config:
    """Build a `Config` from nested plain values, such as a parsed ``config.toml``."""
    values = {
        name: SECTIONS[name](**value) if isinstance(value, Mapping) and name in SECTIONS else value
        for name, value in tree.items()
    }
    return Config(**values)


def config_to_toml(config: Config) -> str:
    """Render a config as TOML that `config_from_dict` reads back to an equal value."""
    tree = dataclasses.asdict(config)
    lines = [toml_line(key, value) for key, value in tree.items() if not isinstance(value, dict)]
    for section, values in tree.items():
        if isinstance(values, dict):
            lines += ["", f"[{section}]"]
            lines += [toml_line(k, v) for k, v in values.items() if v is not None]
    return "\n".join(lines) + "\n"


def preset_names(kind: str = "preset") -> list[str]:
    """Names of the presets, or of the recipes of fine-tuning ("recipe"), of ecgfast itself."""
    return sorted(
        p.name.removesuffix(".toml") for p in _FOLDERS[kind].iterdir() if p.name.endswith(".toml")
    )


def _read_toml(kind: str, name: str) -> dict[str, Any]:
    """Read a preset or a recipe, by its name or by its own path."""
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise ConfigError(f"no {kind} file {name}; name an existing TOML file")
        text = path.read_text(encoding="utf-8", errors="replace")  # TOML itself allows only UTF-8
    else:
        names = preset_names(kind)
        if name not in names:
            raise ConfigError(
                f"unknown {kind} {name!r}{nearest(name, names)}; allowed: {', '.join(names)}, or a "
                "TOML file, whose name ends in .toml"
            )
        text = (_FOLDERS[kind] / f"{name}.toml").read_text(encoding="utf-8")
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{kind} {name} is not valid TOML: {error}") from error
    try:
        config_from_dict(tree)
    except ConfigError as error:
        raise ConfigError(f"{kind} {name}: {error}") from error
    return tree


def _parse_literal(text: str) -> object:
    try:
        tree = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return tree["value"] if len(tree) == 1 else text  # a line break would begin a second key


def _put(tree: dict[str, Any], key: str, value: object, override: str) -> None:
    section, dot, name = key.partition(".")
    if not dot:
        tree[section] = value
        return
    values = tree.setdefault(section, {})
    if "." in name or not isinstance(values, dict):
        raise ConfigError(f"--set {override}: keys are name or section.name, got {key!r}")
    values[name] = value


def toml_line(key: str, value: object) -> str:
    """A line of TOML: JSON's literals, but for characters that TOML writes in another way."""
    text = json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
    # half a UTF-16 pair stands for a byte of a file name that is no UTF-8: TOML has no form for it
    readable = text.encode("utf-8", "replace").decode("utf-8").replace("\x7f", r"\u007f")
    return f"{key} = {readable}"
