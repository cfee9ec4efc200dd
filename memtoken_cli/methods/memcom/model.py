"""The compressor: a source stack, a memory stack and cross-attention between them, layer by layer.

    S_l = Source_l(S_{l-1})                              S_0 = E(shots)
    U_l = MemoryLayer_l(O_{l-1})                         O_0 = learned
    O_l = U_l + CrossAttn_l(LN U_l, LN S_l, LN S_l)

The frozen target makes keys and values of O_l with its own projections. Both stacks are copies of the
target's decoder, of whatever family: cross-attention enters through hooks, and no part is asked for by name.
`Gist` and `layers: last` are baselines: the first keeps the keys and values of tokens appended to the source
(Mu et al. 2023), the second enters one layer's output as a soft prompt (as ICAE, Ge et al. 2023).

Shape suffixes: B rows, T source tokens, M memory tokens, E model width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from transformers import PreTrainedModel

from memtoken_cli.engine import ports, seeds
from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.engine.ports import Written
from memtoken_cli.io.errors import DataError, UsageError
from memtoken_cli.methods.memcom.config import Config
from memtoken_cli.methods.memcom.cross import CrossAttention


class Writer(Protocol):
    """What every compressor does, and which of its parameters are new or copied, used or not."""

    def write(self, ids_BT: Tensor, length_B: Tensor, slots: int) -> Written:
        """Memories of `slots` tokens from prompts padded on the right. Raises DataError beyond its tokens."""
        ...

    def new_parts(self) -> dict[str, Parameter]: ...
    def copied_parts(self) -> dict[str, Parameter]: ...


def compressor(target: CausalLM, config: Config, seed: int) -> Writer:
    """A fresh compressor for a frozen target. Raises UsageError where `weights: lora` lacks its extra."""
    with torch.random.fork_rng():
        torch.manual_seed(seeds.derive(seed, "memcom"))
        return Gist(target, config) if config.writer == "gist" else MemCom(target, config)


def alive(writer: Writer, parameters: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """Those of the parameters that what is written depends on: the last layers of a stack have parts whose
    outputs nobody reads."""
    before = {name: parameter.requires_grad for name, parameter in parameters.items()}
    try:
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        device = next(iter(parameters.values())).device
        ids_1T, length_1 = (
            torch.zeros(1, 2, dtype=torch.long, device=device),
            torch.tensor([2], device=device),
        )
        written = writer.write(ids_1T, length_1, 1)
        total = sum(x.float().sum() for kv in written.layers for x in kv)
        assert isinstance(total, Tensor)
        found = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    finally:
        for name, parameter in parameters.items():
            parameter.requires_grad_(before[name])
    return {n: p for (n, p), g in zip(parameters.items(), found, strict=True) if g is not None}


class MemCom(nn.Module):
    """See the module's docstring; with `layers: last` only O_L is used, projected to the input embedding."""

    def __init__(self, target: CausalLM, config: Config) -> None:
        super().__init__()
        dims = target.dims
        if dims.width % dims.heads:
            raise UsageError(f"{target.name}: width {dims.width} is not a multiple of its {dims.heads} heads")
        self.config, self._target = config, (target,)  # in a tuple: the target is no part of the compressor
        self.source, self.memory = (_stack(target, config) for _ in range(2))
        self.tokens_ME = Parameter(_like_embeddings(target, config.slots))
        copies = scales(self.source) if config.start == "copy" else [0.0] * dims.layers
        self.cross = nn.ModuleList(CrossAttention(dims.width, dims.heads, scale) for scale in copies)
        self.cross.to(target.device)
        if config.layers == "last":
            self.project = _Projection(target)

    def write(self, ids_BT: Tensor, length_B: Tensor, slots: int) -> Written:
        target = self._target[0]
        hidden = self.hidden(ids_BT, length_B, slots)
        position_BM, next_B = self.positions(length_B, slots)
        if self.config.layers == "last":
            return ports.enter_prefix(target, self.project(hidden[-1]), position_BM, next_B)
        if self.config.enters == "next":
            hidden = [self._tokens(len(ids_BT), slots), *hidden[:-1]]
        return ports.enter_hidden(target, hidden, position_BM, next_B)

    def hidden(self, ids_BT: Tensor, length_B: Tensor, slots: int) -> list[Tensor]:
        """O_1 .. O_L, [B,M,E] each."""
        states = outputs_of(self.source, lambda: self.source(input_ids=ids_BT, use_cache=False))
        T = ids_BT.shape[1]
        place_1T = torch.arange(T, device=ids_BT.device)[None]
        seen_BT = None if bool((length_B == T).all()) else place_1T < length_B[:, None]
        # counted in shares of the source: each memory token stands in the middle of its own
        place_BM = (torch.arange(slots, device=ids_BT.device) + 0.5).expand(len(ids_BT), slots)
        place_BT = (place_1T + 0.5) * (slots / length_B)[:, None]
        places = (place_BM, place_BT) if self.config.rotary else (None, None)
        tokens = self._tokens(len(ids_BT), slots)

        def add(layer: int, u_BME: Tensor) -> Tensor:
            added: Tensor = self.cross[layer](u_BME, states[layer], seen_BT, *places)
            return u_BME + added

        return outputs_of(self.memory, lambda: self.memory(inputs_embeds=tokens, use_cache=False), add)

    def positions(self, length_B: Tensor, slots: int) -> tuple[Tensor, Tensor]:
        """Where memory tokens stand in the target [B,M], and where it goes on [B]."""
        place_M = torch.arange(slots, device=length_B.device)
        if self.config.positions == "packed":
            return place_M.expand(len(length_B), slots), torch.full_like(length_B, slots)
        last_B1 = (length_B - 1)[:, None]
        return (place_M * last_B1 / max(1, slots - 1)).round().long(), length_B

    def new_parts(self) -> dict[str, Parameter]:
        return {n: p for n, p in self.named_parameters() if not n.startswith(("source.", "memory."))}

    def copied_parts(self) -> dict[str, Parameter]:
        return {
            f"{name}.{n}": p
            for name, stack in (("source", self.source), ("memory", self.memory))
            for n, p in _movable(stack, self.config, self._target[0].dims.layers).items()
        }

    def _tokens(self, rows: int, slots: int) -> Tensor:
        return _first(self.tokens_ME, slots).to(self._target[0].dtype).expand(rows, -1, -1)


