"""Distillation on top of the closed form: held-out divergence falls, or the memory is left untouched."""

import pytest
import torch
from tiny_prompt import FAMILIES, family, referred, rendered, weights_hash

from memtoken_cli.methods.compact import refine as refining
from memtoken_cli.methods.compact.config import Config
from memtoken_cli.methods.compact.refine import refine
from memtoken_cli.methods.compact.write import write


def refined(name, steps, slots=20, config=None, seed=0):
    backbone, reference = family(name), referred(family(name))
    full = backbone.prefill(rendered(backbone).ids)
    found = write(backbone, full, reference, slots, config or Config())
    return found, refine(backbone, found.memory, found.chosen, full, reference, steps, seed)


@pytest.mark.parametrize("name", FAMILIES)
def test_held_out_divergence_never_rises(name):
    before = weights_hash(family(name))
    found, made = refined(name, 20)
    assert weights_hash(family(name)) == before
    assert made.kl_after <= made.kl_before
    if made.steps == 0:
        assert made.memory is found.memory and made.kl_after == made.kl_before
    else:
        assert made.kl_after < made.kl_before and made.memory is not found.memory
    for kv, kept in zip(made.memory.layers, found.memory.layers, strict=True):
        assert kv.sizes == kept.sizes and kv.k_XD.dtype == kept.k_XD.dtype
        assert not kv.k_XD.requires_grad
    assert made.memory.next_position == found.memory.next_position


def test_it_helps_where_there_is_something_to_gain(monkeypatch):
    monkeypatch.setattr(refining, "RATE", 2e-3)  # of random weights there is far to go
    _, made = refined("gqa", 60)
    assert made.steps > 0 and made.kl_after < 0.9 * made.kl_before


def test_a_step_that_harms_is_not_kept(monkeypatch):
    monkeypatch.setattr(refining, "RATE", 50.0)
    found, made = refined("gqa", 30)
    assert made.steps == 0 and made.memory is found.memory and made.kl_after == made.kl_before


def test_it_stops_early(monkeypatch):
    calls = []
    whole = refining._divergence

    def counted(wanted, said):
        calls.append(said.requires_grad)
        return whole(wanted, said)

    monkeypatch.setattr(refining, "RATE", 50.0)
    monkeypatch.setattr(refining, "_divergence", counted)
    refined("gqa", 500)
    assert calls.count(True) == refining.CHECK * refining.PATIENCE


def test_every_part_of_the_memory_gets_a_gradient(monkeypatch):
    leaves = []

    class Watched(torch.optim.AdamW):
        def step(self, closure=None):
            leaves.extend(p.grad.abs().max() for group in self.param_groups for p in group["params"])
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "AdamW", Watched)
    refined("gqa", 1)
    assert len(leaves) == 2 * 2 and all(float(g) > 0 for g in leaves)


def test_same_seed_same_bytes():
    tensors = [refined("gqa", 12, seed=3)[1].memory.tensors() for _ in range(2)]
    assert all(torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[0])


def test_stored_memories_say_what_was_measured():
    """The reported divergence is that of the memory in its stored dtype, within rounding."""
    backbone, reference = family("gqa"), referred(family("gqa"))
    full = backbone.prefill(rendered(backbone).ids)
    found, made = refined("gqa", 30, slots=8)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0)).tolist()
    held = reference.take(order[: int(refining.HELD * 12)])
    with torch.no_grad():
        wanted = refining._says(backbone, full, full, None, held)
        said = refining._says(backbone, made.memory, full, found.chosen, held)
    assert float(refining._divergence(wanted, said)) == pytest.approx(made.kl_after, rel=0.1, abs=2e-3)


def test_a_part_is_some_rows_of_the_reference():
    reference = referred(family("gqa"))
    part = reference.take([4, 1])
    lengths = reference.packed.lengths
    assert part.packed.lengths == (lengths[4], lengths[1])
    start = sum(lengths[:4])
    assert part.packed.ids_F[: lengths[4]].equal(reference.packed.ids_F[start : start + lengths[4]])
    assert int(part.packed.position_F[0]) == int(part.packed.position_F[lengths[4]]) == full_length()
    assert part.hidden_FT.shape == (lengths[4] + lengths[1], full_length())
    assert part.hidden_FT[0].equal(reference.hidden_ST[4])
    assert part.hidden_FT[-1].equal(reference.hidden_ST[1])
    answers = int(reference.answer_F[start : start + lengths[4]].sum())
    assert int((part.answers_W < lengths[4]).sum()) == answers


def full_length():
    return len(rendered(family("gqa")).ids)
