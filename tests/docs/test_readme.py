"""Every block of README.md runs: with a small random model in place of the default one, and with that one.

The stand-in cannot give the answers that README.md shows, so that only their form is compared there.
MEMTOK_REGENERATE=1 with `-m slow` writes them anew.
"""

import os
import re
import tomllib
from pathlib import Path

import pytest
import readme_blocks
from readme_blocks import README, ROOT, Command, words

from memtoken_cli.engine import models
from memtoken_cli.io.errors import MemtokError

# what these print does not depend on the model
EXACT = ("--help", "--version", "echo $?")


def executed(tmp_path: Path, cache: Path | None, subtests: pytest.Subtests) -> list[Command]:
    todo = readme_blocks.commands()
    if not readme_blocks.is_set_up():
        with subtests.test("set-up"):
            pytest.skip("scripts/setup has not been run here")
        todo = [command for command in todo if not command.needs_setup]
    folder = tmp_path / "clone"
    folder.mkdir()
    readme_blocks.run(todo, folder, cache)
    return todo


def form(lines: list[str]) -> object:
    """What stays the same with another model: keys of JSON, names in a table's first column, else that
    something is printed.
    """
    if any(line.startswith("{") for line in lines):
        return [re.findall(r'"(\w+)":', line) for line in lines]
    rule = next((i for i, line in enumerate(lines) if line.startswith("---")), None)
    if rule is not None:
        return [line.split("  ")[0] for line in lines[rule + 1 :]]
    return bool("".join(lines).strip())


def test_every_block_runs(tmp_path: Path, subtests: pytest.Subtests) -> None:
    cache = tmp_path / "cache"
    readme_blocks.stand_in(cache)
    for command in executed(tmp_path, cache, subtests):
        printed = command.printed.splitlines()
        with subtests.test(str(command)):
            if any(part in command.text for part in EXACT):
                assert printed == command.expected
            else:
                assert form(printed) == form(command.expected), command.printed


@pytest.mark.slow
def test_every_block_prints_what_it_says(tmp_path: Path, subtests: pytest.Subtests) -> None:
    try:
        models.resolve("smollm2-135m")
    except MemtokError as error:
        pytest.skip(f"the default model cannot be had: {error.message}")
    done = executed(tmp_path, None, subtests)
    if os.environ.get("MEMTOK_REGENERATE"):
        readme_blocks.rewrite(done)
        return
    for command in done:
        with subtests.test(str(command)):
            assert words(command.printed) == words("\n".join(command.expected))


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    found = list(readme_blocks.blocks())
    assert {block.language for block in found} == {"console", "python", "text", "toml"}
    assert all(found[i - 1].language == "python" for i, b in enumerate(found) if b.language == "text")


def test_the_entry_point_is_the_toy_methods() -> None:
    (block,) = (block for block in readme_blocks.blocks() if block.language == "toml")
    toy = tomllib.loads((ROOT / "tests" / "toy_method" / "pyproject.toml").read_text())
    assert tomllib.loads(block.text)["project"]["entry-points"] == toy["project"]["entry-points"]


def test_paths_that_it_names_exist() -> None:
    named = re.findall(r"`((?:scripts|memtoken_cli|tests|recipes)/[\w/.]+)`", README.read_text())
    assert len(named) > 3
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_method_is_in_its_table() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\| here", README.read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(
        path.name
        for path in (ROOT / "memtoken_cli/methods").iterdir()
        if path.is_dir() and (path / "__init__.py").exists()
    )
