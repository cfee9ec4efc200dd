"""The paper's protocol: contestants on the test subsequences, prompted once, and over iterations.

Figures are over the rows of all windows, which overlap. `far` is the accuracy on windows in which no prompt
lies. Models are trained where that is not done yet, in runs/memprompttss-NAME for
recipes/memprompttss/NAME.yaml, where `memtok train` puts them too.

Shape suffixes: B subsequences, L rows of one, W windows, T rows of a window, P prompts, X rows that count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from memtoken_cli.engine import stream
from memtoken_cli.engine.dist import World, join
from memtoken_cli.engine.method import Run
from memtoken_cli.engine.stream import State
from memtoken_cli.io.errors import UsageError, nearest
from memtoken_cli.methods.memprompttss.config import RELEASED, Config, DataConfig
from memtoken_cli.methods.memprompttss.learn import Network, precise
from memtoken_cli.methods.memprompttss.paper_data import Asking, Material, Part, material
from memtoken_cli.methods.memprompttss.placement import LABEL, Said
from memtoken_cli.methods.memprompttss.train import NAME, majority, open_trained, train_on
from memtoken_cli.methods.memprompttss.windows import Geometry
from memtoken_cli.recipe.schema import Recipe

RUNS = "runs"
SMOKE = 16  # steps of a short form
OF_THE_BANK = ("bank_off", "bank_shuffled")
ROWS = ("fill", "majority", "prompttss", "memprompt", *OF_THE_BANK, "paper_compat")


class Contestant(Protocol):
    def __call__(self, part: Part, of: Sequence[int], level: int, said: Sequence[Said]) -> list[Tensor]:
        """Classes [B,W,T] of these subsequences after each iteration's prompts."""
        ...


@dataclass(frozen=True)
class Fill:
    """No model: every row is of the class of the nearest row whose class was said; none yet: the
    majority's."""

    geometry: Geometry
    majority: Sequence[int]

    def __call__(self, part: Part, of: Sequence[int], level: int, said: Sequence[Said]) -> list[Tensor]:
        answers = []
        row_L = torch.arange(self.geometry.length)
        for r in range(len(said)):
            named_BP = torch.cat([s.named_BP for s in said[: r + 1]], 1)
            row_BP = torch.cat([s.row_BP for s in said[: r + 1]], 1)
            value_BP = torch.cat([s.value_BP for s in said[: r + 1]], 1)
            away_BLP = (row_L[:, None] - row_BP[:, None]).abs().masked_fill(~named_BP[:, None], 2**40)
            near_BL = value_BP.gather(1, away_BLP.argmin(-1))
            y_BL = torch.where(named_BP.any(1, keepdim=True), near_BL, self.majority[level])
            answers.append(self.geometry.cut(y_BL))
        return answers


@dataclass(frozen=True)
class Majority:
    """The training part's most frequent class."""

    geometry: Geometry
    majority: Sequence[int]

    def __call__(self, part: Part, of: Sequence[int], level: int, said: Sequence[Said]) -> list[Tensor]:
        shape = (len(of), self.geometry.windows, self.geometry.rows)
        return [torch.full(shape, self.majority[level]) for _ in said]


@dataclass(frozen=True)
class Model:
    """A trained backend. bank: as it is, never written (`off`), or with other classes' names (`shuffled`).
    own: the same subsequences as it standardises them, where that differs."""

    network: Network
    config: Config
    classes: Sequence[int]
    batch: int
    device: torch.device
    bank: str = "on"
    own: Part | None = None

    @torch.no_grad()
    def __call__(self, part: Part, of: Sequence[int], level: int, said: Sequence[Said]) -> list[Tensor]:
        x_BLC = (self.own or part).x_BLC[torch.tensor(of)]
        parts = [
            self._answers(
                x_BLC[start : start + self.batch], level, [s[start : start + self.batch] for s in said]
            )
            for start in range(0, len(of), self.batch)
        ]
        return [torch.cat(found) for found in zip(*parts, strict=True)]

    def _answers(self, x_BLC: Tensor, level: int, said: Sequence[Said]) -> list[Tensor]:
        x_BLC = x_BLC.to(self.device)
        answers: list[Tensor] = []
        with precise(self.device):
            z_BWND = self.network.encode(x_BLC) if self.config.cache else None

            def one(r: int, state: State) -> tuple[State, Tensor | None]:
                z = self.network.encode(x_BLC) if z_BWND is None else z_BWND
                told = self._told(said[r], level).to(self.device)
                state, logits = self.network.step(x_BLC, z, state, told, level)
                answers.append(logits.argmax(-1).cpu())
                return state, None

            stream.run(one, self.network.start(len(x_BLC)), len(said))
        return answers

    def _told(self, said: Said, level: int) -> Said:
        if self.bank == "off":
            return Said.none(len(said))
        if self.bank == "shuffled" and self.classes[level] > 1:
            other_BP = (said.value_BP + 1) % self.classes[level]
            return replace(said, value_BP=torch.where(said.kind_BP == LABEL, other_BP, said.value_BP))
        return said


