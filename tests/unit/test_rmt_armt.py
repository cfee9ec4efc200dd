"""The associative memory of `armt`: its numbers by hand, its bounds; wrapping a model changes nothing."""

import math

import pytest
import torch
from rmt_policies import made, rows, run

from memtoken_cli.methods.rmt.associative import Association, phi
from memtoken_cli.methods.rmt.config import Config
from memtoken_cli.methods.rmt.policies import policy_for

LAYER = {"width": 2, "d_mem": 1, "unit": True, "gate_z": False}


def association(**changes):
    said = LAYER | changes
    return Association(*said.values(), torch.Generator().manual_seed(0))


def test_dpfp_by_hand():
    """[2, -3]: y = [2, 0, 0, 3], against itself turned by one, two and three places."""
    assert phi(torch.tensor([2.0, -3.0]), unit=False).tolist() == [6, 0, 0, 0] + [0] * 4 + [0, 0, 0, 6]
    unit = phi(torch.tensor([2.0, -3.0]), unit=True)
    assert unit.norm().item() == pytest.approx(1)
    assert phi(torch.zeros(2), unit=True).tolist() == [0] * 12


def two_tokens(unit, gate_z):
    """Three features a token and a layer of width 1: keys written out, all the rest by hand."""
    layer = association(width=1, d_mem=2, unit=unit, gate_z=gate_z)
    with torch.no_grad():
        layer.k.copy_(torch.tensor([[1.0], [-1.5]]))  # y of w > 0: [w, 0, 0, 1.5 w]
        layer.v.fill_(2.0)
        layer.b.fill_(1.0)
        layer.bias.fill_(0.5)
    return layer


@pytest.mark.parametrize("gate_z", [False, True])
@pytest.mark.parametrize("unit", [False, True])
def test_an_update_of_two_tokens_by_hand(unit, gate_z):
    layer = two_tokens(unit, gate_z)
    w = (1.0, 2.0)
    # y * roll(y, 1) has 1.5 w^2 at place 0, y * roll(y, 3) at place 3: k = 1.5 w^2 [e_0 + e_11]
    size = [math.sqrt(0.5) if unit else 1.5 * x * x for x in w]
    k = [torch.zeros(12), torch.zeros(12)]
    for i in (0, 1):
        k[i][0] = k[i][11] = size[i]
    b = [1 / (1 + math.exp(-(x + 0.5))) for x in w]
    A, z = torch.zeros(12, 1), torch.zeros(12)
    state = (torch.zeros(1, 12, 1), torch.zeros(1, 12))
    for segment in (0, 1):
        dA, dz = torch.zeros(12, 1), torch.zeros(12)
        for i in (0, 1):  # both read the old A
            square, zk = float(k[i] @ k[i]), float(k[i] @ z)
            old = float(k[i] @ A[:, 0]) / (zk + 1e-5) if segment else 0.0
            g = min(1.0, max(0.0, 1 - zk / (square + 1e-5))) if segment else 1.0
            dA[:, 0] += b[i] * k[i] * (2 * w[i] - old)
            dz += (g * b[i] if gate_z else g) * k[i]
        A, z = A + dA, z + dz
        with torch.no_grad():
            state = layer.write(torch.tensor(w)[None, :, None], *state, torch.tensor([segment > 0]))
        torch.testing.assert_close(state[0][0], A)
        torch.testing.assert_close(state[1][0], z)
    assert A.abs().max() > 0.1 and z.max() > 0.1


def test_a_read_by_hand():
    layer = two_tokens(True, False)
    with torch.no_grad():
        layer.q.copy_(layer.k)
        A, z = torch.zeros(1, 12, 1), torch.zeros(1, 12)
        A[0, 0], A[0, 11], z[0, 0] = 3.0, 5.0, 0.25
        h = torch.tensor([[[1.0], [4.0]]])
        half = math.sqrt(0.5)
        recalled = (3 + 5) * half / (0.25 * half + 1e-5)
        torch.testing.assert_close(layer.read(h, A, z, torch.tensor([True])), h + recalled)
        assert torch.equal(layer.read(h, A, z, torch.tensor([False])), h)


