"""The backend `memprompt` (MemPromptTSS, section 3): prompts and what surrounds them become memory tokens,
which every window of the subsequence reads.

    m      = Writer(prompt, encoder(crop around it))                                       write
    M      = [old, detached ; m]                                                           keep
    logits = overlap_average(Linear LN blocks(encoder(window), M))                         read

Shape suffixes: B subsequences, L rows of one, W windows, V = B W, T rows of a window, C channels, N patches,
P prompts, M memory tokens, D width, K classes.
"""

from __future__ import annotations

from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, one_hot

from memtoken_cli.engine.stream import State
from memtoken_cli.methods.memprompttss.attention import Attention, Mlp, mirrored
from memtoken_cli.methods.memprompttss.config import Config
from memtoken_cli.methods.memprompttss.patches import PatchEncoder, overlap_average, places
from memtoken_cli.methods.memprompttss.placement import LABEL, Said
from memtoken_cli.methods.memprompttss.windows import Geometry


class Backend(Protocol):
    """What training and exams know of a backend. A state is what it keeps of the prompts so far."""

    def start(self, B: int) -> State:
        """Nothing said yet to any of B subsequences."""
        ...

    def encode(self, x_BLC: Tensor) -> Tensor:
        """z_BWND of every window; no prompt enters."""
        ...

    def step(self, x_BLC: Tensor, z_BWND: Tensor, old: State, said: Said, level: int) -> tuple[State, Tensor]:
        """(the state with these prompts too, logits [B,W,T,K]); no gradient is cut here."""
        ...


class Writer(nn.Module):
    """One layer: q += MHA(LN q, LN z, LN z); q += MLP(LN q)."""

    def __init__(self, width: int, heads: int, drop: float) -> None:
        super().__init__()
        self.attention, self.mlp = Attention(width, heads, drop), Mlp(width, 4 * width, drop, smooth=True)
        self.norm_q, self.norm_z, self.norm_f = (nn.LayerNorm(width) for _ in range(3))
        self.drop = drop

    def forward(self, q_B1D: Tensor, z_BND: Tensor) -> Tensor:
        z = self.norm_z(z_BND)
        q = q_B1D + dropout(self.attention(self.norm_q(q_B1D), z, z), self.drop, self.training)
        out: Tensor = q + dropout(self.mlp(self.norm_f(q)), self.drop, self.training)
        return out


class Block(nn.Module):
    """A two-way block, pre-norm: X+=SA(X), X+=CA(X<-M), M+=SA(M), M+=CA(M<-X), X+=MLP(X), M+=MLP(M).

    moves: whether M is updated; skips: whether an empty memory leaves out what reads it.
    """

    def __init__(self, config: Config, moves: bool) -> None:
        super().__init__()
        D, H, drop = config.width, config.heads, config.dropout
        self.drop, self.skips = drop, config.empty_read == "skip"
        self.self_x, self.read_x = Attention(D, H, drop), Attention(D, H, drop)
        self.mlp_x = Mlp(D, 4 * D, drop, smooth=True)
        self.norm_self_x, self.norm_ask_x, self.norm_told_m, self.norm_mlp_x = (
            nn.LayerNorm(D) for _ in range(4)
        )
        self.memory = Update(config) if moves else None

    def forward(self, x: Tensor, m: Tensor, seen_BM: Tensor | None) -> tuple[Tensor, Tensor]:
        h = self.norm_self_x(x)
        x = x + self._drop(self.self_x(h, h, h))
        some = m.shape[1] > 0
        if some or not self.skips:
            told = self.norm_told_m(m)
            read = self.read_x(self.norm_ask_x(x), told, told, seen_BM)
            if seen_BM is not None and self.skips:
                read = torch.where(seen_BM.any(1)[:, None, None], read, 0.0)
            x = x + self._drop(read)
        moves = self.memory is not None and some
        if self.memory is not None and moves:
            m = self.memory.hear(x, m, seen_BM)
        x = x + self._drop(self.mlp_x(self.norm_mlp_x(x)))
        if self.memory is not None and moves:
            m = self.memory.think(m)
        return x, m

    def _drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.drop, self.training)


