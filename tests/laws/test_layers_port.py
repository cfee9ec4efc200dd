"""The laws of a memory that enters by the `layers` port, in every family of models: a whole prompt, one
compacted evenly, and one with heads of unequal length and a bias a token.
"""

import itertools

import pytest
import torch
from tiny_prompt import FAMILIES, KINDS, family, ids, memory_of, queries

from memtoken_cli.engine.attend import Read, attend, naive
from memtoken_cli.engine.decode import generate
from memtoken_cli.engine.memory import LayerKV, Layers, from_tensors, join
from memtoken_cli.engine.method import GenerateOptions
from memtoken_cli.engine.packed import Packed
from memtoken_cli.engine.trie import empty_memory, score, tries
from memtoken_cli.io import artifact
from memtoken_cli.io.artifact import Header

CLOSE = {"atol": 3e-5, "rtol": 1e-4}
every = pytest.mark.parametrize(
    ("name", "kind"), [pytest.param(n, k, id=f"{n}-{k}") for n, k in itertools.product(FAMILIES, KINDS)]
)
families = pytest.mark.parametrize("name", FAMILIES)


def said(backbone, memory, rows, hidden_BM=None):
    """Logits at every position of every row, laid flat."""
    packed = Packed.rows(rows, memory.next_position)
    with torch.no_grad():
        return backbone.run(packed, memory, torch.arange(len(packed.ids_F)), hidden_BM)


@families
def test_1_an_empty_memory_is_invisible(name):
    backbone, rows = family(name), queries(family(name))
    nothing = empty_memory(backbone)
    for row in rows:
        plain = backbone.model(input_ids=torch.tensor([row])).logits
        with backbone.attached(nothing) as model:
            assert torch.equal(model(input_ids=torch.tensor([row])).logits, plain)
        torch.testing.assert_close(said(backbone, nothing, [row]), plain[0], **CLOSE)
    memory = memory_of(name, "ragged")
    assert torch.equal(said(backbone, join([memory, nothing]), rows), said(backbone, memory, rows))


@families
def test_1_an_empty_memory_further_on_only_moves_the_text(name):
    backbone, [row, *_] = family(name), queries(family(name))
    dims = backbone.dims
    nothing = Layers.empty(dims.layers, dims.kv_heads, dims.head_dim, 7)
    there = backbone.model(
        input_ids=torch.tensor([row]), position_ids=torch.arange(7, 7 + len(row))[None]
    ).logits
    with backbone.attached(nothing) as model:
        torch.testing.assert_close(model(input_ids=torch.tensor([row])).logits, there, **CLOSE)


@families
def test_2_hidden_tokens_are_invisible(name):
    backbone, rows = family(name), queries(family(name))
    memory = memory_of(name, "whole")
    hidden_BM = torch.zeros(len(rows), memory.next_position, dtype=torch.bool)
    hidden_BM[0, 3:30] = hidden_BM[0, -3:] = True
    found = said(backbone, memory, rows, hidden_BM)
    altered = []
    for kv in memory.layers:
        size = kv.sizes[0]
        k, v = (x.clone().view(len(kv.sizes), size, -1) for x in (kv.k_XD, kv.v_XD))
        for place in torch.nonzero(hidden_BM[0, -size:])[:, 0].tolist():
            k[:, place], v[:, place] = 3.0, -99.0
        altered.append(LayerKV(k.flatten(0, 1), v.flatten(0, 1), kv.sizes, pos_X=kv.pos_X))
    again = said(backbone, Layers(tuple(altered), memory.next_position), rows, hidden_BM)
    first = len(rows[0])
    torch.testing.assert_close(again[:first], found[:first], **CLOSE)
    assert not torch.allclose(again[first:], found[first:], atol=1e-2)
    assert not torch.allclose(found[:first], said(backbone, memory, rows)[:first], atol=1e-2)


@every
def test_2_padding_is_invisible(name, kind):
    backbone, rows = family(name), queries(family(name))
    memory, T = memory_of(name, kind), max(map(len, rows)) + 3
    ids_BT, mask_BT = torch.full((len(rows), T), 9), torch.zeros(len(rows), T, dtype=torch.long)
    for b, row in enumerate(rows):
        ids_BT[b, -len(row) :], mask_BT[b, -len(row) :] = torch.tensor(row), 1
    with torch.no_grad(), backbone.attached(memory) as model:
        out = model(input_ids=ids_BT, attention_mask=mask_BT).logits
    found = torch.cat([out[b, -len(row) :] for b, row in enumerate(rows)])
    torch.testing.assert_close(found, said(backbone, memory, rows), **CLOSE)


