"""A compression's request: it changes with what its files hold, not with how often it is made."""

from dataclasses import replace
from pathlib import Path

import pytest

from memtoken_cli import methods
from memtoken_cli.commands.inspect import rows
from memtoken_cli.commands.plan import Plan
from memtoken_cli.data.shots import shots_of
from memtoken_cli.engine.method import Budget
from memtoken_cli.io.artifact import Header
from memtoken_cli.methods.compact.config import Config


def plan(model: str = "smollm2-135m", **keys: str) -> Plan:
    shots = shots_of([{"input": "a", "output": "b"}, {"input": "c", "output": "d"}])
    config = Config.model_validate(keys)
    return Plan(methods.discover()["compact"], config, shots, Budget(4), model, 0, "out.safetensors")


@pytest.mark.parametrize("key", ["queries", "data", "model"])
def test_the_content_of_a_named_file_is_part_of_the_request(tmp_path: Path, key: str) -> None:
    file = tmp_path / "named"
    file.write_text("one\n")
    before = plan(**{key: str(file)})
    assert plan(**{key: str(file)}).request == before.request and key in before.request["files"]
    file.write_text("two\n")
    assert plan(**{key: str(file)}).request != before.request


def test_the_content_of_a_local_model_is_part_of_the_request(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("old")
    (tmp_path / "original").mkdir()
    before = plan(str(tmp_path)).request
    assert replace(plan(str(tmp_path))).request == before
    (tmp_path / "model.safetensors").write_text("new")
    changed = plan(str(tmp_path)).request
    assert changed["files"].keys() == {"model"} and changed["files"] != before["files"]
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    assert plan(str(tmp_path)).request["files"] != changed["files"]


def test_words_that_name_no_file_are_only_words() -> None:
    assert "files" not in plan(template="{input}" + 400 * "x" + "\n{output}\n", queries="repeat").request


def test_inspect_leaves_out_what_is_empty() -> None:
    header = Header(method="compact", kind="memory", about={"instruction": "", "template": "{input}"})
    names = [name for name, _ in rows("f", 1, header)]
    assert "template" in names and "instruction" not in names
