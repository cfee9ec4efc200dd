"""Trained addresses as a linear layer on stored states: no backbone in the loop.

What the vocabulary says at a state does not change, so that its log-sum-exp is stored with it.

Shape suffixes: N stored states, E model width, A addresses, V vocabulary, U tokens behind a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from memtoken_cli.engine import seeds, vocab
from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.engine.task import Loss
from memtoken_cli.methods.tokmem.config import Config
from memtoken_cli.methods.tokmem.examples import Example
from memtoken_cli.methods.tokmem.loss import states_behind
from memtoken_cli.methods.tokmem.pool import shown_forms

if TYPE_CHECKING:
    from memtoken_cli.methods.tokmem.learn import Learning

ADDRESS_BATCH = 32
END = -1  # the target of a boundary where the answer is over
CHUNK = 256
PSEUDO, MOST_PSEUDO = 64, 8192  # pseudo-states of an old procedure, and of all


@dataclass(frozen=True)
class States:
    """States h_NE with what the vocabulary says there: words_N, its log-sum-exp, and end_N, the end token's
    logit. target_N: a row of the bank, or END. The first `real` are of examples, the others of old
    procedures, `per_batch` of which go with a batch. several: whether there are boundaries among them."""

    block: int
    real: int
    h_NE: Tensor
    words_N: Tensor
    end_N: Tensor
    target_N: Tensor
    per_batch: int = 0
    several: bool = False

    def __len__(self) -> int:
        return len(self.h_NE)

    def __getitem__(self, rows: slice | list[int]) -> States:
        parts = (self.h_NE[rows], self.words_N[rows], self.end_N[rows], self.target_N[rows])
        return States(self.block, len(parts[0]), *parts, several=self.several)

    def pseudo_indices(self, batch: int, generator: torch.Generator) -> list[int]:
        """Some states of old procedures, for a batch of so many real ones."""
        spare = len(self) - self.real
        if not spare:
            return []
        return (self.real + torch.randint(spare, (self.per_batch,), generator=generator)).tolist()


def stored(
    backbone: CausalLM, block: int, h_NE: Tensor, target_N: Tensor, end: int, real: int, per_batch: int = 0
) -> States:
    """States with what the vocabulary says there."""
    words, ends = [], []
    with torch.no_grad():
        for part_E in h_NE.split(CHUNK):
            logits = vocab.logits(backbone, part_E.to(backbone.device))
            words.append(logits.logsumexp(-1).cpu())
            ends.append(logits[:, end].cpu())
    several = bool((target_N == END).any())
    return States(block, real, h_NE.cpu(), torch.cat(words), torch.cat(ends), target_N, per_batch, several)


def states_of(task: Learning, b: int, examples: Sequence[Example]) -> States:
    """The states of a block at which a procedure is chosen: behind prompts and, where the block has chains,
    behind segments under its control rows; then pseudo-states of the procedures before it."""
    h, target = [], []
    several = any(len(example.segments) > 1 for example in examples)
    for example in examples:
        for form in shown_forms(example, task.config):
            h.append(task.pool.get(example, form).h_E.cpu())
            target.append(example.segments[0].row)
            if several:
                h += boundary_states(task, b, example, form)
                target += [*(s.row for s in example.segments[1:]), END]
    real = len(h)
    h_NE, target_N = torch.stack(h), torch.tensor(target)
    replay, per_batch = task.blocks[b].replay, 0
    if replay is not None and len(replay) and task.config.replay == "stats":
        n = min(MOST_PSEUDO, PSEUDO * len(replay))
        drawn, rows = replay.draw(n, seeds.generator(task.seed, "pseudo-states", b))
        h_NE, target_N = torch.cat([h_NE, drawn]), torch.cat([target_N, rows])
        per_batch = replay.count(ADDRESS_BATCH, len(task.blocks[b].rows))
    return stored(task.backbone, b, h_NE, target_N, task.end, real, per_batch)


@torch.no_grad()
def boundary_states(task: Learning, b: int, example: Example, form: str) -> list[Tensor]:
    """The final state behind each segment, under the control rows of now."""
    laid = task.layout(example, b)
    kept = task.pool.frozen.kept([task.pool.get(example, form)])
    (h_1UE,) = states_behind(task.backbone, task.table(b).table_RE, kept, [laid])
    return [h_1UE[0, at].float().cpu() for _, at in laid.ends]


def states_loss(backbone: CausalLM, address_AE: Tensor, states: States, config: Config) -> Loss:
    """Summed cross-entropy of the targets among all addresses and (unless `bank`) the vocabulary."""
    h_NE, target_N = states.h_NE.to(address_AE.device), states.target_N.to(address_AE.device)
    words_N, end_N = states.words_N.to(h_NE), states.end_N.to(h_NE)
    score_NA = vocab.head(backbone).rows(h_NE, address_AE)
    ends_N = target_N == END
    right_N = torch.where(ends_N, end_N, score_NA.gather(1, target_N.clamp(min=0)[:, None])[:, 0])
    beside_N = words_N if config.route_softmax == "full" else end_N
    if config.route_softmax == "bank" and not states.several:
        total_N = score_NA.logsumexp(1)
    else:
        total_N = torch.cat([beside_N[:, None], score_NA], 1).logsumexp(1)
    best = (score_NA.argmax(1) == target_N).sum()
    n = float(len(target_N))
    return Loss((total_N - right_N).sum(), n, {"routed": (float(best), n)})
