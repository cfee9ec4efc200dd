"""Keys of `task:`: each task has its own, with their defaults."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from memtoken_cli.data.task_config import DEFAULTS, TaskSection


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_task_has_its_defaults_and_no_other_keys(name):
    plain = TaskSection(name=name)
    own = {key: value for key, value in plain.model_dump().items() if value is not None}
    assert own == {"name": name} | {k: v for k, v in DEFAULTS[name].items() if v is not None}
    assert TaskSection(**plain.model_dump()) == plain
    foreign = "bound" if name != "quadratic" else "pairs"
    with pytest.raises(ValueError, match=f"the task {name} has no {foreign}; its keys are .*"):
        TaskSection(**{"name": name, foreign: 4})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "recall", "count": 5}, "no distinct keys among 4"),
        ({"name": "remember", "pairs": 17}, "no distinct keys among 16"),
        ({"name": "retrieval", "pairs": 27}, "26 letters"),
        ({"name": "quadratic", "bound": 101}, "less than or equal to 100"),
        ({"name": "copie"}, "copy"),
        ({"lenght": 3}, "lenght"),
    ],
)
def test_keys_that_no_task_can_have(keys, message):
    with pytest.raises(ValueError, match=message):
        TaskSection(**keys)


def test_reading_a_recipe_needs_no_torch():
    code = "import sys, memtoken_cli.data.task_config; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "False\n"


def test_questions_are_a_list_in_recipes_and_artifacts() -> None:
    said = '{"name": "babilong", "questions": ["qa1", "qa2"]}'
    section = TaskSection.model_validate_json(said, strict=True, extra="forbid")
    assert section.questions == ("qa1", "qa2")
    with pytest.raises(ValidationError):
        TaskSection.model_validate_json(said.replace('"qa2"', "2"), strict=True, extra="forbid")