class Gist(nn.Module):
    """Memory tokens appended to the source in one trained stack; what follows sees their keys and values."""

    def __init__(self, target: CausalLM, config: Config) -> None:
        super().__init__()
        self.config, self._target = config, (target,)
        self.source = _stack(target, config)
        self.tokens_ME = Parameter(_like_embeddings(target, config.slots))

    def write(self, ids_BT: Tensor, length_B: Tensor, slots: int) -> Written:
        target = self._target[0]
        B, T = ids_BT.shape
        tokens = _first(self.tokens_ME, slots).to(target.dtype).expand(B, -1, -1)
        x_BSE = torch.cat([self.source.get_input_embeddings()(ids_BT), tokens], 1)
        place_T, place_M = torch.arange(T, device=ids_BT.device), torch.arange(slots, device=ids_BT.device)
        position_BS = torch.cat([place_T.expand(B, T), length_B[:, None] + place_M], 1)
        real_BS = torch.cat(
            [place_T < length_B[:, None], torch.ones_like(position_BS[:, T:], dtype=torch.bool)], 1
        )
        seen_BSS = (
            real_BS[:, None] & torch.ones(T + slots, T + slots, dtype=torch.bool, device=x_BSE.device).tril()
        )
        # padding sees itself, so that its softmax is defined
        seen_BSS = seen_BSS | torch.eye(T + slots, dtype=torch.bool, device=x_BSE.device)
        layers = ports.note(self.source, x_BSE, position_BS, seen_BSS)
        kept = tuple((k[:, :, T:], v[:, :, T:]) for k, v in layers)
        return Written(kept, position_BS[:, T:], length_B + slots)

    def new_parts(self) -> dict[str, Parameter]:
        return {"tokens_ME": self.tokens_ME}

    def copied_parts(self) -> dict[str, Parameter]:
        movable = _movable(self.source, self.config, self._target[0].dims.layers)
        return {f"source.{n}": p for n, p in movable.items()}


