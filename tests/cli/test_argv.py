"""argv before Typer: examples of the contract, and properties over arbitrary command lines."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memtoken_cli.commands.argv import AUTO, KEY, prepare, split, verbosity

WORDS = (
    "segment generate s.csv - -5 -.5e3 --prompts --prompts=x --json -q -v -vv --seed --out --out=a k=1 w=-3 é"
)
TOKENS = st.sampled_from([*WORDS.split(), "", "x y"]) | st.text(max_size=4)
LINES = st.lists(TOKENS, max_size=8)


@pytest.mark.parametrize(
    ("given_line", "seen"),
    [
        ("segment s.csv --prompts", "segment s.csv --prompts=auto"),
        ("segment s.csv --prompts p.jsonl", "segment s.csv --prompts p.jsonl"),
        ("segment s.csv --prompts -", "segment s.csv --prompts -"),
        ("segment s.csv --prompts --json", "segment s.csv --prompts=auto --json"),
        ("segment s.csv --prompts window=3", "segment s.csv --prompts=auto window=3"),
        ("segment s.csv --prompts ./a=b", "segment s.csv --prompts ./a=b"),
        ("segment --prompts -- s.csv", "segment --prompts=auto -- -- s.csv"),
        ("segment -- --prompts", "segment -- -- --prompts"),
        ("generate -5 --memory m", "generate --memory m -- -- -5"),
        ("generate --json -5", "generate --json -- -- -5"),
        ("compress a --seed -5", "compress a --seed -5"),
        ("compress a bias=-5", "compress a bias=-5"),
        ("-q --seed 3 compress a", "compress -q --seed 3 a"),
        ("--seed=3 -v compress a", "compress --seed=3 -v a"),
        ("--version", "--version"),
        ("-q", "-q"),
        ("-q --help", "-q --help"),
        ("inspect -- -odd", "inspect -- -odd"),
    ],
)
def test_contract_examples(given_line: str, seen: str) -> None:
    assert prepare(given_line.split()) == seen.split()


@given(LINES)
def test_no_bare_prompts_is_left_before_the_double_dash(line: list[str]) -> None:
    out = prepare(line)
    head = out[: out.index("--")] if "--" in out else out
    for i, token in enumerate(head):
        if token == "--prompts":
            value = head[i + 1]
            assert value == "-" or not (value.startswith("-") or KEY.match(value))


@given(LINES)
def test_nothing_is_lost_or_invented(line: list[str]) -> None:
    def counted(tokens: list[str]) -> list[str]:
        return sorted(
            "--prompts" if token == f"--prompts={AUTO}" else token for token in tokens if token != "--"
        )

    assert counted(prepare(line)) == counted(line)


@given(LINES)
def test_a_line_without_the_special_cases_is_unchanged(line: list[str]) -> None:
    plain = ["segment", *(t for t in line if t not in ("--prompts", "--") and not t.startswith("-"))]
    assert prepare(plain) == plain


@given(LINES, st.lists(st.text(max_size=5).filter(lambda t: t != "--"), max_size=4))
def test_what_follows_the_double_dash_is_verbatim(line: list[str], tail: list[str]) -> None:
    head = ["generate", *(t for t in line if t != "--")]
    out = prepare([*head, "--", *tail])
    assert out[len(out) - len(tail) :] == tail
    positionals, _ = split(out[out.index("--") + 1 :])
    assert positionals[len(positionals) - len(tail) :] == tail


def test_split_keeps_order_and_stops_at_the_double_dash() -> None:
    assert split(["prompt", "a=1", None, "b.c=x=y"]) == (["prompt"], ["a=1", "b.c=x=y"])
    assert split(["a=1", "--", "x=3 what is y?"]) == (["x=3 what is y?"], ["a=1"])
    assert split(["./a=b.jsonl"]) == (["./a=b.jsonl"], [])


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("inspect f", 0),
        ("inspect f -v", 1),
        ("inspect -vv f", 2),
        ("-v inspect --verbose", 2),
        ("g -- -vv", 0),
        ("-qv g", 1),
    ],
)
def test_verbosity(line: str, count: int) -> None:
    assert verbosity(line.split()) == count
