"""The stream loop against a naive oracle written out by hand, in outputs and gradients, for every mode."""

import pytest
import torch
from torch import nn

from memtoken_cli.engine.stream import Bptt, Window, chosen, run, stacked
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
        return self.first * 1.5, torch.zeros(2, 3, dtype=torch.float64), torch.tensor([0, 0])

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
            m: run(cell.segment(inputs), cell.start(), 5, Bptt.parse(m))
            for m in ("full", "last:1", "replay", "window:1")
        }
    assert len({float(x.total) for x in totals.values()}) == 1
    assert all(p.grad is None for p in cell.parameters())


def test_no_segments_give_the_first_state_and_no_loss():
    state = (torch.ones(2, requires_grad=True),)
    for mode in ("full", "replay"):
        found = run(lambda t, s: (s, None), state, 0, Bptt.parse(mode))
        assert torch.equal(found.state[0], state[0])
        assert float(found.total) == 0.0


@pytest.mark.parametrize("text", ["", "last", "last:", "last:-1", "last:x", "all", "full:2", "window"])
def test_unknown_modes_are_refused(text):
    with pytest.raises(UsageError, match="bptt"):
        Bptt.parse(text)


@pytest.mark.parametrize(("mode", "reached"), [("full", 0), ("last:3", 1), ("last:1", 3), ("last:0", 4)])
def test_truncation_leaves_exactly_nothing_of_what_is_earlier(mode, reached):
    cell, inputs = made()
    inputs.requires_grad_()
    plain = cell.segment(inputs)

    def segment(t, state):
        state, loss = plain(t, state)
        return state, loss if t == 4 else None

    run(segment, cell.start(), 5, Bptt.parse(mode)).total.backward()
    told = inputs.grad.abs().sum((1, 2))
    assert (told[:reached] == 0).all()
    assert (told[reached:] > 0).all()


# rows begin documents apart: row 0 at 0, 4 and 5, row 1 at 0 and 2
BEGINS = ({0, 4, 5}, {0, 2})


def begins(t):
    return torch.tensor([t in row for row in BEGINS])


def newest(t, back):
    return range(max(0, t - back), t + 1)


def window_step(cell, inputs, window, t, rows_B=None):
    """The loss of segment t through a window, for all rows or some."""
    seen = newest(t, window.back)
    some = slice(None) if rows_B is None else rows_B
    plain = cell.segment(inputs[:, some])

    def segment(i, state):
        state, loss = plain(seen[i], state)
        return state, loss if seen[i] == t else None

    first = tuple(x[some] for x in cell.start())
    return window.step(segment, first, [begins(u)[some] for u in seen], rows_B).total


def row_alone(cell, inputs, back, b, stored, t):
    """The oracle for one row: a full graph from the first segment of the window, detached in front of it."""
    document = max(u for u in BEGINS[b] if u <= t)
    start = max(t - back, document)
    state = tuple(x[b : b + 1] for x in cell.start()) if start == document else stored[start]
    for u in range(start, t + 1):
        state, loss = cell.segment(inputs[:, b : b + 1])(u, state)
    stored[t + 1] = tuple(x.detach() for x in state)
    return loss


@pytest.mark.parametrize("parts", [None, ([0], [1]), ([1], [0])])
@pytest.mark.parametrize("back", [0, 1, 2, 9])
def test_a_window_equals_a_graph_that_is_detached_by_hand(back, parts):
    cell, inputs = made(n=8)
    window, stored = Window(back), ({}, {})
    for t in range(8):
        if parts is None:
            total = window_step(cell, inputs, window, t)
        else:
            total = sum(window_step(cell, inputs, window, t, torch.tensor(rows)) for rows in parts)
        window.advance()
        total.backward()
        got = gradients_or_zero(cell)
        expected = sum(row_alone(cell, inputs, back, b, stored[b], t) for b in (0, 1))
        assert total.item() == pytest.approx(expected.item(), rel=1e-14)
        expected.backward()
        for a, b in zip(got, gradients_or_zero(cell), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
        assert len(window.kept) == min(t, back) + 1
        for x, a, b in zip(window.kept[-1], stored[0][t + 1], stored[1][t + 1], strict=True):
            torch.testing.assert_close(x, torch.cat([a, b]), rtol=1e-14, atol=0)
            assert not x.requires_grad


def gradients_or_zero(cell):
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in cell.parameters()]
    cell.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("back", [0, 1, 2])
