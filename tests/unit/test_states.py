"""The generator of labelled series: sizes, seeds, orders, parts, and that its states can be told apart."""

import importlib.util
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memtoken_cli.data.nuisances import draw_rig
from memtoken_cli.data.state_orders import SHORTEST, Run, draw_plan, draw_runs
from memtoken_cli.data.state_signals import Chirp, Course, Cycle, Events, Hum, Level, Switch
from memtoken_cli.data.state_themes import THEMES
from memtoken_cli.data.state_worlds import State, World, draw_state, draw_world
from memtoken_cli.data.states import make, make_many, render, write_csv

ROOT = Path(__file__).resolve().parents[2]
KINDS = (Level, Cycle, Hum, Chirp, Events, Switch, Course)


def rng(*seed):
    return np.random.default_rng(seed)


def flat(values, **said):
    """A world whose states are constants."""
    states = tuple(State(((Level(np.float32([v]), np.float32([0.0]), 50.0), 1.0),)) for v in values)
    ready = World("body", 1, states, tuple(range(len(values))), (), 0.0, 1, False, 32)
    return replace(ready, **said)


@pytest.mark.parametrize("seed", range(12))
def test_a_series_is_whole_and_its_seed_says_it(seed):
    sample, again, other = make(rng(seed)), make(rng(seed)), make(rng(seed, 1))
    rows, channels = sample.values_TC.shape
    assert 1024 <= rows <= 16384 and 1 <= channels <= 24 and 2 <= len(sample.names) <= 10
    assert sample.values_TC.dtype == np.float32 and sample.states_T.dtype == np.int64
    assert np.isfinite(sample.values_TC).all() and sample.values_TC.std(0).max() > 0
    assert sample.states_T.shape == (rows,) and sample.states_T.min() >= 0
    assert sample.states_T.max() < len(sample.names)
    assert sample.values_TC.tobytes() == again.values_TC.tobytes()
    assert sample.states_T.tobytes() == again.states_T.tobytes()
    assert sample.values_TC.tobytes() != other.values_TC.tobytes()


def test_sizes_are_obeyed_and_impossible_ones_refused():
    sample = make(rng(1), rows=64, channels=40, states=12)
    assert sample.values_TC.shape == (64, 40) and len(sample.names) == 12
    assert make(rng(1), rows=500, channels=1, states=1).states_T.max() == 0
    for sizes in ({"rows": 63}, {"channels": 0}, {"states": 0}):
        with pytest.raises(ValueError, match="at least 64, 1 and 1"):
            make(rng(1), **sizes)


def test_a_pair_shares_its_states_and_not_its_sensors():
    for seed in range(6):
        a, b = make(rng(seed), rows=1500, channels=3, pair=True)
        assert a.names == b.names and a.coarse_names == b.coarse_names
        assert a.values_TC.shape == b.values_TC.shape
        assert np.abs(a.values_TC - b.values_TC).max() > 0.01
    many = make_many(rng(3), 4, rows=800, channels=2, states=3)
    assert len(many) == 4 and {sample.names for sample in many} == {("state0", "state1", "state2")}


def test_some_pairs_follow_one_programme_and_some_do_not():
    def order(sample):
        return sample.states_T[np.r_[0, np.flatnonzero(np.diff(sample.states_T)) + 1]].tolist()

    same = {bool(order(a) == order(b)) for a, b in (make(rng(9, i), rows=1200, pair=True) for i in range(40))}
    assert same == {True, False}


def test_regimes_are_a_map_of_the_states():
    with_regimes = [
        s for s in (make(rng(i), rows=3000, channels=2, states=7) for i in range(30)) if s.coarse_names
    ]
    assert with_regimes
    for sample in with_regimes:
        for state in np.unique(sample.states_T):
            assert len(set(sample.coarse_T[sample.states_T == state])) == 1
        assert 2 <= len(sample.coarse_names) < len(sample.names)
    assert make(rng(0), states=2).coarse_T is None


