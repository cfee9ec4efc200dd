"""Budgets, finding methods, and what may be imported before a method is needed."""

import subprocess
import sys
from pathlib import Path

import pytest

from memtoken_cli import methods
from memtoken_cli.engine.method import Budget, Sketches
from memtoken_cli.io.errors import DataError, UsageError


def test_a_budget_counts_by_floor() -> None:
    assert Budget(ratio=4.0).slots_for(1644) == 411
    assert Budget(ratio=4.0).slots_for(7) == 1
    assert Budget(ratio=1.0).slots_for(7) == 7
    assert Budget(slots=5).slots_for(7) == 5


@pytest.mark.parametrize(
    "budget", [{}, {"ratio": 2.0, "slots": 3}, {"ratio": 0.9}, {"ratio": float("nan")}, {"slots": 0}]
)
def test_impossible_budgets(budget: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Budget(**budget)  # type: ignore[arg-type]


def test_budgets_that_a_prompt_cannot_meet() -> None:
    with pytest.raises(DataError, match="keeps no token"):
        Budget(ratio=8.0).slots_for(7)
    with pytest.raises(DataError, match="more than"):
        Budget(slots=8).slots_for(7)


def test_an_unknown_method_names_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "_modules", lambda: {"alpha": "a", "beta": "b"})
    hints = []
    for name in ("alpa", "zzz"):
        with pytest.raises(UsageError) as caught:
            methods.load(name)
        hints.append(caught.value.hint)
    assert hints == ["did you mean alpha?", "methods: alpha, beta"]


def test_a_broken_package_does_not_hide_the_other_methods(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "broken_method.py").write_text("raise ValueError('half installed')")
    monkeypatch.syspath_prepend(str(tmp_path))
    whole = methods.discover()
    real = methods._modules()
    monkeypatch.setattr(methods, "_modules", lambda: {**real, "broken": "broken_method"})
    methods.discover.cache_clear()
    assert methods.discover() == whole
    methods.discover.cache_clear()
    with pytest.raises(UsageError, match="half installed"):
        methods.load("broken")


def test_a_method_may_be_one_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "single_method.py").write_text("class Config: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(methods, "_modules", lambda: {"single": "single_method"})
    assert vars(methods.config_module("single"))["Config"].__name__ == "Config"


def test_every_method_is_found_without_torch() -> None:
    code = (
        "import sys; from memtoken_cli import methods; specs = methods.discover();"
        "[methods.config_module(name) for name in specs];"
        "import memtoken_cli.recipe.canonical, memtoken_cli.data.shots, memtoken_cli.io.artifact;"
        "print(*(m for m in ('torch', 'transformers', 'numpy', 'pandas', 'datasets') if m in sys.modules));"
        "print(*specs)"
    )
    env = {"PYTHONPATH": str(Path(methods.__file__).parents[2])}
    ran = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True)
    heavy, names = ran.stdout.split("\n")[:2]
    assert heavy == ""
    assert names.split() == sorted(methods.discover())


def test_the_spec_knows_its_folder() -> None:
    assert all(spec.name == name for name, spec in methods.discover().items())
    assert all(spec.default_for <= spec.verbs for spec in methods.discover().values())


@pytest.mark.parametrize("name", methods.discover())
def test_a_spec_says_whether_training_is_sketched(name: str) -> None:
    assert methods.discover()[name].sketches == isinstance(methods.load(name), Sketches)
