"""`armt`: every layer keeps an associative matrix that its text reads and its memory tokens write (arXiv
2407.04841, the delta rule with the gamma correction).

    read, every column:   q = phi(W_q h);   h <- h + A^T q / (z.q + 1e-5)
    the layer runs;       w = its outputs at the m write columns
    k = phi(W_k w);  v = W_v w;  b = sigmoid(W_b w)
    vbar = A^T k / (z.k + 1e-5);   g = clip(1 - z.k / (|k|^2 + 1e-5), 0, 1), without gradient
    A <- A + sum_i b_i k_i (v_i - vbar_i)^T;      z <- z + sum_i g_i k_i

The first segment of a row reads nothing and writes with vbar = 0, g = 1. All m tokens read the old A. The
same learned vectors are the memory tokens of every segment. W_v starts at zero: a wrapped model is the model
itself.

Shape suffixes: B rows, L layers, M memory slots, W text columns of a segment, U columns fed at once, T
columns, E model width, D associative width d_mem, K key size 6 D; in `segment`, wanted_K is wanted columns.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.functional import linear, normalize
from transformers import DynamicCache

from memtoken_cli.engine import seeds
from memtoken_cli.engine.between import between
from memtoken_cli.methods.rmt.config import Config
from memtoken_cli.methods.rmt.network import Network, wide
from memtoken_cli.methods.rmt.piecewise import feed, mask_of
from memtoken_cli.methods.rmt.places import laid, places_for
from memtoken_cli.methods.rmt.policy import Open, State, chosen

EPSILON = 1e-5
NU = 3  # DPFP-3


def phi(x_BTD: Tensor, unit: bool) -> Tensor:
    """Deterministic parameter-free projection DPFP-3 (arXiv 2102.11174, eq. 37); length one where `unit`."""
    y = torch.cat([x_BTD.relu(), (-x_BTD).relu()], -1)
    out = torch.cat([y * y.roll(j, -1) for j in range(1, NU + 1)], -1)
    return normalize(out, dim=-1) if unit else out


def _dot(x_BTK: Tensor, y_BK: Tensor) -> Tensor:
    """[B,T,1]; a matrix product with one column has other bits by how many rows it is given at once."""
    return (x_BTK * y_BK[..., None, :]).sum(-1, keepdim=True)


def recall(q_BTK: Tensor, a_BKE: Tensor, z_BK: Tensor) -> Tensor:
    """[B,T,E] that the queries find; any axes may stand before B."""
    return (q_BTK @ a_BKE) / (_dot(q_BTK, z_BK) + EPSILON)


def gate(w_BME: Tensor, b_1E: Tensor, bias: Tensor) -> Tensor:
    """[B,M,1]: how strongly each token writes."""
    x_BM1 = _dot(w_BME, b_1E[..., 0, :]) + bias
    # in whole vectors of the processor: a rest is rounded by other code, and the rows decide what is left
    return torch.sigmoid(x_BM1.expand(*x_BM1.shape[:-1], 32))[..., :1]


def delta(
    k_BMK: Tensor,
    v_BME: Tensor,
    b_BM1: Tensor,
    a_BKE: Tensor,
    z_BK: Tensor,
    first_B: Tensor | None,
    gate_z: bool,
) -> tuple[Tensor, Tensor]:
    """(A, z) after one write of m pairs; any axes may stand before B. first_B: rows that write for the first
    time, None for no row."""
    zk_BM1 = _dot(k_BMK, z_BK)
    old_BME = (k_BMK @ a_BKE) / (zk_BM1 + EPSILON)
    square_BM1 = k_BMK.square().sum(-1, keepdim=True)
    g_BM1 = (1 - zk_BM1 / (square_BM1 + EPSILON)).clamp(0, 1).detach()
    if first_B is not None:
        first_B11 = first_B[..., None, None]
        old_BME, g_BM1 = old_BME.masked_fill(first_B11, 0.0), g_BM1.masked_fill(first_B11, 1.0)
    if gate_z:
        g_BM1 = g_BM1 * b_BM1
    a_BKE = a_BKE + (b_BM1 * k_BMK).mT @ (v_BME - old_BME)
    return a_BKE, z_BK + (g_BM1 * k_BMK).sum(-2)


class Association(nn.Module):
    """One layer's associative memory; float32 whatever the backbone is."""

    def __init__(self, width: int, d_mem: int, unit: bool, gate_z: bool, generator: torch.Generator) -> None:
        super().__init__()
        bound = width**-0.5

        def uniform(rows: int) -> Parameter:
            return Parameter(torch.empty(rows, width).uniform_(-bound, bound, generator=generator))

        self.q, self.k = uniform(d_mem), uniform(d_mem)
        self.v = Parameter(torch.zeros(width, width))
        self.b = uniform(1)
        self.bias = Parameter(torch.ones(1))
        self.unit, self.gate_z = unit, gate_z
        self.key_size = 2 * NU * d_mem

    def read(self, h_BTE: Tensor, a_BKE: Tensor, z_BK: Tensor, started_B: Tensor) -> Tensor:
        """h with what its columns recall; rows that have written nothing are left as they are."""
        if not bool(started_B.any()):
            return h_BTE
        recalled = recall(phi(linear(wide(h_BTE), self.q), self.unit), a_BKE, z_BK)
        recalled = torch.where(started_B[:, None, None], recalled, torch.zeros_like(recalled))
        return h_BTE + recalled.to(h_BTE.dtype)

    def write(self, w_BME: Tensor, a_BKE: Tensor, z_BK: Tensor, started_B: Tensor) -> tuple[Tensor, Tensor]:
        """(A, z) with the m tokens written in."""
        w_BME = wide(w_BME).contiguous()  # of a slice, products are rounded otherwise than of a group's rows
        k_BMK = phi(linear(w_BME, self.k), self.unit)
        v_BME = linear(w_BME, self.v)
        b_BM1 = gate(w_BME, self.b, self.bias)
        return delta(k_BMK, v_BME, b_BM1, a_BKE, z_BK, ~started_B, self.gate_z)