class _Projection(nn.Module):
    """O_L to the scale of the input embeddings; starts as its normalised self."""

    def __init__(self, target: CausalLM) -> None:
        super().__init__()
        width = target.dims.width
        self.norm = nn.LayerNorm(width, device=target.device)
        self.out = nn.Linear(width, width, device=target.device)
        scale = float(target.model.get_input_embeddings().weight.float().std())
        with torch.no_grad():
            self.out.weight.copy_(torch.eye(width) * scale)
            self.out.bias.zero_()

    def forward(self, x_BME: Tensor) -> Tensor:
        out: Tensor = self.out(self.norm(x_BME.float()))
        return out


def outputs_of(
    stack: PreTrainedModel, run: Callable[[], Any], change: Callable[[int, Tensor], Tensor] | None = None
) -> list[Tensor]:
    """Every decoder layer's output while `run` runs; `change` may replace what the next layer reads."""
    found: list[Tensor] = []

    def hook(layer: int) -> Callable[..., Any]:
        def see(_module: nn.Module, _args: Any, out: Any) -> Any:
            x = out[0] if isinstance(out, tuple) else out
            x = x if change is None else change(layer, x)
            found.append(x)
            if change is None:
                return None
            return (x, *out[1:]) if isinstance(out, tuple) else x

        return see

    with ExitStack() as hooks:
        for layer, module in enumerate(ports.decoder_layers(stack)):
            hooks.callback(module.register_forward_hook(hook(layer)).remove)
        run()
    return found


@torch.no_grad()
def scales(stack: PreTrainedModel) -> list[float]:
    """The root mean square of every layer's output, of the median token: a text's first is often huge."""
    rows = stack.get_input_embeddings().weight.shape[0]
    some = torch.arange(min(64, rows), device=stack.device)[None]
    states = outputs_of(stack, lambda: stack(input_ids=some, use_cache=False))
    return [float(x[0].float().square().mean(-1).sqrt().median()) for x in states]


def _stack(target: CausalLM, config: Config) -> PreTrainedModel:
    """A copy of the target's decoder; the decoder itself where it never changes."""
    decoder: PreTrainedModel = target.model.get_decoder()
    if config.weights == "frozen":
        return decoder
    stack = copy.deepcopy(decoder)
    return low_rank(stack, config.rank) if config.weights == "lora" else stack


def low_rank(stack: PreTrainedModel, rank: int) -> PreTrainedModel:
    """Low-rank parts beside every linear layer, by the `peft` extra. Raises UsageError without it."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UsageError(
            "weights: lora needs the peft package", hint="pip install 'memtok[peft]', or weights: full"
        ) from None
    adapter = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear")
    adapted: PreTrainedModel = inject_adapter_in_model(adapter, stack)
    return adapted


def _movable(stack: PreTrainedModel, config: Config, depth: int) -> dict[str, Parameter]:
    """What the second phase trains of a stack: its decoder layers, or their low-rank parts."""
    if config.weights == "frozen":
        return {}
    inside = {id(p) for layer in ports.decoder_layers(stack) for p in layer.parameters()}
    named = {n: p for n, p in stack.named_parameters() if id(p) in inside}
    return {n: p for n, p in named.items() if config.weights == "full" or "lora_" in n}


def _like_embeddings(target: CausalLM, rows: int) -> Tensor:
    """float32 [rows,E]: noise at the scale of the tokens that the decoder is used to, behind the BOS, where
    prompts begin with one: attention rests on it where nothing fits."""
    some = torch.arange(min(256, target.dims.vocab), device=target.device)
    with torch.no_grad():
        embed = target.model.get_input_embeddings()
        scale = embed(some).float().std()
        noise: Tensor = torch.randn(rows, target.dims.width).to(target.device) * scale
        first = target.tokenizer.encode("", add_special_tokens=True)[:1]
        if first == [target.tokenizer.bos_token_id]:
            noise[0] = embed(torch.tensor(first, device=target.device))[0].float()
    return noise


def _first(tokens_ME: Tensor, slots: int) -> Tensor:
    if slots > len(tokens_ME):
        raise DataError(
            f"{slots} memory tokens, but the compressor was trained with at most {len(tokens_ME)}",
            hint=f"--slots {len(tokens_ME)} or fewer, a higher --ratio, or train with memcom.slots={slots}",
        )
    return tokens_ME[:slots]
