"""The closed form of `compact`: masses and values, against float64 loops, duplicates and the identity."""

import math

import pytest
import torch
from tiny_prompt import FAMILIES, family, referred, rendered

from memtoken_cli.engine.attend import Read
from memtoken_cli.methods.compact import fit as fitting
from memtoken_cli.methods.compact.budget import adaptive, uniform
from memtoken_cli.methods.compact.fit import RIDGE, Fit, in_context, mass, solve, strongest
from memtoken_cli.methods.compact.reference import ANSWERS
from memtoken_cli.methods.compact.score import Score

families = pytest.mark.parametrize("name", FAMILIES)


class Spy(Fit):
    def __call__(self, site):
        self.sites = [*getattr(self, "sites", ()), site]
        return super().__call__(site)


def fitted(name, slots=None, bias=False, budget=uniform, store=torch.float32, most=60, keep=None):
    """(memory before, the reader after its forward, what the student said, what the teacher says)."""
    backbone, reference = family(name), referred(family(name), most=most)
    whole = backbone.prefill(rendered(backbone).ids)
    generator = torch.Generator().manual_seed(0)
    score_LNT = [torch.rand(len(kv.sizes), kv.sizes[0], generator=generator) for kv in whole.layers]
    chosen = budget(score_LNT, slots or whole.next_position)
    packing = reference.packed.packing(backbone.device)
    position_BT = reference.packed.position_F[None]
    score = Score(backbone, whole, reference, packing, position_BT)
    with torch.no_grad():
        backbone.run_with(reference.packed, score, reference.answers_W[:1])
    fit = Spy(whole, chosen, score.told, reference, packing, position_BT, keep, bias, store)
    with torch.no_grad():
        said = backbone.run_with(reference.packed, fit, reference.answers_W)
        teacher = backbone.run(reference.packed, whole, reference.answers_W, reference.hidden_ST)
    return whole, fit, said, teacher


@families
def test_keeping_every_token_is_the_identity(name):
    whole, fit, said, teacher = fitted(name)
    for kept, kv in zip(fit.layers, whole.layers, strict=True):
        assert torch.equal(kept.k_XD, kv.k_XD) and kept.sizes == kv.sizes and kept.bias_X is None
        torch.testing.assert_close(kept.v_XD, kv.v_XD, atol=3e-4, rtol=1e-4)
    assert max(fit.errors) < 1e-8
    torch.testing.assert_close(said, teacher, atol=5e-5, rtol=1e-4)


@families
def test_keeping_every_token_with_biases_says_the_same(name):
    whole, fit, said, teacher = fitted(name, bias=True)
    for kept, kv in zip(fit.layers, whole.layers, strict=True):
        assert torch.equal(kept.k_XD, kv.k_XD)
        assert kept.bias_X.abs().max() <= 3.0001
    assert (said.log_softmax(-1).exp() - teacher.log_softmax(-1).exp()).abs().mean() < 3e-3


