"""Shell completion, as the shells ask for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_fixtures import Memtok

from memtoken_cli import cli


def complete(monkeypatch: pytest.MonkeyPatch, memtok: Memtok, line: str) -> list[str]:
    words = line.split(" ")
    for name, value in {
        "_MEMTOK_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }.items():
        monkeypatch.setenv(name, value)
    ran = memtok()
    assert ran.code == 0, ran.err
    return ran.text.split()


def test_commands_and_options(monkeypatch: pytest.MonkeyPatch, memtok: Memtok) -> None:
    assert set(cli.command().commands) == set(complete(monkeypatch, memtok, "memtok "))
    assert complete(monkeypatch, memtok, "memtok compress --rat") == ["--ratio"]


def test_method_names_by_verb(monkeypatch: pytest.MonkeyPatch, memtok: Memtok, toy: None) -> None:
    assert "toy" in complete(monkeypatch, memtok, "memtok compress --method ")
    assert complete(monkeypatch, memtok, "memtok segment --method t") == ["toy"]


def test_recipes(monkeypatch: pytest.MonkeyPatch, memtok: Memtok, tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    for name in ("recipes/tiny.yaml", "recipes/notes.txt", "recipes/big.yml"):
        (tmp_path / name).touch()
    assert complete(monkeypatch, memtok, "memtok train re") == ["recipes/"]
    assert complete(monkeypatch, memtok, "memtok train recipes/") == ["recipes/big.yml", "recipes/tiny.yaml"]
    assert complete(monkeypatch, memtok, "memtok bench recipes/tiny.yaml recipes/b") == ["recipes/big.yml"]


def test_bank_actions(monkeypatch: pytest.MonkeyPatch, memtok: Memtok) -> None:
    assert complete(monkeypatch, memtok, "memtok bank re") == ["remove", "rename"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts(tmp_path: Path, shell: str) -> None:
    environment = {**os.environ, "HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}

    def run(option: str) -> str:
        command = [sys.executable, "-m", "memtoken_cli", option, shell]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    assert "_MEMTOK_COMPLETE=complete_" in run("--show-completion")
    run("--install-completion")
    written = [path for path in tmp_path.rglob("*") if path.is_file() and "memtok" in path.read_text()]
    assert written
