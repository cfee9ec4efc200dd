"""The stream loop against a naive oracle written out by hand, in outputs and gradients, for every mode."""

import pytest
import torch
from torch import nn

from memtoken_cli.engine.stream import Bptt, run
from memtoken_cli.io.errors import UsageError


class Cell(nn.Module):
    """A recurrent cell with two state tensors, a counter, dropout, and a learned first state."""

    def __init__(self, drop: float = 0.0):
        super().__init__()
        self.first = nn.Parameter(torch.randn(2, 3, dtype=torch.float64))
        self.mix = nn.Linear(6, 3, dtype=torch.float64)
        self.slow = nn.Linear(3, 3, dtype=torch.float64)
        self.drop = nn.Dropout(drop)

    def start(self):
        return self.first * 1.5, torch.zeros(2, 3, dtype=torch.float64), torch.tensor(0)

    def segment(self, inputs):
        def step(t, state):
            fast, slow, count = state
            fast = torch.tanh(self.drop(self.mix(torch.cat([fast, inputs[t]], -1)))) + 0.3 * slow
            slow = 0.9 * slow + torch.sin(self.slow(fast))
            return (fast, slow, count + 1), (fast * slow).sum() * (t + 1)

        return step


def made(drop: float = 0.0, n: int = 5):
    torch.manual_seed(0)
    cell = Cell(drop)
    return cell, torch.randn(n, 2, 3, dtype=torch.float64)


def gradients(cell):
    found = [p.grad.clone() for p in cell.parameters()]
    cell.zero_grad(set_to_none=True)
    return found


def oracle(cell, inputs, cut):
    """Backpropagation through time in plain sight: detached at the boundaries `cut`."""
    torch.manual_seed(1)
    state, losses = cell.start(), []
    for t in range(len(inputs)):
        if t in cut:
            state = tuple(x.detach() for x in state)
        state, loss = cell.segment(inputs)(t, state)
        losses.append(loss)
    torch.stack(losses).sum().backward()
    return state, sum(x.item() for x in losses), gradients(cell)


def streamed(cell, inputs, mode):
    torch.manual_seed(1)
    found = run(cell.segment(inputs), cell.start(), len(inputs), Bptt.parse(mode))
    if found.total.requires_grad:
        found.total.backward()
    return found, gradients(cell)


@pytest.mark.parametrize("drop", [0.0, 0.5])
@pytest.mark.parametrize(
    ("mode", "cut"),
    [
        ("full", set()),
        ("last:4", set()),
        ("last:9", set()),
        ("last:3", {1}),
        ("last:1", {1, 2, 3}),
        ("last:0", {1, 2, 3, 4}),
        ("replay", set()),
    ],
)
def test_modes_equal_the_oracle(mode, cut, drop):
    cell, inputs = made(drop)
    state, total, expected = oracle(cell, inputs, cut)
    after = torch.rand(3)
    found, got = streamed(cell, inputs, mode)
    assert torch.equal(torch.rand(3), after), "the generators must end where a plain loop leaves them"
    assert found.total.item() == pytest.approx(total, rel=1e-14)
    for a, b in zip(found.state, state, strict=True):
        torch.testing.assert_close(a, b.detach() if mode == "replay" else b, rtol=1e-14, atol=0)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_truncation_changes_gradients():
    cell, inputs = made()
    assert not torch.allclose(oracle(cell, inputs, set())[2][1], oracle(cell, inputs, {1, 2, 3, 4})[2][1])


def test_replay_keeps_one_segments_graph_alive():
    cell, inputs = made(n=12)
    alive, most = 0, 0

    class Held(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            nonlocal alive, most
            if ctx.needs_input_grad[0]:
                alive += 1
                most = max(most, alive)
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            nonlocal alive
            alive -= 1
            return g

    plain = cell.segment(inputs)

    def step(t, state):
        return plain(t, (Held.apply(state[0]), *state[1:]))

    for mode, bound in (("replay", 1), ("full", 12)):
        alive = most = 0
        found = run(step, cell.start(), 12, Bptt.parse(mode))
        if found.total.requires_grad:
            found.total.backward()
        assert most == bound, mode


def test_segments_without_a_loss_still_carry_gradients():
    def segment(t, state):
        return (state[0] * 2,), (state[0] * 2).sum() if t == 3 else None

    for mode in ("full", "replay"):
        start = torch.ones(2, requires_grad=True)
        found = run(segment, (start,), 4, Bptt.parse(mode))
        if found.total.requires_grad:
            found.total.backward()
        assert found.total.item() == 32.0
        assert start.grad.tolist() == [16.0, 16.0], mode


def test_without_gradients_every_mode_is_a_plain_loop():
    cell, inputs = made()
    with torch.no_grad():
        totals = {
            m: run(cell.segment(inputs), cell.start(), 5, Bptt.parse(m)) for m in ("full", "last:1", "replay")
        }
    assert len({float(x.total) for x in totals.values()}) == 1
    assert all(p.grad is None for p in cell.parameters())


def test_no_segments_give_the_first_state_and_no_loss():
    state = (torch.ones(2, requires_grad=True),)
    for mode in ("full", "replay"):
        found = run(lambda t, s: (s, None), state, 0, Bptt.parse(mode))
        assert torch.equal(found.state[0], state[0])
        assert float(found.total) == 0.0


@pytest.mark.parametrize("text", ["", "last", "last:", "last:-1", "last:x", "all", "full:2"])
def test_unknown_modes_are_refused(text):
    with pytest.raises(UsageError, match="bptt"):
        Bptt.parse(text)
