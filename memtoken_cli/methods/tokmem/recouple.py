"""Rows beside the LM head that decide as lda addresses do, as far as the head's state alone can tell.

Fitted on pseudo-states, in competition with the model's own vocabulary, without a bias (TokMem eq. 4).

Shape suffixes: N pseudo-states, P procedures, L labels, E model width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from memtoken_cli.engine import seeds, vocab
from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.io.errors import UsageError
from memtoken_cli.methods.tokmem.bank import Bank
from memtoken_cli.methods.tokmem.config import FINAL
from memtoken_cli.methods.tokmem.lda import Gaussian, Scorer
from memtoken_cli.methods.tokmem.statistics import SPECIALS

DRAWS = 48  # pseudo-states a class
STEPS = 200
CHUNK = 256
SEED = 0  # the same bank gives the same export


def check(bank: Bank) -> None:
    """Raises UsageError where the bank has no statistics of the state that the head reads."""
    if FINAL not in bank.meta.features or "first" not in bank.sites or bank.project_DQ is not None:
        raise UsageError(
            "the bank has no statistics of the state that the head reads",
            hint="train with a last-token feature of depth 1 in lda.features, or with address=coupled",
        )


def recouple(bank: Bank, backbone: CausalLM) -> tuple[Tensor, dict[str, Any]]:
    """(rows [P,E] float32, report). agreement: the share of fresh pseudo-states whose best row is the one
    that the addresses chose, no vocabulary entry being better; lost: how much less often that is right.
    """
    stats = bank.sites["first"].drop(SPECIALS)
    feature = bank.meta.features.index(FINAL)
    scorer = Scorer.of(stats.only([feature]), bank.names, bank.meta.shrinkage)
    head = vocab.head(backbone)
    sets = []
    for part in ("fit", "check"):
        class_N = torch.arange(len(stats.classes)).repeat(DRAWS)
        h_NE = Gaussian.of(stats, feature, bank.meta.shrinkage).draw(
            class_N, seeds.generator(SEED, "recouple", part)
        )
        truth_N = torch.tensor([bank.index(stats.classes[c].procedure) for c in class_N.tolist()])
        with torch.no_grad():
            words = [head(h.to(backbone.device)).cpu() for h in h_NE.split(CHUNK)]
            text_N = torch.cat([x.logsumexp(1) for x in words])
            best_N = torch.cat([x.amax(1) for x in words])
        sets.append((h_NE, scorer.raw([h_NE]).argmax(1), truth_N, text_N, best_N))
    h_NE, label_N, _, text_N, _ = sets[0]
    rows_PE = torch.zeros(len(bank), bank.width, requires_grad=True)
    optimiser = torch.optim.LBFGS([rows_PE], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        logits_NL = torch.cat([head.finish(h_NE @ rows_PE.T), text_N[:, None]], 1)
        value = cross_entropy(logits_NL, label_N)
        value.backward()
        return value

    optimiser.step(loss)
    h_NE, label_N, truth_N, _, best_N = sets[1]
    with torch.no_grad():
        value_N, chosen_N = head.finish(h_NE @ rows_PE.T).max(1)
    chosen_N = torch.where(value_N > best_N, chosen_N, -1)
    before, after = ((x == truth_N).float().mean().item() for x in (label_N, chosen_N))
    report = {"agreement": (chosen_N == label_N).float().mean().item(), "lost": before - after}
    return rows_PE.detach(), report
