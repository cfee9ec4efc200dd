"""`compact` as a method: prompts too long, kinds of shots and of queries, what the artifact is told."""

import json
from dataclasses import replace

import pytest
import torch
from tiny import tiny_gpt2, tiny_llama
from tiny_prompt import LABELS, family, records, rendered, shots

from memtoken_cli.data.render import Template, query_ids, render
from memtoken_cli.data.shots import read_shots, shots_of
from memtoken_cli.engine.method import Budget, GenerateOptions
from memtoken_cli.io.errors import DataError
from memtoken_cli.methods.compact.config import Config
from memtoken_cli.methods.compact.method import Compact
from memtoken_cli.methods.compact.piece import ROOM, cut

TEMPLATE = Template()


def made(backbone=None, given=None, ratio=4, slots=None, seed=0, **keys):
    budget = Budget(None if slots else ratio, slots)
    return Compact().compress(backbone or family("gqa"), given or shots(), budget, Config(**keys), seed)


def same(a, b) -> bool:
    x, y = a.memory.tensors(), b.memory.tensors()
    return x.keys() == y.keys() and all(torch.equal(x[key], y[key]) for key in x)


def spans(backbone):
    return rendered(backbone).spans


def test_too_long_names_how_many_shots_fit():
    longest = max(s.end - s.start for s in spans(family("learned-positions")))
    end = spans(family("learned-positions"))[6].end
    for spare, fit in ((0, 7), (-1, 6)):
        backbone = tiny_gpt2(context=end + longest + ROOM + spare)
        with pytest.raises(DataError, match=rf"holds {end + spare}: {fit} of 12 shots fit") as caught:
            made(backbone)
        assert "truncate=shots" in (caught.value.hint or "") and "chunk=auto" in (caught.value.hint or "")
        kept = made(backbone, truncate="shots")
        assert kept.report["dropped"] == 12 - fit
        assert kept.memory.next_position == spans(backbone)[fit - 1].end
        assert same(replace(kept, report={}), made(backbone, shots(fit)))


def test_what_fits_is_neither_cut_nor_dropped():
    backbone = family("gqa")
    assert cut(backbone, shots(), TEMPLATE, Config(truncate="shots", chunk="auto")) == ([shots()], 0)
    report = made(truncate="shots", chunk="auto").report
    assert (report["dropped"], report["pieces"]) == (0, 1)


def test_nothing_fits():
    with pytest.raises(DataError, match="0 of 12 shots fit"):
        made(tiny_gpt2(context=60), truncate="shots")


@pytest.mark.parametrize("chunk", ["auto", 70, 100, 150, 350, 360, 370])
@pytest.mark.parametrize("budget", [Budget(ratio=4), Budget(slots=24), Budget(ratio=3.3)])
def test_chunks_hold_every_shot_once_and_never_more_than_the_budget(chunk, budget):
    backbone = tiny_gpt2(context=300 if chunk == "auto" else 1024, bos=True)
    config = Config(chunk=chunk, instruction="say which", calibrate="off")
    pieces, dropped = cut(backbone, shots(), TEMPLATE, config)
    size = 150 if chunk == "auto" else chunk
    assert dropped == 0 and len(pieces) > 1
    assert [s for piece in pieces for s in piece.items] == shots().items
    whole = rendered_with(backbone, shots())
    for piece in pieces:
        assert len(rendered_with(backbone, piece).ids) <= size
        assert len(piece.items) > 1 or size == 70  # which holds no two
    found = Compact().compress(backbone, shots(), budget, config, 0)
    assert found.memory.slots <= budget.slots_for(len(whole.ids))
    assert found.memory.slots > budget.slots_for(len(whole.ids)) - 1
    assert found.report["pieces"] == len(pieces)
    assert found.memory.next_position == max(len(rendered_with(backbone, p).ids) for p in pieces)


def rendered_with(backbone, given):
    return render(given, TEMPLATE, backbone.tokenizer, "say which")


def test_a_chunk_no_shot_fits_in():
    with pytest.raises(DataError, match="shot 1 alone has"):
        made(chunk=20)


def test_too_few_slots_for_every_piece():
    with pytest.raises(DataError, match="1 slots are too few for 4 pieces"):
        made(chunk=100, slots=1)


