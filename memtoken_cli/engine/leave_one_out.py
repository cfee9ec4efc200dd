"""Every shot as a query of its own prompt while its own copy is hidden: what a memory will be asked.

Shape suffixes: S shots, K labels, M tokens of the whole prompt's memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.render import Rendered
from ..data.shots import Shot
from .backbone import CausalLM
from .memory import Layers
from .trie import Trie, score


def hidden_tokens(shots: Sequence[Shot], rendered: Rendered) -> Tensor:
    """bool [S,M]: True on the tokens of the shot itself and of its exact duplicates (same input and
    output)."""
    same: dict[tuple[str, str | None], list[int]] = {}
    for s, shot in enumerate(shots):
        same.setdefault((shot.input.strip(), shot.output), []).append(s)
    hidden_SM = torch.zeros(len(shots), len(rendered.ids), dtype=torch.bool)
    for s, shot in enumerate(shots):
        for copy in same[shot.input.strip(), shot.output]:
            span = rendered.spans[copy]
            hidden_SM[s, span.start : span.end] = True
    return hidden_SM


@dataclass(frozen=True)
class LooScores:
    """scores_SK: float64 label log-probabilities of every shot; label_S: the index of its own label."""

    scores_SK: Tensor
    label_S: Tensor


def loo_scores(
    backbone: CausalLM,
    full: Layers,
    rendered: Rendered,
    shots: Sequence[Shot],
    labels: Sequence[str],
    trees: Sequence[Trie],
    *,
    batch_tokens: int = 4096,
) -> LooScores:
    """What the whole prompt says of each shot when it must not look at it.

    `full`: every token of `rendered` as a memory. `trees`: of `labels`, see `answer.label_trees`.
    Raises ValueError where a shot's output is not among `labels`.
    """
    rows = [rendered.ids[span.start : span.answer] for span in rendered.spans]
    scored = score(
        backbone, full, rows, trees, batch_tokens=batch_tokens, hidden_RM=hidden_tokens(shots, rendered)
    )
    index = [list(labels).index(shot.output or "") for shot in shots]
    return LooScores(scored.scores_RK, torch.tensor(index))
