"""A bias a label, fitted on what the prompt says of its own shots while they are hidden from it.

Where every label begins with a token of its own, the score pass has read most shots already: the log-
probabilities of those tokens are taken from it, and the other shots are asked for them alone. What then
follows is all but certain; the label's own shots say how certain. Otherwise whole labels are scored.

Shape suffixes: S shots (twins once), R reference rows, W answer places of all rows, K labels, V vocabulary.
"""

import torch
from torch import Tensor

from ...data.render import Rendered, Template, answer_ids
from ...data.shots import Shots
from ...engine.answer import label_trees
from ...engine.backbone import CausalLM
from ...engine.calibrate import calibrate
from ...engine.leave_one_out import LooScores, hidden_tokens, loo_scores, twins
from ...engine.memory import Layers
from ...engine.trie import score
from .reference import Reference


def calibration(
    backbone: CausalLM,
    full: Layers,
    rendered: Rendered,
    shots: Shots,
    template: Template,
    reference: Reference,
    teacher_WV: Tensor,
) -> dict[str, float] | None:
    """The bias by label; None without a closed set of labels, or where cross-validation finds none to help.

    full: every token of `rendered` as a memory. teacher_WV: its logits at `reference.answers_W`.
    """
    if len(shots.labels) < 2:
        return None
    first_K = [answer_ids(template, backbone.tokenizer, label)[0] for label in shots.labels]
    if reference.shots and len(set(first_K)) == len(first_K):
        loo = first_scores(backbone, full, rendered, shots, template, reference, teacher_WV, first_K)
    else:
        trees = label_trees(backbone, template, shots.labels)
        loo = loo_scores(backbone, full, rendered, shots.items, shots.labels, trees)
    fitted = calibrate(loo.scores_SK, loo.label_S)
    return None if fitted is None else fitted.named(shots.labels)


def first_scores(
    backbone: CausalLM,
    full: Layers,
    rendered: Rendered,
    shots: Shots,
    template: Template,
    reference: Reference,
    teacher_WV: Tensor,
    first_K: list[int],
) -> LooScores:
    """log p(first token) of every shot (twins once) and label, plus the mean of log p(what follows it) over
    the label's own reference rows."""
    labels = list(shots.labels)
    asked = sorted(set(twins(shots.items, rendered)))
    label_S = torch.tensor([labels.index(shots.items[s].output or "") for s in asked])
    scores_SK = torch.zeros(len(asked), len(labels), dtype=torch.float64)
    first_RK, rest_R = read_off(reference, teacher_WV, first_K)
    place_R = [asked.index(s) for s in reference.shots]
    scores_SK[place_R] = first_RK
    others = sorted(set(asked) - set(reference.shots))
    if others:
        spans = [rendered.spans[s] for s in others]
        rows = [rendered.ids[span.start : span.answer] for span in spans]
        trees = label_trees(backbone, template, labels, "first_token")
        hidden_RM = hidden_tokens(shots.items, rendered)[others]
        scored = score(backbone, full, rows, trees, hidden_RM=hidden_RM)
        scores_SK[[asked.index(s) for s in others]] = scored.scores_RK
    own_RK = torch.nn.functional.one_hot(label_S[place_R], len(labels)).double()
    seen_K = own_RK.sum(0)
    rest_K = torch.where(seen_K > 0, rest_R @ own_RK / seen_K.clamp(min=1), rest_R.mean())
    return LooScores(scores_SK + rest_K, label_S, tuple(asked))


def read_off(reference: Reference, teacher_WV: Tensor, first_K: list[int]) -> tuple[Tensor, Tensor]:
    """float64 [R,K]: each row's log-probabilities of the labels' first tokens; [R]: the sum over what follows
    its own."""
    places_W = reference.answers_W
    row_W = reference.packed.row_F[places_W]
    count_R = row_W.bincount(minlength=len(reference.shots))
    start_R = count_R.cumsum(0) - count_R
    logp_WV = teacher_WV.log_softmax(-1)
    next_W = reference.packed.ids_F[places_W + 1].to(logp_WV.device)
    rest_W = logp_WV.gather(1, next_W[:, None])[:, 0].double().cpu()
    rest_W[start_R] = 0.0
    rest_R = torch.zeros(len(count_R), dtype=torch.float64).index_add(0, row_W, rest_W)
    return logp_WV[start_R.to(logp_WV.device)][:, first_K].double().cpu(), rest_R
