"""Who answers for a model's attention: registered once, through the public AttentionInterface.

What happens at a layer is a `Reader`; `reading(model, reader)` puts it in charge for a while and leaves
the model as it was. The attention itself is in `attend.py`.

Shape suffixes: B rows, T queries of a row, H query heads, D head width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from .attend import Packing, Site

NAME = "memtok"


class Reader(Protocol):
    """What a layer does with its queries: returns the attention output [B,T,H,D].

    packing: set where the rows are packed; position_BT: the positions of the queries."""

    packing: Packing | None
    position_BT: Tensor | None

    def __call__(self, site: Site) -> Tensor: ...


_active: ContextVar[Reader | None] = ContextVar("memtok_reader", default=None)


def _attention(  # type: ignore[no-untyped-def]
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
):
    reader = _active.get()
    assert reader is not None
    B, _h, T, D = query.shape
    mask = attention_mask
    if reader.packing is None:
        mask = (
            query.new_ones(B, T, key.shape[2], dtype=torch.bool)
            if mask is None
            else mask[:, 0].expand(B, T, -1)
        )
    scale = D**-0.5 if scaling is None else scaling
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    site = Site(
        layer,
        module,
        query,
        key,
        value,
        mask,
        scale,
        softcap,
        sliding_window,
        s_aux,
        reader.position_BT,
        reader.packing,
    )
    return reader(site), None


def _mask(*args: Any, **named: Any) -> Tensor | None:
    reader = _active.get()
    if reader is not None and reader.packing is not None:
        return None
    mask: Tensor | None = sdpa_mask(*args, **(named | {"allow_is_causal_skip": False}))
    return mask


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)


@contextmanager
def reading(model: PreTrainedModel, reader: Reader) -> Iterator[None]:
    """Every attention layer of `model` does what `reader` says, until the block ends."""
    before = model.config._attn_implementation
    token = _active.set(reader)
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        _active.reset(token)
        model.set_attn_implementation(before or "sdpa")


@contextmanager
def placed(model: PreTrainedModel, reader: Reader, start: int) -> Iterator[None]:
    """`reading`, with every position of the model's input moved on by `start`."""

    def shift(_model: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        position = named.get("position_ids")
        if position is None:
            cache, mask = named.get("cache"), named.get("attention_mask")
            source = (
                named.get("input_ids") if named.get("input_ids") is not None else named.get("inputs_embeds")
            )
            ids = cast(Tensor, args[0] if args else source)
            past = 0 if cache is None else cache.get_seq_length()
            if mask is not None and mask.dim() == 2:
                position = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            else:
                position = torch.arange(past, past + ids.shape[1], device=model.device)[None]
        reader.position_BT = position + start
        return args, named | {"position_ids": reader.position_BT}

    hook = model.register_forward_pre_hook(shift, with_kwargs=True)
    try:
        with reading(model, reader):
            yield
    finally:
        hook.remove()


class Probe:
    """A reader that only notes which layers ask, with how many heads, and their windows."""

    packing: Packing | None = None
    position_BT: Tensor | None = None

    def __init__(
        self, seen: set[int], heads: list[int] | None = None, windows: list[int | None] | None = None
    ) -> None:
        self.seen, self.heads, self.windows = seen, heads, windows

    def __call__(self, site: Site) -> Tensor:
        self.seen.add(site.layer)
        if self.heads is not None and self.windows is not None:
            self.heads.append(site.q_BHTD.shape[1])
            self.windows.append(site.window)
        return torch.zeros_like(site.q_BHTD).transpose(1, 2)
