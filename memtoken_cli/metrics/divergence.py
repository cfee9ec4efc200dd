"""How far answers' distributions are from the whole prompt's.

Shape suffixes: A tokens of an answer, V vocabulary.
"""

from collections.abc import Sequence

from torch import Tensor


def kl(reference_AV: Tensor, other_AV: Tensor) -> Tensor:
    """KL(reference || other) in nats at every answer token, float64 [A], from log-probabilities."""
    reference_AV = reference_AV.double()
    gap_AV = reference_AV - other_AV.double()
    # a token that the reference rules out adds nothing, however the other rates it
    return (reference_AV.exp() * gap_AV).where(reference_AV > float("-inf"), 0.0).sum(-1)


def mean_kl(reference: Sequence[Tensor], other: Sequence[Tensor]) -> tuple[float, float]:
    """(at the first answer token, mean over an answer's tokens), averaged over queries; [A,V]
    log-probabilities each.

    Raises ValueError where there are none, or unequally many.
    """
    if not reference:
        raise ValueError("divergence of no answers")
    each = [kl(a, b) for a, b in zip(reference, other, strict=True)]
    first = sum(float(x[0]) for x in each) / len(each)
    return first, sum(float(x.mean()) for x in each) / len(each)
