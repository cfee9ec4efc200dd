"""What `engine/fit.py` trains: a compressor, first its new parts and then the whole of it, target frozen.

    loss = (1 - distill) * CE(what follows) + distill * KL(full prompt's prediction || memory's)

summed over the wanted tokens; `autoencode` adds the cross-entropy of the source read from its own memory.

Shape suffixes: B rows, T source tokens, U continuation tokens, W wanted columns, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from memtoken_cli.engine import ports
from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.engine.ports import Written
from memtoken_cli.engine.task import At, Loss, Phase
from memtoken_cli.methods.memcom.config import TrainConfig
from memtoken_cli.methods.memcom.episodes import IGNORE, Batch, Episodes
from memtoken_cli.methods.memcom.model import Writer, alive


@dataclass
class Compression:
    """The `Task` of training one compressor."""

    target: CausalLM
    writer: Writer
    episodes: Episodes
    train: TrainConfig

    def phases(self) -> Sequence[Phase]:
        """New parts, then (where `whole_steps` and the compressor's `weights` say so) everything."""
        new = alive(self.writer, self.writer.new_parts())
        copied = self.writer.copied_parts() if self.train.whole_steps else {}
        found = [self._phase("new", self.train.steps, self.train.lr, new)]
        if self.train.whole_steps:
            both = alive(self.writer, new | copied)
            found.append(self._phase("whole", self.train.whole_steps, self.train.whole_lr, both))
        return found

    def batch(self, at: At, generator: torch.Generator) -> Any:
        ratios = self.train.ratios
        ratio = ratios[int(torch.randint(len(ratios), (1,), generator=generator))]
        return self.episodes.batch(self.train.batch, ratio, generator)

    def loss(self, part: Batch) -> Loss:
        part = part.to(self.target.device)
        written = self.writer.write(part.source_BT, part.length_B, part.slots)
        logits = self._read(written, part)
        target = part.target_BW.flatten()
        wanted = target != IGNORE
        picked = logits.flatten(0, 1)[wanted]
        count = float(wanted.sum())
        ce = cross_entropy(picked, target[wanted], reduction="sum")
        right = float((picked.argmax(-1) == target[wanted]).sum())
        metrics = {"ce": (float(ce.detach()), count), "accuracy": (right, count)}
        total = ce
        if self.train.distill:
            teacher = teacher_logits(self.target, part).flatten(0, 1)[wanted]
            kl = kl_div(picked.log_softmax(-1), teacher.log_softmax(-1), reduction="sum", log_target=True)
            metrics["kl"] = (float(kl.detach()), count)
            total = (1 - self.train.distill) * ce + self.train.distill * kl
        if self.train.autoencode:
            again = self._reconstruction(written, part)
            metrics["autoencode"] = (float(again.detach().sum()), float(len(again)))
            # a row's mean weighs as much as the row's wanted tokens do
            total = total + self.train.autoencode * (again * (part.target_BW != IGNORE).sum(1)).sum()
        return Loss(total, count, metrics)

    def state(self) -> Mapping[str, Any]:
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        pass

    def _phase(self, name: str, steps: int, lr: float, parameters: Mapping[str, Any]) -> Phase:
        t = self.train
        warmup = round(t.warmup * steps)
        clip = t.clip or None
        return Phase(name, steps, lr, parameters, warmup, t.decay, t.weight_decay, clip, t.betas, t.decay_to)

    def _read(self, written: Written, part: Batch) -> Tensor:
        place_BU = written.next_B[:, None] + part.offset_BU
        return ports.read_rows(self.target, written, part.after_BU, part.seen_BUU, place_BU, part.wanted_W)

    def _reconstruction(self, written: Written, part: Batch) -> Tensor:
        """[B]: mean cross-entropy of the source's tokens, read behind its memory."""
        B, T = part.source_BT.shape
        place_T = torch.arange(T, device=part.source_BT.device)
        causal = (place_T[:, None] >= place_T).expand(B, T, T)
        logits = ports.read_rows(
            self.target,
            written,
            part.source_BT,
            causal,
            written.next_B[:, None] + place_T,
            place_T[:-1],
        )
        targets = part.source_BT[:, 1:].masked_fill(place_T[1:] >= part.length_B[:, None], IGNORE)
        losses = cross_entropy(logits.transpose(1, 2), targets, reduction="none", ignore_index=IGNORE)
        return losses.sum(1) / (part.length_B - 1).clamp(min=1)


@torch.no_grad()
def teacher_logits(target: CausalLM, part: Batch) -> Tensor:
    """float32 [B,W,V]: what the target predicts when it reads the whole source instead of a memory."""
    (B, T), U = part.source_BT.shape, part.after_BU.shape[1]
    place_T = torch.arange(T, device=part.source_BT.device)
    source_BTT = (place_T[:, None] >= place_T).expand(B, T, T)
    real_BUT = (place_T < part.length_B[:, None])[:, None].expand(B, U, T)
    seen = torch.cat(
        [
            torch.cat([source_BTT, source_BTT.new_zeros(B, T, U)], 2),
            torch.cat([real_BUT, part.seen_BUU], 2),
        ],
        1,
    )
    place_BS = torch.cat([place_T.expand(B, T), part.length_B[:, None] + part.offset_BU], 1)
    ids_BS = torch.cat([part.source_BT, part.after_BU], 1)
    return ports.read_rows(target, None, ids_BS, seen, place_BS, T + part.wanted_W)