def loop(site, whole, chosen, fit, n, k_MD, bias_M):
    """One head's weights of the kept keys and fitted values, one query at a time in float64.

    What the undisturbed queries hear is taken from the reader; its own test is beside Score."""
    reference, told, G = fit.reference, fit.told[site.layer], site.groups
    k_TD, v_TD, _, pos_T = (None if x is None else x.double() for x in list(whole.heads())[n])
    depth = (site.layer + 1) / len(fit.told)
    counts_F = [ANSWERS**depth if answer else 1.0 for answer in reference.answer_F.tolist()]
    X, Y, A, roots = [], [], [], []
    own_logits, own_v = site.own_logits().double(), site.v_BNUD[0, n].double()
    packing = reference.packed.packing(torch.device("cpu"))

    def weighed(k_XD, q_D, unseen_X, bias_X=0.0):
        logit_X = k_XD.double() @ q_D.double() * site.scaling
        if site.softcap is not None:
            logit_X = site.softcap * (logit_X / site.softcap).tanh()
        return (logit_X + bias_X).exp().masked_fill(unseen_X, 0.0)

    for g in range(G):
        h = n * G + g
        for i in range(len(reference.packed.ids_F)):
            unseen_T = reference.hidden_FT[i, -len(k_TD) :].clone()
            if pos_T is not None:
                unseen_T |= reference.packed.position_F[i] - pos_T >= site.window
            unseen_M = unseen_T[chosen]
            now_M = weighed(k_TD[chosen], site.q_HFD[h, i], unseen_M)
            then_M = weighed(k_TD[chosen], told.q_HFD[h, i], unseen_M)
            prompt = float(weighed(k_TD, told.q_HFD[h, i], unseen_T).sum())
            if now_M.sum():
                prompt = prompt * float(now_M.sum() / then_M.sum())
            own_U = own_logits[h, i].exp()
            sink = 0.0 if site.sink_H is None else math.exp(float(site.sink_H[h]))
            own = float(own_U.sum()) + sink
            places_U = packing.index_BT[packing.rows_F[i]]
            kept_M = weighed(k_MD, site.q_HFD[h, i], unseen_M, 0.0 if bias_M is None else bias_M.double())
            A.append(now_M / prompt if prompt else now_M)
            X.append(kept_M / (float(kept_M.sum()) + own))
            Y.append(told.answer_HFD[h, i].double() - own_U @ own_v[places_U] / (float(kept_M.sum()) + own))
            roots.append(math.sqrt(counts_F[i] * len(counts_F) / sum(counts_F)))
    X_RM, Y_RD, v_MD = torch.stack(X), torch.stack(Y), v_TD[chosen]
    A_RM, root_R1 = torch.stack(A), torch.tensor(roots, dtype=torch.float64)[:, None]
    some_P = A_RM.square().sum(0).topk(min(fitting.FITTED, len(chosen))).indices.sort().values
    X_RP = X_RM[:, some_P] * root_R1
    gram = X_RP.T @ X_RP
    ridge = RIDGE * gram.diagonal().mean() + 1e-12
    inverse = torch.linalg.inv(gram + ridge * torch.eye(len(gram), dtype=torch.float64))
    rest_RD = (Y_RD - X_RM @ v_MD) * root_R1
    return A_RM, root_R1, v_MD.index_add(0, some_P, inverse @ X_RP.T @ rest_RD)


@families
@pytest.mark.parametrize("bias", [False, True])
def test_values_are_the_plain_loops(name, bias):
    """C2 = v + (X'WX + ridge)^-1 X'W(Y - X v), so that memory and own tokens together answer as told."""
    whole, fit, _, _ = fitted(name, 5, bias, adaptive, most=4)
    for site, kept, before in zip(fit.sites, fit.layers, whole.layers, strict=True):
        for n, (k_MD, v_MD, bias_M, _) in enumerate(kept.heads()):
            A_RM, root_R1, expected_MD = loop(site, before, fit.chosen[site.layer][n], fit, n, k_MD, bias_M)
            torch.testing.assert_close(v_MD.double(), expected_MD, atol=5e-3, rtol=5e-3)
            if bias and len(k_MD) == before.sizes[n]:
                assert not bias_M.any(), "nothing dropped, nothing to stand for"
            elif bias:
                expected_M = mass((A_RM * root_R1).float(), root_R1.float()).log()
                torch.testing.assert_close(bias_M, expected_M, atol=2e-3, rtol=1e-2)


