"""The training loss of a batch of examples behind prompts that were read before (TokMem eq. 3), exact.

The graph covers the memory, response and end tokens alone; logits are made where there is a target alone.

Shape suffixes: B rows, U tokens behind the prompts, M targets of all rows, E model width, V vocabulary, A
addresses, R rows of the table (EOC first, then control tokens).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from memtoken_cli.engine import prefix_cache, vocab
from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.engine.prefix_cache import Kept
from memtoken_cli.engine.task import Loss
from memtoken_cli.methods.tokmem.examples import IGNORE, Layout

PADDED = 32  # tokens that cost about what another forward costs beside its own


@dataclass(frozen=True)
class Table:
    """The rows that training reads. table_RE: EOC (zeros where there is none), then control tokens.
    address_AE: of trained addresses, else None. eoc: whether segments end with it. bank_only: procedures
    compete among themselves, words among words. route_weight: of targets that are procedures."""

    table_RE: Tensor
    address_AE: Tensor | None
    eoc: bool
    bank_only: bool = False
    route_weight: float = 1.0


def sequence_loss(
    backbone: CausalLM,
    table: Table,
    kept: Sequence[Kept],
    h_BE: Tensor,
    layouts: Sequence[Layout],
    pseudo: tuple[Tensor, Tensor] | None = None,
) -> Loss:
    """The summed cross-entropy of a batch; prompts enter as keys and values and their last states h_BE.

    pseudo: states [N,E] and procedures [N] that are added at the routing loss.
    """
    states, targets = [], []
    for rows in alike([len(one.ids) for one in layouts]):
        some = [layouts[i] for i in rows]
        (h_BUE,) = states_behind(backbone, table.table_RE, [kept[i] for i in rows], some)
        target_BU = _padded([one.targets for one in some], IGNORE).to(backbone.device)
        wanted_BU = target_BU != IGNORE
        states.append(h_BUE[wanted_BU])
        targets.append(target_BU[wanted_BU])
    h_ME, target_M = torch.cat(states), torch.cat(targets)
    first_B = torch.tensor([one.first for one in layouts], device=backbone.device)
    if bool((first_B != IGNORE).any()):
        h_ME = torch.cat([h_BE.to(h_ME), h_ME])
        target_M = torch.cat([first_B, target_M])
    if pseudo is not None and len(pseudo[0]):
        h_ME = torch.cat([h_ME, pseudo[0].to(h_ME)])
        target_M = torch.cat([target_M, pseudo[1].to(target_M) + backbone.dims.vocab + 1])
    return positions_loss(backbone, table, h_ME, target_M)


def alike(lengths: Sequence[int]) -> list[list[int]]:
    """The rows of each forward, shortest first: one that would pad those before it by more than PADDED tokens
    in all begins the next."""
    out: list[list[int]] = []
    longest = 0
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if not out or len(out[-1]) * (lengths[i] - longest) > PADDED:
            out.append([])
        out[-1].append(i)
        longest = lengths[i]
    return out


def states_behind(
    backbone: CausalLM, table_RE: Tensor, kept: Sequence[Kept], layouts: Sequence[Layout], every: bool = False
) -> tuple[Tensor, ...]:
    """States [B,U,E] of what follows the prompts, the final one or (`every`) those of all layers; shorter
    rows are padded on the right."""
    ids_BU = _padded([one.ids for one in layouts], 0).to(backbone.device)
    x_BUE = vocab.embed(backbone, ids_BU, table_RE)
    return prefix_cache.go_on(backbone, prefix_cache.together(kept), x_BUE, every)


def _padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    U = max(len(row) for row in rows)
    return torch.tensor([[*row, *[fill] * (U - len(row))] for row in rows])


def positions_loss(backbone: CausalLM, table: Table, h_ME: Tensor, target_M: Tensor) -> Loss:
    """Cross-entropy of targets (see `Layout`) at states, over vocabulary, EOC and addresses together, or
    (bank only) over the part that the target is of."""
    V = backbone.dims.vocab
    rows = [table.table_RE[:1]] if table.eoc else []
    words_end = V + len(rows)
    if table.address_AE is not None:
        rows.append(table.address_AE)
    rows_RE = torch.cat(rows) if rows else None
    logits = vocab.logits(backbone, h_ME, rows_RE)
    route_M = target_M > V
    column_M = target_M - (route_M & (not table.eoc)).long()
    if table.bank_only and table.address_AE is not None:
        route_ME, words_ME = logits[route_M], logits[~route_M]
        total_M = logits.new_empty(len(logits))
        total_M[route_M] = cross_entropy(
            route_ME[:, words_end:], column_M[route_M] - words_end, reduction="none"
        )
        total_M[~route_M] = cross_entropy(words_ME[:, :words_end], column_M[~route_M], reduction="none")
    else:
        total_M = cross_entropy(logits, column_M, reduction="none")
    weight_M = torch.where(route_M, table.route_weight, 1.0)
    with torch.no_grad():
        right_M = logits.argmax(-1) == column_M
        said = float((~route_M).sum())
        metrics = {
            "words": (float(total_M[~route_M].sum()), said),
            "accuracy": (float(right_M[~route_M].sum()), said),
        }
        if table.address_AE is not None:
            routed = float(route_M.sum())
            best = (logits[route_M, words_end:].argmax(-1) + words_end == column_M[route_M]).sum()
            metrics["routing"] = (float(total_M[route_M].sum()), routed)
            metrics["routed"] = (float(best), routed)
    return Loss((total_M * weight_M).sum(), float(weight_M.sum()), metrics)
