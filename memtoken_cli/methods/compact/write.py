"""From a prefilled prompt to its memory: score, choose, fit. Two forwards over the reference rows."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...engine.backbone import CausalLM
from ...engine.memory import Layers
from .budget import adaptive, uniform
from .config import Config
from .fit import Fit
from .pick import candidates
from .reference import Reference
from .score import Score


@dataclass
class Written:
    """memory: what is kept; chosen: its tokens, [M] prompt indices a layer and head; teacher_WV: the whole
    prompt's logits at the reference rows' answers; report: figures for the user."""

    memory: Layers
    chosen: list[list[Tensor]]
    teacher_WV: Tensor
    report: dict[str, Any]


@torch.no_grad()
def write(backbone: CausalLM, full: Layers, reference: Reference, slots: int, config: Config) -> Written:
    """`slots` tokens per layer and head on average, exactly, out of the whole prompt's `full` memory."""
    packing = reference.packed.packing(backbone.device)
    position_BT = reference.packed.position_F[None].to(backbone.device)
    answers_W = reference.answers_W
    clock = time.perf_counter()
    score = Score(backbone, full, reference, packing, position_BT)
    teacher_WV = backbone.run_with(reference.packed, score, answers_W)
    score_LNT = score.score_LNT()
    scored = time.perf_counter()
    if config.budget == "uniform":
        chosen = uniform(score_LNT, candidates(slots))
    else:
        chosen = adaptive(
            score_LNT, slots, share="layer" if config.budget == "adaptive" else "head", cap=config.cap
        )
    fit = Fit(
        full,
        chosen,
        score.told,
        reference,
        packing,
        position_BT,
        keep=slots if config.budget == "uniform" else None,
        bias=config.bias == "mass",
        store=getattr(torch, config.dtype),
    )
    backbone.run_with(reference.packed, fit, answers_W[:1])
    done = time.perf_counter()
    report = {
        "fit_error": [round(error, 5) for error in fit.errors],
        "seconds": {"score": round(scored - clock, 3), "fit": round(done - scored, 3)},
    }
    return Written(Layers(tuple(fit.layers), full.next_position), fit.chosen, teacher_WV, report)
