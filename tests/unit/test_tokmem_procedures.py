"""Folders of procedures: what is read, how it is split, what is refused where; chains, negatives, the toy."""

import hashlib
import json
import random
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memtoken_cli.data import operations
from memtoken_cli.data.chains import (
    LAST_LINKS,
    LINKS,
    OTHER_LINKS,
    join,
    made_chains,
    read_chains,
    read_negatives,
)
from memtoken_cli.data.procedures import Caps, Procedure, Sample, bounds, read_procedures
from memtoken_cli.io.errors import DataError, UsageError


def jsonl(path: Path, *records: object) -> Path:
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records))
    return path


def pairs(n: int, mark: str = "") -> list[dict[str, str]]:
    return [{"input": f"{mark}in {i}", "output": f"out {i}"} for i in range(n)]


def sni(path: Path, instances: list[dict[str, object]], category: str = "Kind") -> Path:
    value = {
        "Definition": ["Do this.", "Then that."],
        "Categories": [category],
        "Positive Examples": [{"input": "demo", "output": "shown", "explanation": "so"}],
        "Instances": instances,
    }
    path.write_text(json.dumps(value, indent=1))
    return path


def test_jsonl_with_a_head(tmp_path):
    head = {"procedure": "named", "description": "what it is", "instruction": "do it"}
    jsonl(tmp_path / "file.jsonl", head, *pairs(6))
    (found,) = read_procedures(tmp_path).items
    assert (found.name, found.description, found.instruction) == ("named", "what it is", "do it")
    assert len(found.test) == 1 and len(found.val) == 1 and len(found.train) == 4
    assert {s.where.rpartition(":")[2] for s in (*found.train, *found.val, *found.test)} == set("234567")


def test_without_a_head_the_file_names_it(tmp_path):
    jsonl(tmp_path / "echo.jsonl", *pairs(3))
    assert read_procedures(tmp_path).names == ("echo",)


def test_the_published_order_and_sizes(tmp_path):
    records = [{"id": f"t-{i}", "input": f"in {i}", "output": [f"a{i}", f"b{i}"]} for i in range(600)]
    sni(tmp_path / "task1_x.json", records)
    (found,) = read_procedures(tmp_path).items
    texts = [f"t-{i}||in {i}||a{i}" for i in range(600)]
    ranked = sorted(range(600), key=lambda i: int(hashlib.md5(texts[i].encode()).hexdigest(), 16))
    got = [[int(s.id[2:]) for s in part] for part in (found.test, found.train, found.val)]
    assert got == [ranked[:50], ranked[50:550], ranked[550:560]]
    assert found.instruction == "Do this. Then that." and found.demonstrations[0].output == "shown"
    assert found.test[0].outputs == (f"a{ranked[0]}", f"b{ranked[0]}")


@given(st.integers(3, 2000))
def test_every_part_has_a_sample(n):
    a, b = bounds(n)
    assert 1 <= a < b < n
    assert n < 560 or (a, b) == (50, 550)


def test_own_splits_and_caps(tmp_path):
    records = [r | {"split": s} for r, s in zip(pairs(6), ["test", "train", "val"] * 2, strict=True)]
    jsonl(tmp_path / "x.jsonl", *records)
    (found,) = read_procedures(tmp_path, caps=Caps(train=1, val=0, test=2)).items
    assert [s.input for s in found.train] == ["in 1"] and not found.val
    assert [s.input for s in found.test] == ["in 0", "in 3"]


def test_a_test_input_is_no_training_input(tmp_path):
    records = [{"input": "same", "output": "x", "split": s} for s in ("train", "test")]
    records.append({"input": "other", "output": "x", "split": "train"})
    jsonl(tmp_path / "x.jsonl", *records)
    found = read_procedures(tmp_path)
    assert [s.input for s in found.items[0].train] == ["other"] and found.dropped == 1


