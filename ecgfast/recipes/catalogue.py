"""Open data sets as catalogue.toml lists them: where they are, what they cost, what is in them."""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from ecgfast.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Published:
    """An AUROC of a publication.

    Attributes:
        of: a target, or "macro", the mean of all.
        model: as the publication calls it.
        auroc: with its uncertainty, as printed there.
        source: of the number.
    """

    of: str
    model: str
    auroc: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A data set.

    Attributes:
        name: on the command line.
        title: name, version and what it is.
        url: of its page.
        licence: and what access takes.
        get: commands that download it into ``{folder}``.
        records: that it has.
        source_gb: of its files, unpacked.
        needs: files and folders that must be there; patterns.
        signals: the folder that is converted, or a pattern of files.
        table: which function of `tables` reads its labels.
        splits: whose they are, in words.
        targets: columns of 0 and 1 that are learned.
        codes: target -> SNOMED CT codes, for data sets whose labels are these.
        echo_target: what is learned where ejection fractions lie beside the ECGs.
        convert: options of `convert`, other than its defaults.
        sidecar: what arrays without a sidecar need to be read.
        site_of_folder: whether the first folder below `signals` is the site.
        notes: what a user must know.
        published: AUROCs on the same test records.
    """

    name: str
    title: str
    url: str
    licence: str
    get: tuple[str, ...]
    records: int
    source_gb: float
    needs: tuple[str, ...]
    signals: str
    table: str
    splits: str
    targets: tuple[str, ...] = ()
    codes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    echo_target: str | None = None
    convert: Mapping[str, Any] = field(default_factory=dict)
    sidecar: Mapping[str, Any] | None = None
    site_of_folder: bool = False
    notes: tuple[str, ...] = ()
    published: tuple[Published, ...] = ()

    def downloads(self, folder: Path | None = None) -> list[str]:
        """The commands that get it."""
        return [line.replace("{folder}", str(folder or self.name)) for line in self.get]

    def check(self, folder: Path) -> None:
        """Refuse a folder that lacks a part.

        Raises:
            ConfigError: names all parts that are missing, and how to get them.
        """
        if not folder.is_dir():
            raise ConfigError(f"recipe {self.name}: {folder} is no folder; {self._cure(folder)}")
        missing = [name for name in self.needs if next(folder.glob(name), None) is None]
        if missing:
            raise self.lacks(folder, missing)

    def lacks(self, folder: Path, missing: list[str]) -> ConfigError:
        """The error of a folder without some parts."""
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if missing[5:] else "")
        return ConfigError(
            f"recipe {self.name}: {folder} has no {shown}, needed {', '.join(self.needs)} as "
            f"published; {self._cure(folder)}"
        )

    def _cure(self, folder: Path) -> str:
        return f"give the folder that holds them, or get them: {'; '.join(self.downloads(folder))}"


def recipes() -> Iterator[Recipe]:
    """All data sets."""
    text = (files("ecgfast") / "recipes" / "catalogue.toml").read_text(encoding="utf-8")
    for name, entry in tomllib.loads(text).items():
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()
        }
        values["published"] = tuple(Published(**row) for row in entry.get("published", ()))
        if "codes" in entry:
            values["targets"] = tuple(entry["codes"])
        yield Recipe(name=name, **values)


def recipe_named(name: str) -> Recipe:
    """The data set of a name of `vocabulary.RecipeName`."""
    return next(each for each in recipes() if each.name == name)
