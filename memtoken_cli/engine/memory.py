"""Memory: the tensors that stand for something long, and what each of them stands for.

Nothing outside this file knows the layout. Three shapes cover the four ports: `Layers` holds keys
and values of its own for every layer, heads of unequal length laid end to end with nothing padded;
`Tokens` holds vectors that enter as a prefix or through cross-attention; `Rows` holds named rows that
stand beside the vocabulary, with whatever a method keeps to choose among them.

Shape suffixes: L layers, N key/value heads, M tokens of a head, X tokens of all heads of a layer
laid end to end (X = sum of M over N), D head or model width, P named rows, k tokens of a row, E model width.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..io.errors import DataError

PORTS = ("prefix", "layers", "cross", "vocab")
CONTROL, TOKENS = "control", "tokens_MD"


@dataclass(frozen=True)
class LayerKV:
    """What one layer reads.

    k_XD, v_XD: keys (with their rotary phase) and values. sizes: tokens of each head, in order.
    bias_X: added to the logits (float32), or None. pos_X: the position each key was written at
    (int32); kept only where a sliding window decides visibility by it.
    """

    k_XD: Tensor
    v_XD: Tensor
    sizes: tuple[int, ...]
    bias_X: Tensor | None = None
    pos_X: Tensor | None = None

    def __post_init__(self) -> None:
        if self.k_XD.shape[0] != sum(self.sizes) or self.v_XD.shape[0] != self.k_XD.shape[0]:
            raise DataError(
                f"a layer's head sizes add up to {sum(self.sizes)}, its keys to {self.k_XD.shape[0]}"
            )
        if any(x is not None and x.shape != self.k_XD.shape[:1] for x in (self.bias_X, self.pos_X)):
            raise DataError("a layer's biases or positions are not as many as its keys")

    @property
    def uniform(self) -> bool:
        return len(set(self.sizes)) == 1

    def heads(self) -> Iterator[tuple[Tensor, Tensor, Tensor | None, Tensor | None]]:
        """k_MD, v_MD, bias_M, pos_M of each head."""
        none: tuple[None, ...] = (None,) * len(self.sizes)
        biases = none if self.bias_X is None else self.bias_X.split(self.sizes)
        places = none if self.pos_X is None else self.pos_X.split(self.sizes)
        return zip(self.k_XD.split(self.sizes), self.v_XD.split(self.sizes), biases, places, strict=True)

    @classmethod
    def from_heads(cls, k: Sequence[Tensor], v: Sequence[Tensor]) -> "LayerKV":
        """From one [M,D] pair a head."""
        return cls(torch.cat(list(k)), torch.cat(list(v)), tuple(head.shape[0] for head in k))

    def take(self, chosen: Sequence[Tensor]) -> "LayerKV":
        """The tokens `chosen` ([M] indices within each head), values and bias untouched."""
        starts = [sum(self.sizes[:n]) for n in range(len(self.sizes))]
        flat = torch.cat([index + start for index, start in zip(chosen, starts, strict=True)])

        def pick(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[flat]

        return LayerKV(
            self.k_XD[flat],
            self.v_XD[flat],
            tuple(len(c) for c in chosen),
            pick(self.bias_X),
            pick(self.pos_X),
        )

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "LayerKV":
        def move(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.to(device)

        return LayerKV(
            self.k_XD.to(device, dtype),
            self.v_XD.to(device, dtype),
            self.sizes,
            move(self.bias_X),
            move(self.pos_X),
        )


@dataclass(frozen=True)
class Layers:
    """Memory of the `layers` port. next_position: where the text that reads it goes on."""

    layers: tuple[LayerKV, ...]
    next_position: int
    port = "layers"

    @classmethod
    def empty(cls, layers: int, kv_heads: int, head_dim: int, next_position: int = 0) -> "Layers":
        none = torch.zeros(0, head_dim)
        return cls(tuple(LayerKV(none, none, (0,) * kv_heads) for _ in range(layers)), next_position)

    @property
    def slots(self) -> float:
        """Tokens kept, per layer and head on average."""
        return sum(sum(kv.sizes) for kv in self.layers) / max(1, sum(len(kv.sizes) for kv in self.layers))

    @property
    def nbytes(self) -> int:
        return sum(x.numel() * x.element_size() for x in self.tensors().values())

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Layers":
        return replace(self, layers=tuple(kv.to(device, dtype) for kv in self.layers))

    def tensors(self) -> dict[str, Tensor]:
        """Named as the artifact keeps them; `layers.sizes_LN` says how the heads are cut."""
        out = {"layers.sizes_LN": torch.tensor([kv.sizes for kv in self.layers], dtype=torch.int32)}
        for i, kv in enumerate(self.layers):
            named = {"k_XD": kv.k_XD, "v_XD": kv.v_XD, "bias_X": kv.bias_X, "pos_X": kv.pos_X}
            out |= {f"layers.{i}.{key}": x.detach().contiguous() for key, x in named.items() if x is not None}
        return out


@dataclass(frozen=True)
class Tokens:
    """Memory of the `prefix` or `cross` port: tokens_MD, and a name for what each stands for; kept: a
    method's other tensors by their names in the artifact."""

    port: str
    tokens_MD: Tensor
    names: tuple[str, ...] = ()
    kept: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.port not in ("prefix", "cross"):
            raise DataError(f"no port named {self.port!r} takes plain tokens")
        if self.names and len(self.names) != self.tokens_MD.shape[0]:
            raise DataError(f"{self.tokens_MD.shape[0]} memory tokens but {len(self.names)} names")
        if TOKENS in self.kept:
            raise DataError(f"a tensor that is kept beside the tokens cannot be called {TOKENS}")

    @property
    def slots(self) -> float:
        return float(self.tokens_MD.shape[0])

    @property
    def nbytes(self) -> int:
        return sum(x.numel() * x.element_size() for x in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        named = {TOKENS: self.tokens_MD, **self.kept}
        return {name: x.detach().contiguous() for name, x in named.items()}


@dataclass(frozen=True)
class Rows:
    """Memory of the `vocab` port: control_PkE float32, k embeddings of each name; kept: a method's other
    tensors by their names in the artifact."""

    names: tuple[str, ...]
    control_PkE: Tensor
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    port = "vocab"

    def __post_init__(self) -> None:
        if self.control_PkE.dim() != 3 or self.control_PkE.shape[0] != len(self.names):
            raise DataError(
                f"{len(self.names)} names for control rows of shape {list(self.control_PkE.shape)}"
            )
        if CONTROL in self.kept:
            raise DataError(f"a tensor that is kept beside the rows cannot be called {CONTROL}")

    @property
    def slots(self) -> float:
        """Rows kept."""
        return float(len(self.names))

    @property
    def nbytes(self) -> int:
        return sum(x.numel() * x.element_size() for x in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        named = {CONTROL: self.control_PkE, **self.kept}
        return {name: x.detach().contiguous() for name, x in named.items()}


Memory = Layers | Tokens | Rows


def from_tensors(
    port: str, tensors: Mapping[str, Tensor], next_position: int = 0, names: Sequence[str] = ()
) -> Memory:
    """The memory that `tensors()` wrote. Raises DataError where a tensor is missing or does not fit."""
    try:
        if port == "vocab":
            kept = {name: x for name, x in tensors.items() if name != CONTROL}
            return Rows(tuple(names), tensors[CONTROL], kept)
        if port != "layers":
            kept = {name: x for name, x in tensors.items() if name != TOKENS}
            return Tokens(port, tensors[TOKENS], tuple(names), kept)
        layers = []
        for i, sizes in enumerate(tensors["layers.sizes_LN"].tolist()):
            part = {key: tensors.get(f"layers.{i}.{key}") for key in ("bias_X", "pos_X")}
            layers.append(
                LayerKV(tensors[f"layers.{i}.k_XD"], tensors[f"layers.{i}.v_XD"], tuple(sizes), **part)
            )
        return Layers(tuple(layers), next_position)
    except KeyError as missing:
        raise DataError(
            f"the memory lacks its tensor {missing}", hint="compress the prompt again"
        ) from missing


def join(memories: Sequence[Layers]) -> Layers:
    """Memories side by side, each read as if alone in front: an approximation, since neither saw the other.

    Keys keep the rotary phase of their own prompt, so that positions overlap; the text goes on after the
    longest. `turn.in_a_row` moves them one behind the other first, which is better by far where it can.
    Raises DataError where the layers or heads differ.
    """
    first = memories[0]
    shape = [(len(kv.sizes), kv.k_XD.shape[1]) for kv in first.layers]
    if any([(len(kv.sizes), kv.k_XD.shape[1]) for kv in m.layers] != shape for m in memories):
        raise DataError("memories of different models cannot be joined")
    joined = []
    for parts in zip(*(m.layers for m in memories), strict=True):
        heads = range(len(parts[0].sizes))

        def lay(pieces: Sequence[Tensor], cut: Sequence[LayerKV] = parts, heads: range = heads) -> Tensor:
            split = [x.split(kv.sizes) for x, kv in zip(pieces, cut, strict=True)]
            return torch.cat([s[n] for n in heads for s in split])

        biased = any(kv.bias_X is not None for kv in parts)
        # an empty memory has no positions to know, and must not take the others'
        pos = [torch.zeros(0, dtype=torch.int32) if not len(kv.k_XD) else kv.pos_X for kv in parts]
        placed = [x for x in pos if x is not None]
        bias = [torch.zeros(len(kv.k_XD)) if kv.bias_X is None else kv.bias_X for kv in parts]
        joined.append(
            LayerKV(
                lay([kv.k_XD for kv in parts]),
                lay([kv.v_XD for kv in parts]),
                tuple(sum(kv.sizes[n] for kv in parts) for n in heads),
                lay(bias) if biased else None,
                lay(placed) if len(placed) == len(parts) and any(map(len, placed)) else None,
            )
        )
    return Layers(tuple(joined), max(m.next_position for m in memories))