@dataclass(frozen=True)
class Sheet:
    """Of one level and iteration, rows that count: true and answered classes, and which lie in windows
    without a prompt."""

    true_X: np.ndarray
    answer_X: np.ndarray
    far_X: np.ndarray

    def figures(self) -> dict[str, float]:
        """Accuracy, macro-F1, ARI, NMI, and the accuracy far from prompts."""
        from sklearn.metrics import adjusted_rand_score, f1_score, normalized_mutual_info_score

        right_X = self.true_X == self.answer_X
        return {
            "accuracy": float(right_X.mean()),
            "macro_f1": float(f1_score(self.true_X, self.answer_X, average="macro")),
            "ari": float(adjusted_rand_score(self.true_X, self.answer_X)),
            "nmi": float(normalized_mutual_info_score(self.true_X, self.answer_X)),
            "far": float(right_X[self.far_X].mean()) if self.far_X.any() else float("nan"),
        }


def pooled(sheets: Sequence[Sheet]) -> Sheet:
    """Several levels as one: their classes share ids, as the outputs of a model do."""
    return Sheet(
        np.concatenate([s.true_X for s in sheets]),
        np.concatenate([s.answer_X for s in sheets]),
        np.concatenate([s.far_X for s in sheets]),
    )


def sit(
    contestant: Contestant, found: Material, config: Config, counts: Sequence[int], hit: float, seed: int
) -> list[list[Sheet]]:
    """[iteration][level]: the contestant on the whole test, counts[r] prompts at iteration r."""
    part = found.test
    of = list(range(len(part)))
    geometry = Geometry(config.rows, config.stride, config.windows)
    real_BWT = geometry.cut(part.real_BL())
    by_level = []
    for level in range(found.levels):
        classes = len(found.classes[level])
        said = [
            Asking.of(config, count, hit).draw(part, of, level, classes, seed, "test", r)
            for r, count in enumerate(counts)
        ]
        true_BWT = geometry.cut(part.y_GBL[level])
        sheets = []
        for r, answer_BWT in enumerate(contestant(part, of, level, said)):
            near_BW = geometry.holds(torch.cat([s.row_BP for s in said[: r + 1]], 1))
            far_BWT = ~near_BW[..., None].expand_as(true_BWT)
            told = (true_BWT, answer_BWT, far_BWT)
            sheets.append(Sheet(*(x[real_BWT].numpy() for x in told)))
        by_level.append(sheets)
    return [[sheets[r] for sheets in by_level] for r in range(len(counts))]


def table(
    contestants: Mapping[str, Contestant], found: Material, config: Config, data: DataConfig, seed: int
) -> list[dict[str, Any]]:
    """A row a contestant: figures of one step, levels pooled; accuracy at the `first` and `last` iteration
    and its `gain` between two; all figures of `levels` and `iterations`. Means over `seeds` draws of
    prompts."""
    paper = data.paper
    once = [int(paper.budget * config.length)]
    again = [paper.prompts] * paper.iterations
    rows: list[dict[str, Any]] = []
    for name, contestant in contestants.items():
        draws = range(seed, seed + data.seeds)
        single = [sit(contestant, found, config, once, paper.hit, draw)[0] for draw in draws]
        steps = [sit(contestant, found, config, again, paper.hit, draw) for draw in draws]
        curve = [mean([pooled(one[r]).figures() for one in steps]) for r in range(len(again))]
        first, last = curve[0]["accuracy"], curve[-1]["accuracy"]
        row: dict[str, Any] = {"method": name, **mean([pooled(levels).figures() for levels in single])}
        row |= {"first": first, "last": last, "gain": (last - first) / max(1, len(again) - 1)}
        by_level = [mean([levels[level].figures() for levels in single]) for level in range(found.levels)]
        if found.levels > 1:
            row |= {f"level_{level}": figures["accuracy"] for level, figures in enumerate(by_level)}
        rows.append(row | {"levels": by_level, "iterations": curve})
    for own in rows:
        for row in rows if own["method"] == "memprompt" else []:
            if row is not own:
                own[f"over_{row['method']}"] = own["accuracy"] - row["accuracy"]
                own[f"far_over_{row['method']}"] = own["far"] - row["far"]
    return rows


