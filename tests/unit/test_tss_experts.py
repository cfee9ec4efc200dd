"""The experts of `tss-base` and their metric, against loops and generic solvers."""

import numpy as np
import pytest
import torch
from torch import Tensor

from memtoken_cli.methods.memprompttss import encode, experts, metric
from memtoken_cli.methods.memprompttss.experts import Told, View
from memtoken_cli.methods.memprompttss.read import Reader

N, C, F, K = 150, 3, 12, 3
SLOTS = torch.tensor([0, 1, 0, 2, 1, 0])
NO_GAP = torch.zeros(N, dtype=torch.bool)


def walk(seed: int = 0, wide: int = F) -> Tensor:
    random = np.random.default_rng(seed)
    return torch.from_numpy(np.cumsum(random.normal(size=(N, wide)), 0).astype(np.float32)) / 4


def asked() -> tuple[View, Told, list[Tensor], Tensor]:
    """A view, what was told, each prompt's neighbourhood (one of them an interval), tokens of it."""
    x_NF = walk()
    at = [slice(5, 18), slice(30, 43), slice(50, 63), slice(70, 110), slice(115, 128), slice(130, 143)]
    span_P2 = torch.tensor([[11, 12], [36, 37], [56, 57], [70, 110], [121, 122], [136, 137]])
    return experts.view(x_NF, NO_GAP, C), Told(SLOTS, K, span_P2), [x_NF[s] for s in at], x_NF


def far(x_F: Tensor, y_F: Tensor, inverse: Tensor) -> float:
    """Without the term of x alone."""
    y = y_F.double()
    return float(y @ inverse.double() @ y - 2 * x_F.double() @ inverse.double() @ y)


def test_distances_are_loops() -> None:
    x_NF = walk()
    inverse = metric.whitening(metric.scatter(x_NF, ~NO_GAP, C), 0.2)
    own_N = metric.lengths(x_NF.half(), inverse)
    found_NP = metric.distances(x_NF.half(), x_NF[:4], inverse) + own_N[:, None]
    for n in range(0, N, 17):
        for p in range(4):
            d = x_NF[n].half().double() - x_NF[p].double()
            assert float(found_NP[n, p]) == pytest.approx(float(d @ inverse.double() @ d), rel=1e-3, abs=1e-2)


def test_whitening_is_the_generic_inverse_and_its_root_whitens() -> None:
    scatter = metric.scatter(walk(), ~NO_GAP, C)
    size = scatter.diagonal().mean()
    shrunk = 0.8 * scatter + 0.2 * size * torch.eye(F)
    inverse = metric.whitening(scatter, 0.2)
    torch.testing.assert_close(inverse, torch.linalg.inv(shrunk.double()).float(), rtol=1e-4, atol=1e-5)
    half = metric.root(inverse)
    torch.testing.assert_close(half @ half.T, inverse, rtol=1e-4, atol=1e-5)