class Update(nn.Module):
    """The memory's half of a block."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        D, H, self.drop = config.width, config.heads, config.dropout
        self.self_m, self.read_m = Attention(D, H, self.drop), Attention(D, H, self.drop)
        self.mlp_m = Mlp(D, 4 * D, self.drop, smooth=True)
        self.norm_self_m, self.norm_ask_m, self.norm_told_x, self.norm_mlp_m = (
            nn.LayerNorm(D) for _ in range(4)
        )

    def hear(self, x: Tensor, m: Tensor, seen_BM: Tensor | None) -> Tensor:
        h = self.norm_self_m(m)
        m = m + dropout(self.self_m(h, h, h, seen_BM), self.drop, self.training)
        told = self.norm_told_x(x)
        return m + dropout(self.read_m(self.norm_ask_m(m), told, told), self.drop, self.training)

    def think(self, m: Tensor) -> Tensor:
        return m + dropout(self.mlp_m(self.norm_mlp_m(m)), self.drop, self.training)


class MemPrompt(nn.Module):
    """The network. With `dead_tail: false` the last block's memory half, which nothing reads, does not
    exist."""

    def __init__(self, config: Config, channels: int, classes: int, levels: int = 1) -> None:
        super().__init__()
        D = config.width
        self.config, self.classes = config, classes
        self.geometry = Geometry(config.rows, config.stride, config.windows)
        self.encoder = PatchEncoder(config, channels)
        self.label = nn.Linear(2 * classes, D)
        self.boundary, self.kind, self.aspect = (nn.Embedding(2, D) for _ in range(3))
        self.level = nn.Embedding(levels, D) if config.level_token else None
        self.writers = nn.ModuleList(
            Writer(D, config.heads, config.dropout) for _ in range(config.writer_layers)
        )
        last = config.blocks - 1
        blocks = [Block(config, moves=config.dead_tail or i < last) for i in range(config.blocks)]
        self.blocks = nn.ModuleList(blocks)
        self.norm, self.head = nn.LayerNorm(D), nn.Linear(D, classes)
        if config.start == "copy":
            mirrored(self.label, self.head)
            for block in blocks:
                block.read_x.pass_on()

    def start(self, B: int) -> State:
        """(tokens [B,0,D], their rows [B,0])."""
        at = self.head.weight
        return at.new_zeros(B, 0, self.config.width), torch.zeros(B, 0, dtype=torch.int64, device=at.device)

    def encode(self, x_BLC: Tensor) -> Tensor:
        """z_BWND; with `window_stats` one more token a window."""
        return self.encoder.windows(x_BLC, self.geometry)

    def step(self, x_BLC: Tensor, z_BWND: Tensor, old: State, said: Said, level: int) -> tuple[State, Tensor]:
        """Write these prompts behind the old tokens, then read all; the newest `capacity` are the new
        state."""
        m_BMD, at_BM = old
        if said.row_BP.shape[1]:
            m_BMD = torch.cat([m_BMD, self.write(x_BLC, said, level)], 1)
            at_BM = torch.cat([at_BM, said.row_BP], 1)
        logits = self.windows(z_BWND, m_BMD, at_BM)
        keep = slice(None) if self.config.capacity is None else slice(-self.config.capacity, None)
        return (m_BMD[:, keep], at_BM[:, keep]), logits

    def write(self, x_BLC: Tensor, said: Said, level: int = 0) -> Tensor:
        """[B,P,D]: one token a prompt."""
        K = self.classes
        is_label = (said.kind_BP == LABEL)[..., None]
        place = torch.where(said.kind_BP == LABEL, said.value_BP + K * (1 - said.aspect_BP), 0)
        bits = torch.where(said.kind_BP == LABEL, 0, said.value_BP)
        v = self.label(one_hot(place, 2 * K).to(x_BLC.dtype))
        said_BPD = torch.where(is_label, v, self.boundary(bits))
        q_BPD = said_BPD + self.kind(said.kind_BP) + self.aspect(said.aspect_BP)
        return self.write_vectors(x_BLC, said.row_BP, q_BPD, level)

    def write_vectors(self, x_BLC: Tensor, row_BP: Tensor, q_BPD: Tensor, level: int = 0) -> Tensor:
        """[B,P,D]: prompts q at these rows, after reading what surrounds them."""
        P = row_BP.shape[1]
        # copies of one row, as `placement: single` makes them, share a crop
        copies = self.config.time_attention and bool((row_BP == row_BP[:, :1]).all())
        asked_BP = row_BP[:, :1] if copies else row_BP
        z = self.encoder(crops(x_BLC, asked_BP, self.config.crop).flatten(0, 1))
        z = z.repeat_interleave(P, 0) if copies else z
        q = q_BPD if self.level is None else q_BPD + self.level.weight[level]
        q = q.flatten(0, 1)[:, None]
        for writer in self.writers:
            q = writer(q, z)
        m_BPD: Tensor = q[:, 0].unflatten(0, row_BP.shape)
        return m_BPD

    def windows(self, z_BWND: Tensor, m_BMD: Tensor, at_BM: Tensor, seen_BM: Tensor | None = None) -> Tensor:
        """Logits [B,W,T,K]: every window reads the whole bank of its subsequence."""
        B, W = z_BWND.shape[:2]
        m = m_BMD[:, None].expand(B, W, *m_BMD.shape[1:])
        if self.config.token_time:
            m = m + self.time(at_BM)
        seen = None if seen_BM is None else seen_BM[:, None].expand(B, W, -1).flatten(0, 1)
        logits = self.read(z_BWND.flatten(0, 1), m.flatten(0, 1), seen)
        return logits.view(B, W, *logits.shape[1:])

    def time(self, at_BM: Tensor) -> Tensor:
        """[B,W,M,D]: where a token's row lies in each window, in the code of the patches' places."""
        start_W = self.geometry.start_W.to(at_BM.device)
        middle = (self.config.patch - 1) / 2
        at_BWM = (at_BM[:, None] - start_W[:, None] - middle) / self.config.patch_stride
        return places(at_BWM, self.config.width)

    def attends(self, z_VND: Tensor, m_VMD: Tensor) -> Tensor:
        """[V,M]: how much a window's patches look at each token in the first block; sums to 1."""
        block = cast(Block, self.blocks[0])
        h = block.norm_self_x(z_VND)
        x = z_VND + block.self_x(h, h, h)
        return block.read_x.weights(block.norm_ask_x(x), block.norm_told_m(m_VMD)).mean(1)

    def read(self, z_VND: Tensor, m_VMD: Tensor, seen_VM: Tensor | None = None) -> Tensor:
        """Logits [V,T,K] of windows that each read a bank of their own."""
        x, m = z_VND, m_VMD
        for block in self.blocks:
            x, m = block(x, m, seen_VM)
        patches = (self.config.rows - self.config.patch) // self.config.patch_stride + 1
        logits_VNK = self.head(self.norm(x[:, :patches]))
        return overlap_average(logits_VNK, self.config.patch, self.config.patch_stride)


def crops(x_BLC: Tensor, row_BP: Tensor, rows: int) -> Tensor:
    """[B,P,rows,C] centred on each row, moved inside the subsequence; zeros after its end where it is
    shorter."""
    B, L, C = x_BLC.shape
    if rows > L:
        x_BLC = torch.cat([x_BLC, x_BLC.new_zeros(B, rows - L, C)], 1)
    start_BP = (row_BP - rows // 2).clamp(min=0, max=max(0, L - rows))
    at_BPX = start_BP[..., None] + torch.arange(rows, device=row_BP.device)
    return x_BLC[torch.arange(B, device=row_BP.device)[:, None, None], at_BPX]
