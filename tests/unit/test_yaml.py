"""The strict YAML loader: one meaning a text, every problem with its line."""

import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from memtoken_cli.io.errors import Problems, UsageError
from memtoken_cli.recipe import strict_yaml
from memtoken_cli.recipe.canonical import dump
from memtoken_cli.recipe.strict_yaml import plain


def read(text: str | bytes) -> Any:
    problems = Problems()
    document = strict_yaml.parse(text, "r.yaml", problems)
    problems.raise_any()
    return document.value


def problems_of(text: str | bytes) -> list[str]:
    with pytest.raises(UsageError) as caught:
        read(text)
    return [p.lines()[0] for p in caught.value.problems or (caught.value,)]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("10", 10),
        ("010", 10),
        ("-3", -3),
        ("0o17", 15),
        ("0xff", 255),
        ("1e-3", 0.001),
        ("1E5", 1e5),
        (".5", 0.5),
        ("5.", 5.0),
        ("-.inf", -math.inf),
    ],
)
def test_scalars_of_yaml_1_2(text: str, value: object) -> None:
    assert plain(text) == value
    assert type(plain(text)) is type(value)
    assert read(f"a: {text}\n") == {"a": value}


@pytest.mark.parametrize(
    "text",
    ["yes", "no", "on", "off", "True", "FALSE", "y", "1_000", "12:30:45", "2026-01-01", "1e", ".", "0b1"],
)
def test_words_that_yaml_1_1_would_misread(text: str) -> None:
    assert plain(text) == text
    assert read(f"a: {text}\n") == {"a": text}


def test_quotes_make_words() -> None:
    assert read("a: '1'\nb: \"true\"\nc: |\n  null\nd: ''\n") == {
        "a": "1",
        "b": "true",
        "c": "null\n",
        "d": "",
    }


def test_nested_values_and_their_places() -> None:
    problems = Problems()
    document = strict_yaml.parse("a:\n  b: [1,\n      2]\n\nc: {d: 4}\n", "r.yaml", problems)
    assert document.value == {"a": {"b": [1, 2]}, "c": {"d": 4}}
    places = [document.place(p) for p in (("a",), ("a", "b", 1), ("c", "d"), ("a", "absent"), ("no",))]
    assert places == ["r.yaml:1", "r.yaml:3", "r.yaml:5", "r.yaml:1", "r.yaml:1"]


def test_all_problems_of_a_text_at_once() -> None:
    text = "a: &x 1\nb: *x\nc: !!python/name:os.system 3\nd: 1\nd: 2\n? [k]\n: 3\n<<: {e: 1}\nf: .nan\n"
    assert problems_of(text) == [
        "error: an anchor (&x) in r.yaml:1",
        "error: an alias (*x) in r.yaml:2",
        "error: a tag (tag:yaml.org,2002:python/name:os.system) in r.yaml:3",
        "error: key 'd' stands twice (first on line 4) in r.yaml:5",
        "error: a key that is not a word in r.yaml:6",
        "error: a merge key (<<) in r.yaml:8",
        "error: .nan, which is no value to set in r.yaml:9",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: [1\n", 3),
        ("a: 1\n\tb: 2\n", 2),
        ("a: 1\nb: 'x\n", 3),
        ("a: b: c\n", 1),
        ("a: 1\n- 2\n", 2),
        ("a: 1\nb: \x07\n", 2),
        (b"a: 1\nb: \xff\n", 2),
        ("a: 1\n---\nb: 1\n", 2),
        ("%YAML 9.9\n---\na: 1\n", 1),
        ("a: @b\n", 1),
        ('a: "\\ud800"\n', 1),
        (f"a: {'9' * 5000}\n", 1),
        ("a: *unknown\n", 1),
        ("a: !t 1\n", 1),
    ],
)
def test_bad_text_is_named_by_line(text: str | bytes, line: int) -> None:
    assert problems_of(text)[0].endswith(f"in r.yaml:{line}")


def test_size_and_depth_are_capped() -> None:
    assert "at most 262144" in problems_of("a: " + "x" * strict_yaml.MAX_BYTES)[0]
    deepest = strict_yaml.MAX_DEPTH
    assert read("[" * deepest + "]" * deepest) is not None
    for text in ("[" * (deepest + 1), "{a: " * (deepest + 1), "[" * 100_000, "- " * 50_000):
        assert "nested more than 16 deep" in problems_of(text)[0]


def test_a_billion_laughs_are_refused_at_once() -> None:
    text = "a: &a [1, 1]\n" + "".join(f"k{i}: &k{i} [*a, *a]\n" for i in range(100))
    assert len(problems_of(text)) == 301


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
@example([1e-7, 1e22, -1e300, 5e-324, float("inf"), -float("inf"), 0.1, -0.0])
@example("\u2028")
@example({"x" * 200: {"": "\x85"}})
def test_what_is_written_reads_back_the_same(value: Any) -> None:
    assert read(dump({"value": value})) == {"value": value}


@pytest.mark.parametrize(
    "word", ["1e-3", "yes", "null", "~", "0o7", ".5", "<<", "=", "010", "1_0", "- a", "a: b", "#", "\x85"]
)
def test_words_that_look_like_something_else_read_back_as_words(word: str) -> None:
    assert read(dump({"value": word})) == {"value": word}


@given(st.text() | st.binary())
def test_any_text_is_a_document_or_a_usage_error(text: str | bytes) -> None:
    try:
        read(text)
    except UsageError as error:
        assert all(p.where and p.where.startswith("r.yaml") for p in error.problems or (error,))


MARKS = [
    "a",
    ": ",
    "\n",
    "  ",
    "- ",
    "[",
    "]",
    "{",
    "}",
    ", ",
    "&x ",
    "*x",
    "!t ",
    "'",
    '"',
    "#",
    "| ",
    "1",
    "? ",
]


@given(st.lists(st.sampled_from(MARKS), max_size=25).map("".join))
def test_any_heap_of_yaml_marks_is_a_document_or_a_usage_error(text: str) -> None:
    test_any_text_is_a_document_or_a_usage_error.hypothesis.inner_test(text)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_plain_scalar_is_the_same_in_a_file_and_alone(text: str) -> None:
    try:
        value = read(f"a: {text}\n")["a"]
    except UsageError:
        return
    if isinstance(value, int | float) and not isinstance(value, bool):
        assert value == plain(text.partition(" #")[0].strip())
