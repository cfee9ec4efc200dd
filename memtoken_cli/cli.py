"""The Typer app: registrations, and how every command ends.

Typer only parses: a registered function gives back a closure that `run` calls afterwards, so that errors,
signals and exit codes are settled in one place and never by Typer. Nothing heavy is imported here.
"""

import functools
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from inspect import signature
from types import FrameType
from typing import Annotated, Any, NoReturn, ParamSpec, TypeVar, get_args, get_origin

import typer
import typer.main

from memtoken_cli import __version__
from memtoken_cli.commands import argv as arguments
from memtoken_cli.commands import bank, bench, compress, evaluate, generate, inspect, segment, train
from memtoken_cli.io.errors import MemtokError, UsageError, from_os_error

HELP = """Memory tokens: train, compress, store and reuse a few learned vectors that stand for a long prompt,
a long stream, a labelled example or a procedure."""
EXITS = """Exit codes: 0 done, 1 a bug, 2 usage or recipe, 3 input data, 4 some records failed (the rest is
written), 75 the run directory is locked or the disk full, 130/143 interrupted, 141 closed pipe."""

P = ParamSpec("P")
R = TypeVar("R")

NAME = "memtok"
DEBUG = "MEMTOK_DEBUG"
COMPLETE = "_MEMTOK_COMPLETE"  # set by the shell's completion script
BUG, USAGE, INTERRUPTED, CLOSED_PIPE, TERMINATED = 1, 2, 130, 141, 143


class Terminated(BaseException):
    """SIGTERM arrived."""


def deferred(function: Callable[P, R]) -> Callable[P, Callable[[], R]]:
    """The same signature, but calling it only binds the arguments."""

    @functools.wraps(function)
    def bind(*args: P.args, **kwargs: P.kwargs) -> Callable[[], R]:
        return functools.partial(function, *args, **kwargs)

    return bind


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"{NAME} {__version__}")
        raise typer.Exit()


def _top(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version.", show_default=False
        ),
    ] = False,
) -> None:
    pass


COMMANDS = (
    compress.compress,
    generate.generate,
    segment.segment,
    train.train,
    evaluate.evaluate,
    bench.bench,
    inspect.inspect,
    bank.bank,
)


def app(whole: bool = True) -> typer.Typer:
    """The Typer app; where a command is named it needs no options of its own but --version.

    Typer would load pydantic to coerce them, which takes longer than all the rest of a command's --help.
    """
    made = typer.Typer(
        name=NAME,
        help=HELP,
        epilog=EXITS,
        # a fixed width: what is printed never depends on a terminal
        context_settings={
            "help_option_names": ["-h", "--help"],
            "terminal_width": 100,
            "max_content_width": 100,
        },
        add_completion=whole,
        add_help_option=whole,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    made.callback()(_top)
    for function in COMMANDS:
        made.command(function.__name__)(deferred(function))
    return made


@functools.cache
def command(whole: bool = True) -> Any:
    """The app as one callable command, built once."""
    return typer.main.get_command(app(whole))


def plain(argv: Sequence[str]) -> Callable[[], Any] | None:
    """A command line without options, bound as Typer binds it, or None: Typer loads pydantic to copy strings,
    which takes longer than all that a list of a bank takes."""
    name, *given = argv
    function = next((f for f in COMMANDS if f.__name__ == name), None)
    if function is None or any(token.startswith("-") and token != "-" for token in given):
        return None
    scalars, rest = [], None
    for parameter in signature(function).parameters.values():
        kind, info = get_args(parameter.annotation)
        if isinstance(info, typer.models.ArgumentInfo):
            if any(get_origin(part) is list for part in get_args(kind)):
                rest = parameter.name
            else:
                scalars.append(parameter.name)
    bound: dict[str, Any] = dict(zip(scalars, given, strict=False))
    if rest is not None:
        bound[rest] = given[len(scalars) :]
    elif len(given) > len(scalars):
        return None
    try:
        signature(function).bind(**bound)
    except TypeError:
        return None
    return functools.partial(function, **bound)


def run(argv: Sequence[str]) -> int:
    """Parse and run one command line; returns its exit code and never raises an Exception."""
    debug = bool(os.environ.get(DEBUG)) or arguments.verbosity(argv) > 1
    try:
        prepared = arguments.prepare(argv)
        whole = COMPLETE in os.environ or not prepared or prepared[0].startswith("-")
        todo = None if whole else plain(prepared)
        if todo is None:
            todo = command(whole).main(args=prepared, prog_name=NAME, standalone_mode=False)
        if callable(todo):
            todo()
            todo = 0
        sys.stdout.flush()
        return int(todo or 0)
    except KeyboardInterrupt:
        return _say(["error: interrupted"], INTERRUPTED, debug)
    except Terminated:
        return _say(["error: terminated"], TERMINATED, debug)
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):
            return _closed_pipe()
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except MemtokError as error:
        return _say(error.lines(), error.exit_code, debug)
    except typer.TyperException as error:
        return _say(_usage(error, argv).lines(), USAGE, debug)
    except BrokenPipeError:
        return _closed_pipe()
    except OSError as error:
        problem = from_os_error(error)
        return _say(problem.lines(), problem.exit_code, debug)
    except Exception as bug:
        return _say(_bug_lines(bug), BUG, debug)


def main() -> NoReturn:
    """The `memtok` executable."""
    signal.signal(signal.SIGTERM, _on_sigterm)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if vars(sys)[name] is None:  # closed by the parent (`<&-`): as if nothing were there
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - for as long as the process lives
    sys.exit(run(sys.argv[1:]))


def _on_sigterm(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


def _usage(error: typer.TyperException, argv: Sequence[str]) -> UsageError:
    """Typer's own complaint in the project's form."""
    message = error.format_message().rstrip(".")
    names = command().commands
    given = next((token for token in arguments.prepare(argv) if not token.startswith("-")), "")
    return UsageError(
        message[:1].lower() + message[1:],
        hint=f"{NAME} {given} --help" if given in names else f"{NAME} --help",
    )


def _bug_lines(bug: Exception) -> list[str]:
    frames = traceback.extract_tb(bug.__traceback__)
    where = f" in {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""
    text = " ".join(str(bug).split())
    return [
        f"error: bug: {type(bug).__name__}{f': {text}' if text else ''}{where}",
        f"hint: {DEBUG}=1 or -vv shows the traceback; please report it",
    ]


def _say(lines: Sequence[str], code: int, debug: bool) -> int:
    if debug and code not in (INTERRUPTED, TERMINATED):
        traceback.print_exc(file=sys.stderr)
    for line in lines:
        print(_printable(line), file=sys.stderr)
    return code


def _printable(line: str) -> str:
    """Text of a file must not drive the terminal it is quoted on."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in line)


def _closed_pipe() -> int:
    # What Python still holds for stdout has no reader: let the flush at exit go nowhere.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return CLOSED_PIPE
