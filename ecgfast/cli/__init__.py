"""The command line: every command parses, builds a config and makes one call.

Only typer is imported here and in the command modules; everything heavy is imported inside the
commands, so that ``ecgfast --help`` answers at once.
"""

import errno
import os
import re
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from types import TracebackType
from typing import Annotated

import typer
from typer.main import get_command

from ecgfast.cli import data, labels, machine, models, runs
from ecgfast.cli.examples import EXAMPLES
from ecgfast.errors import ConfigError, EcgfastError

GLOBAL_FLAGS = ("--debug", "--strict")
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

app = typer.Typer(
    name="ecgfast",
    help="Raw 12-lead ECG files to a compressed store, and masked autoencoders trained on it.",
    epilog="Anywhere on the line: --debug shows tracebacks and debug lines, --strict makes a "
    "slower path an error.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    *data.COMMANDS,
    *labels.COMMANDS,
    *runs.COMMANDS,
    *models.COMMANDS,
    *machine.COMMANDS,
):
    # \b: a line that is not wrapped
    app.command(epilog=f"Example:\n\n\b\n  {EXAMPLES[command.__name__]}")(command)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"ecgfast {version('ecgfast')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Take the options that stand before a command."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: without the program's name; None: those of the process.
    Returns:
        0; 2 for a mistake of the user, in one line on stderr; 130 after Ctrl-C; 1 for anything
        else.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug, strict = (flag in given for flag in GLOBAL_FLAGS)
    given = [argument for argument in given if argument not in GLOBAL_FLAGS]
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if not debug:
        sys.excepthook = _one_line
    if isinstance(sys.stdout, TextIOWrapper):  # names that the locale cannot show do not end a run
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        if given and given[-1] not in ("-h", "--help", "--version"):
            _check_words(given)
            _start_log(debug=debug, strict=strict)
        # Not standalone: typer would print its own boxes and choose the exit code.
        result = get_command(app).main(given, prog_name="ecgfast", standalone_mode=False)
    except typer.TyperException as error:
        return _refuse(_usage(error, given))
    except EcgfastError as error:
        if debug:
            raise
        return _refuse(str(error))
    except (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        if debug:
            raise
        return _refuse(_about_path(error))
    except PermissionError as error:
        if debug:
            raise
        return _refuse(f"no permission, got {error.filename}; choose another path or user")
    except BrokenPipeError:  # `ecgfast ... | head` has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if debug or error.errno not in {*DISK_FULL, errno.EROFS}:
            raise
        if error.errno == errno.EROFS:
            return _refuse(f"the disk is read-only, got {error.filename}; choose another path")
        return _refuse(f"disk full, got {error.filename or 'the output'}; free some space")
    except (typer.Abort, KeyboardInterrupt):
        result = INTERRUPTED
    if result == INTERRUPTED:  # what typer makes of Ctrl-C
        _print_error("interrupted; the same command (with --resume for a training run) resumes it")
    return result if isinstance(result, int) else 0


def _check_words(given: Sequence[str]) -> None:
    """Refuse what would make every path wrong.

    Raises:
        ConfigError: a word is empty, which as a path is the current folder; or that is gone.
    """
    for number, word in enumerate(given, 1):
        if re.fullmatch(r"(--[a-z-]+=)?", word):
            raise ConfigError(
                f"word {number} behind ecgfast is empty, got {word!r}, allowed text; a shell "
                "variable that is not set gives such a word"
            )
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise ConfigError(
            "the current folder does not exist any more; cd to one that does"
        ) from error


def _about_path(error: OSError) -> str:
    path = error.filename
    if path is not None and os.path.islink(path) and not os.path.exists(path):
        return (
            f"{path} is a link to {os.readlink(path)}, which does not exist; make that folder or "
            "remove the link"
        )
    return f"{error.strerror}, got {path}; check the path"


def _start_log(*, debug: bool, strict: bool) -> None:
    from ecgfast import log

    log.setup(debug=debug, strict=strict, rank=int(os.environ.get("RANK", "0")))


def _usage(error: typer.TyperException, given: Sequence[str]) -> str:
    """Typer's message in our form, with the help page as the cure."""
    command = next((name for name in given if not name.startswith("-")), "")
    known = command in {str(name) for name in getattr(get_command(app), "commands", {})}
    page = f"ecgfast {command} --help" if known else "ecgfast --help"
    text = error.format_message().rstrip(".")
    return f"{text[:1].lower()}{text[1:]}; see {page}"


def _refuse(message: str) -> int:
    _print_error(f"error: {message}")
    return 2


def _print_error(message: str) -> None:
    from ecgfast.log import plain  # brings rich, which --help need not wait for

    print(plain(" ".join(message.split())), file=sys.stderr)


def _one_line(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """What Python prints for an error that nobody expected; it then exits with 1."""
    del traceback
    _print_error(f"error: {kind.__name__}: {error}; run it again with --debug for the traceback")
