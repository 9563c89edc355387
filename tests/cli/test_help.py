"""The help pages: complete, at once, and the commands that the documentation names."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.main import get_command

from ecgfast.cli import app, main
from ecgfast.config import load_config
from ecgfast.labels.expression import Clause, parse

ROOT = Path(__file__).parents[2]
COMMANDS = (
    "synth", "convert", "label", "splits", "erase", "info", "quality", "verify", "fetch",
    "pretrain", "finetune", "probe", "evaluate", "reproduce", "predict", "export",
    "embed", "reconstruct",
    "plan", "recipe",
    "bench", "estimate", "doctor", "demo",
)  # fmt: skip


def test_help_answers_at_once() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "ecgfast", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert all(f"\n  {name} " in result.stdout for name in COMMANDS)
    lines = [line for line in result.stderr.splitlines() if line.startswith("import time:")]
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}
    assert "typer" in imported
    # each takes longer than all that the page needs; a clock would measure who else works here
    assert not imported & {"torch", "numpy", "pyarrow", "scipy", "matplotlib", "pydantic"}
    assert len(lines) < 320  # twice those of typer 0.16 and Python 3.12


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    page = capsys.readouterr().out
    assert page.startswith(f"Usage: ecgfast {name}")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_page_ends_with_a_line_that_parses(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name, "--help"]) == 0
    program, word, *arguments = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert (program, word) == ("ecgfast", name)
    command = get_command(app).commands[name]  # type: ignore[attr-defined]  # it is a group
    command.make_context(name, arguments)  # refuses options and values that do not exist


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("ecgfast pre", {"pretrain", "predict"}),
        ("ecgfast convert --quality-l", {"--quality-limits"}),
        ("ecgfast convert --codec z", {"zstd"}),
    ],
)
def test_a_shell_completes_what_was_typed(typed: str, words: set[str]) -> None:
    """As the script does that `ecgfast --show-completion bash` prints."""
    environment = os.environ | {
        "_ECGFAST_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(typed.split()) - 1),
    }
    result = subprocess.run(
        [sys.executable, "-m", "ecgfast"],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    assert set(result.stdout.split()) == words


@pytest.mark.parametrize("command", [[], ["convert"]])
def test_h_is_short_for_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--help"]) == 0
    page = capsys.readouterr().out
    assert main([*command, "-h"]) == 0
    assert capsys.readouterr().out == page
    assert "Raw 12-lead ECG files to a compressed store" in page or command


def test_version_is_that_of_the_project(capsys: pytest.CaptureFixture[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ecgfast {project['version']}\n"


def test_the_commands_are_those_of_this_list() -> None:
    assert sorted(c.callback.__name__ for c in app.registered_commands if c.callback) == sorted(
        COMMANDS
    )


def test_every_option_and_argument_has_a_line_of_help() -> None:
    for name in COMMANDS:
        command = get_command(app).commands[name]  # type: ignore[attr-defined]  # it is a group
        for parameter in command.params:
            words = getattr(parameter, "help", None) or ""
            assert len(words) >= 10, f"ecgfast {name}: {parameter.name} is not explained"


def test_select_names_its_operators_and_set_a_setting(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("pretrain", "finetune"):
        assert main([name, "--help"]) == 0
        page = " ".join(capsys.readouterr().out.split())
        (example,) = re.findall(r"Records to use, such as '(.+?)'", page)
        assert str(parse(example)) == example
        (operators,) = re.findall(r"comparisons (.+?) \(contains\)", page)
        for operator in operators.replace(" and", "").split():
            assert parse(f"age{operator}18") == Clause(column="age", op=operator, value="18")
        assert operators.replace(" and", "").split() == ["<", "<=", ">", ">=", "=", "!=", "~"]
        (setting,) = re.findall(r"Change a setting of the preset, such as (\S+);", page)
        assert load_config("demo", [setting]).train.batch_size == 64