FAULTS = {
    "empty output": ({"input": "a", "output": " "}, '"output" is empty'),
    "empty outputs": ({"input": "a", "output": []}, '"output" is empty'),
    "no output": ({"input": "a"}, '"output" must be a string'),
    "number": ({"input": 3, "output": "x"}, '"input" must be a string, found a number'),
    "split": ({"input": "a", "output": "b", "split": "dev"}, '"split" is one of'),
    "not json": ("{", "not JSON"),
    "not an object": ("[]", "expected a JSON object"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_record_is_named_or_left_out(tmp_path, name):
    bad, said = FAULTS[name]
    file = jsonl(tmp_path / "x.jsonl", *pairs(5), bad, {"input": "last", "output": "x"})
    with pytest.raises(DataError) as caught:
        read_procedures(tmp_path)
    assert said in caught.value.message and caught.value.where == f"{file}:6"
    found = read_procedures(tmp_path, skip_bad=True)
    assert len(found.skipped) == 1 and f"{file}:6" in found.skipped[0]
    assert sum(len(p) for p in (found.items[0].train, found.items[0].val, found.items[0].test)) == 6


def test_all_faults_at_once(tmp_path):
    jsonl(tmp_path / "a.jsonl", *pairs(4), {"input": "", "output": "x"}, {"input": "x", "output": ""})
    jsonl(tmp_path / "b.jsonl", *pairs(2))
    jsonl(tmp_path / "c.jsonl")
    jsonl(tmp_path / "d.jsonl", {"procedure": "a"}, *pairs(4))
    with pytest.raises(DataError) as caught:
        read_procedures(tmp_path)
    places = [problem.where for problem in caught.value.problems]
    assert places == [
        f"{tmp_path}/{x}" for x in ("a.jsonl:5", "a.jsonl:6", "b.jsonl", "c.jsonl", "d.jsonl:1")
    ]


def test_the_line_of_a_bad_instance(tmp_path):
    records = [{"id": str(i), "input": f"in [{i}] {{", "output": ["x"]} for i in range(5)]
    records[3]["output"] = [""]
    file = sni(tmp_path / "task.json", records)
    with pytest.raises(DataError) as caught:
        read_procedures(tmp_path)
    line = int(str(caught.value.where).rpartition(":")[2])
    assert '"id": "3"' in "".join(file.read_text().splitlines()[line - 1 : line + 1])


@pytest.mark.parametrize(
    "name", ["", "<|mem|>", "a\nb", "x" * 129, "tab\t"], ids=["empty", "marker", "newline", "long", "tab"]
)
def test_names_that_cannot_be(tmp_path, name):
    jsonl(tmp_path / "x.jsonl", {"procedure": name}, *pairs(4))
    with pytest.raises(DataError, match="the name"):
        read_procedures(tmp_path)


def test_chosen_tasks(tmp_path):
    for i in range(4):
        jsonl(tmp_path / f"t{i}.jsonl", *pairs(4, "long " * i))
    assert read_procedures(tmp_path, tasks=["t2", "t0"]).names == ("t0", "t2")
    names = tmp_path / "names.txt"
    names.write_text("t1\n\nt3\n")
    assert read_procedures(tmp_path, tasks=str(names)).names == ("t1", "t3")
    with pytest.raises(UsageError, match="no procedure t9"):
        read_procedures(tmp_path, tasks=["t9"])
    with pytest.raises(DataError, match="no procedures"):
        read_procedures(tmp_path, tasks=[])


def test_the_shortest_few_of_each_category(tmp_path):
    for i in range(12):
        instances = [{"id": str(j), "input": "x" * (i + 1) + str(j), "output": ["y"]} for j in range(4)]
        sni(tmp_path / f"task{i:02}.json", instances, "odd" if i % 2 else "even")
    # a sixth of 12 is 2 of each category
    assert read_procedures(tmp_path, tasks=12).names == ("task00", "task01", "task02", "task03")


SKILL = """---
name: greet
description: greets people
---
Say hello to whom is named.

```jsonl
{"input": "Ann", "output": "hello Ann"}
{"input": "Bob", "output": "hello Bob"}
```
Be kind.
"""


def test_skill_files(tmp_path):
    (tmp_path / "greet.md").write_text(SKILL)
    (tmp_path / "README.md").write_text("no skill")
    beside = tmp_path / "wave"
    beside.mkdir()
    (beside / "SKILL.md").write_text("---\nname: wave\ndescription: waves\n---\nWave.\n")
    jsonl(beside / "examples.jsonl", *pairs(4))
    jsonl(
        (tmp_path / "greet").mkdir() or tmp_path / "greet/examples.jsonl",
        {"input": "Cy", "output": "hello Cy"},
    )
    greet, wave = read_procedures(tmp_path).items
    assert greet.description == "greets people"
    assert greet.instruction == "Say hello to whom is named.\n\nBe kind."
    assert sorted(s.input for s in (*greet.train, *greet.val, *greet.test)) == ["Ann", "Bob", "Cy"]
    assert wave.name == "wave" and len(wave.train) == 2


def test_a_skill_without_examples(tmp_path):
    (tmp_path / "quiet.md").write_text("---\nname: quiet\ndescription: says nothing\n---\nHush.\n")
    with pytest.raises(DataError, match="quiet has no sample") as caught:
        read_procedures(tmp_path)
    assert caught.value.hint and "data.described=true" in caught.value.hint
    (found,) = read_procedures(tmp_path, described=True).items
    assert found.described and found.description == "says nothing" and not found.train


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("plain", "begins with front matter"),
        ("---\nname: x\n", "no end"),
        ("---\nname: [\n---\n", "not YAML"),
        ("---\nname: x\n---\n", "lacks a description"),
    ],
)
def test_bad_front_matter(tmp_path, text, said):
    (tmp_path / "x.md").write_text(text)
    with pytest.raises(DataError, match=said):
        read_procedures(tmp_path)


def test_tools(tmp_path):
    tools = [{"name": "alarm", "description": "sets an alarm", "parameters": {"time": {}, "date": {}}}]
    (tmp_path / "tools.json").write_text(json.dumps(tools))
    calls = [
        {"tool": "alarm", "query": f"at {i}", "arguments": {"date": "now", "time": str(i)}} for i in range(4)
    ]
    jsonl(tmp_path / "samples.jsonl", *calls)
    (found,) = read_procedures(tmp_path).items
    assert found.train[0].output == json.dumps({"time": found.train[0].input[3:], "date": "now"})
    jsonl(tmp_path / "samples.jsonl", *calls, calls[0] | {"tool": "bell"})
    with pytest.raises(DataError, match="unknown tool 'bell'"):
        read_procedures(tmp_path)


