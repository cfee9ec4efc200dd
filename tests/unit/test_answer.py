"""Answers from a memory: labels with calibration, and text against stock generation over the whole prompt."""

import pytest
import torch
from tiny import tiny_gemma3, tiny_gpt2, tiny_llama, tiny_qwen2

from memtoken_cli.data.render import Template, answer_ids, query_ids
from memtoken_cli.engine.answer import answer, bias_of, label_trees
from memtoken_cli.engine.decode import generate
from memtoken_cli.engine.memory import Tokens
from memtoken_cli.engine.method import GenerateOptions
from memtoken_cli.engine.trie import score_alone
from memtoken_cli.io.errors import DataError

PROMPT = "Input: abc\nOutput: card\n\nInput: hello\nOutput: cargo\n\n"
QUERIES = ["abc", "a much longer question, isn't it?", "x", "hello"]
LABELS = ("card", "cargo", "cat", "dog")
ABOUT = {"template": Template().text}


def prompt(backbone):
    ids = backbone.tokenizer.encode(PROMPT)
    return ids, backbone.prefill(ids)


def test_the_likeliest_label_wins():
    backbone = tiny_llama()
    ids, memory = prompt(backbone)
    found = list(answer(backbone, memory, ABOUT, QUERIES, GenerateOptions(labels=LABELS)))
    rows = [query_ids(Template(), backbone.tokenizer, q) for q in QUERIES]
    alone = score_alone(backbone, ids, rows, [answer_ids(Template(), backbone.tokenizer, x) for x in LABELS])
    assert [a.output for a in found] == [LABELS[k] for k in alone.argmax(1).tolist()]
    for a, row in zip(found, alone.tolist(), strict=True):
        assert list(a.scores) == list(LABELS)
        assert max(abs(x - y) for x, y in zip(a.scores.values(), row, strict=True)) < 1e-4


def test_calibration_is_added_only_where_it_covers_the_labels():
    backbone = tiny_llama()
    _, memory = prompt(backbone)
    about = ABOUT | {"calibration": dict.fromkeys(LABELS, 0.0) | {"cargo": 1000.0}}
    calibrated = list(answer(backbone, memory, about, QUERIES, GenerateOptions(labels=LABELS)))
    raw = list(answer(backbone, memory, about, QUERIES, GenerateOptions(labels=LABELS, calibrate=False)))
    assert {a.output for a in calibrated} == {"cargo"}
    assert "cargo" not in {a.output for a in raw}
    assert calibrated[0].scores["cargo"] == pytest.approx(raw[0].scores["cargo"] + 1000)
    assert bias_of(about, ("card", "unknown")).tolist() == [0.0, 0.0]


def test_first_tokens_must_be_distinct():
    backbone = tiny_llama()
    with pytest.raises(DataError, match="begin with the same token"):
        label_trees(backbone, Template("{input}={output}\n"), ("card", "cargo"), "first_token")
    (tree,) = label_trees(backbone, Template("{input}={output}\n"), ("card", "dog"), "first_token")
    assert tree.size == 0


@pytest.mark.parametrize("make", [tiny_llama, tiny_qwen2, tiny_gemma3, tiny_gpt2])
@pytest.mark.parametrize("beams", [1, 3])
def test_text_equals_stock_generation_over_the_whole_prompt(make, beams):
    backbone = make(seed=3)
    ids, memory = prompt(backbone)
    rows = [query_ids(Template(), backbone.tokenizer, q) for q in QUERIES]
    found = list(generate(backbone, memory, rows, GenerateOptions(max_new_tokens=12, beams=beams)))
    for row, text in zip(rows, found, strict=True):
        whole = torch.tensor([[*ids, *row]])
        out = backbone.model.generate(
            whole,
            attention_mask=torch.ones_like(whole),
            max_new_tokens=12,
            do_sample=False,
            num_beams=beams,
            pad_token_id=0,
        )
        tail = out[0, whole.shape[1] :].tolist()
        assert text == backbone.tokenizer.decode(tail, skip_special_tokens=True)


def test_order_and_batches_change_nothing():
    backbone = tiny_llama(seed=3)
    _, memory = prompt(backbone)
    one = [a.output for a in answer(backbone, memory, ABOUT, QUERIES, GenerateOptions(batch=1))]
    many = [a.output for a in answer(backbone, memory, ABOUT, QUERIES, GenerateOptions(batch=32))]
    back = [a.output for a in answer(backbone, memory, ABOUT, QUERIES[::-1], GenerateOptions(batch=3))]
    assert one == many == back[::-1]


def test_no_memory_is_the_bare_model():
    backbone = tiny_llama()
    (found,) = generate(backbone, None, [[5, 6, 7]], GenerateOptions(max_new_tokens=6))
    ids = torch.tensor([[5, 6, 7]])
    out = backbone.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    assert found == backbone.tokenizer.decode(out[0, 3:], skip_special_tokens=True)


def test_text_is_cut_before_the_first_stop():
    backbone = tiny_llama(seed=3)
    _, memory = prompt(backbone)
    rows = [query_ids(Template(), backbone.tokenizer, q) for q in QUERIES]
    options = GenerateOptions(max_new_tokens=12)
    whole = list(generate(backbone, memory, rows, options))
    stop = (whole[0][4:6], "no such text")
    assert list(generate(backbone, memory, rows, options, stop)) == [
        text[: text.find(stop[0])] if stop[0] in text else text for text in whole
    ]


def test_a_stop_ends_the_work_early():
    backbone = tiny_llama(seed=3)
    _, memory = prompt(backbone)
    rows = [query_ids(Template(), backbone.tokenizer, QUERIES[0])]
    (whole,) = generate(backbone, memory, rows, GenerateOptions(max_new_tokens=12))
    calls = []
    hook = backbone.model.register_forward_hook(lambda *_: calls.append(1))
    list(generate(backbone, memory, rows, GenerateOptions(max_new_tokens=12), (whole[2],)))
    hook.remove()
    assert len(calls) <= 3 < len(whole)


def test_sampling_is_seeded():
    backbone = tiny_llama()
    _, memory = prompt(backbone)

    def sample(seed):
        options = GenerateOptions(temperature=1.5, seed=seed)
        return [a.output for a in answer(backbone, memory, ABOUT, QUERIES, options)]

    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert sample(1) == sample(1) != sample(2)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_models_own_generation_defaults_do_not_leak():
    backbone = tiny_llama()
    _, memory = prompt(backbone)
    plain = [a.output for a in answer(backbone, memory, ABOUT, QUERIES, GenerateOptions())]
    own = backbone.model.generation_config
    own.do_sample, own.temperature, own.repetition_penalty, own.max_length = True, 5.0, 3.0, 7
    assert [a.output for a in answer(backbone, memory, ABOUT, QUERIES, GenerateOptions())] == plain
    assert backbone.model.generation_config is own


def test_what_does_not_fit_is_refused():
    backbone = tiny_gpt2(context=80)
    memory = backbone.prefill([5] * 50)
    with pytest.raises(DataError, match="beyond the 80"):
        list(answer(backbone, memory, ABOUT, ["abc"], GenerateOptions(max_new_tokens=32)))
    with pytest.raises(DataError, match="of the prefix port"):
        list(answer(backbone, Tokens("prefix", torch.zeros(1, 32)), ABOUT, ["abc"], GenerateOptions()))
