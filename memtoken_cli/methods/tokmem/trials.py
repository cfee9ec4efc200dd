"""Short runs on the first block that choose a learning rate and a number of tokens by validation loss."""

from __future__ import annotations

import math
from collections.abc import Callable

from memtoken_cli.engine.checkpoint import RunDir, run_dir
from memtoken_cli.engine.dist import World
from memtoken_cli.engine.fit import fit
from memtoken_cli.io.errors import UsageError
from memtoken_cli.methods.tokmem.config import Config, TrainConfig
from memtoken_cli.methods.tokmem.learn import Learning
from memtoken_cli.recipe.canonical import dump

RATES = (2e-3, 5e-3, 1e-2, 2e-2, 4e-2)
COUNTS = (1, 4)  # that `tokens: auto` tries
DEFAULT_RATE = 1e-2  # where nothing is trained
FOLDER = "trials"
SHARE = 4  # a trial takes one in so many of the steps


def candidates(config: Config, train: TrainConfig, tokens: int | None) -> tuple[list[float], list[int]]:
    """The rates and numbers of tokens to try; `tokens` is an old bank's, which leaves no choice."""
    rates = list(RATES) if train.lr == "find" else [train.lr]
    if tokens is not None:
        return rates, [tokens]
    return rates, list(COUNTS) if config.tokens == "auto" else [config.tokens]


def choose(
    make: Callable[[float, int], Learning],
    rates: list[float],
    counts: list[int],
    rundir: RunDir | None,
    mark: str,
    world: World,
    note: Callable[[str], None],
) -> tuple[float, int]:
    """(rate, tokens) with the smallest validation loss; `make` gives the task of the first block, `mark` is
    its id: a trial of other samples is another one.

    Raises UsageError where there is a choice and no validation sample.
    """
    if len(rates) * len(counts) == 1:
        return rates[0], counts[0]
    if rundir is None:
        return (rates[0] if len(rates) == 1 else DEFAULT_RATE), counts[0]
    best = (math.inf, rates[0], counts[0])
    for tokens in counts:
        for rate in rates:
            task = make(rate, tokens)
            block = task.blocks[0]
            if not block.val:
                what = "nothing to choose by: the first block has no validation samples"
                raise UsageError(what, hint="data.val=10")
            steps = max(1, task.steps(block) // SHARE)
            task.train = task.train.model_copy(update={"steps": steps, "epochs": None})
            where = rundir.path / FOLDER / f"{mark[:12]}-tokens-{tokens}-lr-{rate:g}"
            where.parent.mkdir(exist_ok=True)
            with run_dir(where, dump({"tokens": tokens, "lr": rate}), world=world, warn=note) as trial:
                fit(task, trial, seed=task.seed, save_every=task.train.save_every, world=world)
            sums = task.examine(block.val, 0).values()
            loss = sum(s[0] for s in sums) / max(1.0, sum(s[2] for s in sums))
            note(f"trial: {tokens} tokens, lr {rate:g}: validation loss {loss:.4f}")
            best = min(best, (loss, rate, tokens))
    return best[1], best[2]
