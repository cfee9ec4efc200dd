"""A query as parts, each asked of one procedure: which comes first, which next, whether any is left.

Closed form, from queries for one procedure alone: their discriminant is linear in the means over the user's
tokens, so that it scores every token by itself. The best path through the tokens keeps to one procedure, pays
for every change to another, and says which part asks for what. No chain is needed to learn that. A part is
not told from the one before it where both ask for the same procedure.

Shape suffixes: U tokens of the user's, V = U + 1 places between them, L procedures, D width of a feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from memtoken_cli.methods.tokmem.lda import Scorer, wide
from memtoken_cli.methods.tokmem.statistics import END, FACETS, SPECIALS, Statistics

QUERY = 10.0  # tokens that together say as much as a query for one procedure
CHANGE = 2.5  # what a query must say for another procedure to be taken for a part of its own, in nats
GRID = 2.0**20  # of a nat: sums are exact, so that paths that say the same are equal
LEAST = -1e6  # of a procedure that no query is known of


@dataclass(frozen=True)
class Parts:
    """scorer: of queries for one procedure, by means over the user's tokens, scaled to log-odds."""

    scorer: Scorer

    @classmethod
    def of(cls, one: Statistics, procedures: Sequence[str], shrinkage: float, alpha: float) -> Parts:
        """one: of such means alone. Of a procedure that is known with and without its instruction, the
        latter counts."""
        known = one.drop(SPECIALS)
        scorer = Scorer.of(known, procedures, shrinkage, alpha)
        bare = [i for i, c in enumerate(known.classes) if c.facet == FACETS[0] and c.procedure in procedures]
        if not bare:
            return cls(scorer)
        used = [i for i, c in enumerate(known.classes) if c.procedure in procedures]
        at = torch.tensor([used.index(i) for i in bare])
        weight = tuple(weight_CD[at] for weight_CD in scorer.weight)
        return cls(replace(scorer, weight=weight, bias_C=scorer.bias_C[at], label_C=scorer.label_C[at]))

    @property
    def labels(self) -> tuple[str, ...]:
        return (*self.scorer.labels, END)

    def tokens(self, user: Sequence[Tensor]) -> Tensor:
        """[U,L] float64: what each token says for each procedure, in nats; one [U,D] of states a feature."""
        score_UL = self.scorer.scores([wide(x_UD) for x_UD in user]).clamp(min=LEAST) / QUERY
        return (score_UL * GRID).round() / GRID

    def first(self, token_UL: Tensor) -> Tensor:
        """[L]: of the best path whose first part is each procedure's."""
        return _later(token_UL)[0]

    def several(self, token_UL: Tensor) -> bool:
        """Whether the best path has several parts."""
        return bool(_later(token_UL)[0].amax() > token_UL.sum(0).amax())

    def following(self, token_UL: Tensor, done: Sequence[int]) -> Tensor:
        """[L + 1]: of the best path whose first parts are those of the procedures `done`, in order, and the
        next one each procedure's; last, of that with no part more."""
        U = len(token_UL)
        before_V = _before(token_UL, done)
        next_L = (before_V[:U, None] + _later(token_UL)).amax(0) - CHANGE
        return torch.cat([next_L, before_V[U:]]).clamp(min=LEAST)

    def span(self, token_UL: Tensor, done: Sequence[int]) -> range:
        """The tokens of the last of the parts `done`, on the best path that begins with them; all where there
        are more parts than tokens."""
        U, last = len(token_UL), done[-1]
        if len(done) > U:
            return range(U)
        total_V = _total(token_UL)[:, last]
        begin_V, start_V = (_before(token_UL, done[:-1]) - total_V).cummax(0)
        rest_V = torch.cat([_later(token_UL).amax(1) - CHANGE, token_UL.new_zeros(1)])
        end = int((begin_V[:-1] + total_V[1:] + rest_V[1:]).argmax())
        return range(int(start_V[end]), end + 1)


def _before(token_UL: Tensor, done: Sequence[int]) -> Tensor:
    """[U + 1]: of the best path through the first so many tokens whose parts are those of `done`."""
    total_VL = _total(token_UL)
    before_V = token_UL.new_full((len(total_VL),), -torch.inf)
    before_V[0] = CHANGE  # the first part is no change
    for i in done:
        start_V = (before_V - total_VL[:, i]).cummax(0).values  # where this part may begin
        before_V[1:] = start_V[:-1] + total_VL[1:, i] - CHANGE
        before_V[0] = -torch.inf
    return before_V


def _total(token_UL: Tensor) -> Tensor:
    """[U + 1,L] of the first so many tokens."""
    return torch.cat([token_UL.new_zeros(1, token_UL.shape[1]), token_UL.cumsum(0)])


def _later(token_UL: Tensor) -> Tensor:
    """[U,L]: from each token to the last, of the best path that begins with each procedure."""
    rows = [token_UL[-1]]
    for token_L in reversed(token_UL[:-1].unbind()):
        rows.append(token_L + torch.maximum(rows[-1], rows[-1].amax() - CHANGE))
    return torch.stack(rows[::-1])
