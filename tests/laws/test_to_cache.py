"""A memory as an ordinary cache: stock `generate` says what memtok says, token for token, without memtok's
attention. Greedy, beams, sampling.
"""

import pytest
import torch
from tiny_prompt import FAMILIES, QUERIES, compacted, family, memory_of, queries, rendered
from transformers import GenerationConfig

from memtoken_cli.data.render import Template
from memtoken_cli.engine.answer import answer
from memtoken_cli.engine.decode import generate
from memtoken_cli.engine.method import GenerateOptions
from memtoken_cli.engine.packed import Packed
from memtoken_cli.io.errors import UsageError

NEW = 10
families = pytest.mark.parametrize("name", FAMILIES)


def stock(backbone, memory, row, **options):
    """Stock `generate` from a filled cache: the query's ids, its positions and a mask over both."""
    cache = backbone.to_cache(memory)
    cache.batch_repeat_interleave(options.get("num_beams", 1))
    T, kept = len(row), max(layer.keys.shape[2] for layer in cache.layers)
    config = GenerationConfig(
        max_new_tokens=NEW, eos_token_id=2, pad_token_id=0, use_cache=True, **{"do_sample": False} | options
    )
    torch.manual_seed(0)
    with torch.no_grad():
        out = backbone.model.generate(
            torch.tensor([row]),
            attention_mask=torch.ones(1, kept + T, dtype=torch.long),
            position_ids=torch.arange(memory.next_position, memory.next_position + T)[None],
            cache=cache,
            generation_config=config,
        )
    return out[0, T:].tolist()


def text(backbone, tokens):
    return backbone.tokenizer.decode(tokens, skip_special_tokens=True)


@families
@pytest.mark.parametrize("kind", ["whole", "even"])
def test_greedy_is_token_for_token_the_same(name, kind):
    backbone = family(name)
    memory, rows = memory_of(name, kind), queries(backbone)
    found = [text(backbone, stock(backbone, memory, row)) for row in rows]
    assert found == list(generate(backbone, memory, rows, GenerateOptions(max_new_tokens=NEW)))
    if kind == "whole":
        ids = rendered(backbone).ids
        plain = [
            backbone.model.generate(
                torch.tensor([[*ids, *row]]), attention_mask=torch.ones(1, len(ids) + len(row)),
                max_new_tokens=NEW, do_sample=False, eos_token_id=2, pad_token_id=0,
            )[0, len(ids) + len(row) :].tolist()
            for row in rows
        ]  # fmt: skip
        assert found == [text(backbone, tokens) for tokens in plain]


@families
def test_one_forward_over_the_cache_says_the_same(name):
    backbone, memory = family(name), memory_of(name, "even")
    for row in queries(backbone):
        cache = backbone.to_cache(memory)
        start = memory.next_position
        position = torch.arange(start, start + len(row))[None]
        with torch.no_grad():
            out = backbone.model(input_ids=torch.tensor([row]), position_ids=position, cache=cache).logits[0]
        packed = Packed.rows([row], start)
        expected = backbone.run(packed, memory, torch.arange(len(row)))
        torch.testing.assert_close(out, expected, atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["gqa", "sliding", "learned-positions"])
@pytest.mark.parametrize("kind", ["whole", "even", "ragged"])
def test_beams_and_sampling_run(name, kind):
    """Both also through a memory that no ordinary cache can hold; beams where stock generate can be asked."""
    backbone, memory, rows = family(name), memory_of(name, kind), queries(family(name))
    beams = GenerateOptions(max_new_tokens=NEW, beams=3)
    found = list(generate(backbone, memory, rows, beams))
    assert len(found) == len(rows)
    if kind != "ragged":
        assert found == [text(backbone, stock(backbone, memory, row, num_beams=3)) for row in rows]
    hot = GenerateOptions(max_new_tokens=NEW, temperature=2.0, top_k=20, top_p=0.95, seed=3)
    sampled = list(generate(backbone, memory, rows, hot))
    assert sampled == list(generate(backbone, memory, rows, hot))
    other = GenerateOptions(max_new_tokens=NEW, temperature=2.0, seed=4)
    assert sampled != list(generate(backbone, memory, rows, other))
    assert stock(backbone, memory_of(name, "even"), rows[0], do_sample=True)


@families
def test_what_no_ordinary_cache_can_hold_is_refused(name):
    for budget, bias in (("adaptive", "none"), ("uniform", "mass"), ("adaptive", "mass")):
        with pytest.raises(UsageError, match="as many tokens in every head, and no bias"):
            family(name).to_cache(compacted(name, budget, bias))


@pytest.mark.parametrize("name", ["sliding", "softcap", "sinks"])
def test_a_sliding_window_with_gaps_is_refused(name):
    """Its keys' positions decide what a query sees, and a cache counts from the end."""
    backbone = family(name)
    memory = compacted(name, "uniform", "none", ratio=100)
    assert max(map(max, (kv.sizes for kv in memory.layers))) < 7
    with pytest.raises(UsageError, match="sliding window of 8") as caught:
        backbone.to_cache(memory)
    assert "keep 7 tokens" in (caught.value.hint or "")


def test_answers_are_generates_text_up_to_the_templates_end():
    backbone, memory = family("gqa"), memory_of("gqa", "even")
    options = GenerateOptions(max_new_tokens=NEW)
    found = [a.output for a in answer(backbone, memory, {"template": Template().text}, QUERIES, options)]
    plain = [text(backbone, stock(backbone, memory, row)) for row in queries(backbone)]
    assert found == [t.partition("\n\n")[0].strip() for t in plain]
