"""Ports agree: vectors that enter as a prefix and their own prefilled keys and values say the same, read by
a pack of rows or by a batch with a memory each, in outputs and in the gradients that a writer is trained by.
"""

import pytest
import torch
from tiny_prompt import FAMILIES, family, queries, rendered

from memtoken_cli.engine.packed import Packed
from memtoken_cli.engine.ports import enter_prefix, read_rows

CLOSE = {"atol": 5e-5, "rtol": 1e-4}
families = pytest.mark.parametrize("name", FAMILIES)
M = 21


def drawn(backbone, rows=2):
    """Vectors that no token has, [B,M,E]."""
    table = backbone.model.get_input_embeddings().weight
    noise = torch.randn(rows, M, table.shape[1], generator=torch.Generator().manual_seed(3))
    return (table.std() * noise).requires_grad_()


def places(rows):
    return torch.arange(M).expand(rows, M), torch.full((rows,), M)


def plain(backbone, x_ME, row):
    """An ordinary forward over [x; row]: logits of the row."""
    e = torch.cat([x_ME, backbone.model.get_input_embeddings()(torch.tensor(row))])
    position = torch.arange(len(e))[None]
    out = backbone.model(inputs_embeds=e[None], position_ids=position, use_cache=False)
    return out.logits[0, -len(row) :]


def read(backbone, written, rows):
    """Rows of equal length, row b reading memory b: logits [B,T,V]."""
    ids_BU, T = torch.tensor(rows), len(rows[0])
    seen = torch.ones(T, T, dtype=torch.bool).tril().expand(len(rows), T, T)
    position = torch.arange(T)[None] + (0 if written is None else written.next_B[:, None])
    return read_rows(backbone, written, ids_BU, seen, position.expand(len(rows), T), torch.arange(T))


def two(backbone):
    first, second, _ = queries(backbone)
    return [first[:14], second[:14]]


@families
def test_4_a_prefix_is_its_own_prefilled_memory(name):
    """Three ways in: a forward over [x; row], `prefill_embeds` read in a pack, and a batch of memories."""
    backbone, rows = family(name), two(family(name))
    weight = torch.randn(2, len(rows[0]), backbone.dims.vocab, generator=torch.Generator().manual_seed(0))

    def one_by_one(x):
        return torch.stack([plain(backbone, e, row) for e, row in zip(x, rows, strict=True)])

    def prefilled(x):
        logits = []
        for e, row in zip(x, rows, strict=True):
            memory = backbone.prefill_embeds(e)
            assert memory.next_position == M
            logits.append(backbone.run(Packed.rows([row], M), memory, torch.arange(len(row))))
        return torch.stack(logits)

    def batched(x):
        return read(backbone, enter_prefix(backbone, x, *places(2)), rows)

    found = []
    for way in (one_by_one, prefilled, batched):
        x = drawn(backbone)
        out = way(x)
        (out.log_softmax(-1) * weight).mean().backward()
        assert x.grad.abs().max() > 0
        found.append((out.detach(), x.grad))
    for out, grad in found[1:]:
        torch.testing.assert_close(out, found[0][0], **CLOSE)
        torch.testing.assert_close(grad, found[0][1], atol=1e-5, rtol=2e-3)


@families
def test_4_tokens_are_their_embeddings(name):
    """A prompt of tokens, prefilled by ids or by hand."""
    backbone = family(name)
    text = rendered(backbone).ids[:40]
    x_TE = backbone.model.get_input_embeddings()(torch.tensor(text))
    for a, b in zip(backbone.prefill(text).layers, backbone.prefill_embeds(x_TE).layers, strict=True):
        assert torch.equal(a.k_XD, b.k_XD) and torch.equal(a.v_XD, b.v_XD)
