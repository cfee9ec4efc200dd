"""The `vocab` port: rows beside a model's vocabulary, at its embedding and at its LM head, without surgery.

Ids from V on mean rows: `embed` looks them up, `logits` scores them as if they were head rows, under the same
soft cap and scale. Nothing here knows what a row stands for.

Shape suffixes: B rows of a batch, T tokens, E model width, V vocabulary, R rows beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.io.errors import DataError

TOLERANCE = 0.02  # of the probe's logits, in units of their largest: bfloat16 rounds twice on the way
PROBE = 4


@dataclass(frozen=True)
class Head:
    """What a model does to the states its head reads: a linear map, times `scale`, then the soft cap."""

    weight_VE: Tensor
    bias_V: Tensor | None
    scale: float
    softcap: float | None

    def __call__(self, h: Tensor, rows_RE: Tensor | None = None) -> Tensor:
        """float32 logits [..., V+R]; rows come behind the vocabulary. Gradients reach h and rows."""
        words = linear(h.to(self.weight_VE.dtype), self.weight_VE, self.bias_V).float()
        if rows_RE is not None and len(rows_RE):
            words = torch.cat([words, linear(h.float(), rows_RE.float())], -1)
        return self.finish(words)

    def rows(self, h: Tensor, rows_RE: Tensor) -> Tensor:
        """float32 logits [..., R] of the rows alone."""
        return self.finish(linear(h.float(), rows_RE.float()))

    def finish(self, x: Tensor) -> Tensor:
        if self.scale != 1.0:
            x = x * self.scale
        return x if self.softcap is None else self.softcap * torch.tanh(x / self.softcap)


_HEADS: WeakKeyDictionary[PreTrainedModel, Head] = WeakKeyDictionary()


def head(backbone: CausalLM) -> Head:
    """The backbone's head, checked once: head(the decoder's last state) must be the model's logits.

    Raises DataError where it is not (a head that is no linear map, states before the final norm).
    """
    if backbone.model not in _HEADS:
        _HEADS[backbone.model] = _probed(backbone)
    return _HEADS[backbone.model]


def logits(backbone: CausalLM, h_BTE: Tensor, rows_RE: Tensor | None = None) -> Tensor:
    """float32 [..., V+R]: what the model says after each state, its vocabulary first, then the rows."""
    return head(backbone)(h_BTE, rows_RE)


def embed(backbone: CausalLM, ids: Tensor, rows_RE: Tensor | None = None) -> Tensor:
    """float32 [..., E]: input embeddings of ids, where V + r means row r. Gradients reach the rows.

    Rows enter behind whatever scale the family puts on its embeddings (Gemma's square root of the width).
    """
    table = backbone.model.get_input_embeddings()
    V = backbone.dims.vocab
    with torch.no_grad():
        words: Tensor = table(ids.clamp(max=V - 1)).float()
    if rows_RE is None or not len(rows_RE):
        return words
    chosen = rows_RE.float()[(ids - V).clamp(min=0)]
    return torch.where((ids >= V)[..., None], chosen, words)


def _probed(backbone: CausalLM) -> Head:
    layer = backbone.model.get_output_embeddings()
    if not isinstance(layer, nn.Linear):
        raise DataError(
            f"the head of {backbone.name} is no linear map, so that no row can stand beside it",
            hint="use a model such as smollm2-135m",
        )
    said: dict[str, Any] = backbone.model.config.get_text_config().to_dict()
    scale = float(said.get("logit_scale") or 1.0) / float(said.get("logits_scaling") or 1.0)
    cap = said.get("final_logit_softcapping")
    found = Head(layer.weight, layer.bias, scale, None if cap is None else float(cap))
    ids_1T = torch.arange(1, PROBE + 1, device=backbone.device)[None] % backbone.dims.vocab
    with torch.no_grad():
        x_1TE = backbone.model.get_input_embeddings()(ids_1T)
        h = backbone.model.get_decoder()(inputs_embeds=x_1TE, use_cache=False).last_hidden_state
        expected = backbone.model(inputs_embeds=x_1TE, use_cache=False).logits.float()
        off = (found(h) - expected).abs().max() / expected.abs().max().clamp(min=1e-6)
    if not float(off) <= TOLERANCE:
        raise DataError(
            f"the head of {backbone.name} does more than a linear map, a scale and a soft cap",
            hint="use a model such as smollm2-135m",
        )
    return found
