"""Scores and leave-one-out references of `compact`, against plain loops in float64 and by perturbation."""

import pytest
import torch
from tiny_prompt import FAMILIES, LABELS, family, records, referred, rendered, shots

from memtoken_cli.data.shots import shots_of
from memtoken_cli.engine.attend import naive, unseen
from memtoken_cli.engine.backbone import hides
from memtoken_cli.engine.leave_one_out import twins
from memtoken_cli.engine.memory import LayerKV, Layers
from memtoken_cli.methods.compact.reference import ANSWERS
from memtoken_cli.methods.compact.score import Score

families = pytest.mark.parametrize("name", FAMILIES)


class Spy(Score):
    """Keeps every site as it was."""

    def __call__(self, site):
        self.sites = [*getattr(self, "sites", ()), site]
        return super().__call__(site)


def scored(backbone, memory, reference, reader=Spy):
    packing = reference.packed.packing(backbone.device)
    found = reader(backbone, memory, reference, packing, reference.packed.position_F[None])
    with torch.no_grad():
        logits = backbone.run_with(reference.packed, found, reference.answers_W)
    return found, logits


def output_weight(backbone, number):
    """W_O of a layer, [E,H*D]."""
    attention = backbone.layers[number].get_submodule(
        "attn" if backbone.model.config.model_type == "gpt2" else "self_attn"
    )
    gpt2 = backbone.model.config.model_type == "gpt2"
    return attention.c_proj.weight.T if gpt2 else attention.o_proj.weight


@families
def test_scores_are_the_plain_loops(name):
    """mean_i w_i A_ij^2 * mean_g |W_O v_j|^2, one query and one token at a time."""
    backbone, reference = family(name), referred(family(name), most=3)
    memory = backbone.prefill(rendered(backbone).ids)
    found, _ = scored(backbone, memory, reference)
    for number, (score_NT, site) in enumerate(zip(found.score_LNT(), found.sites, strict=True)):
        kv, G, D = memory.layers[number], site.groups, backbone.dims.head_dim
        depth = (number + 1) / len(memory.layers)
        weights = [ANSWERS**depth if answer else 1.0 for answer in reference.answer_F.tolist()]
        w_ED = output_weight(backbone, number).double()
        for n, (k_TD, v_TD, _, pos_T) in enumerate(kv.heads()):
            total_T = torch.zeros(len(k_TD), dtype=torch.float64)
            count = 0
            for i in range(len(reference.packed.ids_F)):
                unseen_T = reference.hidden_FT[i, -len(k_TD) :].clone()
                if pos_T is not None:
                    unseen_T |= reference.packed.position_F[i] - pos_T >= site.window
                for g in range(G):
                    logit_T = k_TD.double() @ site.q_BHTD[0, n * G + g, i].double() * site.scaling
                    if site.softcap is not None:
                        logit_T = site.softcap * (logit_T / site.softcap).tanh()
                    count += 1
                    if not unseen_T.all():
                        weight_T = logit_T.masked_fill(unseen_T, float("-inf")).softmax(0)
                        total_T += weights[i] * weight_T**2 * len(weights) / sum(weights)
            adds_T = torch.zeros_like(total_T)
            for g in range(G):
                h = n * G + g
                adds_T += (v_TD.double() @ w_ED[:, h * D : h * D + D].T).square().sum(1) / G
            expected_T = total_T / count * adds_T
            torch.testing.assert_close(score_NT[n].double(), expected_T, atol=1e-7, rtol=2e-3)