@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(64, 9000), st.booleans(), st.booleans())
def test_runs_fill_the_rows_and_neighbours_differ(seed, states, rows, null, regimes):
    generator, null = np.random.default_rng(seed), null and states > 2
    plan = draw_plan(generator, states, rows, null, regimes)
    runs = draw_runs(generator, plan, rows, [state // 2 for state in range(states)])
    assert sum(run.rows for run in runs) == rows
    assert all(a.state != b.state for a, b in pairwise(runs))
    assert {run.state for run in runs} <= set(range(states))
    assert min(run.rows for run in runs) >= min(SHORTEST, rows // (2 * len(runs)))
    if plan.habit == "once":
        assert sorted(run.state for run in runs) == list(range(states))


def test_every_habit_is_met():
    habits = {draw_plan(rng(i), 6, 4000, i % 3 == 0, i % 3 == 1).habit for i in range(60)}
    assert habits == {"recurring", "once", "programme", "rest", "regimes"}
    rest = draw_plan(rng(0), 4, 6000, True, False)
    runs = draw_runs(rng(1), rest, 6000, (0, 0, 1, 1))
    assert {run.state for run in runs[::2]} == {3} and 3 not in {run.state for run in runs[1::2]}


@pytest.mark.parametrize("kind", KINDS)
def test_parts_render_any_length_and_step_nought_is_no_step(kind):
    for sources in (1, 5):
        part = kind.draw(rng(4), sources, 40.0)
        for rows in (1, 2, 17, 700):
            made = part.render(rng(5), rows, 1.3)
            assert made.shape == (rows, sources) and made.dtype == np.float32 and np.isfinite(made).all()
        same, moved = part.varied(rng(6), 0.0), part.varied(rng(6), 0.5)
        here = part.render(rng(7), 700, 1.0)
        assert np.allclose(here, same.render(rng(7), 700, 1.0), atol=0.02 * (1 + np.abs(here).max()))
        assert not np.allclose(here, moved.render(rng(7), 700, 1.0), atol=1e-3)


def test_hum_has_the_size_it_says_from_its_first_row():
    for radius, angle in ((0.3, 0.0), (0.9, 0.0), (0.98, 0.4), (0.98, 2.5)):
        made = Hum(np.full(400, 2.0, np.float32), radius, angle).render(rng(8), 300, 1.0)
        assert abs(made[0].std() / 2 - 1) < 0.15 and abs(made.std() / 2 - 1) < 0.15


def test_a_cycle_comes_back_after_its_period():
    cycle = replace(Cycle.draw(rng(2), 2, 50.0), period=64.0, unrest=0.0, swell=0.0)
    made = cycle.render(rng(3), 640, 1.0)
    assert np.allclose(made[:-64], made[64:], atol=0.1 * np.abs(made).max())
    quick = cycle.render(rng(3), 640, 2.0)
    assert np.allclose(quick[:-32], quick[32:], atol=0.1 * np.abs(made).max())


def test_runs_meet_in_a_blend_and_keep_their_levels():
    made = render(rng(0), flat((0.0, 1.0, -2.0)), [Run(0, 100), Run(1, 100), Run(2, 100)], 300)[:, 0]
    assert made[50] == 0 and made[150] == 1 and made[250] == -2
    assert made[:80].max() == 0 and (np.diff(made[80:120]) >= -1e-6).all()
    sharp = render(rng(0), flat((0.0, 1.0), blend=0), [Run(0, 60), Run(1, 40)], 100)[:, 0]
    assert sharp.tolist() == [0.0] * 60 + [1.0] * 40


def test_even_worlds_leave_nothing_but_shape():
    world = replace(draw_world(rng(1), 3, 3, False, 400.0), even=True, background=(), smooth=1, blend=0)
    made = render(rng(2), world, [Run(0, 500), Run(2, 500)], 1000)
    for half in (made[:500], made[500:]):
        assert np.abs(half.mean(0)).max() < 1e-3
        assert (half.std(0) < 1.01).all()


def test_neighbours_are_nearer_than_strangers():
    """Levels of a state moved by .2 differ less than those of another draw."""
    near, far = [], []
    for seed in range(20):
        state = draw_state(rng(seed), "plant", 4, 30.0)
        at = state.render(rng(seed, 1), 400, 4, 0.0).mean(0)
        near.append(
            np.abs(at - state.varied(rng(seed, 2), 0.2).render(rng(seed, 1), 400, 4, 0.0).mean(0)).mean()
        )
        far.append(
            np.abs(at - draw_state(rng(seed, 3), "plant", 4, 30.0).render(rng(4), 400, 4, 0.0).mean(0)).mean()
        )
    assert np.mean(near) < 0.5 * np.mean(far)


def test_every_theme_is_drawn():
    assert {draw_world(rng(i), 2, 3, i % 2 == 0, 300.0).theme for i in range(80)} == set(THEMES)


def test_gaps_are_missing_or_straight():
    seen = 0
    for seed in range(80):
        missing, drawn = (
            make(rng(seed), rows=600, channels=2, gaps=gaps).values_TC for gaps in (True, False)
        )
        lost = np.isnan(missing).any(1)
        assert np.array_equal(missing[~lost], drawn[~lost])
        if lost.any():
            seen += 1
            assert np.isnan(missing[lost]).all() and not lost[0] and not lost[-1]
            inside = lost[1:-1] & lost[:-2] & lost[2:]
            bend = np.abs(drawn[2:] - 2 * drawn[1:-1] + drawn[:-2])[inside]
            assert bend.size == 0 or bend.max() < 1e-3 * (1 + np.abs(drawn).max())
    assert 1 <= seen <= 15


def test_rigs_keep_to_channels():
    rig = draw_rig(rng(0), 3, 8)
    latent = rng(1).standard_normal((500, 3)).astype(np.float32)
    assert rig.record(rng(2), latent, gaps=False).shape == (500, 8)
    assert (np.abs(rig.mix_LC).max(0) > 0).all()
    assert not np.allclose(rig.varied(rng(3), 0.5).gain_C, rig.gain_C)


def _told_apart(sample):
    """Rows in the right state by the nearest state's mean of moving level and spread, and by the majority."""
    x = (sample.values_TC - sample.values_TC.mean(0)) / (sample.values_TC.std(0) + 1e-6)
    box = np.ones(64) / 64
    mean = np.stack([np.convolve(channel, box, "same") for channel in x.T], 1)
    square = np.stack([np.convolve(channel**2, box, "same") for channel in x.T], 1)
    seen = np.concatenate([mean, np.log(np.sqrt(np.maximum(square - mean**2, 0)) + 0.01)], 1)
    y, ids = sample.states_T, np.unique(sample.states_T)
    centre = np.stack([seen[y == state].mean(0) for state in ids])
    guess = ids[((seen[:, None] - centre) ** 2).sum(-1).argmin(1)]
    return (guess == y).mean(), np.bincount(y).max() / len(y)


def test_states_are_neither_trivial_nor_hopeless():
    told = np.asarray([_told_apart(make(rng(21, i), rows=3000, channels=4, states=5)) for i in range(40)])
    assert (told[:, 0] - told[:, 1]).mean() > 0.15
    assert 0.6 < told[:, 0].mean() < 0.92
    assert (told[:, 0] < 0.75).sum() >= 4 and (told[:, 0] > 0.9).sum() >= 4


def test_csv_comes_back(tmp_path):
    sample = make(rng(3), rows=100, channels=3, states=2)
    sample.values_TC[7, 1] = np.nan
    write_csv(sample, tmp_path / "a.csv", rate=10)
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert lines[0] == "t,c0,c1,c2,state" and len(lines) == 101 and lines[8].split(",")[2] == ""
    read = np.genfromtxt(lines[1:], delimiter=",")
    assert np.allclose(read[:, 0], np.arange(100) / 10)
    assert np.allclose(read[:, 1:4], sample.values_TC, rtol=1e-3, equal_nan=True)
    assert np.array_equal(read[:, 4].astype(int), sample.states_T)
    write_csv(sample, tmp_path / "b.csv", labelled=False, channels=("x", "y", "z"))
    assert (tmp_path / "b.csv").read_text().startswith("t,x,y,z\n0,")


def test_the_example_is_what_its_script_writes(tmp_path):
    where = importlib.util.spec_from_file_location("make_walk", ROOT / "scripts" / "make_walk.py")
    script = importlib.util.module_from_spec(where)
    where.loader.exec_module(script)
    for path in script.write(tmp_path):
        shipped = script.HERE / path.name
        assert shipped.stat().st_size <= 60_000
        if path.suffix == ".csv":
            here, there = (np.genfromtxt(p, delimiter=",", skip_header=1) for p in (path, shipped))
            assert np.allclose(here, there, rtol=1e-2, atol=1e-2)  # other builds of numpy round otherwise
        else:
            assert path.read_bytes() == shipped.read_bytes()
    ends = np.cumsum([seconds for _, seconds in script.RUNS])
    for line in (script.HERE / "walk.prompts.jsonl").read_text().splitlines():
        prompt = json.loads(line)
        for key in {"t", "start", "end"} & set(prompt):
            truth = script.STATES[script.RUNS[int(np.searchsorted(ends, prompt[key], side="right"))][0]]
            assert truth == prompt["label"]
