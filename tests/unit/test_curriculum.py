"""Stages of a curriculum: what is drawn, when it moves on, and that a resumed run is the same run."""

import json
from collections import Counter

import pytest
import torch

from memtoken_cli.data.task_config import CurriculumSection
from memtoken_cli.engine.curriculum import Curriculum
from memtoken_cli.engine.seeds import generator
from memtoken_cli.io.errors import UsageError


def curriculum(size=24, loss=False, **keys):
    return Curriculum(CurriculumSection(**keys), size, loss=loss)


def feed(c, metrics, at_n=None, first=0):
    for step, metric in enumerate(metrics, first):
        c.observe(step, metric, c.n if at_n is None else at_n)


@pytest.mark.parametrize(
    ("keys", "stages"),
    [
        ({"start": 6, "step": 6}, (6, 12, 18, 24)),
        ({"start": 6, "step": 10, "end": 20}, (6, 16, 20)),
        ({"counts": (1, 2, 4, 8, 24)}, (1, 2, 4, 8, 24)),
        ({"start": 24}, (24,)),
    ],
)
def test_stages(keys, stages):
    assert curriculum(**keys).stages == stages


def test_a_batch_has_the_largest_size_or_any_below():
    c = curriculum(start=6, step=4, mix=0.5)
    c.load_state(c.state() | {"n": 22})
    g = generator(0, "draw")
    seen = Counter(c.draw(g) for _ in range(4000))
    assert set(seen) == {6, 10, 14, 18, 22}
    assert seen[22] == pytest.approx(4000 * (0.5 + 0.5 / 5), rel=0.05)
    assert all(seen[n] == pytest.approx(400, rel=0.2) for n in (6, 10, 14, 18))


def test_sizes_between_named_stages_are_drawn_too():
    c = curriculum(counts=(4, 8), mix=0.0)
    g = generator(0, "draw")
    assert {c.draw(g) for _ in range(200)} == {1, 2, 3, 4}


def test_mix_is_the_share_of_the_largest():
    assert {curriculum(counts=(24,), mix=1.0).draw(generator(s, "d")) for s in range(50)} == {24}
    assert {curriculum(start=24, mix=0.0).draw(generator(s, "d")) for s in range(50)} == {24}


def test_a_draw_takes_as_much_from_the_generator_whatever_it_decides():
    left = set()
    for mix in (0.0, 1.0):
        g = generator(3, "draw")
        curriculum(mix=mix, counts=(24,)).draw(g)
        left.add(torch.rand(1, generator=g).item())
    assert len(left) == 1


def test_the_mean_since_the_last_check_decides():
    c = curriculum(start=6, step=6, check_every=4)
    feed(c, [0.0, 0.0, 0.0, 0.0])
    assert c.n == 6
    feed(c, [0.9, 0.95, 0.85])
    assert c.n == 6
    feed(c, [0.9])
    assert c.n == 12
    feed(c, [0.9, 0.9, 0.9, 0.89])
    assert c.n == 12


def test_batches_of_other_sizes_do_not_count():
    c = curriculum(start=6, step=6, check_every=2)
    feed(c, [1.0] * 10, at_n=3)
    assert c.n == 6
    c.observe(10, 0.2, 6)
    c.observe(11, 1.0, 3)
    assert c.n == 6
    c.observe(12, 0.95, 6)
    c.observe(13, 0.0, 3)
    assert c.n == 12


def test_the_last_stage_stays():
    c = curriculum(size=2, check_every=1)
    assert not c.done
    feed(c, [1.0])
    assert (c.n, c.done) == (2, True)
    feed(c, [1.0] * 5)
    assert (c.n, c.done) == (2, True)


def test_a_loss_ends_a_stage_when_it_falls_no_more():
    c = curriculum(size=3, loss=True, check_every=1)
    feed(c, [2.0, 1.9, 1.8, 1.799, 1.795])
    assert c.n == 1
    feed(c, [1.78])  # 1.1 % below 1.8: better, so the count begins anew
    feed(c, [1.779, 1.778])
    assert c.n == 1
    feed(c, [1.777])
    assert c.n == 2
    feed(c, [5.0, 5.0, 5.0])  # the new stage has its own best
    assert c.n == 2
    feed(c, [5.0])
    assert c.n == 3


def test_the_rate_warms_up_again_behind_a_change():
    c = curriculum(check_every=5, warmup=4)
    assert [c.pace(step) for step in range(3)] == [1.0, 1.0, 1.0]
    feed(c, [1.0] * 5)
    assert [c.pace(step) for step in range(5, 11)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    still = curriculum(check_every=1)
    feed(still, [1.0])
    assert still.n == 2 and still.pace(1) == 1.0


def run(c, g, first, last):
    """Steps of a training whose metric depends on everything drawn so far."""
    trace = []
    for step in range(first, last):
        n = c.draw(g)
        metric = torch.rand(1, generator=g).item()
        trace.append((n, c.n, c.pace(step)))
        c.observe(step, metric, n)
    return trace


@pytest.mark.parametrize("loss", [False, True])
@pytest.mark.parametrize("cut", [1, 7, 40, 93])
def test_a_resumed_run_is_the_same_run(loss, cut):
    def fresh():
        return curriculum(loss=loss, advance_at=0.55, check_every=3, warmup=5)

    g = generator(5, "data")
    whole = run(fresh(), g, 0, 200)
    assert len({stage for _, stage, _ in whole}) > 4  # or resuming would be easy

    g, c = generator(5, "data"), fresh()
    before = run(c, g, 0, cut)
    stored, numbers = json.dumps(c.state()), g.get_state()
    g, c = torch.Generator(), fresh()
    g.set_state(numbers)
    c.load_state(json.loads(stored))
    assert json.dumps(c.state()) == stored
    assert before + run(c, g, cut, 200) == whole


def test_plans_that_do_not_fit_the_task():
    with pytest.raises(UsageError, match="last stage is 30, the task's size 24"):
        curriculum(end=30)
    with pytest.raises(UsageError, match="start is 30"):
        curriculum(start=30)
    with pytest.raises(UsageError, match="counts length"):
        Curriculum(CurriculumSection(unit="pairs"), 24, unit="length")
    Curriculum(CurriculumSection(unit="length"), 24, unit="length")
    with pytest.raises(UsageError, match="no stage of this curriculum"):
        curriculum(start=6, step=6).load_state(curriculum().state() | {"n": 7})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"counts": (1, 2), "end": 4}, "leave out end"),
        ({"counts": (2, 2)}, "must rise"),
        ({"counts": (2, 4), "start": 3}, "less than start"),
        ({"start": 5, "end": 4}, "less than start"),
        ({"stpe": 1}, "stpe"),
    ],
)
def test_keys_that_contradict_each_other(keys, message):
    with pytest.raises(ValueError, match=message):
        CurriculumSection(**keys)
