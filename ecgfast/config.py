"""Frozen settings <- TOML preset <- ``--set section.name=value``; an unknown key is an error."""

import dataclasses
import json
import tomllib
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from ecgfast.errors import ConfigError
from ecgfast.settings import SECTIONS, Config, nearest

__all__ = ["Config", "config_from_dict", "config_to_toml", "load_config", "preset_names"]


def load_config(preset: str, overrides: Iterable[str] = ()) -> Config:
    """Resolve a preset and ``section.name=value`` overrides.

    Args:
        preset: a name from `preset_names`, or the path of a TOML file.
        overrides: values are TOML literals; a bare word is a string.
    Raises:
        ConfigError: unknown preset or key, or a value of the wrong type; names the nearest key.
    """
    tree = _read_preset(preset)
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise ConfigError(f"--set needs section.name=value, got {override!r}")
        if key.strip() == "preset":
            raise ConfigError(f"--set {override}: choose a preset with --preset")
        _put(tree, key.strip(), _parse_literal(text.strip()), override)
    # Not its folder: runs are shared, and paths name people and projects.
    return config_from_dict({**tree, "preset": Path(preset).name})


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
    lines = [_toml_line(key, value) for key, value in tree.items() if not isinstance(value, dict)]
    for section, values in tree.items():
        if isinstance(values, dict):
            lines += ["", f"[{section}]"]
            lines += [_toml_line(k, v) for k, v in values.items() if v is not None]
    return "\n".join(lines) + "\n"


def preset_names() -> list[str]:
    """Names of the presets that ship with ecgfast."""
    folder = files("ecgfast") / "presets"
    return sorted(
        p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith(".toml")
    )


def _read_preset(preset: str) -> dict[str, Any]:
    if preset.endswith(".toml"):
        path = Path(preset)
        if not path.is_file():
            raise ConfigError(f"no preset file {preset}; name an existing TOML file")
        text = path.read_text(encoding="utf-8", errors="replace")  # TOML itself allows only UTF-8
    else:
        names = preset_names()
        if preset not in names:
            raise ConfigError(
                f"unknown preset {preset!r}{nearest(preset, names)}; allowed: {', '.join(names)}"
            )
        text = (files("ecgfast") / "presets" / f"{preset}.toml").read_text(encoding="utf-8")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"preset {preset} is not valid TOML: {error}") from error


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


def _toml_line(key: str, value: object) -> str:
    """A line of TOML: JSON's literals, but for characters that TOML writes in another way."""
    text = json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
    # half a UTF-16 pair stands for a byte of a file name that is no UTF-8: TOML has no form for it
    readable = text.encode("utf-8", "replace").decode("utf-8").replace("\x7f", r"\u007f")
    return f"{key} = {readable}"
