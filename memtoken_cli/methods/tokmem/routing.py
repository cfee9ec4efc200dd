"""What a bank's addresses say at the first site, as log-probabilities of all its procedures at once.

Deciding one row under the user's conditions is `route.py`'s; this is for measuring and comparing.

Shape suffixes: B rows, P procedures (and, last where the bank can tell, no procedure), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from memtoken_cli.methods.tokmem.features import Frozen, Prefix
from memtoken_cli.methods.tokmem.lda import log_softmax
from memtoken_cli.methods.tokmem.prompt import Prompt
from memtoken_cli.methods.tokmem.route import Router
from memtoken_cli.methods.tokmem.statistics import TEXT

GROUP = 64


def first_site(router: Router, prefixes: Sequence[Prefix]) -> Tensor:
    """float64 [B,P] or [B,P+1]: trained addresses compete with the vocabulary, whose share is the last
    column; closed-form ones with TEXT, where the bank has statistics of it."""
    P = len(router.names)
    if router.trained:
        h_BE = torch.stack([prefix.h_E for prefix in prefixes]).to(router.backbone.device)
        words_BV, scores_BP = router.joint(h_BE)
        plain_B1 = words_BV.double().logsumexp(-1, keepdim=True)
        return torch.cat([scores_BP.double(), plain_B1], -1).log_softmax(-1)
    scores = router.scores("first", prefixes)
    log_p_BL = log_softmax(scores.scores_BS)
    kept = [i for i, label in enumerate(scores.labels) if i < P or label == TEXT]
    # END is no choice here
    return log_p_BL if len(kept) == log_p_BL.shape[1] else log_p_BL[:, kept].log_softmax(-1)


def read_grouped(
    frozen: Frozen, prompts: Sequence[Prompt], groups: Sequence[str], user: bool = False
) -> list[Prefix]:
    """Prefixes in the order of the prompts, without keys and values, and but for `user` without the user's
    states; those of a group are read together, since they begin alike."""
    places: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        places.setdefault(group, []).append(i)
    found: dict[int, Prefix] = {}
    for at in places.values():
        for start in range(0, len(at), GROUP):
            chosen = at[start : start + GROUP]
            for i, prefix in zip(chosen, frozen.read([prompts[i] for i in chosen]), strict=True):
                found[i] = replace(prefix, kept=None) if user else prefix.bare
    return [found[i] for i in range(len(prompts))]