class Associative:
    """armt around one backbone. State: (A [B,L,K,E], z [B,L,K], started [B])."""

    def __init__(self, network: Network, config: Config, seed: int) -> None:
        self.network, self.config = network, config
        self.size, self.slots = config.segment, config.slots
        self.training = False
        dims = network.backbone.dims
        self.places = places_for(config, dims.context, dims.windows)
        generator = seeds.generator(seed, "memory")
        device = network.backbone.device
        # at the scale of the embeddings: the published 0.02 is that of the models it was used with
        spread = float(network.model.get_input_embeddings().weight.detach().float().std())
        draw = torch.randn(self.slots, dims.width, generator=generator) * spread
        self.init_ME = Parameter(draw.to(device))
        self.memories = nn.ModuleList(
            Association(dims.width, config.d_mem, config.normalise, config.gate_z, generator)
            for _ in range(dims.layers)
        ).to(device)
        self.shape = (dims.layers, 2 * NU * config.d_mem, dims.width)

    def parameters(self) -> Mapping[str, Parameter]:
        named = {f"armt.{name}": p for name, p in self.memories.named_parameters()}
        return {"memory.init_MD": self.init_ME} | named

    def calibrate(self, ids_BW: Tensor) -> None:
        pass

    def start(self, rows: int) -> State:
        L, K, E = self.shape
        like = self.init_ME
        return (
            like.new_zeros(rows, L, K, E),
            like.new_zeros(rows, L, K),
            torch.zeros(rows, dtype=torch.bool, device=like.device),
        )

    def read(self, layer: int, h_BTE: Tensor, state: State) -> Tensor:
        """What layer l reads instead of h."""
        return self.memories[layer].read(h_BTE, state[0][:, layer], state[1][:, layer], state[2])

    def write(self, layer: int, w_BME: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """Layer l's (A, z) after its outputs at the write columns."""
        a, z = self.memories[layer].write(w_BME, state[0][:, layer], state[1][:, layer], state[2])
        if self.training and self.config.state_noise:
            a = a + self.config.state_noise * torch.randn_like(a)
        return a, z

    def _next(self, written: list[tuple[Tensor, Tensor]], state: State) -> State:
        a = torch.stack([a for a, _ in written], 1)
        z = torch.stack([z for _, z in written], 1)
        return a, z, torch.ones_like(state[2])

    def segment(
        self, ids_BW: Tensor, count_B: Tensor, state: State, wanted_K: Tensor | None
    ) -> tuple[Tensor | None, State]:
        B, W = ids_BW.shape
        position_BT, mask = laid(self.places, count_B, W, self.network.backbone.dtype)
        written: list[tuple[Tensor, Tensor]] = []

        def leave(layer: int, h: Tensor) -> None:
            written.append(self.write(layer, h[:, -self.slots :], state))

        x_BWE = self.network.embed(ids_BW)
        tokens = self.init_ME.to(x_BWE.dtype).expand(B, -1, -1)
        with between(self.network.layers, lambda layer, h: self.read(layer, h, state), leave):
            _, logits = self.network.run(torch.cat([x_BWE, tokens], 1), position_BT, mask, wanted_K)
        return logits, chosen(self._next(written, state), state, count_B > 0)

    def open(self, state: State, rows: int) -> Open:
        return Open(state, DynamicCache())

    def feed(self, at: Open, ids_BU: Tensor, wanted: bool = True) -> Tensor | None:
        with between(self.network.layers, lambda layer, h: self.read(layer, h, at.state)):
            return feed(self.network, self.places, at, ids_BU, wanted)

    def close(self, at: Open) -> State:
        rows = len(at.state[2])
        position_BT = self.places.of_write(torch.full((rows,), at.count)).to(self.init_ME.device)
        mask = mask_of(self.network, self.places, at.count, at.count + self.slots, at.count)
        tokens = self.init_ME.to(self.network.backbone.dtype).expand(rows, -1, -1)
        written: list[tuple[Tensor, Tensor]] = []
        with between(
            self.network.layers,
            lambda layer, h: self.read(layer, h, at.state),
            lambda layer, h: written.append(self.write(layer, h, at.state)),
        ):
            self.network.run(tokens, position_BT, mask, None, at.cache)
        return self._next(written, at.state)