def test_chain_files(tmp_path):
    good = {"query": "q", "calls": [{"procedure": "a", "output": "x"}, {"procedure": "b", "output": "y"}]}
    file = jsonl(tmp_path / "chains.jsonl", good)
    (chain,) = read_chains(file, ["a", "b"])
    assert [(c.procedure, c.output) for c in chain.calls] == [("a", "x"), ("b", "y")]
    bad = [good | {"query": ""}, good | {"calls": []}, good | {"calls": [{"procedure": "bb", "output": "x"}]}]
    jsonl(file, good, *bad)
    with pytest.raises(DataError) as caught:
        read_chains(file, ["a", "b"])
    assert [p.where for p in caught.value.problems] == [f"{file}:{n}" for n in (2, 3, 4)]
    with pytest.raises(DataError, match='"query" must be'):
        read_negatives(jsonl(tmp_path / "n.jsonl", {"query": "x"}, {"query": 3}))


def few(n: int) -> list[Procedure]:
    def samples(mark: str) -> tuple[Sample, ...]:
        return tuple(Sample(f"{mark}{i} of {n}", (f"{mark}-{i}",), "x:1") for i in range(6))

    return [Procedure(f"p{n}", train=samples(f"Train{n}-"), test=samples(f"Test{n}-")) for n in range(n)]


@given(
    st.integers(2, 6),
    st.integers(0, 40),
    st.integers(0, 3),
    st.sampled_from(["first", "lower"]),
    st.sampled_from(["trained", "other"]),
)
def test_chains_say_what_they_are_made_of(n, count, seed, case, wording):
    procedures = few(n)
    by_output = {s.output: (p.name, s.input) for p in procedures for s in (*p.train, *p.test)}
    said = partial(join, case=case, wording=wording)
    found = {split: made_chains(procedures, split, count, seed, joined=said) for split in ("train", "test")}
    again = made_chains(procedures, "train", count, seed, joined=said)
    assert found["train"] == again
    for split, chains in found.items():
        assert len({chain.query for chain in chains}) == len(chains) <= count
        for chain in chains:
            assert 2 <= len(chain.calls) <= (3 if split == "train" else 4)
            rest = chain.query
            for i, call in enumerate(chain.calls):
                name, text = by_output[call.output]
                assert name == call.procedure and split in text.lower()
                if i:
                    last = len(chain.calls) >= 3 and i == len(chain.calls) - 1
                    links = OTHER_LINKS if wording == "other" else LAST_LINKS if last else LINKS
                    link = next(x for x in links if rest.startswith(x))
                    rest = rest.removeprefix(link)
                    text = text.lower() if case == "lower" else text[0].lower() + text[1:]
                assert rest.startswith(text)
                rest = rest.removeprefix(text)
            assert not rest
    assert not {c.query for c in found["train"]} & {c.query for c in found["test"]}


def test_some_chains_repeat_a_procedure():
    chains = made_chains(few(6), "test", 300, 0)
    repeated = sum(len({c.procedure for c in chain.calls}) < len(chain.calls) for chain in chains)
    assert 10 <= repeated <= 60
    assert {len(chain.calls) for chain in chains} == {2, 3, 4}
    with pytest.raises(DataError):
        made_chains(few(1), "train", 3, 0)


LETTERS = tuple("badb")


@pytest.mark.parametrize(
    ("word", "said"),
    [("REVERSE", "bdab"), ("SORT", "abbd"), ("ROTATE", "adbb"), ("SWAP", "abbd"), ("NEXT", "cbec"),
     ("UNIQUE", "bad"), ("REST", "adb"), ("ODDS", "bd"), ("ENDS", "badb"), ("HALVES", "dbba"),
     ("REPEAT", "bbadb")],
)  # fmt: skip
def test_operations(word, said):
    assert "".join(operations.apply([word], LETTERS)) == said


def test_the_toy_is_seeded_and_apart():
    toy = operations.toy(8, 32, 4, 10, 0)
    assert toy == operations.toy(8, 32, 4, 10, 0) and toy != operations.toy(8, 32, 4, 10, 1)
    assert [p.name for p in toy][2:4] == ["reverse-next", "rotate-previous"]
    for p in toy:
        words = p.name.upper().split("-")
        parts = (p.train, p.val, p.test)
        assert [len(part) for part in parts] == [32, 4, 10]
        assert len({s.input for part in parts for s in part}) == 46
        assert all(s.output == " ".join(operations.apply(words, tuple(s.input.split()))) for s in p.test)


def test_the_starter_never_sees_what_is_held_out():
    rng = random.Random(0)
    for _ in range(3000):
        given_, said = operations.lesson(rng)
        words = tuple(w for w in given_ if w in operations.OPERATIONS)
        assert words not in operations.HELD_OUT
        assert all(w in operations.VOCABULARY for w in (*given_, *said))
