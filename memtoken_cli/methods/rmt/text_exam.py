"""How well text is predicted, segment by segment, with a memory's own state, without it and with another's.

Every token of a window of held-out text is scored, given the real ones before it.

Shape suffixes: B rows, N segments, n of them at once, S tokens of a segment, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from memtoken_cli.data.stream_text import Text
from memtoken_cli.data.streams import IGNORE, Sequences
from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.methods.rmt.controls import Control, boundary
from memtoken_cli.methods.rmt.cut import cut
from memtoken_cli.methods.rmt.diagonal import Diagonal
from memtoken_cli.methods.rmt.exam import Exam, parts
from memtoken_cli.methods.rmt.policy import State
from memtoken_cli.metrics import intervals

LOGITS = 2**27  # float32 logits that are held at once


def windows(stream: Text, segments: int, rows: int) -> Sequences:
    """Held-out windows of that many segments, or of as many as the longest held-out document has.

    Raises DataError where it has none."""
    room = (stream.validation.longest() - 1) // stream.tokens(1)
    return stream.validation_rows(max(1, min(segments, room)), rows)


@torch.no_grad()
def nats(exam: Exam, rows: Sequences, control: Control = "own") -> Tensor:
    """float64 [B,N]: the mean nats of a token in each segment of each row. Rows are of one length."""
    policy, S = exam.policy, exam.config.segment
    between = boundary(control, policy)
    cuts = cut(rows.length_B, S, exam.config.align)
    nats_BN = torch.zeros(len(rows), len(cuts), dtype=torch.float64)
    at_once = min(exam.batch, max(2, LOGITS // (S * exam.vocabulary)))
    for some in parts(torch.arange(len(rows)), at_once):
        part, B = rows[some], len(some)
        state, first = policy.start(B), 0
        whole = int((cuts.count_NB[:, 0] == S).long().cumprod(0).sum())
        if way := exam.together(B, whole, control):
            for block in torch.arange(whole).split(max(1, LOGITS // (B * S * exam.vocabulary))):
                told, state = _together(way, part, block, S, state)
                nats_BN[some[:, None], block] = told
            first = whole
        for t in range(first, len(cuts)):
            start, count = int(cuts.start_NB[t, 0]), int(cuts.count_NB[t, 0])
            if t:
                state = between(state, B)
            ids_BS = part.ids_BT[:, start : start + count].to(exam.device)
            target_BS = part.target_BT[:, start : start + count].to(exam.device)
            count_B = torch.full((B,), count, device=exam.device)
            wanted_S = torch.arange(count, device=exam.device)
            logits_BSV, state = policy.segment(ids_BS, count_B, state, wanted_S)
            assert logits_BSV is not None
            loss_BS = cross_entropy(logits_BSV.transpose(1, 2), target_BS, reduction="none")
            nats_BN[some, t] = loss_BS.double().mean(1).cpu()
    return nats_BN


def _together(way: Diagonal, part: Sequences, block: Tensor, size: int, state: State) -> tuple[Tensor, State]:
    """(mean nats [B,n] of n whole segments, the state behind them), many layers at once."""
    columns = slice(int(block[0]) * size, (int(block[-1]) + 1) * size)
    ids_BnS, target_BnS = (
        x[:, columns].unflatten(1, (-1, size)).to(state[0].device) for x in (part.ids_BT, part.target_BT)
    )
    logits, state = way.logits(ids_BnS, state, torch.ones_like(ids_BnS, dtype=torch.bool))
    assert logits is not None
    loss = cross_entropy(logits, target_BnS.flatten(), reduction="none")
    return loss.view(target_BnS.shape).double().mean(2).cpu(), state


@dataclass(frozen=True)
class Spelled:
    """How long the tested text is, a token: in UTF-8 bytes and in characters."""

    bytes: float
    characters: float


def spelled(rows: Sequences, backbone: CausalLM) -> Spelled:
    """Of what the windows predict, as the tokenizer spells it: a model of whole words has one space between
    them, and `<unk>`. Bytes of a character that a window cuts in two count as one each."""
    tokens = size = characters = 0
    for target_T in rows.target_BT:
        ids = target_T[target_T != IGNORE].tolist()
        text = backbone.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        tokens += len(ids)
        characters += len(text)
        size += len(text.replace("\N{REPLACEMENT CHARACTER}", "?").encode())
    return Spelled(size / tokens, characters / tokens)


def table(nats_BN: Mapping[str, Tensor], text: Spelled) -> list[dict[str, Any]]:
    """A row a segment: nats, bits per byte and character, perplexity of a token; and the controls' bits per
    byte."""
    rows = []
    per_byte = 1 / (math.log(2) * text.bytes)
    for t in range(nats_BN["own"].shape[1]):
        mean = {name: float(x_BN[:, t].mean()) for name, x_BN in nats_BN.items()}
        own = mean["own"]
        row: dict[str, Any] = {
            "segment": t + 1,
            "nats": own,
            "bits_per_byte": own * per_byte,
            "bits_per_character": own / (math.log(2) * text.characters),
            "perplexity": math.exp(own),
        }
        controls = {"none": "no_memory", "shuffled": "shuffled"}
        rows.append(row | {controls[name]: x * per_byte for name, x in mean.items() if name != "own"})
    return rows


def summary(nats_BN: Mapping[str, Tensor], text: Spelled, trained: int) -> dict[str, float]:
    """Bits per byte: of the first segment, of the others up to the trained number and of those beyond; and
    what the controls lose in the others (with a 95 % interval over windows).

    Args:
        trained: segments of a row in training.
    """
    per_byte = 1 / (math.log(2) * text.bytes)
    own_BN = nats_BN["own"].numpy() * per_byte
    found = {"bits_per_byte": _mean(own_BN[:, 1:trained]), "first": _mean(own_BN[:, :1])}
    found["beyond"] = _mean(own_BN[:, trained:])
    later_BN = own_BN[:, 1:trained]
    for name, label in (("none", "no_memory"), ("shuffled", "shuffled")):
        if name in nats_BN and later_BN.size:
            theirs_BN = nats_BN[name].numpy()[:, 1:trained] * per_byte
            lost = intervals.paired(theirs_BN.mean(1), later_BN.mean(1))
            found |= {
                f"{label}_loses": lost.value,
                f"{label}_loses_low": lost.low,
                f"{label}_loses_high": lost.high,
            }
    return {name: value for name, value in found.items() if not math.isnan(value)}


def _mean(x: np.ndarray) -> float:
    return float(x.mean()) if x.size else math.nan