def test_budgets_that_leave_nothing():
    with pytest.raises(DataError, match="keeps no token"):
        made(ratio=1e6)
    with pytest.raises(DataError, match="more than the prompt's"):
        made(slots=10_000)
    assert made(slots=1).memory.slots == 1


def test_the_report_counts_what_was_done():
    found = made(dtype="bfloat16", calibrate="off", bias="mass")
    t = len(rendered(family("gqa")).ids)
    assert found.report["tokens"] == t and found.report["slots"] == t // 4
    assert found.report["memory_bytes"] == found.memory.nbytes
    assert found.memory.nbytes == (2 * 8 * 2 + 4) * (2 * 2 * (t // 4)) + 2 * 2 * 4, "nothing padded"
    assert set(found.report["seconds"]) == {"prefill", "score", "fit", "estimate", "calibrate"}
    assert json.dumps(found.report) and json.dumps(found.about)


def test_about_tells_a_reader_what_it_needs():
    about = made(template="Q {input}\\nA {output}\\n", instruction="sort these").about
    assert about["template"] == "Q {input}\nA {output}\n" and about["instruction"] == "sort these"
    assert about["labels"] == sorted(LABELS)
    assert about["calibration"] is None or list(about["calibration"]) == sorted(LABELS)


def test_calibration_is_the_shots_own_and_can_be_off():
    skewed = shots_of([r | {"output": "a" if i % 2 else "b"} for i, r in enumerate(records())])
    found = made(given=skewed)
    assert made(given=skewed, calibrate="off").about["calibration"] is None
    assert found.about["calibration"] is None or set(found.about["calibration"]) == {"a", "b"}
    assert same(found, made(given=skewed, calibrate="off")), "labels never change the memory"


def test_order_and_seed():
    assert same(made(), made()) and same(made(seed=1, references=60), made(seed=1))
    shuffled = [made(order="shuffled", seed=s) for s in (0, 0, 1)]
    assert same(shuffled[0], shuffled[1]) and not same(shuffled[0], shuffled[2])
    assert not same(shuffled[0], made())


def test_queries_may_be_a_repetition_or_a_file(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('{"input": "where is it"}\n{"input": "euro?"}\n')
    ways = [made(queries=q, calibrate="off") for q in ("shots", "repeat", str(path))]
    assert same(ways[0], made(calibrate="off"))
    assert not same(ways[0], ways[1]) and not same(ways[1], ways[2])
    assert {m.memory.slots for m in ways} == {len(rendered(family("gqa")).ids) // 4}
    path.write_text('{"input": "x"}\n{\n')
    with pytest.raises(DataError, match="JSON") as caught:
        made(queries=str(path))
    assert caught.value.where == f"{path}:2"


def turns(i: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "card"}]


KINDS = {
    "plain.txt": "\n\n".join(f"line {i} says this and that" for i in range(8)),
    "text.jsonl": "\n".join(json.dumps({"text": f"number {i} is odd"}) for i in range(8)),
    "chat.jsonl": "\n".join(json.dumps({"messages": turns(i)}) for i in range(6)),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_shots(tmp_path, name):
    path = tmp_path / name
    path.write_text(KINDS[name])
    backbone = tiny_llama(bos=False)
    found = made(backbone, read_shots(path), refine=2)
    assert found.memory.slots == found.report["tokens"] // 4
    assert all(e == e for e in (*found.report["fit_error"], found.report["kl_estimate"]))
    answers = list(
        Compact().answer(backbone, found.memory, found.about, ["q1"], GenerateOptions(max_new_tokens=3))
    )
    assert len(answers) == 1


def test_a_whole_memory_answers_as_the_prompt():
    backbone, text = family("gqa"), rendered(family("gqa"))
    found = made(ratio=1, bias="none", dtype="float32", calibrate="off")
    options = GenerateOptions(labels=LABELS)
    queries = ["where is it", "what rate", "x"]
    answers = list(Compact().answer(backbone, found.memory, found.about, queries, options))
    whole = backbone.prefill(text.ids)
    for a, b in zip(answers, Compact().answer(backbone, whole, found.about, queries, options), strict=True):
        assert a.output == b.output
        assert a.scores == pytest.approx(b.scores, abs=1e-3)
    assert (
        query_ids(TEMPLATE, backbone.tokenizer, "where is my card")
        == text.ids[text.spans[0].start : text.spans[0].answer]
    )
