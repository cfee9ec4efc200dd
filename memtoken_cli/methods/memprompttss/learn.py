"""What `engine/fit.py` trains: a backend, one optimiser step an iteration.

Step e R + r (from 0) is iteration r of the e-th batch of subsequences: its prompts are written beside those
of iterations before it, whose tokens carry no gradient, and all windows are read. The state between
iterations, the best weights so far and the figures they were chosen by are the task's own state in a
checkpoint.

Shape suffixes: B subsequences, L rows of one, W windows, T rows of a window, C channels, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from memtoken_cli.engine import seeds, stream
from memtoken_cli.engine.dist import World
from memtoken_cli.engine.stream import State
from memtoken_cli.engine.task import At, Enough, Loss, Phase
from memtoken_cli.methods.memprompttss.config import Config, TrainConfig
from memtoken_cli.methods.memprompttss.memprompt import Backend, MemPrompt
from memtoken_cli.methods.memprompttss.paper_data import Asking, Material, Part
from memtoken_cli.methods.memprompttss.placement import LABEL, Said
from memtoken_cli.methods.memprompttss.prompttss import PromptTSS

Network = MemPrompt | PromptTSS


@dataclass(frozen=True)
class Batch:
    """Subsequences at iteration r with that iteration's prompts; rows: which of the whole batch they are."""

    x_BLC: Tensor
    y_BL: Tensor
    real_BL: Tensor
    said: Said
    level: int
    iteration: int
    rows: range

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> Batch:
        return Batch(
            self.x_BLC[part],
            self.y_BL[part],
            self.real_BL[part],
            self.said[part],
            self.level,
            self.iteration,
            self.rows[part],
        )


