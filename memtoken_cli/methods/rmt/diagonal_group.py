"""Several decoder layers run as one: their weights stacked, their hidden states folded into the rows.

A copy of the first layer's modules does the work; those that hold weights are replaced by ones that multiply
every group of rows by its own layer's. What mixes no weights in (attention, activations, rotation) runs as it
is over G * B rows. What runs when is in `diagonal.py`.

Shape suffixes: L layers, G layers of a group, B rows, T columns, E model width, F any width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.functional import layer_norm
from transformers.pytorch_utils import Conv1D

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""What a layer was called with besides its hidden states."""


class Unlike(Exception):
    """Layers that do not run as a group; the message says why."""


class Stacked:
    """The parameters of equal modules, one tensor [L,...] for each name.

    Frozen ones are held once: the modules' own become views of the stack. Those in training are stacked anew,
    and gradients flow back to the modules' own. Raises Unlike where names or shapes differ, or
    a parameter is shared.
    """

    def __init__(self, modules: nn.ModuleList) -> None:
        named = [dict(module.named_parameters(remove_duplicate=False)) for module in modules]
        if any(of.keys() != named[0].keys() for of in named):
            raise Unlike("layers differ in their parameters")
        self.own = {name: [of[name] for of in named] for name in named[0]}
        for name, each in self.own.items():
            if len({(x.shape, x.dtype, x.device) for x in each}) != 1:
                raise Unlike(f"layers differ in {name}")
        every = [x for each in self.own.values() for x in each]
        if len({id(x) for x in every}) != len(every):
            raise Unlike("layers share parameters")
        self.held: dict[str, Tensor] = {}

    def of(self, at: slice) -> dict[str, Tensor]:
        """Of the layers `at`, [G,...]. Not a slice of one stack where gradients flow: each would come back
        padded to all layers."""
        return {
            name: _joined(each[at]) if any(x.requires_grad for x in each) else self._frozen(name)[at]
            for name, each in self.own.items()
        }

    def _frozen(self, name: str) -> Tensor:
        each, held = self.own[name], self.held.get(name)
        if held is None or any(x.data_ptr() != row.data_ptr() for x, row in zip(each, held, strict=True)):
            with torch.inference_mode(False), torch.no_grad():
                held = self.held[name] = torch.stack([x.detach() for x in each])
                for x, row in zip(each, held, strict=True):
                    x.data = row
        return held


def _joined(each: list[Parameter]) -> Tensor:
    return torch.stack(list(each)) if len(each) > 1 else each[0][None]


