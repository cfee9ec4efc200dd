"""Recipes: the composed schema, its errors, overrides, digests and lock files."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from memtoken_cli import methods
from memtoken_cli.engine.method import Spec
from memtoken_cli.io.errors import DataError, UsageError
from memtoken_cli.recipe import canonical, fields
from memtoken_cli.recipe.overrides import flat
from memtoken_cli.recipe.schema import Recipe, load, parse
from memtoken_cli.recipe.sections import DEFAULT_MODEL, NamedModel, NewModel


class Config(BaseModel):
    slots: int = Field(default=4, ge=1)
    ratios: tuple[float, ...] = (2.0, 4.0)
    budget: Literal["uniform", "adaptive"] = "adaptive"
    bias: bool = True
    template: str = "{input}"
    queries: str | None = None
    note: int | str = 0


class TrainConfig(BaseModel):
    steps: int = 10
    phase: int = 1


@pytest.fixture(autouse=True)
def method(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """One method, "toy", with a Config and nothing else; a test may add sections to the module."""
    module = ModuleType("toy.config")
    vars(module)["Config"] = Config
    spec = Spec("toy", "none", "a toy", frozenset({"train"}), "prefix")
    monkeypatch.setattr(methods, "discover", lambda: {"toy": spec})
    monkeypatch.setattr(methods, "config_module", lambda name: module)
    return module


def problems_of(text: str, *overrides: str) -> list[str]:
    with pytest.raises(UsageError) as caught:
        parse(text, "r.yaml", overrides)
    return caught.value.lines()


NEW = "model: {new: llama, layers: 2, width: 8, heads: 2, context: 64}\n"


def test_the_shortest_recipe_has_every_default() -> None:
    recipe = parse("method: toy\n")
    assert (recipe.method, recipe.seed, recipe.expect) == ("toy", 0, {})
    assert recipe.model == NamedModel(name=DEFAULT_MODEL)
    assert recipe.config == Config()
    assert (recipe.train.decay, recipe.data.path) == ("cosine", None)


def test_a_full_recipe() -> None:
    recipe = parse(
        "method: toy\nseed: 3\n"
        "model: {new: qwen3, layers: 2, width: 8, heads: 2, kv_heads: 1, context: 64,\n"
        "  pretrain: {steps: 5, lr: 1e-2}}\n"
        "data: {path: corpus, stream: true}\ntoy: {ratios: [2, 8], bias: false}\n"
        "train: {lr: 1e-4, betas: [0.9, 0.95]}\nexpect: {accuracy: 0.5, margin: 1}\n"
    )
    assert isinstance(recipe.model, NewModel)
    assert recipe.model.pretrain is not None
    assert recipe.model.pretrain.lr == 0.01
    assert (recipe.config.ratios, recipe.config.bias) == ((2.0, 8.0), False)
    assert recipe.train.betas == (0.9, 0.95)
    assert recipe.expect == {"accuracy": 0.5, "margin": 1.0}


def test_a_method_may_bring_its_own_sections(method: ModuleType) -> None:
    vars(method)["TrainConfig"] = TrainConfig
    assert parse("method: toy\ntrain: {phase: 2}\n").train == TrainConfig(phase=2)
    assert "error: unknown key train.lr in r.yaml:2" in problems_of("method: toy\ntrain: {lr: 1}\n")


def test_a_section_with_a_key_that_has_no_default_must_stand(method: ModuleType) -> None:
    class DataConfig(BaseModel):
        rows: int

    vars(method)["DataConfig"] = DataConfig
    assert problems_of("method: toy\n") == ["error: missing key data in r.yaml:1", "hint: add data: ..."]
    assert problems_of("method: toy\ndata: {}\n") == [
        "error: missing key data.rows in r.yaml:2",
        "hint: add rows: ... under data",
    ]
    assert parse("method: toy\n", overrides=["rows=3"]).data.rows == 3


def test_all_problems_at_once_in_the_order_of_the_file() -> None:
    text = (
        "method: toy\nseed: yes\ntrain:\n  lrr: 1\n  decay: cosin\n  decay: linear\n"
        "toy:\n  steps: 3\n  slots: 0\n  bias: on\nmodle: {name: x}\n"
    )
    assert problems_of(text, "train.stepz=3", "nonsense") == [
        'error: seed should be a valid integer, found "yes" in r.yaml:2',
        "hint: write a plain number, without quotes",
        "error: unknown key train.lrr in r.yaml:4",
        "hint: did you mean lr (in section train)?",
        "error: train.decay should be 'cosine', 'linear' or 'constant', found \"cosin\" in r.yaml:5",
        "hint: did you mean cosine?",
        "error: key 'decay' stands twice (first on line 5) in r.yaml:6",
        "hint: remove one of the two",
        "error: unknown key toy.steps in r.yaml:8",
        "hint: steps belongs to section train: train.steps",
        "error: toy.slots should be greater than or equal to 1, found 0 in r.yaml:9",
        'error: toy.bias should be a valid boolean, found "on" in r.yaml:10',
        "hint: write true or false",
        "error: unknown key modle in r.yaml:11",
        "hint: did you mean model (at the top level)?",
        "error: unknown key train.stepz in argument train.stepz=3",
        "hint: did you mean steps (in section train)?",
        "error: expected KEY=VALUE, found 'nonsense'",
        "hint: such as train.lr=1e-3",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{}", "error: no method in r.yaml:1"),
        ("", "error: a recipe is a mapping of keys in r.yaml"),
        ("- a", "error: a recipe is a mapping of keys in r.yaml:1"),
        ("metod: toy", "error: no method in r.yaml:1"),
        ("method: toys", "error: unknown method 'toys' in r.yaml:1"),
        ("method: [toy]", "error: unknown method ['toy'] in r.yaml:1"),
        ("method: toy\ntoy: 3", "error: toy should be a section of its own, found 3 in r.yaml:2"),
        (
            "method: toy\ntoy: {slots: '3'}",
            'error: toy.slots should be a valid integer, found "3" in r.yaml:2',
        ),
        (
            "method: toy\ntoy: {slots: 3.5}",
            "error: toy.slots should be a valid integer, found 3.5 in r.yaml:2",
        ),
        (
            "method: toy\ntoy: {slots: true}",
            "error: toy.slots should be a valid integer, found true in r.yaml:2",
        ),
        (
            "method: toy\ntoy: {template: 3}",
            "error: toy.template should be a valid string, found 3 in r.yaml:2",
        ),
        (
            "method: toy\ntoy:\n  ratios:\n  - 1\n  - x",
            'error: toy.ratios.1 should be a valid number, found "x" in r.yaml:5',
        ),
        (
            "method: toy\ntoy: {note: [1]}",
            "error: toy.note should be a valid integer or should be a valid string, found [1] in r.yaml:2",
        ),
        ("method: toy\nmodel: {new: bert}", "error: missing key model.layers in r.yaml:2"),
        ("method: toy\nexpect: {a: b}", 'error: expect.a should be a valid number, found "b" in r.yaml:2'),
        ("method: toy\nseed: -1", "error: seed should be greater than or equal to 0, found -1 in r.yaml:2"),
    ],
)
def test_problems(text: str, line: str) -> None:
    assert line in problems_of(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{new: llama, layers: 2, width: 9, heads: 2, context: 64}", "width 9 is not a multiple of heads 2"),
        (
            "{new: llama, layers: 2, width: 8, heads: 4, kv_heads: 3, context: 64}",
            "not a multiple of kv_heads 3",
        ),
        ("{new: gpt2, layers: 2, width: 8, heads: 4, kv_heads: 2, context: 64}", "as many kv_heads as heads"),
    ],
)
def test_a_new_model_must_be_possible(text: str, message: str) -> None:
    (line,) = problems_of(f"method: toy\nmodel: {text}\n")
    assert message in line
    assert line.endswith("in r.yaml:2")


def test_an_unreadable_file_is_usage(tmp_path: Path) -> None:
    for path in (tmp_path / "no.yaml", tmp_path, "a\0b"):
        with pytest.raises(UsageError, match="cannot read recipe"):
            load(path)


def test_overrides() -> None:
    recipe = parse(
        f"method: toy\n{NEW}train: {{lr: 1}}\n",
        overrides=[
            "train.lr=1e-3",
            "seed=7",
            "toy.ratios=[2, 16]",
            "toy.bias=false",
            "model.layers=3",
            "expect.a=1",
        ],
    )
    assert (recipe.train.lr, recipe.seed, recipe.config.ratios, recipe.config.bias) == (
        0.001,
        7,
        (2, 16),
        False,
    )
    assert isinstance(recipe.model, NewModel)
    assert (recipe.model.layers, recipe.expect) == (3, {"a": 1.0})


def test_a_section_may_be_left_out_where_one_section_only_has_the_key() -> None:
    recipe = parse("method: toy\n", overrides=["lr=1e-3", "slots=9", "data=some/file", "name=m"])
    assert (recipe.train.lr, recipe.config.slots, recipe.data.path) == (0.001, 9, "some/file")
    assert recipe.model == NamedModel(name="m")


def test_an_ambiguous_key_says_which_ones_there_are(method: ModuleType) -> None:
    class Both(Config):
        lr: float = 1.0

    vars(method)["Config"] = Both
    assert problems_of("method: toy\n", "lr=1") == [
        "error: lr stands in several sections in argument lr=1",
        "hint: write train.lr or toy.lr",
    ]


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("slots=many", 'error: toy.slots should be a valid integer, found "many" in argument slots=many'),
        ("toy.slotz=1", "error: unknown key toy.slotz in argument toy.slotz=1"),
        ("lerning_rate=1", "error: unknown key lerning_rate in argument lerning_rate=1"),
        ("=1", "error: expected KEY=VALUE, found '=1'"),
        (
            "toy.ratios=[1,",
            'error: toy.ratios should be a valid array, found "[1," in argument toy.ratios=[1,',
        ),
        ("toy.ratios=[*a]", "error: bad value: an alias (*a) in argument toy.ratios=[*a]"),
        ("toy.slots.x=1", "error: unknown key toy.slots.x in argument toy.slots.x=1"),
        ("method=tooy", "error: unknown method 'tooy' in r.yaml:1"),
    ],
)
def test_bad_overrides(argument: str, line: str) -> None:
    assert line in problems_of("method: toy\n", argument)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"Query: {input}\nIntent: {output}", r"Query: {input}\nIntent: {output}"),
        ("a: b", "a: b"),
        ("3", "3"),
        ("true", "true"),
        ("", ""),
        ("'quoted'", "quoted"),
        ("'", "'"),
        ("[bracketed", "[bracketed"),
        ("[a]: {input}]", "[a]: {input}]"),
        ("x=y", "x=y"),
    ],
)
def test_text_is_taken_as_it_is(text: str, value: str) -> None:
    assert flat([f"template={text}"], Config).template == value


def test_flat_keys() -> None:
    assert flat([], Config) == Config()
    config = flat(["slots=2", "slots=3", "queries=null", "note=x", "budget=uniform"], Config)
    assert (config.slots, config.queries, config.note, config.budget) == (3, None, "x", "uniform")
    with pytest.raises(UsageError) as caught:
        flat(["slot=2", "slots=x", "budget=unifrom"], Config)
    assert caught.value.lines() == [
        "error: unknown key slot in argument slot=2",
        "hint: did you mean slots?",
        'error: slots should be a valid integer, found "x" in argument slots=x',
        "hint: write a plain number, without quotes",
        "error: budget should be 'uniform' or 'adaptive', found \"unifrom\" in argument budget=unifrom",
        "hint: did you mean uniform?",
    ]


@given(st.text())
def test_any_argument_is_a_config_or_a_usage_error(text: str) -> None:
    for argument in (text, f"slots={text}", f"ratios={text}", f"note={text}", f"queries={text}"):
        try:
            flat([argument], Config)
        except UsageError:
            continue


def test_the_digest_is_of_the_meaning() -> None:
    one = parse("method: toy\ntrain: {lr: 1e-3}\n")
    same = parse("# a comment\ntrain:\n  lr: 0.001\nmethod: toy\ntoy: {slots: 4}\n", "other.yaml")
    other = parse("method: toy\ntrain: {lr: 2e-3}\n")
    assert canonical.digest(one) == canonical.digest(same)
    assert canonical.digest(one) != canonical.digest(other)
    assert canonical.diff(one.resolved(), other.resolved()) == ["train.lr: 0.001 -> 0.002"]
    assert canonical.diff(one.resolved(), same.resolved()) == []


def test_differences_name_what_came_and_went() -> None:
    old = {"a": {"b": 1, "gone": [1]}, "same": 0}
    new = {"a": {"b": "1", "new": None}, "same": 0}
    assert canonical.diff(old, new) == [
        'a.b: 1 -> "1"',
        "a.gone: [1] -> (absent)",
        "a.new: (absent) -> null",
    ]


def test_the_lock_file_is_a_recipe_of_the_same_digest(tmp_path: Path) -> None:
    recipe = parse(
        f"method: toy\n{NEW}toy: {{template: '1e-3', queries: 'null', note: 'yes'}}\ntrain: {{lr: 1e-7}}\n"
    )
    text = canonical.lock_text(recipe)
    again = parse(text)
    assert canonical.digest(again) == canonical.digest(recipe)
    assert canonical.lock_text(again) == text
    path = tmp_path / canonical.LOCK
    path.write_text(text)
    assert canonical.read_lock(path) == json.loads(canonical.canonical(recipe.resolved()))
    assert canonical.diff(canonical.read_lock(path), recipe.resolved()) == []


@pytest.mark.parametrize("damage", [b"", b"a: [", b"\xff", b"- 1"])
def test_a_damaged_lock_file_is_a_data_error(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "lock").write_bytes(damage)
    with pytest.raises(DataError):
        canonical.read_lock(tmp_path / "lock")
    with pytest.raises(DataError):
        canonical.read_lock(tmp_path / "absent")


def test_a_recipe_is_immutable() -> None:
    recipe: Any = parse("method: toy\n")
    assert isinstance(recipe, Recipe)
    with pytest.raises(AttributeError):
        recipe.seed = 3


def test_fields_see_through_unions_and_lists() -> None:
    class Inner(BaseModel):
        x: int = 0

    class Outer(BaseModel):
        one: Inner | None = None
        many: list[Inner] = []
        table: dict[str, int] = {}

    assert fields.everything(Outer) == [("one",), ("many",), ("table",), ("one", "x"), ("many", "x")]
    assert fields.at(Outer, ("many", 3)) == [Inner]
    assert fields.field_at(Outer, ("one", "y")) is None
