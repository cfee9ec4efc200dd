"""The frozen command line: every --help text is in help.txt. MEMTOK_REGENERATE=1 writes it anew."""

import os
from pathlib import Path

import pytest
from cli_fixtures import Memtok

from memtoken_cli import cli
from memtoken_cli.commands import argv

GOLDEN = Path(__file__).with_name("help.txt")


def every_help(memtok: Memtok) -> str:
    parts = []
    for line in ([], *([name] for name in cli.command().commands)):
        ran = memtok(*line, "--help")
        assert (ran.code, ran.err) == (0, "")
        parts.append(f"$ memtok {' '.join([*line, '--help'])}\n{ran.text}")
    return "\n".join(parts)


def test_help_is_frozen(memtok: Memtok) -> None:
    text = every_help(memtok)
    if os.environ.get("MEMTOK_REGENERATE"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


@pytest.mark.parametrize("columns", ["40", "200"])
def test_help_does_not_depend_on_the_terminal(
    memtok: Memtok, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert every_help(memtok) == GOLDEN.read_text()
    assert memtok("--help", tty=("stdout",)).text == memtok("--help").text


def test_short_help_is_help(memtok: Memtok) -> None:
    assert memtok("-h").text == memtok("--help").text
    assert memtok("train", "-h").text == memtok("train", "--help").text


def test_every_command_has_the_common_options() -> None:
    for name, command in cli.command().commands.items():
        options = {option for param in command.params for option in param.opts}
        assert {"--json", "-q", "-v", "--seed", "--device"} <= options, name


def test_argv_knows_every_flag() -> None:
    app = cli.command()
    flags = {"--help"}
    for command in (app, *app.commands.values()):
        for param in command.params:
            takes_none = param.param_type_name == "option" and (param.is_flag or param.count)
            flags |= {option for option in param.opts if takes_none and option.startswith("--")}
    assert flags - {"--install-completion", "--show-completion"} == argv.FLAGS