@families
def test_what_queries_were_told_is_the_plain_softmax(name):
    """Queries, mass and answers of each layer, so that a fit need not read the whole prompt again."""
    backbone, reference = family(name), referred(family(name), most=3)
    memory = backbone.prefill(rendered(backbone).ids)
    found, _ = scored(backbone, memory, reference)
    hidden = hides(reference.hidden_FT, memory)
    for site, told in zip(found.sites, found.told, strict=True):
        assert torch.equal(told.q_HFD, site.q_HFD)
        plain = naive(site, memory.layers[site.layer], hidden)[0].transpose(0, 1)
        torch.testing.assert_close(told.answer_HFD, plain, atol=1e-5, rtol=1e-4)
        for n, (k_TD, _, _, pos_T) in enumerate(memory.layers[site.layer].heads()):
            heads = slice(n * site.groups, (n + 1) * site.groups)
            walls = unseen(site, n, pos_T, hidden, 0, site.q_HFD.shape[1])
            mass_GF = site.memory_logits(site.q_HFD[heads], k_TD, walls).logsumexp(-1)
            torch.testing.assert_close(told.mass_HF1[heads, :, 0], mass_GF, atol=1e-5, rtol=1e-4)


def test_answers_weigh_most_at_the_last_layer_and_nothing_weighs_more_in_a_repetition():
    backbone = family("gqa")
    reference = referred(backbone)
    for depth in (0.25, 1.0):
        weight_F = reference.weight_F(depth)
        assert float(weight_F.mean()) == pytest.approx(1, abs=1e-6)
        ratio = weight_F[reference.answer_F].unique() / weight_F[~reference.answer_F].unique()
        assert ratio.tolist() == pytest.approx([ANSWERS**depth], rel=1e-5)
    repeated = referred(backbone, shots_of(records(1) * 3))
    assert repeated.answer_F.any() and torch.equal(repeated.weight_F(1.0), torch.ones(len(repeated.answer_F)))


@families
def test_scoring_changes_nothing_for_the_model(name):
    """What the scored forward says is what the whole prompt says with each row's own copy hidden."""
    backbone, reference = family(name), referred(family(name))
    memory = backbone.prefill(rendered(backbone).ids)
    _, logits = scored(backbone, memory, reference)
    plain = backbone.run(reference.packed, memory, reference.answers_W, reference.hidden_ST)
    torch.testing.assert_close(logits, plain, atol=2e-5, rtol=1e-4)


@families
def test_a_shots_own_tokens_do_not_reach_its_reference_queries(name):
    """Leave-one-out by perturbation: the last shot's keys and values become garbage; its own queries stay."""
    backbone, reference = family(name), referred(family(name))
    text = rendered(backbone)
    memory = backbone.prefill(text.ids)
    span, row = text.spans[-1], len(text.spans) - 1
    spoilt = []
    for kv in memory.layers:
        size = kv.sizes[0]
        first = span.start - (len(text.ids) - size)
        k, v = (x.clone().view(len(kv.sizes), size, -1) for x in (kv.k_XD, kv.v_XD))
        k[:, max(first, 0) :], v[:, max(first, 0) :] = 2.0, 77.0
        spoilt.append(LayerKV(k.flatten(0, 1), v.flatten(0, 1), kv.sizes, pos_X=kv.pos_X))
    before, _ = scored(backbone, memory, reference)
    after, _ = scored(backbone, Layers(tuple(spoilt), memory.next_position), reference)
    mine_F = reference.packed.row_F == row
    for a, b in zip(before.sites, after.sites, strict=True):
        torch.testing.assert_close(a.q_HFD[:, mine_F], b.q_HFD[:, mine_F], atol=1e-5, rtol=1e-5)
    last = before.sites[-1].q_HFD, after.sites[-1].q_HFD
    assert not torch.allclose(last[0][:, ~mine_F], last[1][:, ~mine_F], atol=1e-2)