class _Weights(nn.Module):
    """Stands in for a module with weights; `weight` and `bias` are set before every call, [G,...]."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = torch.empty(0), None

    def each(self, x: Tensor) -> Tensor:
        """x [G * B,...,F] as [G,B * ...,F]."""
        return x.reshape(len(self.weight), -1, x.shape[-1])

    def times(self, x: Tensor, weight_GEF: Tensor) -> Tensor:
        if self.bias is None:
            out = torch.bmm(self.each(x), weight_GEF)
        else:
            out = torch.baddbmm(self.bias[:, None], self.each(x), weight_GEF)
        return out.view(*x.shape[:-1], out.shape[-1])


class _Linear(_Weights):
    def forward(self, x: Tensor) -> Tensor:
        return self.times(x, self.weight.mT)


class _Conv1D(_Weights):
    def forward(self, x: Tensor) -> Tensor:
        return self.times(x, self.weight)


class _LayerNorm(_Weights):
    def __init__(self, own: Any) -> None:
        super().__init__()
        self.shape, self.eps = own.normalized_shape, own.eps

    def forward(self, x: Tensor) -> Tensor:
        y = self.each(layer_norm(x, self.shape, None, None, self.eps)) * self.weight[:, None]
        return (y if self.bias is None else y + self.bias[:, None]).view_as(x)


class _Channels(_Weights):
    """A norm of any family that scales channels by one vector: its own arithmetic over [G,B * ...,F]."""

    def __init__(self, own: nn.Module) -> None:
        super().__init__()
        del own._parameters["weight"]
        self.own = own

    def forward(self, x: Tensor) -> Tensor:
        self.own.weight = self.weight[:, None]
        y: Tensor = self.own(self.each(x))
        return y.view_as(x)


def _stand_in(module: nn.Module) -> _Weights | None:
    """What runs in place of a module, None where it has no weights of its own. Raises Unlike."""
    own = dict(module.named_parameters(recurse=False))
    if not own:
        return None
    kind = type(module)
    if kind is nn.Linear:
        return _Linear()
    if kind is Conv1D:
        return _Conv1D()
    if kind is nn.LayerNorm:
        return _LayerNorm(module)
    if own.keys() == {"weight"} and own["weight"].dim() == 1 and kind is not nn.RMSNorm:
        return _Channels(module)
    raise Unlike(f"a {kind.__name__} has no form for several layers at once")


class Group:
    """The layers of one model, any contiguous slice of them at once. Raises Unlike."""

    def __init__(self, layers: nn.ModuleList, config: Any) -> None:
        self.stacked = Stacked(layers)
        first = layers[0]
        kept = [config, *first.parameters(), *first.buffers()]  # shared with the copy, not copied
        self.copy = copy.deepcopy(first, {id(x): x for x in kept})
        self.places: list[tuple[_Weights, str, str]] = []
        for path, module in list(self.copy.named_modules()):
            new = _stand_in(module)
            if new is None or not path:
                continue
            holder, _, name = path.rpartition(".")
            setattr(self.copy.get_submodule(holder), name, new)
            self.places += [
                (new, kind, full)
                for kind in ("weight", "bias")
                if (full := f"{path}.{kind}") in self.stacked.own
            ]
        if len(self.places) != len(self.stacked.own):
            raise Unlike("parameters outside of the layers' modules")

    def run(self, weights: dict[str, Tensor], at: slice, h_GBTE: Tensor, call: Call) -> Tensor:
        """Layer l of the slice over h[l]. weights: `stacked.of(at)`. call: see `shared`."""
        for module, kind, name in self.places:
            setattr(module, kind, weights[name])
        args, named = _part(call, at, h_GBTE.shape[1])
        out = self.copy(h_GBTE.flatten(0, 1), *args, **named)
        return (out if isinstance(out, Tensor) else out[0]).view_as(h_GBTE)

    def release(self) -> None:
        """Hold on to no weights until the next step."""
        for module, kind, _ in self.places:
            setattr(module, kind, torch.empty(0))


class _Each:
    """A tensor [L,...] of which every layer has its own."""

    def __init__(self, x_L: Tensor) -> None:
        self.x_L = x_L


def shared(calls: Sequence[Call]) -> Call:
    """One call for all layers: what they have in common as it is, tensors in which they differ stacked.

    Raises Unlike where they differ in anything else.
    """
    args = tuple(_shared(list(each)) for each in zip(*(args for args, _ in calls), strict=True))
    named = [named for _, named in calls]
    return args, {key: _shared([of[key] for of in named]) for key in named[0]}


def _shared(values: list[Any]) -> Any:
    first = values[0]
    if all(x is first for x in values):
        return first
    if isinstance(first, Tensor):
        return _Each(torch.stack(values))
    if isinstance(first, tuple):
        return tuple(_shared(list(each)) for each in zip(*values, strict=True))
    if any(x != first for x in values):
        raise Unlike(f"layers are called with {first!r} and with something else")
    return first


def _part(value: Any, at: slice, rows: int) -> Any:
    """A shared call as the layers `at` take it, with `rows` rows for each of them."""
    if isinstance(value, _Each):
        return value.x_L[at].expand(-1, rows, *value.x_L.shape[2:]).flatten(0, 1)
    if isinstance(value, tuple):
        return tuple(_part(x, at, rows) for x in value)
    if isinstance(value, dict):
        return {key: _part(x, at, rows) for key, x in value.items()}
    return value


@contextmanager
def instead(layers: nn.ModuleList, run: Callable[[Tensor, list[Call]], Tensor]) -> Iterator[None]:
    """Inside, `run` takes the place of all layers: it is given what the first would have read, and what each
    would have been called with. The layers are themselves again afterwards, also after an error."""
    calls: list[Call] = []

    def forward(last: bool) -> Callable[..., Tensor]:
        def pass_on(*args: Any, **named: Any) -> Tensor:
            h = args[0] if args else named.pop("hidden_states")
            calls.append((args[1:], named))
            return run(h, calls) if last else h

        return pass_on

    before = [layer.__dict__.get("forward") for layer in layers]
    try:
        for number, layer in enumerate(layers):
            layer.forward = forward(number == len(layers) - 1)
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            if own is None:
                layer.__dict__.pop("forward", None)
            else:
                layer.forward = own