def test_a_window_goes_back_so_far_and_no_further(back):
    cell, inputs = made(n=8)
    inputs.requires_grad_()
    window = Window(back)
    for t in range(8):
        inputs.grad = cell.first.grad = None
        window_step(cell, inputs, window, t).backward()
        window.advance()
        for b, row in enumerate(BEGINS):
            document = max(u for u in row if u <= t)
            start = max(t - back, document)
            told = inputs.grad[:, b].abs().sum(1)
            assert (told[start : t + 1] > 0).all()
            assert told.sum() == told[start : t + 1].sum()
            trains_first = cell.first.grad is not None and bool(cell.first.grad[b].any())
            assert trains_first == (start == document)


def test_a_window_goes_on_from_its_checkpoint():
    cell, inputs = made(n=8)
    window, copies = Window(2), []
    for t in range(8):
        copies.append({k: x.clone() if isinstance(x, torch.Tensor) else x for k, x in window.state().items()})
        window_step(cell, inputs, window, t)
        window.advance()
    for t in (0, 1, 3, 5):
        again = Window(2)
        again.load_state(copies[t], torch.device("cpu"))
        for u in range(t, 8):
            window_step(cell, inputs, again, u)
            again.advance()
        for a, b in zip(again.kept, window.kept, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_what_is_kept_shares_no_memory_with_the_parameters():
    first = torch.ones(1, 2, requires_grad=True)
    window = Window(0)
    window.step(lambda i, state: (state, None), (first,), [torch.tensor([True])])
    window.advance()
    with torch.no_grad():
        first.add_(1)
    assert window.kept[0][0].tolist() == [[1.0, 1.0]]


def test_a_row_that_overflows_begins_anew():
    window = Window(1)
    first = (torch.full((2, 1), 7.0),)
    for t in range(3):

        def segment(i, state, t=t):
            return (state[0] * torch.tensor([[1.0], [torch.inf if t == 1 else 2.0]]),), None

        fresh = [torch.tensor([t == 0 and i == 0] * 2) for i in range(min(t, 1) + 1)]
        window.step(segment, first, fresh)
        window.advance()
        assert window.kept[-1][0].flatten().tolist() == ([7.0, 14.0], [7.0, 7.0], [7.0, 56.0])[t]


def test_a_window_reads_no_stream_at_once():
    cell, inputs = made()
    with pytest.raises(ValueError, match=r"Window\.step"):
        run(cell.segment(inputs), cell.start(), 5, Bptt.parse("window:1"))


def test_rows_of_states_of_unequal_sizes():
    small, large = (
        (torch.ones(2, 1, 3), torch.tensor([1, 2])),
        (torch.full((2, 2, 3), 5.0), torch.tensor([3, 4])),
    )
    grown, number = chosen(small, large, torch.tensor([True, False]))
    assert grown.tolist() == [[[1.0] * 3, [0.0] * 3], [[5.0] * 3] * 2]
    assert number.tolist() == [1, 4]
    assert chosen(small, large, torch.tensor([True, True])) is small
    assert chosen(small, large, torch.tensor([False, False])) is large
    both, number = stacked([small, large])
    assert both.shape == (4, 2, 3)
    assert both[:2].tolist() == [[[1.0] * 3, [0.0] * 3]] * 2
    assert number.tolist() == [1, 2, 3, 4]
