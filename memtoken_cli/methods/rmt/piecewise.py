"""An open segment, piece by piece, for policies whose columns are those of `Places`: masks and text.

Shape suffixes: B rows, U columns fed at once, T columns, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from memtoken_cli.methods.rmt.network import Network
from memtoken_cli.methods.rmt.places import Places, part
from memtoken_cli.methods.rmt.policy import Open


def mask_of(network: Network, places: Places, start: int, stop: int, columns: int) -> Tensor:
    """Additive mask [1,1,stop - start,stop] of a segment with `columns` of text; see `places.part`."""
    return part(places, start, stop, columns, network.backbone.dtype, network.backbone.device)


def feed(network: Network, places: Places, at: Open, ids_BU: Tensor, wanted: bool) -> Tensor | None:
    """`Policy.feed`: the next text tokens of an open segment, behind its cache."""
    B, U = ids_BU.shape
    before, stop = places.before, at.count + U
    position_BT = places.of_text(B, at.count, stop).to(ids_BU.device)
    mask = mask_of(network, places, before + at.count, before + stop, stop)
    every = torch.arange(U, device=ids_BU.device) if wanted else None
    _, logits = network.run(network.embed(ids_BU), position_BT, mask, every, at.cache)
    at.count = stop
    return logits
