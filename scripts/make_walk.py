"""Writes the example series of the README: an accelerometer at 25 Hz on someone who stands, walks and runs.

    python scripts/make_walk.py [DIR]        DIR: memtoken_cli/assets/examples, where nothing is told

walk.csv and its prompts walk.prompts.jsonl; other.csv is the same person another day, with the sensor mounted
anew. RUNS and OTHER say what the truth is, in seconds.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from memtoken_cli.data.nuisances import Rig
from memtoken_cli.data.state_orders import Run
from memtoken_cli.data.state_signals import Cycle, Hum, Level
from memtoken_cli.data.state_worlds import State, World
from memtoken_cli.data.states import Sample, render, write_csv
from memtoken_cli.io.atomic import write_text

RATE = 25
STATES = ("stand", "walk", "run")
CHANNELS = ("ax", "ay", "az")
RUNS = ((0, 8), (1, 16), (2, 8), (1, 9), (0, 5), (2, 12), (1, 14), (0, 8))
OTHER = ((1, 13), (0, 7), (1, 11), (2, 15), (0, 6))
PROMPTS = (
    '{"t": 4, "label": "stand"}',
    '{"t": 12.4, "label": "walk"}',
    '{"start": 50, "end": 54, "label": "run"}',
)
HERE = Path(__file__).resolve().parent.parent / "memtoken_cli" / "assets" / "examples"


def world(generator: np.random.Generator) -> World:
    """Three states on three sources: gravity and sway; steps; quicker, harder steps."""
    gravity = Level(np.asarray((0.1, 0.2, 1.0), np.float32), np.float32((0.05, 0.05, 0.02)), 60.0)
    leaning = replace(gravity, mean_L=np.asarray((0.35, 0.1, 0.95), np.float32))
    steps = Cycle.draw(generator, 3, RATE * 1.1)
    walk = replace(steps, period=RATE * 1.1, unrest=0.05, swell=0.15)
    run = replace(steps.varied(generator, 0.4), period=RATE * 0.7, unrest=0.04, swell=0.15)
    noise = Hum(np.float32((0.02, 0.02, 0.02)), 0.5, 0.0)
    states = (
        State(((gravity, 1.0), (noise, 1.0))),
        State(((gravity, 1.0), (walk, 0.25), (noise, 2.0))),
        State(((leaning, 1.0), (run, 0.7), (noise, 4.0))),
    )
    return World("inertial", 3, states, (0, 1, 1), (), 0.03, 1, False, 32)


def sample(
    generator: np.random.Generator, made: World, rig: Rig, runs: tuple[tuple[int, int], ...]
) -> Sample:
    """The series for runs of (state, seconds)."""
    plan = [Run(state, seconds * RATE) for state, seconds in runs]
    rows = sum(run.rows for run in plan)
    values_TC = rig.record(generator, render(generator, made, plan, rows), gaps=False)
    states_T = np.repeat([run.state for run in plan], [run.rows for run in plan]).astype(np.int64)
    return Sample(values_TC, states_T, None, STATES, ())


def write(folder: Path) -> list[Path]:
    """The three files; the same bytes each time."""
    generator = np.random.default_rng(12)
    made = world(generator)
    still = np.zeros(3, np.float32)
    rig = Rig(np.eye(3, dtype=np.float32), still + 9.81, still, still + 0.01, still)
    paths = [folder / name for name in ("walk.csv", "other.csv", "walk.prompts.jsonl")]
    write_csv(sample(generator, made, rig, RUNS), paths[0], RATE, labelled=False, channels=CHANNELS)
    moved = rig.varied(generator, 0.15)
    write_csv(sample(generator, made, moved, OTHER), paths[1], RATE, labelled=False, channels=CHANNELS)
    write_text(paths[2], "\n".join(PROMPTS) + "\n")
    return paths


if __name__ == "__main__":
    for path in write(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE):
        print(path)