@families
def test_what_is_picked_of_the_candidates_is_fitted_alone(name):
    """Elimination chooses; keys, values and masses are those of a memory that never had the others."""
    whole, fit, _, _ = fitted(name, 12, True, uniform, most=4, keep=5)
    for site, kept, before in zip(fit.sites, fit.layers, whole.layers, strict=True):
        for n, (k_MD, v_MD, bias_M, _) in enumerate(kept.heads()):
            picked_M = fit.chosen[site.layer][n]
            assert len(picked_M) == 5 and picked_M[0] == 0
            _, _, expected_MD = loop(site, before, picked_M, fit, n, k_MD, bias_M)
            torch.testing.assert_close(v_MD.double(), expected_MD, atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize("name", ["gqa", "softcap", "sinks"])
@pytest.mark.parametrize("bias", [False, True])
def test_of_a_long_memory_the_strongest_tokens_are_fitted(name, bias, monkeypatch):
    """The plain loops again, the other kept tokens with the keys, values and weights that they had."""
    monkeypatch.setattr(fitting, "FITTED", 4)
    whole, fit, _, _ = fitted(name, 12, bias, uniform, most=4)
    for site, kept, before in zip(fit.sites, fit.layers, whole.layers, strict=True):
        for n, (k_MD, v_MD, bias_M, _) in enumerate(kept.heads()):
            picked = fit.chosen[site.layer][n]
            if len(picked) == before.sizes[n]:
                continue  # a short window: nothing is dropped, and nothing fitted
            A_RM, root_R1, expected_MD = loop(site, before, picked, fit, n, k_MD, bias_M)
            torch.testing.assert_close(v_MD.double(), expected_MD, atol=5e-3, rtol=5e-3)
            some_P = strongest(A_RM, 4)
            rest = sorted(set(range(len(picked))) - set(some_P.tolist()))
            k_TD, v_TD = (list(before.heads())[n][i] for i in (0, 1))
            assert torch.equal(v_MD[rest], v_TD[picked][rest]) and torch.equal(k_MD[rest], k_TD[picked][rest])
            if bias:
                assert not bias_M[rest].any()
                lacking_R1 = 1 - A_RM[:, rest].sum(-1, keepdim=True)
                expected_P = mass((A_RM[:, some_P] * root_R1).float(), (lacking_R1 * root_R1).float()).log()
                torch.testing.assert_close(bias_M[some_P], expected_P, atol=2e-3, rtol=1e-2)


def test_the_strongest_are_in_order_and_all_where_they_are_few():
    M_RM = torch.tensor([[0.1, 0.5, 0.0, 0.3], [0.1, 0.0, 0.2, 0.3]])
    assert strongest(M_RM, 2).tolist() == [1, 3]
    assert strongest(M_RM, 4).tolist() == strongest(M_RM, 9).tolist() == [0, 1, 2, 3]
    assert strongest(M_RM, 0).tolist() == []


def test_mass_finds_the_bounded_least_squares_solution():
    M_RM = torch.rand(200, 6, generator=torch.Generator().manual_seed(0)) + 0.1
    M_RM[:, 3] *= 1e-4  # no use within the bounds
    b = mass(M_RM)
    assert math.exp(-3) * 0.999 <= float(b.min()) and float(b.max()) <= math.exp(3) * 1.001
    found = float((M_RM @ b - 1).square().mean())
    for trial in range(200):
        other = b + 0.2 * torch.randn(6, generator=torch.Generator().manual_seed(trial))
        other = other.clamp(math.exp(-3), math.exp(3))
        assert found < float((M_RM @ other - 1).square().mean()) + 2e-4


def test_solve_is_the_ridge_solution():
    generator = torch.Generator().manual_seed(1)
    X, Y = torch.randn(50, 7, generator=generator), torch.randn(50, 3, generator=generator)
    gram = X.double().T @ X.double()
    ridge = 0.3 * gram.diagonal().mean()
    expected = torch.linalg.solve(gram + ridge * torch.eye(7, dtype=torch.float64), X.double().T @ Y.double())
    torch.testing.assert_close(solve(X, Y, 0.3).double(), expected, atol=1e-5, rtol=1e-4)


def toy(counts, seed=0, queries=300, width=8):
    """Keys and values of which each stands `counts` times in the prompt: unnormalised weights of queries, and
    what they are told by the prompt and tokens of their own together."""
    generator = torch.Generator().manual_seed(seed)
    k, v = torch.randn(2, len(counts), width, generator=generator)
    q = torch.randn(queries, width, generator=generator)
    weight_RM = (q @ k.T / width**0.5).exp()
    whole_R1 = (weight_RM * torch.tensor(counts)).sum(-1, keepdim=True)
    own_R1 = torch.rand(queries, 1, generator=generator)  # of the prompt's mass
    own_RD = torch.randn(queries, width, generator=generator)
    Y_RD = (weight_RM * torch.tensor(counts)) @ v / whole_R1
    told_RD = (Y_RD + own_R1 * own_RD) / (1 + own_R1)
    return weight_RM / whole_R1, v, told_RD, own_R1, own_RD


def answers(M_RM, v_MD, own_R1, own_RD):
    return (M_RM @ v_MD + own_R1 * own_RD) / (M_RM.sum(-1, keepdim=True) + own_R1)


def test_duplicates_are_exact_with_a_bias():
    """t keys that are copies of m: b finds how often each stands, whatever the queries' own tokens weigh."""
    counts = [1.0, 3.0, 7.0, 2.0]
    M_RM, v_MD, whole, own_R1, own_RD = toy(counts)
    b_M = mass(M_RM)
    torch.testing.assert_close(b_M, torch.tensor(counts), atol=0.02, rtol=0.02)
    for b, tolerance in ((torch.tensor(counts), 2e-6), (b_M, 5e-3)):
        X_RM, target_RD = in_context(M_RM * b, whole, own_R1, own_RD, (M_RM * b).sum(-1, keepdim=True))
        delta = solve(X_RM, target_RD - X_RM @ v_MD, RIDGE)
        found = answers(M_RM * b, v_MD + delta, own_R1, own_RD)
        torch.testing.assert_close(found, whole, atol=tolerance, rtol=0)
    without = answers(M_RM, v_MD, own_R1, own_RD)
    assert (without - whole).abs().max() > 0.1


def test_equal_duplicates_need_no_bias():
    """Alone in the softmax their copies cancel; the ridge leaves the selected values as they are."""
    M_RM, v_MD, _, own_R1, own_RD = toy([4.0] * 5)
    nothing = torch.zeros_like(own_R1)
    X_RM, target_RD = in_context(M_RM, 4 * M_RM @ v_MD, nothing, own_RD, M_RM.sum(-1, keepdim=True))
    torch.testing.assert_close(X_RM.sum(-1), torch.ones(len(X_RM)))
    delta = solve(X_RM, target_RD - X_RM @ v_MD, RIDGE)
    torch.testing.assert_close(delta, torch.zeros_like(delta), atol=1e-4, rtol=0)


def test_in_context_makes_the_memory_answer_as_the_whole():
    M_RM, _, whole, own_R1, own_RD = (x.double() for x in toy([1.0, 2.0, 5.0], queries=3))
    X_RM, target_RD = in_context(M_RM, whole, own_R1, own_RD, M_RM.sum(-1, keepdim=True))
    exact_MD = torch.linalg.lstsq(X_RM, target_RD).solution
    torch.testing.assert_close(answers(M_RM, exact_MD, own_R1, own_RD), whole, atol=1e-9, rtol=0)


@families
def test_later_layers_see_what_earlier_ones_became(name):
    """On-policy: the last layer's queries are those of a model that reads the memory."""
    whole, fit, said, _ = fitted(name, 5, True, adaptive)
    backbone, reference = family(name), fit.reference
    packed = reference.packed
    packing = packed.packing(backbone.device)
    reader = Read(tuple(fit.layers), packing, packed.position_F[None], fit.hidden_kept)
    with torch.no_grad():
        again = backbone.run_with(packed, reader, reference.answers_W)
    torch.testing.assert_close(again, said, atol=2e-5, rtol=1e-4)
    assert whole.next_position == len(rendered(backbone).ids)


def test_what_is_stored_is_what_was_fitted_against():
    """In bfloat16 the later layers are fitted to the rounded memory, not to a finer one."""
    _, fit, _, _ = fitted("gqa", 6, True, adaptive, store=torch.bfloat16)
    kv = fit.layers[0]
    assert (kv.k_XD.dtype, kv.v_XD.dtype, kv.bias_X.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
