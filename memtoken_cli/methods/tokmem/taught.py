"""The loss and the statistics of examples at hand, under a bank as it is: `TokMem.loss` and `TokMem.collect`.

Training a block of procedures, with caches, schedules and replay, is `learn.py`'s and `collect.py`'s.

Shape suffixes: R rows of the table (EOC first, then control tokens), U tokens behind a prompt, N samples, D
width of a feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.io.errors import DataError
from memtoken_cli.methods.tokmem.bank import Bank
from memtoken_cli.methods.tokmem.examples import Layout, Segment, Targets, layout
from memtoken_cli.methods.tokmem.features import Frozen, Prefix, behind, columns
from memtoken_cli.methods.tokmem.loss import Table, sequence_loss, states_behind
from memtoken_cli.methods.tokmem.prompt import Prompts
from memtoken_cli.methods.tokmem.statistics import (
    END,
    FACETS,
    KEEP_ALL,
    TEXT,
    Class,
    Kind,
    Statistics,
    collect,
)


@dataclass(frozen=True)
class Taught:
    """A query, and the calls that answer it: (procedure, output) each; none: plain text.

    instruction: put before the query; the statistics then are those of that form.
    """

    query: str
    calls: tuple[tuple[str, str], ...]
    instruction: str | None = None

    @property
    def facet(self) -> str:
        return FACETS[1] if self.instruction else FACETS[0]


@dataclass(frozen=True)
class _Laid:
    """Examples as tokens, their prompts read."""

    prefixes: list[Prefix]
    layouts: list[Layout]


def table_of(bank: Bank, device: torch.device) -> Tensor:
    """float32 [R,E]: what virtual ids V, V + 1, ... stand for: EOC (zeros where the bank has none), then the
    control tokens, procedure by procedure."""
    eoc_E = bank.control_PkE.new_zeros(bank.width) if bank.eoc_E is None else bank.eoc_E
    return torch.cat([eoc_E[None], bank.control_PkE.flatten(0, 1)]).to(device)


def loss(backbone: CausalLM, bank: Bank, frozen: Frozen, batch: Sequence[Taught]) -> Tensor:
    """The mean cross-entropy over memory, response and end positions (eq. 3).

    Gradients reach those of the bank's tensors that require them. Raises DataError for an example without
    calls, UsageError for an unknown procedure.
    """
    if any(not one.calls for one in batch) or not batch:
        raise DataError("the loss is of examples with calls", hint='Taught("query", (("NAME", "output"),))')
    laid = _laid(backbone, bank, frozen, batch)
    address_PE = bank.control_PkE[:, 0] if bank.meta.address == "coupled" else bank.address_PE
    table = Table(
        table_of(bank, backbone.device),
        None if address_PE is None else address_PE.to(backbone.device),
        bank.eoc_E is not None,
        bank.meta.softmax == "bank",
    )
    h_BE = torch.stack([prefix.h_E for prefix in laid.prefixes])
    found = sequence_loss(backbone, table, frozen.kept(laid.prefixes), h_BE, laid.layouts)
    mean: Tensor = found.total / found.count
    return mean


@torch.no_grad()
def statistics(
    backbone: CausalLM, bank: Bank, frozen: Frozen, batch: Sequence[Taught]
) -> dict[Kind, Statistics]:
    """What the batch adds to a bank's statistics, by kind, those without an example left out.

    Raises UsageError for an unknown procedure, DataError for a prompt that does not fit.
    """
    laid = _laid(backbone, bank, frozen, batch)
    keep = KEEP_ALL if bank.meta.keep_features else bank.meta.keep_val
    first = [Class(one.calls[0][0] if one.calls else TEXT, one.facet) for one in batch]
    features = bank.projected(columns(prefix.features for prefix in laid.prefixes))
    places: dict[Kind, list[int]] = {}
    for i, one in enumerate(batch):
        places.setdefault(_kind(one), []).append(i)
    out = {
        kind: collect([first[i] for i in at], [x_ND[at] for x_ND in features], keep)
        for kind, at in places.items()
    }
    classes: list[Class] = []
    found: list[tuple[Tensor, ...]] = []
    for one, prefix, tokens in zip(batch, laid.prefixes, laid.layouts, strict=True):
        if not one.calls or bank.meta.by_parts:
            continue
        states = _states(backbone, bank, prefix, tokens)
        after = [*(name for name, _ in one.calls[1:]), END]
        for (said, at), following in zip(tokens.ends, after, strict=True):
            classes.append(Class(following, one.facet))
            found.append(behind(states, prefix, bank.meta.features, said, at))
    if classes:
        out["boundary"] = collect(classes, bank.projected(columns(found)), keep)
    return out


def _kind(one: Taught) -> Kind:
    return "text" if not one.calls else "first" if len(one.calls) == 1 else "several"


def _laid(backbone: CausalLM, bank: Bank, frozen: Frozen, batch: Sequence[Taught]) -> _Laid:
    prompts = Prompts(backbone.tokenizer)
    layouts = []
    for one in batch:
        segments = [Segment(bank.index(name), prompts.response(output)) for name, output in one.calls]
        V, k, ending = backbone.dims.vocab, bank.meta.tokens, bank.meta.segment_end
        targets: Targets = "words" if bank.meta.address == "lda" else "all"
        none = Layout((), (), 0, ())
        layouts.append(layout(segments, V, k, prompts.end, ending, targets) if segments else none)
    return _Laid(frozen.read([prompts.render(one.query, one.instruction) for one in batch]), layouts)


def _states(backbone: CausalLM, bank: Bank, prefix: Prefix, tokens: Layout) -> list[Tensor]:
    """States [U,E] of every layer behind one prompt, the final one last."""
    assert prefix.kept is not None, "a prompt that was just read has its keys and values"
    table_RE = table_of(bank, backbone.device)
    states = states_behind(backbone, table_RE, [prefix.kept], [tokens], every=True)
    return [x[0] for x in states]
