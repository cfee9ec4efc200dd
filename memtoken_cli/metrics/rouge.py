"""How near a generated text is to its references: ROUGE-L and exact match. Over examples, `intervals.py`."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Any


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)


def rouge_l(text: str, references: Sequence[str]) -> float:
    """ROUGE-L F1 with stemming (Lin 2004, as `rouge-score` computes it), the best over `references`, 0 to 1.

    Raises ValueError where there is none.
    """
    if not references:
        raise ValueError("a text without a reference")
    return max(float(_scorer().score(reference, text)["rougeL"].fmeasure) for reference in references)


def normal(text: str) -> str:
    """Lower case, no punctuation, single spaces."""
    # a mark joins what stands around it ("don't", "3.5"), as in the usual exact match
    kept = "".join(c for c in text.lower() if not unicodedata.category(c).startswith("P"))
    return " ".join(kept.split())


def exact(text: str, references: Sequence[str]) -> bool:
    """Whether the normal form is that of one of the references. Raises ValueError where there is none."""
    if not references:
        raise ValueError("a text without a reference")
    return normal(text) in {normal(reference) for reference in references}
