"""Options that several commands have, and how their results are shown."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

StorePath = Annotated[Path, typer.Argument(metavar="STORE", help="A store made by convert.")]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        metavar="A,B",
        help="Columns to take of the table (convert: fields of the files too); may be repeated. "
        "Default: ejection_fraction and yes/no columns; all else only by name.",
    ),
]
KeepAges = Annotated[
    bool, typer.Option("--keep-ages-over-89", help="Keep these ages; else they are all 90.")
]
Target = Annotated[
    str | None,
    typer.Option(
        help="What a case is: splits get equal shares of cases. Default: ejection_fraction<40."
    ),
]
SplitSeed = Annotated[int | None, typer.Option(min=0, help="Seed of the splits; at first 0.")]
OneEcg = Annotated[
    bool,
    typer.Option(
        "--assume-one-ecg-per-patient", help="Records that name no patient are one patient each."
    ),
]
KeyFile = Annotated[Path | None, typer.Option(help="Pseudonym key; default STORE.key.")]


def show(text: object) -> None:
    """Print a result to the standard output."""
    from ecgfast.log import show as show_lines  # brings rich, which --help need not wait for

    show_lines(text)


class Steps:
    """Turns "so much is done in all" into the steps that a progress bar counts."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance = advance
        self._done = 0

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` units are done."""
        self._advance(done - self._done)
        self._done = done


def column_names(columns: list[str] | None) -> list[str] | None:
    """The names in all --columns of a command, each once."""
    text = ",".join(columns or ())
    return list(dict.fromkeys(text.split(","))) if text else None
