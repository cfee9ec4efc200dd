"""What a bank's addresses say at the first site, as log-probabilities of all its procedures at once.

Deciding one row under the user's conditions is `route.py`'s; this is for measuring and comparing.

Shape suffixes: B rows, P procedures (and, last where the bank can tell, no procedure), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from memtoken_cli.methods.tokmem.features import Frozen, Prefix, columns
from memtoken_cli.methods.tokmem.prompt import Prompt
from memtoken_cli.methods.tokmem.route import Router
from memtoken_cli.methods.tokmem.statistics import TEXT

GROUP = 64


def first_site(router: Router, prefixes: Sequence[Prefix]) -> Tensor:
    """float64 [B,P] or [B,P+1]: trained addresses compete with the vocabulary, whose share is the last
    column; closed-form ones with TEXT, where the bank has statistics of it."""
    bank, P = router.bank, len(router.names)
    if router.trained:
        h_BE = torch.stack([prefix.h_E for prefix in prefixes]).to(router.backbone.device)
        words_BV, scores_BP = router.joint(h_BE)
        plain_B1 = words_BV.double().logsumexp(-1, keepdim=True)
        return torch.cat([scores_BP.double(), plain_B1], -1).log_softmax(-1)
    scorer = router.scorers["first"]
    log_p_BL = scorer.log_probs(bank.projected(columns(prefix.features for prefix in prefixes)))
    kept = [i for i, label in enumerate(scorer.labels) if i < P or label == TEXT]
    # END is no choice here
    return log_p_BL if len(kept) == log_p_BL.shape[1] else log_p_BL[:, kept].log_softmax(-1)


def read_grouped(frozen: Frozen, prompts: Sequence[Prompt], groups: Sequence[str]) -> list[Prefix]:
    """Prefixes in the order of the prompts, without keys and values; those of a group are read together,
    since they begin alike."""
    places: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        places.setdefault(group, []).append(i)
    found: dict[int, Prefix] = {}
    for at in places.values():
        for start in range(0, len(at), GROUP):
            chosen = at[start : start + GROUP]
            for i, prefix in zip(chosen, frozen.read([prompts[i] for i in chosen]), strict=True):
                found[i] = Prefix(prefix.prompt, None, prefix.features, prefix.h_E)
    return [found[i] for i in range(len(prompts))]
