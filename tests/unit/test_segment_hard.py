"""Prompts as hard terms: tokens they bind, exact rows, contradictions by name, negatives, short runs."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memtoken_cli.data.prompts import Prompt
from memtoken_cli.io.errors import DataError
from memtoken_cli.methods.memprompttss import hard, levels
from memtoken_cli.methods.memprompttss.levels import (
    Level,
    Options,
    chained,
    derived,
    merge_short,
    runs,
)
from memtoken_cli.methods.memprompttss.model import Encoded, Unary
from memtoken_cli.methods.memprompttss.potts import decode
from memtoken_cli.methods.memprompttss.potts_sums import marginals

LABELS = ("a", "b", "c")


def encoded(rows: int, stride: int, gap: range = range(0)) -> Encoded:
    count = -(-rows // stride)
    gap_N = torch.zeros(count, dtype=torch.bool)
    gap_N[gap.start : gap.stop] = True
    return Encoded(rows, stride, None, torch.zeros(count, 1).half(), ("x",), gap_N)


def unary(cost_NK: torch.Tensor, lam: float = 2.0) -> Unary:
    return Unary(LABELS[: cost_NK.shape[1]], cost_NK, lam, 1.0)


def at(row: int, label: str, kind: str = "label", end: int | None = None) -> Prompt:
    return Prompt(f"{kind[0]}{row}", kind, row, end or row + 1, (label,) if label else (), line=row)  # type: ignore[arg-type]


def test_a_point_binds_the_token_it_lies_in_and_an_interval_those_with_their_centre_inside() -> None:
    assert hard.tokens_of(at(15, "a"), 8, 100) == range(1, 2)
    assert hard.tokens_of(at(99, "a"), 8, 100) == range(12, 13)
    assert hard.tokens_of(at(4, "a", end=21), 8, 100) == range(3)
    assert hard.tokens_of(at(5, "a", end=20), 8, 100) == range(1, 2)
    assert hard.tokens_of(at(5, "a", end=8), 8, 100) == range(1)
    assert hard.tokens_of(at(90, "a", end=100), 8, 100) == range(11, 13)


@given(st.integers(1, 9), st.integers(20, 300), st.data())
def test_every_prompted_row_carries_its_prompt(stride: int, rows: int, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, rows), min_size=2, max_size=8)))
    spans = list(itertools.pairwise(cuts))
    labels = data.draw(st.lists(st.sampled_from(LABELS), min_size=len(spans), max_size=len(spans)))
    prompts = [at(a, label, end=b) for (a, b), label in zip(spans, labels, strict=True)]
    tokens = -(-rows // stride)
    cost = torch.from_numpy(np.random.default_rng(rows).random((tokens, 3)).astype(np.float32))
    found = chained(encoded(rows, stride), unary(cost), prompts, "default", Options())
    for (a, b), label in zip(spans, labels, strict=True):
        assert (found.states_T[a:b] == LABELS.index(label)).all()


@pytest.mark.parametrize("row", range(12, 30))
@pytest.mark.parametrize("stride", [1, 3, 8])
def test_a_boundary_changes_the_state_at_its_very_row(row: int, stride: int) -> None:
    cost = torch.zeros(-(-48 // stride), 2)
    found = chained(encoded(48, stride), unary(cost), [at(row, "", "boundary")], "default", Options())
    assert runs(found.states_T).tolist() == [[0, row], [row, 48]]


@pytest.mark.parametrize("row", range(12, 30))
@pytest.mark.parametrize("stride", [1, 3, 8])
@pytest.mark.parametrize("away", [0, 2])
def test_labels_close_to_a_boundary_stand_on_their_side_of_it(row: int, stride: int, away: int) -> None:
    cost = torch.zeros(-(-48 // stride), 3)
    cost[:, 2] = 0.5
    prompts = [at(row - 1 - away, "a"), at(row + away, "b"), at(row, "", "boundary")]
    found = chained(encoded(48, stride), unary(cost), prompts, "default", Options())
    assert found.states_T[row - 1 - away : row + away + 1].tolist() == [0] * (away + 1) + [1] * (away + 1)
    for said in (prompts[::2], prompts[1:]):
        found = chained(encoded(48, stride), unary(cost), said, "default", Options())
        assert row in [a for a, _ in runs(found.states_T).tolist()]
        shown = said[0].start
        assert len(set(found.states_T[min(shown, row) : max(shown + 1, row)].tolist())) == 1


@pytest.mark.parametrize("row", [20, 21, 24, 27])
def test_a_boundary_agrees_with_intervals_that_meet_there(row: int) -> None:
    prompts = [at(0, "a", end=row), at(row, "b", end=48), at(row, "", "boundary")]
    found = chained(encoded(48, 8), unary(torch.zeros(6, 2)), prompts, "default", Options())
    assert runs(found.states_T).tolist() == [[0, row], [row, 48]]


def test_a_boundary_is_not_undone_by_the_next_token() -> None:
    cost = torch.zeros(60, 2)
    cost[:, 1] = 1.0
    cost[30, 1] = 0.0  # one token alone would go over and back
    found = chained(encoded(480, 8), unary(cost), [at(240, "", "boundary")], "default", Options())
    lengths = np.diff(runs(found.states_T), axis=1)[:, 0]
    assert 240 in runs(found.states_T)[:, 0] and lengths.min() >= hard.HELD * 8
    # what is shown beside it is nearer the truth
    shown = chained(
        encoded(480, 8), unary(cost), [at(240, "", "boundary"), at(260, "a")], "default", Options()
    )
    assert shown.states_T[260] == 0 and 240 in runs(shown.states_T)[:, 0]


def said(kind: str, row: int, length: int, label: str) -> Prompt:
    span = row + length if kind == "same" else row + 1
    return at(row, label if kind in ("label", "not") else "", kind, end=span)


@given(
    st.lists(
        st.builds(
            said,
            st.sampled_from(["boundary", "boundary", "label", "not", "same", "no-boundary"]),
            st.integers(1, 150),
            st.integers(2, 30),
            st.sampled_from("ab"),
        ),
        max_size=7,
    ),
    st.integers(2, 3),
)
def test_what_is_held_beside_boundaries_clashes_with_nothing(prompts: list[Prompt], K: int) -> None:
    def ends(reach: int) -> bool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(hard, "HELD", reach)
            try:
                decode(torch.zeros(80, K), 2.0, hard.terms(prompts, LABELS[:K], 2, 160))
            except DataError:
                return False
            return True

    assert ends(8) == ends(1)


def test_contradictions_name_both_prompts() -> None:
    cost = torch.zeros(12, 2)
    for prompts in (
        [at(8, "", "same", end=60), at(33, "", "boundary")],
        [at(8, "", "no-boundary"), at(8, "", "boundary")],
        [at(0, "a", end=48), at(24, "", "boundary")],
        [at(10, "a"), at(40, "b"), at(8, "", "same", end=48)],
    ):
        with pytest.raises(DataError, match="contradict each other") as error:
            chained(encoded(96, 8), unary(cost), prompts, "default", Options())
        assert sum(f"({prompt.id}," in str(error.value) for prompt in prompts) >= 2
        assert error.value.exit_code == 3


def test_same_and_no_boundary_forbid_a_change() -> None:
    cost = torch.zeros(12, 2)
    cost[:6, 1] = cost[6:, 0] = 3.0
    free = chained(encoded(96, 8), unary(cost), [], "default", Options())
    assert runs(free.states_T).tolist() == [[0, 48], [48, 96]]
    kept = chained(encoded(96, 8), unary(cost), [at(32, "", "same", end=64)], "default", Options())
    assert all(not 36 < a < 60 for a, _ in runs(kept.states_T).tolist())
    moved = chained(encoded(96, 8), unary(cost), [at(48, "", "no-boundary")], "default", Options())
    assert 48 not in [a for a, _ in runs(moved.states_T).tolist()]


def test_a_negative_takes_its_label_off_the_run() -> None:
    cost = torch.tensor([[0.0, 1.0, 5.0]]).repeat(20, 1)
    cost[10:] = torch.tensor([5.0, 5.0, 0.0])
    found = chained(encoded(160, 8), unary(cost), [at(40, "a", "not")], "default", Options())
    assert (found.states_T[:80] == 1).all() and (found.states_T[80:] == 2).all()
    shown = [at(4, "a"), at(68, "a", "not")]
    found = chained(encoded(160, 8), unary(cost), shown, "default", Options())
    assert found.states_T[4] == 0 and found.states_T[68] != 0


def test_a_negative_takes_its_label_off_a_run_that_costs_alone_would_keep() -> None:
    cost = torch.tensor([[0.0, 20.0, 30.0]]).repeat(20, 1)
    no = at(80, "a", "not")
    found = chained(encoded(160, 8), unary(cost), [no], "default", Options())
    assert (found.states_T == 1).all()
    # what the negative makes dear in the model's costs does not hide the run that it is about
    dear = cost.clone()
    dear[9:12, 0] = 50.0
    said = replace(unary(dear), free_NK=cost)
    assert (chained(encoded(160, 8), said, [no], "default", Options()).states_T == 1).all()
    # where the state is shown it stays, and most of the way to it goes
    shown = chained(encoded(160, 8), unary(cost), [at(0, "a"), no], "default", Options())
    assert runs(shown.states_T).tolist()[0] == [0, 24] and 0 not in shown.states_T[24:]


@pytest.mark.parametrize("turn", [1, -1])
def test_negatives_follow_each_other_in_any_order_and_never_clash(turn: int) -> None:
    cost = torch.tensor([[0.0, 20.0, 30.0]]).repeat(20, 1)
    two = [at(80, "a", "not"), at(40, "b", "not")][::turn]
    assert (chained(encoded(160, 8), unary(cost), two, "default", Options()).states_T == 2).all()
    three = [*two, at(120, "c", "not")][::turn]
    found = chained(encoded(160, 8), unary(cost), three, "default", Options()).states_T
    assert found[80] != 0 and found[40] != 1 and found[120] != 2


def test_belief_is_found_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(levels, "marginals", lambda *a: asked.append(1) or marginals(*a))
    found = chained(encoded(96, 8), unary(torch.zeros(12, 2)), [], "default", Options())
    assert not asked
    np.testing.assert_allclose(found.p_NK, 0.5, atol=1e-6)
    assert found.p_NK is found.p_NK and len(asked) == 1


def test_a_gap_has_no_state_and_ends_the_chain() -> None:
    cost = torch.zeros(12, 2)
    cost[:4, 1] = cost[8:, 0] = 1.0
    found = chained(encoded(96, 8, range(4, 8)), unary(cost, lam=100.0), [], "default", Options())
    assert found.states_T.tolist() == [0] * 32 + [-1] * 32 + [1] * 32
    assert found.p_NK is not None and (found.p_NK[4:8] == 0).all()
    np.testing.assert_allclose(found.p_NK[:4].sum(1), 1, atol=1e-5)


def test_short_runs_go_to_the_likelier_neighbour_but_not_prompted_ones() -> None:
    states = np.repeat(np.array([0, 1, 2, 0], np.int16), [40, 8, 40, 8])
    p = np.tile(np.array([[0.2, 0.3, 0.5]], np.float32), (12, 1))
    kept = states.copy()
    merge_short(kept, 16, p, 8, [at(42, "b")])
    assert runs(kept).tolist() == [[0, 40], [40, 48], [48, 96]]
    merge_short(states, 16, p, 8, [])
    assert runs(states).tolist() == [[0, 40], [40, 96]]


def test_a_coarse_level_adds_up_its_children() -> None:
    p = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]], np.float32)
    fine = Level("default", LABELS, np.array([0, 2, -1], np.int16), lambda: p, ())
    coarse = derived(fine, "coarse", {"a": "x", "b": "x"})
    assert coarse.labels == ("c", "x") and coarse.states_T.tolist() == [1, 0, -1]
    np.testing.assert_allclose(coarse.p_NK, [[0.2, 0.8], [0.8, 0.2]], atol=1e-6)
    assert (coarse.source, derived(coarse, "top", {}).source) == ("default", "default")
