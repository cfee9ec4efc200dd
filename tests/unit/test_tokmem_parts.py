"""A query as parts, beside every path that there is."""

from itertools import accumulate, groupby, product

import pytest
import torch

from memtoken_cli.methods.tokmem.parts import CHANGE, LEAST, Parts
from memtoken_cli.methods.tokmem.statistics import END, TEXT, Class, collect

NAMES = ("a", "b", "c")


def blocks(*names: str, width: int = 6) -> tuple[list[Class], torch.Tensor]:
    """Queries whose mean lies along an axis of the procedure's own."""
    generator = torch.Generator().manual_seed(sum(map(ord, names)))
    classes = [Class(name) for name in names for _ in range(30)]
    x = 0.3 * torch.randn(len(classes), width, generator=generator)
    for row, c in zip(x, classes, strict=True):
        row[NAMES.index(c.procedure)] += 1.0
    return classes, x


def parts(*names: str) -> Parts:
    classes, x = blocks(*names)
    return Parts.of(collect(classes, [x, 2 * x], 4), names, 0.1, 0.5)


def by_hand(token_UL: torch.Tensor, done: list[int]) -> list[tuple[float, range]]:
    """The best of all paths, by the procedure that comes behind those that are done, and where the last of
    these lies on it."""
    U, L = token_UL.shape
    best: list[tuple[float, range]] = [(-float("inf"), range(0))] * (L + 1)
    for path in product(range(L), repeat=U):
        groups = [(key, len(list(some))) for key, some in groupby(path)]
        runs = [key for key, _ in groups]
        score = sum(float(token_UL[t, c]) for t, c in enumerate(path)) - CHANGE * (len(runs) - 1)
        if runs[: len(done)] == done:
            key = runs[len(done)] if len(runs) > len(done) else L
            ends = [0, *accumulate(size for _, size in groups)]
            span = range(ends[len(done) - 1], ends[len(done)]) if done else range(0)
            best[key] = max(best[key], (score, span), key=lambda pair: pair[0])
    return best


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("done", [[], [0], [2, 1], [0, 1, 0]])
def test_the_best_path_is_the_best_of_all(seed, done):
    generator = torch.Generator().manual_seed(seed)
    token_UL = torch.randint(-4096, 4096, (6, 3), generator=generator).double() / 1024
    made, want = parts(*NAMES), by_hand(token_UL, done)
    found = made.following(token_UL, done)
    for label in range(3):
        # two parts in a row of one procedure are one to the eye, but cost a change
        if not done or label != done[-1]:
            assert float(found[label]) == pytest.approx(want[label][0])
    if done:
        assert float(found[3]) == pytest.approx(want[3][0])
        best = max((one for label, one in enumerate(want) if label != done[-1]), key=lambda pair: pair[0])
        if best[0] >= float(found.max()) - 1e-9:
            assert made.span(token_UL, done) == best[1]
    else:
        assert torch.allclose(found[:3], made.first(token_UL))
        one = max(float(token_UL[:, c].sum()) for c in range(3))
        assert made.several(token_UL) == (max(want[:3])[0] > one)


def test_a_query_of_three_parts_is_read_in_their_order():
    made = parts(*NAMES)
    user_UD = torch.eye(6)[[1] * 8 + [0] * 8 + [2] * 8]
    token_UL = made.tokens([user_UD, 2 * user_UD])
    assert made.labels == (*NAMES, END)
    assert made.several(token_UL) and made.first(token_UL).argmax() == 1
    done, said = [1], []
    while (following := int(made.following(token_UL, done).argmax())) < 3:
        done.append(following)
        said.append(NAMES[following])
    assert said == ["a", "c"]
    assert [made.span(token_UL, done[: n + 1]) for n in range(3)] == [range(8), range(8, 16), range(16, 24)]
    alone = made.tokens([user_UD[:8], 2 * user_UD[:8]])
    assert not made.several(alone) and made.following(alone, [1]).argmax() == 3
    # what was called, though nothing asked for it, takes a token and no more
    assert made.following(token_UL, [2]).argmax() == 1


def test_more_calls_than_tokens_are_the_end():
    made = parts(*NAMES)
    token_UL = made.tokens([torch.eye(6)[:2], torch.eye(6)[:2]])
    assert bool((made.following(token_UL, [0, 1, 2]) == LEAST).all())
    assert int(made.following(token_UL, [0, 1]).argmax()) == 3
    assert made.span(token_UL, [0, 1, 2]) == range(2)


def test_a_procedure_without_queries_is_never_read():
    classes, x = blocks("a", "b")
    classes += [Class(TEXT)] * 2
    made = Parts.of(collect(classes, [torch.cat([x, x[:2]])], 4), NAMES, 0.1, 0.5)
    token_UL = made.tokens([x[:20]])
    assert bool(token_UL.isfinite().all()) and made.first(token_UL).argmax() < 2
    assert made.following(token_UL, [2]).isfinite().all()


def test_queries_alone_count_where_instructions_are_known_too():
    classes, x = blocks(*NAMES)
    told = [*classes, *(Class(c.procedure, "instruction+query") for c in classes)]
    both = Parts.of(collect(told, [torch.cat([x, x.flip(0)])], 0), NAMES, 0.1, 0.5)
    assert both.scorer.weight[0].shape[0] == 3
    assert (both.tokens([x]).argmax(1) == torch.arange(3).repeat_interleave(30)).double().mean() > 0.9
    only = Parts.of(collect(told[90:], [x], 0), NAMES, 0.1, 0.5)
    assert (only.tokens([x]).argmax(1) == torch.arange(3).repeat_interleave(30)).double().mean() > 0.9