def mean(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Key by key."""
    return {key: float(np.mean([one[key] for one in figures])) for key in figures[0]}


def exam(recipe: Recipe, run: Run) -> list[dict[str, Any]]:
    """`table` of the contestants that the recipe names (left out: all), trained where they are not yet.

    Raises UsageError for an unknown contestant, DataError.
    """
    if recipe.data.smoke:
        recipe = _short(recipe)
    data: DataConfig = recipe.data
    wanted = checked(data.contestants or ROWS)
    found = material(data, recipe.config, recipe.seed)
    folder = run.out / RUNS / f"{NAME}-{Path(recipe.source).stem}{'-smoke' if data.smoke else ''}"
    with join(run.device) as world:
        contestants = _contestants(recipe, found, wanted, folder, run, world)
        return table(contestants, found, recipe.config, data, recipe.seed)


def _short(recipe: Recipe) -> Recipe:
    """A few steps and one draw of prompts: whether all runs, not how well."""
    train = recipe.train.model_copy(update={"epochs": 1, "steps": SMOKE})
    return replace(recipe, train=train, data=recipe.data.model_copy(update={"seeds": 1}))


def checked(names: Sequence[str]) -> tuple[str, ...]:
    """Raises UsageError for a name that is no row of this exam."""
    for name in names:
        if name not in ROWS:
            near = nearest(name, ROWS)
            hint = f"did you mean {near}?" if near else f"contestants: {', '.join(ROWS)}"
            raise UsageError(f"task=paper has no contestant {name!r}", hint=hint)
    return tuple(names)


def _contestants(
    recipe: Recipe, found: Material, wanted: Sequence[str], folder: Path, run: Run, world: World
) -> dict[str, Contestant]:
    config: Config = recipe.config
    geometry = Geometry(config.rows, config.stride, config.windows)
    common = majority(found)
    models: dict[str, Model] = {}
    chosen: dict[str, Contestant] = {}
    for name in wanted:
        if name == "fill":
            chosen[name] = Fill(geometry, common)
        elif name == "majority":
            chosen[name] = Majority(geometry, common)
        else:
            kind = "memprompt" if name in OF_THE_BANK else name
            if kind not in models:
                models[kind] = _trained(kind, recipe, found, folder, run, world)
            chosen[name] = replace(models[kind], bank=name.removeprefix("bank_") if kind != name else "on")
    return chosen


def _trained(name: str, recipe: Recipe, found: Material, folder: Path, run: Run, world: World) -> Model:
    """A backend of the recipe's shape. The recipe's own backend lies in its folder, others beside it."""
    config: Config = recipe.config
    update: dict[str, Any] = {"backend": "memprompt" if name == "paper_compat" else name}
    own: Part | None = None
    learnt = found
    if name == "paper_compat":
        update |= RELEASED | {"paper_compat": True}
        learnt = material(recipe.data, config.model_copy(update=update), recipe.seed)
        aligned = config.model_copy(update={"stats_from": "all"})
        own = material(recipe.data, aligned, recipe.seed).test
    elif config.paper_compat and name == "memprompt":
        update = {}
    changed = config.model_copy(update=update)
    where = folder if changed == config else folder / name
    path = train_on(replace(recipe, config=changed), learnt, where, run, world)
    trained = open_trained(path, str(world.device))
    classes = [len(level) for level in found.classes]
    return Model(trained.network, changed, classes, recipe.train.batch, world.device, "on", own)
