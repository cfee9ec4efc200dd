"""How memory enters a backbone while a writer is trained: a batch of rows, each with a memory of its own.

Serving one memory to many rows is `attend.Read`'s business; here gradients flow back into what was written.
Nothing asks a model for the names of its parts: vectors enter through hooks on the decoder layers, keys and
values are noted where the attention interface passes them.

Shape suffixes: B rows, T source tokens, M memory tokens, U own tokens of a row, W wanted columns, E model
width, N key/value heads, D head width, H query heads, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel

from memtoken_cli.engine.attend import Packing, Site
from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.engine.between import between
from memtoken_cli.engine.memory import LayerKV, Layers
from memtoken_cli.engine.reading import reading
from memtoken_cli.io.errors import DataError


@dataclass(frozen=True)
class Written:
    """The memories of a batch: k_BNMD, v_BNMD a layer; position_BM of each token; next_B: where a row goes
    on."""

    layers: tuple[tuple[Tensor, Tensor], ...]
    position_BM: Tensor
    next_B: Tensor

    def row(self, backbone: CausalLM, b: int = 0) -> Layers:
        """One row's memory as an artifact keeps it."""
        kept = []
        for (k_BNMD, v_BNMD), window in zip(self.layers, backbone.dims.windows, strict=True):
            N, M = k_BNMD.shape[1:3]
            k_XD, v_XD = (x[b].detach().flatten(0, 1).contiguous() for x in (k_BNMD, v_BNMD))
            pos_X = None if window is None else self.position_BM[b].to(torch.int32).repeat(N)
            kept.append(LayerKV(k_XD, v_XD, (M,) * N, pos_X=pos_X))
        return Layers(tuple(kept), int(self.next_B[b]))


@dataclass
class Note:
    """A reader that notes every layer's keys and values; without seen_BTT nobody attends: only they count."""

    position_BT: Tensor | None
    seen_BTT: Tensor | None = None
    packing: Packing | None = None
    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def __call__(self, site: Site) -> Tensor:
        self.layers.append((site.k_BNUD, site.v_BNUD))
        if self.seen_BTT is None or self.position_BT is None:
            return torch.zeros_like(site.q_BHTD).transpose(1, 2)
        return attend(site, site.k_BNUD, site.v_BNUD, self.seen_BTT, self.position_BT, self.position_BT)


@dataclass
class Rows:
    """The reader of a batch: row b sees its own memory and, by seen_BUU, its own tokens."""

    written: Written | None
    seen_BUU: Tensor
    position_BT: Tensor | None
    packing: Packing | None = None

    def __call__(self, site: Site) -> Tensor:
        assert self.position_BT is not None
        if self.written is None:
            return attend(site, site.k_BNUD, site.v_BNUD, self.seen_BUU, self.position_BT, self.position_BT)
        k_BNMD, v_BNMD = self.written.layers[site.layer]
        B, U, M = *self.seen_BUU.shape[:2], k_BNMD.shape[2]
        memory = torch.ones(B, U, M, dtype=torch.bool, device=self.seen_BUU.device)
        return attend(
            site,
            torch.cat([k_BNMD, site.k_BNUD], 2),
            torch.cat([v_BNMD, site.v_BNUD], 2),
            torch.cat([memory, self.seen_BUU], 2),
            self.position_BT,
            torch.cat([self.written.position_BM, self.position_BT], 1),
        )


def attend(
    site: Site, k_BNSD: Tensor, v_BNSD: Tensor, seen_BUS: Tensor, asks_BU: Tensor, place_BS: Tensor
) -> Tensor:
    """Attention of the site's queries over these keys; [B,U,H,D]. A sliding window counts positions."""
    if site.window is not None:
        seen_BUS = seen_BUS & (asks_BU[:, :, None] - place_BS[:, None, :] < site.window)
    G = site.groups
    k_BHSD, v_BHSD = k_BNSD.repeat_interleave(G, 1), v_BNSD.repeat_interleave(G, 1)
    if site.softcap is None and site.sink_H is None:
        out = scaled_dot_product_attention(
            site.q_BHTD, k_BHSD, v_BHSD, attn_mask=seen_BUS[:, None], scale=site.scaling
        )
        return out.transpose(1, 2)
    logits = site.capped((site.q_BHTD @ k_BHSD.transpose(2, 3)).float() * site.scaling)
    logits = logits.masked_fill(~seen_BUS[:, None], float("-inf"))
    if site.sink_H is not None:
        sink = site.sink_H[None, :, None, None].float().expand(*logits.shape[:3], 1)
        logits = torch.cat([logits, sink], -1)
    weight = logits.softmax(-1)[..., : k_BHSD.shape[2]].to(v_BHSD.dtype)
    return (weight @ v_BHSD).transpose(1, 2)


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers in order: the first list of modules as long as the model is deep. Raises
    DataError."""
    depth = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise DataError(f"cannot find the {depth} decoder layers of a {type(model).__name__}")


def enter_hidden(
    backbone: CausalLM, hidden: Sequence[Tensor], position_BM: Tensor, next_B: Tensor
) -> Written:
    """The keys and values that the backbone's own projections make of hidden[l] [B,M,E] in layer l.

    hidden[l] stands where the input of layer l would: the layer's own norm, projections and rotation apply.
    Gradients reach `hidden`. Raises DataError unless there is one tensor a layer.
    """
    layers = decoder_layers(backbone.model)
    if len(hidden) != len(layers):
        raise DataError(f"{len(hidden)} layers of memory for the {len(layers)} of {backbone.name}")
    with between(layers, lambda number, h: hidden[number].to(h.dtype)):
        kept = note(backbone.model.get_decoder(), hidden[0].to(backbone.dtype), position_BM)
    return Written(kept, position_BM, next_B)


def enter_prefix(backbone: CausalLM, x_BME: Tensor, position_BM: Tensor, next_B: Tensor) -> Written:
    """What the vectors x_BME leave behind when they stand at the input embedding. Gradients reach them."""
    M = x_BME.shape[1]
    seen_BMM = torch.ones(M, M, dtype=torch.bool, device=x_BME.device).tril().expand(len(x_BME), M, M)
    kept = note(backbone.model.get_decoder(), x_BME.to(backbone.dtype), position_BM, seen_BMM)
    return Written(kept, position_BM, next_B)


def note(
    stack: PreTrainedModel, x_BTE: Tensor, position_BT: Tensor, seen_BTT: Tensor | None = None
) -> tuple[tuple[Tensor, Tensor], ...]:
    """k_BNTD, v_BNTD of every layer of a decoder that reads x_BTE; without seen_BTT nobody attends."""
    reader = Note(position_BT, seen_BTT)
    with reading(stack, reader):
        stack(inputs_embeds=x_BTE, position_ids=position_BT, use_cache=False)
    return tuple(reader.layers)


def read_rows(
    backbone: CausalLM,
    written: Written | None,
    ids_BU: Tensor,
    seen_BUU: Tensor,
    position_BU: Tensor,
    wanted_W: Tensor,
) -> Tensor:
    """float32 logits [B,W,V] at the columns wanted_W of the rows ids_BU; row b reads written's row b.

    seen_BUU: True where a token sees another of its row (every token sees itself). position_BU: absolute.
    """
    reader = Rows(written, seen_BUU, position_BU)
    with reading(backbone.model, reader):
        out = backbone.model(
            input_ids=ids_BU, position_ids=position_BU, use_cache=False, logits_to_keep=wanted_W
        )
    logits: Tensor = out.logits.float()
    return logits