def test_duplicates_hide_each_other():
    records = [{"input": t, "output": o} for t, o in (("a b", "x"), ("c d", "y"), ("a b", "x"), ("a b", "y"))]
    given = shots_of(records)
    backbone = family("gqa")
    reference, text = referred(backbone, given), rendered(backbone, given)
    rows = list(enumerate(reference.shots))
    assert [s for _, s in rows] == [0, 1, 3]  # a twin asks nothing of its own
    hidden = [[bool(reference.hidden_ST[row, span.start]) for span in text.spans] for row, _ in rows]
    assert hidden == [[True, False, True, False], [False, True, False, False], [False, False, False, True]]
    for row, _ in rows:
        covered = sum(b.end - b.start for b, h in zip(text.spans, hidden[row], strict=True) if h)
        assert int(reference.hidden_ST[row].sum()) == covered


@pytest.mark.parametrize("most", [5, 60])
@pytest.mark.parametrize("repeated", [lambda x: x + x, lambda x: [y for y in x for _ in range(2)]])
def test_a_prompt_said_twice_asks_what_it_asks_once(most, repeated):
    """Twins are one example: a second row would ask the same while both their copies are hidden."""
    backbone, once = family("gqa"), records()
    twice = shots_of(repeated(once))
    text, given = rendered(backbone, twice), referred(backbone, twice, most=most)
    single = referred(backbone, shots_of(once), most=most)
    assert given.packed.ids_F.tolist() == single.packed.ids_F.tolist()
    assert torch.equal(given.hidden_ST.sum(1), 2 * single.hidden_ST.sum(1))
    for row, s in enumerate(given.shots):
        copies = [
            span
            for shot, span in zip(twice.items, text.spans, strict=True)
            if shot.input == twice.items[s].input
        ]
        assert all(given.hidden_ST[row, span.start : span.end].all() for span in copies)


def test_twins_are_told_by_their_tokens_or_by_what_they_say():
    backbone = family("gqa")
    pairs = [("a \u4e00", "x"), ("a \u4e8c", "x"), ("b", "y"), (" b ", "y "), ("b", "x")]
    given = shots_of([{"input": t, "output": o} for t, o in pairs])
    assert twins(given.items, rendered(backbone, given)) == [
        0,
        0,
        2,
        2,
        4,
    ]  # two unknown letters are one token


def test_shots_that_are_all_twins_are_repeated_instead():
    """Hidden from each other they would leave nothing to read."""
    backbone = family("gqa")
    given = shots_of(records(1) * 3)
    reference = referred(backbone, given)
    assert not reference.shots and not reference.hidden_ST.any()


def test_references_are_the_shots_as_queries():
    backbone, text = family("gqa"), rendered(family("gqa"))
    reference = referred(backbone)
    assert reference.packed.lengths == tuple(s.end - s.start for s in text.spans)
    assert reference.packed.ids_F.tolist() == text.ids[text.head :]
    assert int(reference.packed.position_F.min()) == len(text.ids)
    start = 0
    for span in text.spans:
        answer_F = reference.answer_F[start : start + span.end - span.start]
        first = span.answer - span.start - 1
        assert answer_F.nonzero().flatten().tolist() == list(range(first, span.end - span.start - 1))
        start += span.end - span.start


def test_no_more_references_than_asked_and_every_label_before_a_second_of_any():
    backbone = family("gqa")
    for most in (3, 5, 6):
        reference = referred(backbone, most=most)
        assert len(reference.packed.lengths) == most == len(reference.hidden_ST)
        labels = [shots().items[s].output for s in chosen(reference, backbone)]
        counts = sorted(labels.count(label) for label in LABELS)
        assert counts[-1] - counts[0] <= 1


def test_tokens_are_bounded_and_two_rows_remain():
    backbone = family("gqa")
    longest = max(referred(backbone).packed.lengths)
    for tokens in (100, 200, 300):
        assert tokens - longest < len(referred(backbone, tokens=tokens).packed.ids_F) <= tokens
    assert len(referred(backbone, tokens=1).packed.lengths) == 2


def chosen(reference, backbone):
    """Which shots the rows are: the first token that each hides begins its own."""
    starts = [span.start for span in rendered(backbone).spans]
    return [starts.index(int(hidden_T.nonzero()[0])) for hidden_T in reference.hidden_ST]
