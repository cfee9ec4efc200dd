"""The scripts: that they parse, call each other as they should, and say clearly where they cannot work."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from readme_blocks import EXAMPLES, ROOT

from memtoken_cli.commands.keys import read_labels
from memtoken_cli.data.shots import read_queries, read_shots

SHELL = ["scripts/setup", "scripts/quickstart", "scripts/test", ".ci/run"]


def code(script: str) -> list[str]:
    """Its lines without comments."""
    lines = (ROOT / script).read_text().splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def scratch(folder: Path) -> Path:
    """A clone with nothing but the scripts and what they read."""
    (folder / "scripts").mkdir(parents=True)
    for name in ("scripts/setup", "pyproject.toml", "constraints.txt"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


def setup(folder: Path, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    line = ["bash", str(folder / "scripts" / "setup"), *arguments]
    return subprocess.run(line, env=os.environ | variables, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("script", SHELL)
def test_parses_and_is_strict(script: str) -> None:
    subprocess.run(["bash", "-n", ROOT / script], check=True)
    assert (ROOT / script).read_text().startswith("#!/usr/bin/env bash\n")
    assert code(script)[0] == "set -euo pipefail"
    assert os.access(ROOT / script, os.X_OK)


def test_ci_runs_the_tests_and_nothing_else() -> None:
    (line,) = code(".ci/run")[1:]
    assert line.startswith("exec ")
    assert line.endswith('scripts/test"')


def test_pytest_speaks_last() -> None:
    assert code("scripts/test")[-1].startswith("exec pytest ")


def test_torch_is_pinned_and_installed_first() -> None:
    (pin,) = code("constraints.txt")
    assert pin.startswith("torch==")
    installs = [line for line in code("scripts/setup") if line.startswith("install ")]
    assert installs[0] == "install torch"
    assert len(installs) == 2


def test_setup_makes_an_environment_once(tmp_path: Path) -> None:
    clone = scratch(tmp_path / "clone")
    assert setup(clone, "--check").returncode == 1
    fake_environment(clone)
    first = setup(clone)
    assert (first.returncode, first.stdout) == (0, "")
    calls = (clone / "calls").read_text().splitlines()
    assert [call.split()[-1] for call in calls] == ["torch", str(clone)]
    assert setup(clone, "--check").returncode == 0
    assert setup(clone).stderr == ""
    # more was asked for than was installed, then less
    assert setup(clone, "--dev", "--check").returncode == 1
    assert setup(clone, "--dev").returncode == 0
    assert (clone / "calls").read_text().splitlines()[-1].endswith("[dev]")
    assert setup(clone, "--check").returncode == 0
    # another pin installs anew
    (clone / "constraints.txt").write_text("torch==2.14.0\n")
    assert setup(clone, "--check").returncode == 1


def fake_environment(clone: Path) -> None:
    """A .venv whose pip only notes what it was asked for."""
    programs = clone / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "activate").write_text(f"VIRTUAL_ENV={clone / '.venv'}\n")
    (programs / "python").write_text(
        f'#!/bin/sh\ncase "$*" in\n*"pip install"*) echo "$*" >> "{clone}/calls" ;;\n"-m pip"*) ;;\n'
        f'*) exec "{sys.executable}" "$@" ;;\nesac\n'
    )
    (programs / "python").chmod(0o755)


@pytest.mark.parametrize("interpreter", ["/nonexistent/python", "false"])
def test_setup_refuses_an_interpreter_that_is_not_one(tmp_path: Path, interpreter: str) -> None:
    clone = scratch(tmp_path / "clone")
    ran = setup(clone, PYTHON=interpreter)
    assert ran.returncode == 2
    assert ran.stderr == f"error: PYTHON={interpreter} is not a Python 3.11 or newer\n"
    assert not (clone / ".venv").exists()


def test_setup_refuses_an_argument_that_it_does_not_know(tmp_path: Path) -> None:
    ran = setup(scratch(tmp_path / "clone"), "--all")
    assert ran.returncode == 2
    assert "hint: scripts/setup [--dev] [--check]" in ran.stderr


def test_examples_are_one_task() -> None:
    shots, queries = read_shots(EXAMPLES / "prompts.jsonl"), read_queries(EXAMPLES / "queries.jsonl")
    labels = read_labels(str(EXAMPLES / "labels.txt"))
    assert tuple(shots.labels) == labels == tuple(sorted({query.output for query in queries}))
    assert not {shot.input for shot in shots.items} & {query.input for query in queries}


def test_the_table_of_the_quickstart(tmp_path: Path) -> None:
    row = {"slots": 359.0, "bytes": 8_400_000, "query_seconds": 0.0911, "accuracy": 0.5, "agreement": 0.92}
    rows = [row | {"method": "compact", "accuracy_calibrated": 0.78}, row | {"method": "none"}]
    found = tmp_path / "evaluate.json"
    found.write_text(json.dumps({"ratio": 4.0, "rows": rows}))
    line = [sys.executable, str(ROOT / "scripts" / "quickstart.py"), str(found)]
    lines = subprocess.run(line, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[2].split("  ")[0] == "the memory, ratio 4"
    assert lines[2].split()[4:] == ["359", "8.4", "MB", "91", "ms", "50", "%", "78", "%", "92", "%"]
    assert lines[3].split()[2:] == ["359", "8.4", "MB", "91", "ms", "50", "%", "-", "92", "%"]
