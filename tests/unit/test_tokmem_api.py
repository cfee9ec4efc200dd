"""Loss and statistics of examples at hand, beside their definitions; names of the Python front door."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import tiny_llama
from tiny_bank import NAMES, tiny_bank
from torch.nn.functional import cross_entropy

from memtoken_cli.io.errors import DataError, UsageError
from memtoken_cli.methods import tokmem
from memtoken_cli.methods.tokmem.api import Options, Taught, TokMem
from memtoken_cli.methods.tokmem.features import Place
from memtoken_cli.methods.tokmem.statistics import END, TEXT

BACKBONE = tiny_llama()
BATCH = [
    Taught("a query", (("alpha", "an answer"),)),
    Taught("two", (("beta", "one"), ("gamma", "another one"))),
    Taught("x", (("beta", "y"),)),
]


def naive_loss(ready: TokMem, batch: list[Taught], control_PkE: torch.Tensor) -> torch.Tensor:
    """One full sequence at a time, the head resized (coupled, eoc)."""
    embed, V = BACKBONE.model.get_input_embeddings(), BACKBONE.dims.vocab
    eoc_E = ready.bank.eoc_E
    assert eoc_E is not None
    total, count = torch.zeros(()), 0
    for one in batch:
        x = list(embed(torch.tensor(ready.prompts.render(one.query).ids)))
        targets = [-100] * len(x)
        for name, output in one.calls:
            row = ready.bank.index(name)
            targets[-1] = V + 1 + row
            x += list(control_PkE[row])
            targets += [-100] * control_PkE.shape[1]
            ids = ready.prompts.response(output)
            for token in ids:
                targets[-1] = token
                targets.append(-100)
            x += list(embed(torch.tensor(ids)))
            targets[-1] = V
            x.append(eoc_E)
            targets.append(-100)
        targets[-1] = 2
        h = BACKBONE.model.get_decoder()(inputs_embeds=torch.stack(x)[None]).last_hidden_state[0]
        head = torch.cat([BACKBONE.model.lm_head.weight, eoc_E[None], control_PkE[:, 0]])
        total = total + cross_entropy(h @ head.T, torch.tensor(targets), reduction="sum")
        count += sum(t != -100 for t in targets)
    return total / count


@pytest.mark.parametrize("tokens", [1, 3])
def test_loss_and_gradients_are_those_of_whole_sequences(tokens: int) -> None:
    bank = tiny_bank(BACKBONE, tokens=tokens, segment_end="eoc")
    control = bank.control_PkE.clone().requires_grad_()
    ready = TokMem(BACKBONE, replace(bank, control_PkE=control))
    (fast,) = torch.autograd.grad(ready.loss(BATCH), control)
    wanted = naive_loss(ready, BATCH, control)
    (slow,) = torch.autograd.grad(wanted, control)
    assert float(ready.loss(BATCH).detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    assert float((fast - slow).norm() / slow.norm()) < 1e-5 and float(slow.norm()) > 0
    with pytest.raises(DataError, match="calls"):
        ready.loss([Taught("a", ())])
    with pytest.raises(UsageError, match="alpha"):
        ready.loss([Taught("a", (("alhpa", "b"),))])


def test_statistics_are_of_what_decoding_sees() -> None:
    """The state behind a segment is the same, whether it was said or read back."""
    bank = tiny_bank(BACKBONE, "lda", segment_end="eoc", max_procedures=3, scale=6.0, following="states")
    compared = 0
    for query in ("ab", "cd e", "f g h", "ijk", "l", "mn", "0 1", "23"):
        ready = TokMem(BACKBONE, bank)
        seen: list[Place] = []
        pick = ready.decoder.router.pick

        def noted(site, states, *rest, pick=pick, seen=seen):  # type: ignore[no-untyped-def]
            seen += states if site == "boundary" else []
            return pick(site, states, *rest)

        ready.decoder.router.pick = noted  # type: ignore[method-assign]
        (result,) = ready.results([query], Options("auto!", max_new_tokens=8))
        calls = []
        for segment, place in zip(result.segments, seen, strict=False):
            calls.append((str(segment.procedure), segment.text))
            if not segment.ids or ready.prompts.response(segment.text) != segment.ids:
                break
            found = ready.collect([Taught(query, tuple(calls))])["boundary"]
            (end,) = (i for i, c in enumerate(found.classes) if c.procedure == END)
            for x_D, moments in zip(place.features, found.moments, strict=True):
                assert torch.allclose(x_D.double(), moments.mean_CD[end], atol=1e-4)
            compared += 1
    assert compared


def test_statistics_of_a_batch() -> None:
    ready = TokMem(BACKBONE, tiny_bank(BACKBONE, "lda", segment_end="eoc", following="states"))
    more = [*BATCH, Taught("a query", (("alpha", "z"),), "Do it."), Taught("chat", ())]
    found = ready.collect(more)
    classes = {
        (kind, c.procedure, c.facet): float(n)
        for kind in ("first", "several", "text")
        for c, n in zip(found[kind].classes, found[kind].count_C, strict=True)
    }
    assert classes == {
        ("first", "alpha", "instruction+query"): 1,
        ("first", "alpha", "query"): 1,
        ("first", "beta", "query"): 1,
        ("several", "beta", "query"): 1,
        ("text", TEXT, "query"): 1,
    }
    after = {c.procedure for c in found["boundary"].classes}
    assert after == {"gamma", END}
    assert set(ready.collect([Taught("chat", ())])) == {"text"}
    read = TokMem(BACKBONE, tiny_bank(BACKBONE, "lda", segment_end="eoc")).collect(more)
    assert set(read) == {"first", "several", "text"}, "queries are read in parts: no state is looked at"


def test_the_front_door_imports_late() -> None:
    assert tokmem.TokMem is TokMem and tokmem.Bank.__name__ == "Bank"
    assert TokMem(BACKBONE, tokmem.Bank.empty(tiny_bank(BACKBONE).meta, 32)).bank.names == ()
    assert tiny_bank(BACKBONE).names == NAMES
    with pytest.raises(AttributeError, match="Bnak"):
        tokmem.Bnak  # noqa: B018
