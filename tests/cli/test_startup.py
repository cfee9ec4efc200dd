"""What a start imports. Times are scripts/bench_startup.py's business."""

import inspect
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from cli_fixtures import Memtok

import memtoken_cli
from memtoken_cli.cli import COMMANDS, command, plain

HEAVY = {"torch", "transformers", "datasets", "numpy", "pandas", "pydantic", "safetensors", "rich", "yaml"}
PROBE = """
import sys
from memtoken_cli.cli import run
code = run(sys.argv[1:])
import json
print(json.dumps(list({name.partition(".")[0] for name in sys.modules})), file=sys.stderr)
sys.exit(code)
"""


def loaded(*argv: str) -> set[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(memtoken_cli.__file__).parents[1])}
    command = [sys.executable, "-c", PROBE, *argv]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return set(json.loads(ran.stderr.splitlines()[-1]))


@pytest.mark.parametrize(
    "argv", [["--help"], ["--version"], ["compress", "--help"], ["segment", "--help"], ["bank", "--help"]]
)
def test_help_imports_nothing_heavy(argv: list[str]) -> None:
    assert not loaded(*argv) & HEAVY


def test_inspect_works_without_torch(memtok: Memtok, toy: None, shots: Path) -> None:
    memtok("compress", str(shots), "--ratio", "2", "--method", "toy")
    assert not loaded("inspect", str(shots.with_name("prompts.memory.safetensors"))) & {
        "torch",
        "transformers",
        "numpy",
    }


@pytest.mark.parametrize("method", ["memcom", "memprompttss", "tokmem"])
def test_a_dry_run_imports_no_torch_where_nothing_is_sketched(method: str, tmp_path: Path) -> None:
    recipe = Path(memtoken_cli.__file__).parents[1] / "recipes" / method / "tiny.yaml"
    found = loaded("train", str(recipe), "--dry-run", "--out", str(tmp_path / "run"))
    assert not found & {"torch", "transformers", "datasets", "numpy"}
    assert not (tmp_path / "run").exists()


WORDS = ("list", "a.yaml", "x=1", "-", "", "a b", "é", "generate")


@pytest.mark.parametrize("function", COMMANDS, ids=lambda f: f.__name__)
def test_a_line_of_words_is_bound_as_typer_binds_it(function: Callable[..., None]) -> None:
    """What stands where, for every number of words; where they do not fit, it is left to Typer."""
    rng = random.Random(function.__name__)
    for count in [*range(6)] * 3:
        argv = [function.__name__, *rng.choices(WORDS, k=count)]
        found = plain(argv)
        try:
            wanted = command(False).main(args=argv, prog_name="memtok", standalone_mode=False)
        except typer.TyperException:
            assert found is None, argv
            continue
        assert found is not None, argv
        values = [inspect.signature(function).bind(**one.keywords) for one in (found, wanted)]
        for one in values:
            one.apply_defaults()
        a, b = ({key: value or None for key, value in one.arguments.items()} for one in values)
        assert a == b, argv


@pytest.mark.parametrize("argv", [["bank", "list", "x", "--json"], ["train", "-q", "a"], ["nosuch", "a"]])
def test_options_are_left_to_typer(argv: list[str]) -> None:
    assert plain(argv) is None
