"""A backbone: the network that a memory enters. `CausalLM` adapts any Hugging Face causal LM.

Only public API is used: `inputs_embeds`, `position_ids`, `DynamicCache`, `logits_to_keep`, the
attention interface, and module hooks that are removed again. Models are found and loaded in
`models.py`; what a memory does inside is in `attend.py`.

Shape suffixes: T tokens, F tokens of all rows in one flat row (`packed.py`), W wanted positions, V
vocabulary, N key/value heads, D head width, E model width, B rows.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from ..io.errors import DataError, UsageError
from .attend import Hidden, Read, Site
from .memory import LayerKV, Layers
from .packed import Packed
from .reading import Probe, Reader, placed, reading


@dataclass(frozen=True)
class Dims:
    """Sizes of a backbone. context: the longest input it was made for. windows: each layer's sliding
    window in tokens, or None where it sees everything."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    width: int
    vocab: int
    context: int
    windows: tuple[int | None, ...]


class Backbone(Protocol):
    """What methods ask of a network. A method's own small network enters by the same protocol."""

    @property
    def dims(self) -> Dims: ...
    @property
    def fingerprint(self) -> str: ...
    def prefill(self, ids: Sequence[int]) -> Layers: ...


class CausalLM:
    """A Hugging Face causal LM and its tokenizer.

    Raises DataError where the model's layers carry no keys and values to put a memory into.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        self.model, self.tokenizer, self.name = model.eval(), tokenizer, name
        self.model.requires_grad_(False)
        if not self.attention_layers:
            raise DataError(
                f"the layers of {name} carry no keys and values that a memory could enter",
                hint="use a model with attention in every layer, such as smollm2-135m",
            )

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.model.dtype
        return dtype

    @cached_property
    def layers(self) -> nn.ModuleList:
        """The decoder layers, in order: the one list of modules as long as the model is deep."""
        depth = self.model.config.get_text_config().num_hidden_layers
        lists = [m for m in self.model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
        if not lists:
            raise DataError(f"cannot find the {depth} decoder layers of {self.name}")
        return lists[0]

    @cached_property
    def attention_layers(self) -> int:
        """How many layers take part in the attention interface; 0 unless all do."""
        seen: set[int] = set()
        with torch.no_grad(), reading(self.model, Probe(seen)):
            try:
                self.model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=self.device), use_cache=False)
            except (AttributeError, AssertionError, TypeError):
                return 0
        depth = int(self.model.config.get_text_config().num_hidden_layers)
        return depth if len(seen) == depth else 0

    @cached_property
    def dims(self) -> Dims:
        config = self.model.config.get_text_config()
        ids = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        with torch.no_grad():
            cache = self.model(input_ids=ids, use_cache=True).cache
        heads: list[int] = []
        windows: list[int | None] = []
        with torch.no_grad(), reading(self.model, Probe(set(), heads, windows)):
            self.model(input_ids=ids, use_cache=False)
        keys = cache.layers[0].keys
        return Dims(
            len(self.layers),
            heads[0],
            keys.shape[1],
            keys.shape[3],
            self.model.get_input_embeddings().weight.shape[1],
            self.model.get_input_embeddings().weight.shape[0],
            int(config.max_position_embeddings),
            tuple(windows),
        )

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over a sample of every weight and its shape, the same for any dtype on disk."""
        digest = hashlib.sha256()
        for key, weight in sorted(self.model.state_dict().items()):
            flat = weight.reshape(-1)
            sample = flat[:: max(1, flat.numel() // 64)][:64].to("cpu", torch.bfloat16).view(torch.int16)
            digest.update(f"{key}{tuple(weight.shape)}".encode() + sample.numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def tokenizer_digest(self) -> str:
        vocabulary = sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1])
        return hashlib.sha256(repr(vocabulary).encode()).hexdigest()

    @torch.no_grad()
    def prefill(self, ids: Sequence[int]) -> Layers:
        """Every token of `ids` as a memory: [N,T,D] keys and values a layer, nothing left out
        but what a sliding window can no longer see. Raises DataError beyond the context.
        """
        if len(ids) > self.dims.context:
            raise DataError(f"{len(ids)} tokens do not fit the {self.dims.context} of {self.name}")
        ids_1T = torch.tensor([list(ids)], device=self.device)
        return self.prefill_embeds(self.model.get_input_embeddings()(ids_1T)[0])

    def prefill_embeds(self, x_TE: Tensor) -> Layers:
        """The `layers` memory that the vectors x_TE leave behind: how the `prefix` port enters.

        Gradients reach x_TE. Law 4: reading it equals a forward over [x; query]."""
        cache = DynamicCache(config=self.model.config)
        T = x_TE.shape[0]
        position_1T = torch.arange(T, device=self.device)[None]
        self.model(
            inputs_embeds=x_TE[None].to(self.dtype),
            position_ids=position_1T,
            cache=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return self.kept(cache, T)

    def kept(self, cache: DynamicCache, T: int) -> Layers:
        """A filled cache of one row as a memory."""
        layers = []
        for layer, window in zip(cache.layers, self.dims.windows, strict=True):
            k_ND, v_ND = layer.keys[0], layer.values[0]
            N, kept, _ = k_ND.shape
            pos = None
            if window is not None:
                pos = torch.arange(T - kept, T, dtype=torch.int32, device=k_ND.device).repeat(N)
            layers.append(LayerKV(k_ND.flatten(0, 1), v_ND.flatten(0, 1), (kept,) * N, pos_X=pos))
        return Layers(tuple(layers), T)

    def to_cache(self, memory: Layers) -> DynamicCache:
        """The memory as an ordinary cache of one row, for stock transformers.

        Feed the query with `position_ids` from memory.next_position on and an attention mask as long as
        the cache and the query; beams need the cache repeated. Raises UsageError where heads or layers hold
        unequal numbers or a bias, or where a sliding window's layer has gaps: a cache knows no positions."""
        sizes: dict[int | None, set[int]] = {}
        for kv, window in zip(memory.layers, self.dims.windows, strict=True):
            sizes.setdefault(window, set()).update(kv.sizes)
        if any(len(s) > 1 for s in sizes.values()) or any(kv.bias_X is not None for kv in memory.layers):
            raise UsageError(
                "an ordinary cache holds as many tokens in every head, and no bias",
                hint="compress with budget=uniform bias=none",
            )
        for kv, window in zip(memory.layers, self.dims.windows, strict=True):
            newest = torch.arange(memory.next_position - kv.sizes[0], memory.next_position).repeat(
                len(kv.sizes)
            )
            if window is not None and kv.pos_X is not None and not torch.equal(kv.pos_X.cpu(), newest.int()):
                raise UsageError(
                    f"an ordinary cache cannot tell which tokens a sliding window of {window} has passed",
                    hint=f"keep {window - 1} tokens or more a head, or read it inside memory.attached(model)",
                )
        cache = DynamicCache(config=self.model.config)
        for layer, kv in enumerate(memory.layers):
            k, v = (
                x.to(self.device, self.dtype).view(1, len(kv.sizes), -1, x.shape[1])
                for x in (kv.k_XD, kv.v_XD)
            )
            cache.update(k, v, layer)
        return cache

    def run(
        self,
        packed: Packed,
        memory: Layers,
        wanted_W: Tensor,
        hidden_BM: Tensor | None = None,
    ) -> Tensor:
        """float32 logits [W,V] at the flat positions wanted_W of rows that read `memory`.

        hidden_BM: True where a row must not see a token of the (whole, uncompacted) memory.
        """
        reader = Read(memory.layers, packed.packing(self.device), packed.position_F[None].to(self.device))
        if hidden_BM is not None:
            reader.hidden = hides(hidden_BM[packed.row_F].to(self.device), memory)
        return self.run_with(packed, reader, wanted_W)

    def run_with(self, packed: Packed, reader: Reader, wanted_W: Tensor) -> Tensor:
        """`run` with a reader of one's own: how writers look at a layer while it works."""
        with reading(self.model, reader):
            out = self.model(
                input_ids=packed.ids_F[None].to(self.device),
                position_ids=packed.position_F[None].to(self.device),
                use_cache=False,
                logits_to_keep=wanted_W.to(self.device),
            )
        logits: Tensor = out.logits[0].float()
        return logits

    def output_gram(self, site: Site) -> Callable[[], Tensor]:
        """Watch one attention layer; the returned call gives float32 [H,D,D], W_O^T W_O of each head.

        The projection is whatever module of the layer next takes the attention output: it is asked
        for its matrix by the unit vectors, so its name and storage do not matter.
        """
        found: list[nn.Module] = []
        H, D = site.q_BHTD.shape[1], site.q_BHTD.shape[3]

        def note(module: nn.Module, args: tuple[Any, ...]) -> None:
            if not found and args and isinstance(args[0], Tensor) and args[0].shape[-1] == H * D:
                found.append(module)

        hooks = [child.register_forward_pre_hook(note) for child in site.module.children()]

        def finish() -> Tensor:
            for hook in hooks:
                hook.remove()
            eye = torch.eye(H * D, device=self.device, dtype=self.dtype)
            zero = torch.zeros(1, H * D, device=self.device, dtype=self.dtype)
            w_HDE: Tensor = (found[0](eye) - found[0](zero)).float().view(H, D, -1)
            return w_HDE @ w_HDE.transpose(1, 2)

        return finish

    @contextmanager
    def attached(self, memory: Layers) -> Iterator[PreTrainedModel]:
        """Inside the block the model, also through stock `generate`, reads `memory` before its input.

        Positions go on after the memory's. An empty memory changes nothing, to the last bit.
        """
        if memory.slots == 0 and memory.next_position == 0:
            yield self.model
            return
        with placed(self.model, Read(memory.to(self.device).layers), memory.next_position):
            yield self.model


def hides(hidden_FT: Tensor, memory: Layers, chosen: list[list[Tensor]] | None = None) -> Hidden:
    """Hide tokens of a whole memory, or of what was `chosen` of it, in every head alike.

    hidden_FT: True where a query must not see a prompt token; a sliding layer that kept only the
    newest tokens is cut to them."""

    def hidden(layer: int, head: int, start: int, stop: int) -> Tensor:
        unseen = hidden_FT[start:stop, hidden_FT.shape[1] - memory.layers[layer].sizes[head] :]
        return unseen if chosen is None else unseen[:, chosen[layer][head]]

    return hidden
