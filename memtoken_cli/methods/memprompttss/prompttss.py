"""The backend `prompttss` (PromptTSS, the ancestor): a window's own prompts, row by row, beside its patches.

    z_p = LN SA(z_p) · z_p = LN(z_p + CA(z_p <- z_x)) · z_p = LN(z_p + MLP z_p) · z_x = LN(z_x + CA(z_x <-
    z_p))

Prompts add up over iterations, but a window sees none outside itself: nothing is kept as a memory.

Shape suffixes: B subsequences, L rows of one, W windows, V = B W, T rows of a window, C channels, N patches,
M prompts so far, D width, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from memtoken_cli.engine.stream import State
from memtoken_cli.methods.memprompttss.attention import Attention, Mlp, mirrored
from memtoken_cli.methods.memprompttss.config import Config
from memtoken_cli.methods.memprompttss.patches import PatchEncoder
from memtoken_cli.methods.memprompttss.placement import LABEL, WRONG, Said, joined
from memtoken_cli.methods.memprompttss.windows import Geometry

LONGEST = 2048  # rows that have a learned position


class Block(nn.Module):
    """Two ways, post-norm; places are added to queries and keys, but not in the first block's
    self-attention."""

    def __init__(self, config: Config, first: bool) -> None:
        super().__init__()
        D, H, self.drop = config.width, config.heads, config.dropout
        self.first = first
        self.self_p, self.read_p, self.read_x = (Attention(D, H, self.drop) for _ in range(3))
        self.mlp = Mlp(D, 2 * D, self.drop, smooth=False)
        self.norm_self, self.norm_read, self.norm_mlp, self.norm_x = (nn.LayerNorm(D) for _ in range(4))

    def forward(self, p: Tensor, x: Tensor, place_p: Tensor, place_x: Tensor) -> tuple[Tensor, Tensor]:
        placed = p if self.first else p + place_p
        p = self.norm_self(self.self_p(placed, placed, p))
        p = self.norm_read(p + self._drop(self.read_p(p + place_p, x + place_x, x)))
        p = self.norm_mlp(p + self._drop(self.mlp(p)))
        x = self.norm_x(x + self._drop(self.read_x(x + place_x, p + place_p, p)))
        return p, x

    def _drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.drop, self.training)


class PromptTSS(nn.Module):
    """The network; its state is what was said so far: rows, kinds, aspects and values, [B,M] each."""

    def __init__(self, config: Config, channels: int, classes: int, levels: int = 1) -> None:
        super().__init__()
        D = config.width
        self.config, self.classes = config, classes
        self.geometry = Geometry(config.rows, config.stride, config.windows)
        self.encoder = PatchEncoder(config, channels)
        self.label = nn.Linear(2 * classes, D)
        self.boundary = nn.Embedding(2, D)
        self.level = nn.Embedding(levels, D) if config.level_token else None
        blocks = [Block(config, first=i == 0) for i in range(config.blocks)]
        self.blocks = nn.ModuleList(blocks)
        self.place = nn.Parameter(torch.randn(1, LONGEST, D) * 0.02)
        self.last, self.norm = Attention(D, config.heads, config.dropout), nn.LayerNorm(D)
        self.head = nn.Linear(D, classes)
        if config.start == "copy":
            mirrored(self.label, self.head)
            for block in blocks:
                block.self_p.pass_on()

    def start(self, B: int) -> State:
        """Nothing said."""
        none = Said.none(B).to(self.head.weight.device)
        return none.row_BP, none.kind_BP, none.aspect_BP, none.value_BP

    def encode(self, x_BLC: Tensor) -> Tensor:
        """z_BWND."""
        return self.encoder.windows(x_BLC, self.geometry)

    def step(self, x_BLC: Tensor, z_BWND: Tensor, old: State, said: Said, level: int) -> tuple[State, Tensor]:
        """What was said with these prompts too; logits of windows that see those inside themselves."""
        every = joined([Said(*old), said])
        p_BWTD = self.geometry.cut(self.prompts(every, x_BLC.shape[1], level))
        logits = self.read(z_BWND.flatten(0, 1), p_BWTD.flatten(0, 1)).unflatten(0, p_BWTD.shape[:2])
        return (every.row_BP, every.kind_BP, every.aspect_BP, every.value_BP), logits

    def prompts(self, said: Said, rows: int, level: int = 0) -> Tensor:
        """[B,L,D], zero where nothing was said; several things said of a row add up (labels as a
        multi-hot)."""
        B, K = len(said), self.classes
        at_B = torch.arange(B, device=said.row_BP.device)[:, None].expand_as(said.row_BP)
        label_BP, boundary_BP = said.kind_BP == LABEL, said.kind_BP != LABEL
        hot = torch.zeros(B, rows, 2 * K, device=said.row_BP.device)
        column_BP = said.value_BP + K * (1 - said.aspect_BP)
        hot[at_B[label_BP], said.row_BP[label_BP], column_BP[label_BP]] = 1
        labelled_BL = hot.any(-1, keepdim=True)
        out = torch.where(labelled_BL, self.label(hot), 0.0)
        # no input says whether a bit is negated, so the negation is undone
        bit_BP = said.value_BP ^ (said.aspect_BP == WRONG).to(torch.int64)
        told_BL2 = torch.zeros(B, rows, 2, device=out.device)
        told_BL2[at_B[boundary_BP], said.row_BP[boundary_BP], bit_BP[boundary_BP]] = 1
        out = out + told_BL2 @ self.boundary.weight
        if self.level is not None:
            said_BL = labelled_BL | told_BL2.any(-1, keepdim=True)
            out = torch.where(said_BL, out + self.level.weight[level], out)
        return out

    def read(self, z_VND: Tensor, p_VTD: Tensor) -> Tensor:
        """Logits [V,T,K]."""
        place_p, place_x = self.place[:, : p_VTD.shape[1]], self.place[:, : z_VND.shape[1]]
        p, x = p_VTD, z_VND
        for block in self.blocks:
            p, x = block(p, x, place_p, place_x)
        read = self.last(p + place_p, x + place_x, x)
        p = self.norm(p + dropout(read, self.config.dropout, self.training))
        logits: Tensor = self.head(p)
        return logits