def test_what_was_written_is_read():
    """A key gives back its value, and its newest one after another write."""
    layer = association(width=8, d_mem=8)
    with torch.no_grad():
        layer.v.copy_(torch.eye(8) * 2)
        layer.b.zero_()
        layer.bias.fill_(50.0)  # the gate is open
        layer.q.copy_(layer.k)
        state, started = (torch.zeros(1, 48, 8), torch.zeros(1, 48)), torch.tensor([False])
        w = torch.randn(1, 1, 8, generator=torch.Generator().manual_seed(1))
        for value in (2.0, -3.0, 5.0):
            layer.v.copy_(torch.eye(8) * value)
            state = layer.write(w, *state, started)
            started = torch.tensor([True])
            torch.testing.assert_close(layer.read(w, *state, started) - w, w * value, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("tokens", [1, 3])
def test_repeated_writes_of_a_key_keep_z_bounded(tokens):
    layer = association(width=8, d_mem=8)
    w = torch.randn(1, 1, 8, generator=torch.Generator().manual_seed(2)).expand(-1, tokens, -1)
    state, started, sizes = (torch.zeros(1, 48, 8), torch.zeros(1, 48)), torch.tensor([False]), []
    with torch.no_grad():
        for _ in range(500):
            state = layer.write(w, *state, started)
            started = torch.tensor([True])
            sizes.append(state[1].norm().item())
    assert sizes[0] == pytest.approx(tokens, rel=1e-4)  # every token of the first segment adds its unit key
    assert max(sizes) <= sizes[0] + 1e-2
    assert state[0].isfinite().all()


def test_the_correction_has_no_gradient():
    layer, free = association(width=8, d_mem=8), torch.Generator().manual_seed(3)
    w = torch.randn(1, 2, 8, generator=free)
    z = (0.1 * torch.rand(1, 48, generator=free)).requires_grad_()
    _, after = layer.write(w, torch.zeros(1, 48, 8), z, torch.tensor([True]))
    (gradient,) = torch.autograd.grad(after.sum(), z)
    assert torch.equal(gradient, torch.ones_like(z)), "z' = z + g k with g constant"


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_a_wrapped_model_is_the_model_to_the_bit(family):
    """As W_v starts at zero, over any number of segments."""
    of = made(family, policy="armt", segment=4)
    policy = policy_for(of.backbone, Config(policy="armt", segment=4, slots=2, d_mem=8), seed=0)
    bare = policy_for(of.backbone, Config(policy="none", segment=4, slots=0, positions="contiguous"), seed=0)
    state = policy.start(3)
    with torch.no_grad():
        for t in range(3):
            ids, count = torch.tensor(rows((4, 4, 4), seed=t)), torch.tensor([4, 2, 4])
            logits, state = policy.segment(ids, count, state, torch.arange(4))
            expected, _ = bare.segment(ids, count, (), torch.arange(4))
            assert torch.equal(logits, expected)
            assert not state[0].any() and state[1].abs().max() > 0


def test_the_first_segment_is_each_rows_own():
    """One row goes on, one begins, one has not begun: all as alone."""
    of = made(policy="armt")
    with torch.no_grad():
        _, ran = run(of, rows((4,)))
        fresh = of.policy.start(2)
        state = tuple(torch.cat([a, b]) for a, b in zip(ran, fresh, strict=True))
        ids, wanted = torch.tensor(rows((4, 4, 4), seed=1)), torch.arange(4)
        logits, after = of.policy.segment(ids, torch.tensor([4, 4, 0]), state, wanted)
        assert after[2].tolist() == [True, True, False]
        for row, (n, own) in enumerate([(4, ran), (4, of.policy.start(1))]):
            alone, next_state = of.policy.segment(ids[row : row + 1], torch.tensor([n]), own, wanted)
            torch.testing.assert_close(logits[row], alone[0], atol=1e-5, rtol=1e-5)
            for a, b in zip(after, next_state, strict=True):
                torch.testing.assert_close(a[row], b[0], atol=1e-5, rtol=1e-5)
