"""A short distillation on top of the closed form: the memory learns to say what the whole prompt says.

Only the memory moves (float32 copies of keys, values and biases); the model's weights get no gradient.
Context distillation on the leave-one-out shots, after Cartridges (2025) and prompt distillation.

Shape suffixes: B rows, F tokens laid flat, W answer positions, V vocabulary, X tokens of a layer.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...engine.attend import Read
from ...engine.backbone import CausalLM, hides
from ...engine.memory import LayerKV, Layers
from .reference import Reference

RATE = 3e-4
BATCH = 16
HELD = 0.2
CHECK = 10
PATIENCE = 3


@dataclass
class Refined:
    memory: Layers
    steps: int
    kl_before: float
    kl_after: float


def refine(
    backbone: CausalLM,
    memory: Layers,
    chosen: list[list[Tensor]],
    full: Layers,
    reference: Reference,
    steps: int,
    seed: int,
) -> Refined:
    """At most `steps` AdamW steps; the best memory on held-out rows wins, the untouched one included."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(reference.packed.lengths), generator=generator).tolist()
    cut = max(1, int(HELD * len(order)))
    held, trained = reference.take(order[:cut]), order[cut:]
    parts = {row: reference.take([row]) for row in trained}
    with torch.no_grad():
        wanted = {row: _says(backbone, full, full, None, part) for row, part in parts.items()}
        wanted_held = _says(backbone, full, full, None, held)
    moving = Layers(tuple(_master(kv) for kv in memory.layers), memory.next_position)
    leaves = [x for kv in moving.layers for x in (kv.k_XD, kv.v_XD, kv.bias_X) if x is not None]
    optimiser = torch.optim.AdamW(leaves, lr=RATE, weight_decay=0.0)

    def on_held() -> float:
        with torch.no_grad():
            return float(_divergence(wanted_held, _says(backbone, moving, full, chosen, held)))

    found = Refined(memory, 0, before := on_held(), before)
    if not trained:
        return found  # a single row: nothing is left to learn from
    since = 0
    for step in range(1, steps + 1):
        picked = torch.randperm(len(trained), generator=generator)[:BATCH].tolist()
        rows = [trained[i] for i in picked]
        optimiser.param_groups[0]["lr"] = RATE * min(1.0, 2 * (steps - step + 1) / steps)
        optimiser.zero_grad()
        with torch.enable_grad():
            said = _says(backbone, moving, full, chosen, reference.take(rows))
            _divergence(torch.cat([wanted[row] for row in rows]), said).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if step % CHECK and step != steps:
            continue
        now = on_held()
        if now < found.kl_after:
            found, since = Refined(_stored(moving, memory.layers[0].k_XD.dtype), step, before, now), 0
        else:
            since += 1
        if since == PATIENCE:
            break
    return found


def _divergence(wanted_WV: Tensor, said_WV: Tensor) -> Tensor:
    wanted, said = wanted_WV.log_softmax(-1), said_WV.log_softmax(-1)
    return (wanted.exp() * (wanted - said)).sum(-1).mean()


def _says(
    backbone: CausalLM, read: Layers, full: Layers, chosen: list[list[Tensor]] | None, part: Reference
) -> Tensor:
    """Logits [W,V] at the answers of some reference rows, each row's own copy hidden."""
    hidden = hides(part.hidden_FT.to(backbone.device), full, chosen)
    packing, position_BT = (
        part.packed.packing(backbone.device),
        part.packed.position_F[None].to(backbone.device),
    )
    return backbone.run_with(part.packed, Read(read.layers, packing, position_BT, hidden), part.answers_W)


def _master(kv: LayerKV) -> LayerKV:
    grown = [x.float().clone().requires_grad_() for x in (kv.k_XD, kv.v_XD)]
    bias = None if kv.bias_X is None else kv.bias_X.clone().requires_grad_()
    return replace(kv, k_XD=grown[0], v_XD=grown[1], bias_X=bias)


def _stored(memory: Layers, dtype: torch.dtype) -> Layers:
    layers = tuple(
        replace(
            kv,
            k_XD=kv.k_XD.detach().to(dtype),
            v_XD=kv.v_XD.detach().to(dtype),
            bias_X=None if kv.bias_X is None else kv.bias_X.detach().clone(),
        )
        for kv in memory.layers
    )
    return Layers(layers, memory.next_position)
