"""What a start imports. Times are scripts/bench_startup.py's business."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_fixtures import Memtok

import memtoken_cli

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