@dataclass
class Learning:
    """The `Task`."""

    network: Network
    data: Material
    config: Config
    train: TrainConfig
    seed: int
    world: World = field(default_factory=World)

    def __post_init__(self) -> None:
        self.asking = Asking.of(self.config, self.train.prompts, 0.25, self.train.p_wrong)
        self.kept: State = ()
        self.fresh: list[tuple[range, State]] = []
        self.best: dict[str, Tensor] = {}
        self.curve: list[dict[str, float]] = []
        self.chosen = -1  # epoch of the best weights

    @property
    def batches(self) -> int:
        """Batches of an epoch, all levels together."""
        return self.data.levels * math.ceil(len(self.data.train) / self.train.batch)

    @property
    def epoch_steps(self) -> int:
        return self.batches * self.train.iterations

    def phases(self) -> Sequence[Phase]:
        t = self.train
        steps = min(t.epochs * self.epoch_steps, t.steps or math.inf)
        named = dict(self.network.named_parameters())
        clip, warmup = t.clip or None, round(t.warmup * steps)
        return [
            Phase("all", int(steps), t.lr, named, warmup, t.decay, t.weight_decay, clip, t.betas, t.decay_to)
        ]

    def batch(self, at: At, generator: torch.Generator) -> Any:
        if self.curve and len(self.curve) - 1 - self.chosen >= self.train.patience:
            raise Enough
        number, iteration = divmod(at.index, self.train.iterations)
        epoch, place = divmod(number, self.batches)
        # levels take turns, each with an order of its own
        turn, level = divmod(place, self.data.levels)
        order = torch.randperm(
            len(self.data.train), generator=seeds.generator(self.seed, "order", epoch, level)
        ).tolist()
        of = order[turn * self.train.batch : (turn + 1) * self.train.batch]
        hits = self.train.hits
        hit = hits[seeds.derive(self.seed, "hit", number) % len(hits)]
        part = self.data.train
        classes = len(self.data.classes[level])
        said = self.asking.with_hit(hit).draw(part, of, level, classes, self.seed, "train", epoch, iteration)
        index = torch.tensor(of)
        y_BL = part.y_GBL[level][index]
        draw = seeds.generator(self.seed, "relabel", number)
        if float(torch.rand(1, generator=draw)) < self.train.relabel:
            said, y_BL = renamed(said, y_BL, classes, draw)
        return Batch(part.x_BLC[index], y_BL, part.real_BL(index), said, level, iteration, range(len(of)))

    def loss(self, part: Batch) -> Loss:
        self.network.train()
        device = self.world.device
        x_BLC = part.x_BLC.to(device)
        first = part.iteration == 0 or not self.kept
        old = (
            self.network.start(len(part))
            if first
            else tuple(x[part.rows.start : part.rows.stop] for x in self.kept)
        )
        with precise(device):
            z_BWND = self.network.encode(x_BLC)
            state, logits = self.network.step(x_BLC, z_BWND, old, part.said.to(device), part.level)
        self.fresh.append((part.rows, tuple(x.detach() for x in state)))
        total, right, count = scored(self.network, logits, part.y_BL.to(device), part.real_BL.to(device))
        return Loss(total, count, {"accuracy": (right, count)})

    def observe(self, at: At, means: Mapping[str, float]) -> Mapping[str, float]:
        """After the step, the new tokens join the state; every rank gets those of all."""
        rows = max(self.world.gather(max((r.stop for r, _ in self.fresh), default=0)))
        shapes = max(self.world.gather([list(x.shape[1:]) for x in self.fresh[0][1]] if self.fresh else []))
        template = self.network.start(1)
        whole = []
        for i, shape in enumerate(shapes):
            out = torch.zeros(rows, *shape, dtype=template[i].dtype, device=template[i].device)
            for at_rows, state in self.fresh:
                out[at_rows.start : at_rows.stop] = state[i]
            whole.append(out)
        self.world.sum_(whole)
        self.kept, self.fresh = tuple(whole), []
        return {}

    def validate(self, at: At) -> Mapping[str, float]:
        """Mean loss and accuracy over the iterations on the split that chooses the epoch; better weights are
        kept."""
        part = self.data.test if self.config.select_on == "test" else self.data.valid
        if not len(part):
            return {}
        epoch = len(self.curve)
        drawn = ("drawn", epoch) if self.config.eval_prompts == "drawn" else ("valid",)
        found = examine(self.network, self.data, part, self.train, self.config, self.seed, drawn, self.world)
        self.curve.append(found)
        key, sign = ("accuracy", 1.0) if self.config.select_on == "test" else ("loss", -1.0)
        figures = [sign * one[key] for one in self.curve]
        if max(figures) > max(figures[:-1], default=-math.inf):
            self.chosen = epoch
            self.best = {name: x.detach().clone() for name, x in self.network.named_parameters()}
        return found

    def state(self) -> Mapping[str, Any]:
        named: dict[str, Any] = {f"kept.{i}": x for i, x in enumerate(self.kept)}
        named |= {f"best.{name}": x for name, x in self.best.items()}
        return named | {"curve": self.curve, "chosen": self.chosen, "keeps": len(self.kept)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        device = self.world.device
        self.curve, self.chosen = list(state["curve"]), int(state["chosen"])
        self.kept = tuple(state[f"kept.{i}"].to(device) for i in range(int(state["keeps"])))
        best = {name.removeprefix("best."): x for name, x in state.items() if name.startswith("best.")}
        self.best = {name: x.to(device) for name, x in best.items()}

    def settle(self) -> None:
        """The weights of the best epoch, where one was chosen, become the network's."""
        with torch.no_grad():
            for name, parameter in self.network.named_parameters():
                if name in self.best:
                    parameter.copy_(self.best[name])
        self.network.eval()


def renamed(said: Said, y_BL: Tensor, classes: int, generator: torch.Generator) -> tuple[Said, Tensor]:
    """The same prompts and rows with the classes of each subsequence under each other's names."""
    name_BK = torch.stack([torch.randperm(classes, generator=generator) for _ in y_BL])
    value_BP = torch.where(said.kind_BP == LABEL, name_BK.gather(1, said.value_BP % classes), said.value_BP)
    return replace(said, value_BP=value_BP), name_BK.gather(1, y_BL)


@contextmanager
def precise(device: torch.device) -> Iterator[None]:
    """bfloat16 where there is a GPU for it, float32 on a CPU."""
    if device.type == "cuda":
        with torch.autocast("cuda", torch.bfloat16):
            yield
    else:
        yield


def scored(
    network: Network, logits_BWTK: Tensor, y_BL: Tensor, real_BL: Tensor
) -> tuple[Tensor, float, float]:
    """Summed cross-entropy over the real rows of all windows, how many are right, and how many there are."""
    geometry = network.geometry
    y_X = geometry.cut(y_BL)[geometry.cut(real_BL)]
    logits_XK = logits_BWTK.float()[geometry.cut(real_BL)]
    total = cross_entropy(logits_XK, y_X, reduction="sum")
    return total, float((logits_XK.argmax(-1) == y_X).sum()), float(len(y_X))


@torch.no_grad()
def examine(
    network: Network,
    data: Material,
    part: Part,
    train: TrainConfig,
    config: Config,
    seed: int,
    drawn: tuple[seeds.Name, ...],
    world: World,
) -> dict[str, float]:
    """Loss and accuracy, means over rows, levels and iterations, of prompts that only (seed, series,
    iteration) decide, or `drawn` anew."""
    was, device = network.training, world.device
    network.eval()
    asking = Asking.of(config, train.prompts, 0.25, 0.0)
    totals = [0.0, 0.0, 0.0]
    for start in range(0, len(part), train.batch):
        of = list(range(start, min(start + train.batch, len(part))))
        index = torch.tensor(of)
        x_BLC, real_BL = part.x_BLC[index].to(device), part.real_BL(index).to(device)
        with precise(device):
            z_BWND = network.encode(x_BLC)
        for level in range(data.levels):
            y_BL = part.y_GBL[level][index].to(device)

            def one(
                r: int,
                state: State,
                of: list[int] = of,
                level: int = level,
                x: Tensor = x_BLC,
                z: Tensor = z_BWND,
                y: Tensor = y_BL,
                real: Tensor = real_BL,
            ) -> tuple[State, Tensor]:
                said = asking.draw(part, of, level, len(data.classes[level]), seed, *drawn, r)
                with precise(device):
                    state, logits = network.step(x, z, state, said.to(device), level)
                loss, right, count = scored(network, logits, y, real)
                for i, value in enumerate((float(loss), right, count)):
                    totals[i] += value
                return state, loss

            stream.run(one, network.start(len(of)), train.iterations)
    network.train(was)
    return {"loss": totals[0] / totals[2], "accuracy": totals[1] / totals[2]}


def network_of(config: Config, channels: int, classes: int, levels: int, seed: int) -> Network:
    """A new backend, its weights drawn from the seed."""
    kind = MemPrompt if config.backend == "memprompt" else PromptTSS
    with torch.random.fork_rng(devices=[]):
        seeds.seed_all(seeds.derive(seed, "weights"))
        return kind(config, channels, classes, levels)


__all__ = ["Backend", "Batch", "Learning", "Network", "examine", "network_of", "precise", "scored"]