@every
def test_3_rows_are_independent(name, kind):
    backbone, memory = family(name), memory_of(name, kind)
    row, other, more = (ids(backbone, text) for text in ("where is it", "quite other", "card? card?"))
    first = said(backbone, memory, [row, other])[: len(row)]
    assert torch.equal(first, said(backbone, memory, [row, more])[: len(row)])
    torch.testing.assert_close(first, said(backbone, memory, [row]), **CLOSE)
    with torch.no_grad(), backbone.attached(memory) as model:
        batch = [model(input_ids=torch.tensor([row, x])).logits[0] for x in (other, more)]
    assert torch.equal(*batch)
    torch.testing.assert_close(batch[0], first, **CLOSE)


@every
def test_3_a_batch_of_queries_is_each_alone(name, kind):
    backbone, memory, rows = family(name), memory_of(name, kind), queries(family(name))
    options = GenerateOptions(max_new_tokens=5, batch=8)
    together = list(generate(backbone, memory, rows, options))
    assert together == [text for row in rows for text in generate(backbone, memory, [row], options)]
    trees = tries([ids(backbone, x) for x in (" card\n", " rate\n", " pin\n")])
    alone = torch.cat([score(backbone, memory, [row], trees).scores_RK for row in rows])
    torch.testing.assert_close(score(backbone, memory, rows, trees).scores_RK, alone, atol=5e-5, rtol=0)


@every
def test_5_cached_decoding_is_uncached(name, kind):
    """Greedy, token for token, and the logits of every step."""
    greedy = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    backbone, memory, [row, *_] = family(name), memory_of(name, kind), queries(family(name))
    with torch.no_grad(), backbone.attached(memory) as model:
        out = model.generate(
            torch.tensor([row]),
            attention_mask=torch.ones(1, len(row), dtype=torch.long),
            output_logits=True,
            return_dict_in_generate=True,
            **greedy,
        )
    text = out.sequences[0].tolist()
    plain = said(backbone, memory, [text[:-1]])[len(row) - 1 :]
    torch.testing.assert_close(torch.cat(out.logits), plain, **CLOSE)
    assert plain.argmax(-1).tolist() == text[len(row) :]


@every
def test_6_saved_and_loaded_is_the_same(name, kind, tmp_path):
    backbone, memory = family(name), memory_of(name, kind)
    path = tmp_path / "m.safetensors"
    artifact.write(path, memory.tensors(), Header(method="x", kind="memory", port="layers"))
    back = from_tensors("layers", artifact.read(path)[1], memory.next_position)
    assert torch.equal(said(backbone, back, queries(backbone)), said(backbone, memory, queries(backbone)))
    rows = [queries(backbone)[0]] * 5
    assert said(backbone, back, rows).shape[0] == 5 * len(rows[0])


@every
def test_6_another_dtype_says_nearly_the_same(name, kind):
    backbone, memory, rows = family(name), memory_of(name, kind), queries(family(name))
    exact = said(backbone, memory, rows).softmax(-1)
    half = said(backbone, memory.to(dtype=torch.bfloat16), rows).softmax(-1)
    assert 0 < (exact - half).abs().max() < 0.1
    assert (exact - half).abs().mean() < 2e-3


@every
def test_8_a_text_read_in_pieces_is_the_whole(name, kind):
    backbone, memory = family(name), memory_of(name, kind)
    row = ids(backbone, "a much longer question, isn't it?")
    whole = said(backbone, memory, [row])
    with torch.no_grad(), backbone.attached(memory) as model:
        cache, parts = None, []
        for start, stop in ((0, 3), (3, 4), (4, 20), (20, len(row))):
            out = model(input_ids=torch.tensor([row[start:stop]]), cache=cache, use_cache=True)
            cache = out.cache
            parts.append(out.logits[0])
    torch.testing.assert_close(torch.cat(parts), whole, **CLOSE)


class ReadPlainly(Read):
    def __call__(self, site):
        return naive(site, self.layers[site.layer], self.hidden)


@every
def test_10_fast_is_naive(name, kind):
    """The whole model's logits, and the gradients that reach the memory."""
    backbone, rows = family(name), queries(family(name))
    memory = memory_of(name, kind)
    packed = Packed.rows(rows, memory.next_position)
    wanted_W, found = packed.last_B, []
    for read in (Read, ReadPlainly):
        leaves = [
            LayerKV(kv.k_XD.clone().requires_grad_(), kv.v_XD.clone().requires_grad_(), kv.sizes,
                    None if kv.bias_X is None else kv.bias_X.clone().requires_grad_(), kv.pos_X)
            for kv in memory.layers
        ]  # fmt: skip
        reader = read(tuple(leaves), packed.packing(backbone.device), packed.position_F[None])
        logits = backbone.run_with(packed, reader, wanted_W)
        logits.log_softmax(-1)[:, 7].sum().backward()
        grads = [x.grad for kv in leaves for x in (kv.k_XD, kv.v_XD, kv.bias_X) if x is not None]
        found.append((logits.detach(), grads))
    torch.testing.assert_close(found[0][0], found[1][0], **CLOSE)
    for a, b in zip(found[0][1], found[1][1], strict=True):
        assert a.abs().max() > 0
        torch.testing.assert_close(a, b, **CLOSE)
    assert attend is not naive
