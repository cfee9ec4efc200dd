"""What `engine/fit.py` trains: the rows of new procedures, block after block, everything else frozen.

Phases of block b: `control-b` (TokMem eq. 3 behind prefixes that were read before) and, where decoupled
addresses are trained by themselves, `address-b` (a linear layer on stored states). Rows of earlier blocks
and of an old bank are constants.

Shape suffixes: P procedures, k control tokens, E model width, N stored states, R rows of the table, A
addresses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from memtoken_cli.engine import seeds
from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.engine.task import At, Loss, Phase
from memtoken_cli.methods.tokmem.address import ADDRESS_BATCH, States, states_loss, states_of
from memtoken_cli.methods.tokmem.config import Config, TrainConfig
from memtoken_cli.methods.tokmem.examples import Example, Layout, Targets, layout
from memtoken_cli.methods.tokmem.loss import Table, sequence_loss
from memtoken_cli.methods.tokmem.pool import Pool, shown_forms
from memtoken_cli.methods.tokmem.replay import Replay

SEEN = 300  # times that a recipe without steps or epochs shows each procedure
EPSILON = 1e-8


@dataclass
class Block:
    """What is learned at once. rows: of the bank, as many as `control_PkE`; examples: to learn from; val: to
    choose by. address_PE: where addresses are decoupled. replay: of the procedures before it."""

    rows: tuple[int, ...]
    control_PkE: Parameter
    examples: list[Example]
    val: list[Example] = field(default_factory=list)
    address_PE: Parameter | None = None
    replay: Replay | None = None


@dataclass(frozen=True)
class Item:
    """An example in one form, with pseudo-states of its share."""

    example: Example
    form: str
    pseudo: tuple[Tensor, Tensor] | None = None


@dataclass
class Learning:
    """The `Task` of a bank. old_PkE, old_address_PE: rows that were there before all blocks. eoc_1E: learned
    in the first block (Parameter), an old bank's (a plain tensor), or None. next_PE: rows that the EOC row
    learns to tell what comes next by, where addresses are closed forms; they are not kept."""

    backbone: CausalLM
    pool: Pool
    config: Config
    train: TrainConfig
    blocks: list[Block]
    old_PkE: Tensor
    eoc_1E: Tensor | None
    end: int
    seed: int
    lr: float
    old_address_PE: Tensor | None = None
    next_PE: Parameter | None = None

    def __post_init__(self) -> None:
        self.tokens = self.old_PkE.shape[1]
        self.routed = self.config.address != "lda"
        self.apart = self.config.address == "decoupled" and self.train.address_epochs > 0
        self._orders: dict[tuple[str, int], list[int]] = {}
        self._states: dict[int, States] = {}

    def phases(self) -> Sequence[Phase]:
        found = []
        for b, block in enumerate(self.blocks):
            moved: dict[str, Parameter] = {f"control.{b}": block.control_PkE}
            if b == 0 and isinstance(self.eoc_1E, Parameter):
                moved["eoc"] = self.eoc_1E
            if b == 0 and self.next_PE is not None:
                moved["next"] = self.next_PE
            if block.address_PE is not None and not self.apart:
                moved[f"address.{b}"] = block.address_PE
            if block.examples:
                found.append(self._phase(f"control-{b}", self.steps(block), self.lr, moved))
            if block.address_PE is not None and self.apart and block.examples:
                each = math.ceil(self._state_count(block) / ADDRESS_BATCH)
                steps, lr = each * self.train.address_epochs, self.train.address_lr
                found.append(self._phase(f"address-{b}", steps, lr, {f"address.{b}": block.address_PE}))
        return found

    def steps(self, block: Block) -> int:
        """Optimiser steps of a block's control phase."""
        if self.train.steps is not None:
            return self.train.steps
        each = math.ceil(len(block.examples) / self.train.batch)
        wanted = SEEN * len(block.rows) / max(1, sum(len(set(e.rows)) for e in block.examples))
        return each * (self.train.epochs or max(1, math.ceil(wanted)))

    def batch(self, at: At, generator: torch.Generator) -> Any:
        kind, number = at.phase.split("-")
        b = int(number)
        block = self.blocks[b]
        if kind == "address":
            return self._address_batch(b, at, generator)
        epoch, chosen = self._chosen(at, len(block.examples), self.train.batch)
        share = 0
        if self.routed and not self.apart and block.replay is not None and len(block.replay):
            share = math.ceil(block.replay.count(len(chosen), len(block.rows)) / len(chosen))
        items = []
        for i in chosen:
            example = block.examples[i]
            forms = shown_forms(example, self.config)
            pick = seeds.derive(self.seed, "form", example.key, epoch) % len(forms)
            pseudo = block.replay.draw(share, generator) if share and block.replay is not None else None
            items.append(Item(example, forms[pick], pseudo))
        return items

    def loss(self, part: Any) -> Loss:
        if isinstance(part, States):
            return states_loss(self.backbone, self._addresses(part.block), part, self.config)
        return self.items_loss(part, self._block_of(part))

    def items_loss(self, items: Sequence[Item], b: int) -> Loss:
        """The loss of items under the rows of block b and all before it."""
        prefixes = [self.pool.get(item.example, item.form) for item in items]
        kept = self.pool.frozen.kept(prefixes)
        h_BE = torch.stack([prefix.h_E for prefix in prefixes])
        pseudos = [item.pseudo for item in items if item.pseudo is not None]
        pseudo = None
        if pseudos:
            pseudo = (torch.cat([h for h, _ in pseudos]), torch.cat([row for _, row in pseudos]))
        return sequence_loss(
            self.backbone, self.table(b), kept, h_BE, [self.layout(item.example, b) for item in items], pseudo
        )

    def layout(self, example: Example, b: int) -> Layout:
        """The tokens behind an example's prompt, and their targets in block b."""
        return layout(
            example.segments,
            self.backbone.dims.vocab,
            self.tokens,
            self.end,
            self.config.segment_end,
            self._targets(b),
        )

    def control(self, b: int) -> Tensor:
        """[P,k,E] of all rows up to block b; a block's row takes the place of an old one of its number."""
        return self._laid(self.old_PkE, [block.control_PkE for block in self.blocks[: b + 1]], b)

    def table(self, b: int) -> Table:
        """The rows as the loss reads them."""
        control_PkE = self.control(b)
        eoc_1E = control_PkE.new_zeros(1, control_PkE.shape[2]) if self.eoc_1E is None else self.eoc_1E
        address: Tensor | None = None
        if (targets := self._targets(b)) != "words":
            address = self._addresses(b) if targets == "all" else self.next_PE
        table_RE = torch.cat([eoc_1E, control_PkE.flatten(0, 1)])
        only = self.routed and self.config.route_softmax == "bank"
        return Table(table_RE, address, self.eoc_1E is not None, only, self.config.route_weight)

    def observe(self, at: At, means: Mapping[str, float]) -> Mapping[str, float]:
        """Renormalisation after every step (eq. 5-6): from the second block on, to the mean norm of the rows
        that existed before it."""
        b = int(at.phase.split("-")[1])
        block = self.blocks[b]
        if self.config.renorm == "none" or b + len(self.old_PkE) == 0:
            return {}
        with torch.no_grad():
            if block.address_PE is not None:
                moved, before = block.address_PE, self._before(b, address=True)
            else:
                moved, before = block.control_PkE, self._before(b, address=False)
            wanted = before.flatten(0, -2).norm(dim=-1).mean()
            moved.mul_(wanted / (moved.norm(dim=-1, keepdim=True) + EPSILON))
        return {}

    def state(self) -> Mapping[str, Any]:
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        pass

    @torch.no_grad()
    def examine(self, examples: Sequence[Example], b: int) -> dict[int, tuple[float, float, float]]:
        """By row: (summed loss of response tokens, right ones, how many), in all the forms that are shown."""
        found: dict[int, tuple[float, float, float]] = {}
        for example in examples:
            items = [Item(example, form) for form in shown_forms(example, self.config)]
            metrics = self.items_loss(items, b).metrics
            (loss, n), (right, _) = metrics["words"], metrics["accuracy"]
            for row in set(example.rows):
                old = found.get(row, (0.0, 0.0, 0.0))
                found[row] = (old[0] + loss, old[1] + right, old[2] + n)
        return found

    def _phase(self, name: str, steps: int, lr: float, parameters: Mapping[str, Parameter]) -> Phase:
        t = self.train
        warmup = round(t.warmup * steps)
        return Phase(
            name, steps, lr, parameters, warmup, t.decay, t.weight_decay, t.clip or None, t.betas, t.decay_to
        )

    def _chosen(self, at: At, count: int, size: int) -> tuple[int, list[int]]:
        """(epoch, indices): each epoch is a shuffle of its own, its last batch may be smaller."""
        each = math.ceil(count / size)
        epoch, place = divmod(at.index, each)
        key = (at.phase, epoch)
        if key not in self._orders:
            generator = seeds.generator(self.seed, "order", at.phase, epoch)
            self._orders = {key: torch.randperm(count, generator=generator).tolist()}
        return epoch, self._orders[key][place * size : (place + 1) * size]

    def _targets(self, b: int) -> Targets:
        if self.routed and not self.apart:
            return "all"
        return "next" if self.next_PE is not None and b == 0 else "words"

    def _block_of(self, items: Sequence[Item]) -> int:
        rows = {row for item in items for row in item.example.rows}
        return max((b for b, block in enumerate(self.blocks) if rows & set(block.rows)), default=0)

    def _laid(self, old: Tensor, new: Sequence[Tensor], b: int) -> Tensor:
        order = list(range(len(old)))
        at = len(old)
        for block in self.blocks[: b + 1]:
            for row in block.rows:
                if row < len(order):
                    order[row] = at
                else:
                    order.append(at)
                at += 1
        whole = torch.cat([old, *new])
        return whole if order == list(range(len(whole))) else whole[torch.tensor(order, device=whole.device)]

    def _addresses(self, b: int) -> Tensor:
        if self.config.address == "coupled":
            return self.control(b)[:, 0]
        assert self.old_address_PE is not None
        new = [block.address_PE for block in self.blocks[: b + 1] if block.address_PE is not None]
        return self._laid(self.old_address_PE, new, b)

    def _before(self, b: int, address: bool) -> Tensor:
        if b:
            whole = self._addresses(b - 1)[:, None] if address else self.control(b - 1)
        else:
            whole = self.old_address_PE[:, None] if address else self.old_PkE  # type: ignore[index]
        return whole.detach()

    def _address_batch(self, b: int, at: At, generator: torch.Generator) -> States:
        if b not in self._states:
            block = self.blocks[b]
            self._states = {b: states_of(self, b, block.examples)}
        states = self._states[b]
        _, chosen = self._chosen(at, states.real, ADDRESS_BATCH)
        extra = states.pseudo_indices(len(chosen), generator)
        return states[chosen + extra]

    def _state_count(self, block: Block) -> int:
        several = any(len(example.segments) > 1 for example in block.examples)
        return sum(
            len(shown_forms(e, self.config)) * (1 + (len(e.segments) if several else 0))
            for e in block.examples
        )
