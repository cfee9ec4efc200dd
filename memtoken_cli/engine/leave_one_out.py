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


def twins(shots: Sequence[Shot], rendered: Rendered) -> list[int]:
    """The first shot that says what each shot says: the same tokens, or the same input with the same output
    but for the whitespace around it. A group of twins is one example, however often it is shown."""
    first: dict[tuple[object, ...], int] = {}
    found = []
    for s, (shot, span) in enumerate(zip(shots, rendered.spans, strict=True)):
        written = tuple(rendered.ids[span.start : span.end])
        said = (shot.input.strip(), None if shot.output is None else shot.output.strip())
        group = min(first.get(written, s), first.get(said, s))
        first.setdefault(written, group)
        first.setdefault(said, group)
        found.append(group)
    return found


def hidden_tokens(shots: Sequence[Shot], rendered: Rendered) -> Tensor:
    """bool [S,M]: True on the tokens of the shot itself and of its twins."""
    group_S = torch.tensor(twins(shots, rendered))
    owner_M = torch.full((len(rendered.ids),), -1)
    for group, span in zip(group_S, rendered.spans, strict=True):
        owner_M[span.start : span.end] = group
    return owner_M == group_S[:, None]


@dataclass(frozen=True)
class LooScores:
    """scores_SK: float64 label log-probabilities of the shots `asked`; label_S: the index of each one's own
    label. Twins are asked once: they would say the same, and be on both sides of a cross-validation."""

    scores_SK: Tensor
    label_S: Tensor
    asked: tuple[int, ...]


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
    asked = sorted(set(twins(shots, rendered)))
    rows = [rendered.ids[rendered.spans[s].start : rendered.spans[s].answer] for s in asked]
    hidden_RM = hidden_tokens(shots, rendered)[asked]
    scored = score(backbone, full, rows, trees, batch_tokens=batch_tokens, hidden_RM=hidden_RM)
    index = [list(labels).index(shots[s].output or "") for s in asked]
    return LooScores(scored.scores_RK, torch.tensor(index), tuple(asked))
