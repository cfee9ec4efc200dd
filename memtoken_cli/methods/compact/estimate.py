"""What a memory loses, for the report: on shots that it was not fitted to, where any are left."""

import torch
from torch import Tensor

from ...data.render import Rendered
from ...data.shots import Shots
from ...engine.attend import Read
from ...engine.backbone import CausalLM, hides
from ...engine.leave_one_out import twins
from ...engine.memory import Layers
from ...metrics.divergence import kl
from .reference import Reference, asked

MOST = 8


def left_out(rendered: Rendered, shots: Shots, reference: Reference) -> list[int]:
    """Up to MOST shots that no reference row is, evenly from the prompt, twins once. None of a running text,
    whose repetition has read them all, nor where all shots are twins."""
    alone = sorted(set(twins(shots.items, rendered)))
    left = [s for s in alone if s not in reference.shots]
    if shots.kind == "plain" or len(alone) < 2 or not left:
        return []
    return left[:: -(-len(left) // MOST)]


@torch.no_grad()
def estimate(
    backbone: CausalLM,
    full: Layers,
    memory: Layers,
    chosen: list[list[Tensor]],
    rendered: Rendered,
    shots: Shots,
    reference: Reference,
) -> tuple[float, str]:
    """Mean KL (nats) from the whole prompt `full` to its `memory` over the answers of MOST shots, their own
    copies hidden from both; and whether they were "held out" of the fit, or "fitted" for want of others."""
    left = left_out(rendered, shots, reference)
    few = min(MOST, len(reference.packed.lengths))
    rows = asked(rendered, shots, left) if left else reference.take(range(few))
    packing = rows.packed.packing(backbone.device)
    position_BT = rows.packed.position_F[None].to(backbone.device)
    said = []
    for layers, kept in ((full.layers, None), (memory.layers, chosen)):
        hidden = hides(rows.hidden_FT.to(backbone.device), full, kept)
        reader = Read(layers, packing, position_BT, hidden)
        said.append(backbone.run_with(rows.packed, reader, rows.answers_W).log_softmax(-1))
    return float(kl(*said).mean()), "held out" if left else "fitted"