def test_scatter_is_a_loop_over_lags_without_the_largest_changes() -> None:
    x_NF = walk(1).double()
    total = torch.zeros(F, F, dtype=torch.double)
    for lag in metric.LAGS:
        d_NF = torch.stack([x_NF[j + lag] - x_NF[j] for j in range(N - lag)])
        size_N = (d_NF**2).sum(1)
        kept = d_NF[size_N <= size_N.quantile(metric.TRIM)]
        total += sum((torch.outer(d, d) for d in kept), torch.zeros(F, F)) / (2 * len(kept))
    torch.testing.assert_close(
        metric.scatter(walk(1), ~NO_GAP, C), (total / len(metric.LAGS)).float(), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(metric.scatter(torch.zeros(N, F), ~NO_GAP, C), torch.eye(F))


def test_many_features_are_whitened_channel_by_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    x_NF = walk(2)
    monkeypatch.setattr(metric, "WIDEST", F - 1)
    inverse = metric.whitening(metric.scatter(x_NF, ~NO_GAP, C), 0.2)
    assert inverse.shape == (C, F // C, F // C)
    whole = metric.applied(inverse, x_NF)
    dense = torch.block_diag(*inverse)
    torch.testing.assert_close(whole, x_NF @ dense, rtol=1e-4, atol=1e-4)


def test_components_are_means_of_pieces() -> None:
    parts = [torch.randn(13, F), torch.randn(64, F), torch.randn(4, F), torch.randn(40, F)]
    x_QF, owner_Q = experts.components(parts)
    assert owner_Q.tolist() == [0, 1, 1, 1, 1, 2, 3, 3, 3]
    torch.testing.assert_close(x_QF[0], parts[0].mean(0))
    torch.testing.assert_close(x_QF[1:5].mean(0), parts[1].mean(0))  # pieces of one size
    torch.testing.assert_close(x_QF[6], parts[3][:14].mean(0))


@pytest.mark.parametrize("block", [32, experts.BLOCK])
def test_near_is_loops(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experts, "BLOCK", block)
    space, told, features, x_NF = asked()
    x_QF, owner_Q = experts.components(features)
    found_NK = experts.near(space, told, features).cost_NK
    for n in range(0, N, 13):
        for k in range(K):
            own = [q for q in range(len(x_QF)) if SLOTS[owner_Q[q]] == k]
            least = min(far(x_NF[n], x_QF[q], space.inverse) for q in own)
            to_mean = far(x_NF[n], x_QF[own].mean(0), space.inverse)
            assert float(found_NK[n, k]) == pytest.approx((least + to_mean) / 4, rel=1e-4, abs=1e-3)


def test_near_without_each_prompt_is_brute_force() -> None:
    space, told, features, _ = asked()
    x_QF, owner_Q = experts.components(features)
    left_PK = experts.near(space, told, features).left_PK
    for p in range(len(SLOTS)):
        mine = [q for q in range(len(x_QF)) if owner_Q[q] == p]
        for k in range(K):
            own = [q for q in range(len(x_QF)) if SLOTS[owner_Q[q]] == k and owner_Q[q] != p]
            if not own:
                assert left_PK[p, k] == torch.inf
                continue
            mean_F = x_QF[own].mean(0)
            each = [
                min(far(x_QF[q], x_QF[o], space.inverse) for o in own) + far(x_QF[q], mean_F, space.inverse)
                for q in mine
            ]
            assert float(left_PK[p, k]) == pytest.approx(float(np.mean(each)) / 4, rel=1e-4, abs=1e-3)


def test_head_names_prompts_without_them_about_as_refits_do() -> None:
    space, told, features, _ = asked()
    left_PK = experts.head(space, told, features).left_PK
    for p in (0, 2, 5):
        rest = [q for q in range(len(SLOTS)) if q != p]
        other = Told(SLOTS[rest], K, told.span_P2[rest])
        refit = experts.head(View(features[p], space.inverse, space.root, space.scale), other,
                             [features[q] for q in rest])  # fmt: skip
        assert int(left_PK[p].argmin()) == int(refit.cost_NK.mean(0).argmin())


def test_read_pools_a_states_prompts_and_leaves_each_out() -> None:
    reader = Reader(8)
    with torch.no_grad():
        reader.query.weight += 0.3 * torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    embed_ND = torch.randn(20, 8, generator=torch.Generator().manual_seed(1)).half()
    token_PD = torch.randn(len(SLOTS), 8, generator=torch.Generator().manual_seed(2))
    _, told, _, _ = asked()
    found = experts.read(reader, embed_ND, token_PD, told)

    def score(e_D: Tensor, t_D: Tensor) -> Tensor:
        k_D, q_D = reader.query(e_D.float()), reader.query(t_D)
        return reader.sharp.exp() / 8 * (2 * k_D @ q_D - q_D @ q_D)

    for k in range(K):
        own = [p for p in range(len(SLOTS)) if SLOTS[p] == k]
        for n in (0, 7, 19):
            pooled = torch.stack([score(embed_ND[n], token_PD[p]) for p in own]).exp().mean().log().detach()
            assert float(found.cost_NK[n, k]) == pytest.approx(-float(pooled), abs=1e-4)
        others = [p for p in own if p != 0]
        left = torch.stack([score(token_PD[0], token_PD[p]) for p in others]).logsumexp(0).detach()
        assert float(found.left_PK[0, k]) == pytest.approx(-float(left), abs=1e-4)


def test_time_is_loops_and_a_state_of_another_series_is_neither_near_nor_far() -> None:
    _, told, _, _ = asked()
    told.span_P2[3] = -1  # state 2 is shown elsewhere only
    found = experts.time(told, N)
    for n in range(N):
        cost = []
        for k in (0, 1):
            spans = [told.span_P2[p].tolist() for p in range(len(SLOTS)) if SLOTS[p] == k]
            cost.append(np.log1p(min(max(a - n, n - (b - 1), 0) for a, b in spans) / 2))
        assert found.cost_NK[n].tolist() == pytest.approx([*cost, np.mean(cost)], abs=1e-5)
    # prompt 0 stands on token 11; the nearest others of its state on 56, of state 1 on 36
    assert found.left_PK[0, :2].tolist() == pytest.approx([np.log1p(45 / 2), np.log1p(25 / 2)], abs=1e-5)
    away = Told(SLOTS, K, torch.full((len(SLOTS), 2), -1))
    assert float(experts.time(away, N).cost_NK.abs().max()) == 0


def test_share_of_prompts_named_without_them() -> None:
    left_PK = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    assert experts.Said(left_PK, left_PK).right(torch.tensor([0, 0, 1])) == 0.5
    assert experts.Said(left_PK[:2], left_PK[:2]).right(torch.tensor([0, 1])) == 0.5
    assert experts.Said(left_PK, left_PK).right(torch.tensor([0, 0, 0])) == pytest.approx(2 / 3)


def test_blocks_of_an_encoding_are_one_big_block_and_channels_may_change_places() -> None:
    torch.manual_seed(0)
    encoder = encode.Encoder(encode.Shape(width=16, heads=2)).eval()
    random = np.random.default_rng(0)
    x_TC = np.cumsum(random.normal(size=(5000, 3)), 0).astype(np.float32)
    gap_T = np.zeros(5000, dtype=bool)
    whole = encode.encode(encoder, x_TC, gap_T, ("a", "b", "c"))
    parts = encode.encode(encoder, x_TC, gap_T, ("a", "b", "c"), block=1024)
    other = encode.encode(encoder, x_TC[:, [2, 0, 1]], gap_T, ("c", "a", "b"))
    assert whole.hand_NF is not None and parts.hand_NF is not None and other.hand_NF is not None
    unit = 2.0**-10  # float16 is rounded after what agrees to 1e-5
    for found in (parts, other):
        torch.testing.assert_close(found.embed_NE.float(), whole.embed_NE.float(), rtol=unit, atol=1e-3)
    torch.testing.assert_close(parts.hand_NF.float(), whole.hand_NF.float(), rtol=unit, atol=1e-3)
    f = whole.hand_NF.shape[1] // 3
    moved = other.hand_NF.unflatten(1, (3, f))[:, [1, 2, 0]].flatten(1)
    torch.testing.assert_close(moved.float(), whole.hand_NF.float(), rtol=unit, atol=1e-3)
