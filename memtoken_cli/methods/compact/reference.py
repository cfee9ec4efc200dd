"""The rows that stand for future queries: the shots themselves, a repetition, or the user's own queries.

Shape suffixes: S reference rows, F tokens of all rows laid flat, T prompt tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...data.render import Rendered, Template, query_ids
from ...data.shots import Shots, read_queries
from ...engine.backbone import CausalLM
from ...engine.leave_one_out import hidden_tokens, twins
from ...engine.packed import Packed

REPEAT = "\n\nRepeat the text above:\n\n"
PIECE, REPEATED = 256, 17
LEAST, SHARE = 832, 0.25
ANSWERS = 30  # how much more the places of answers weigh, at the last layer


@dataclass
class Reference:
    """packed: the rows, at positions after the prompt. hidden_ST: prompt tokens a row must not see
    (its own copy and its twins). answer_F: True where the next token belongs to the answer.
    shots: which of the prompt's the rows are, where they are shots. even: all tokens count alike."""

    packed: Packed
    hidden_ST: Tensor
    answer_F: Tensor
    shots: tuple[int, ...] = ()
    even: bool = False

    def weight_F(self, depth: float) -> Tensor:
        """How much each token counts at a layer of this depth (the last one's is 1), one on average.

        Of what the last layer says only answers are heard; early ones serve every later token."""
        if self.even:
            return torch.ones(len(self.answer_F))
        weight_F = torch.where(self.answer_F, float(ANSWERS) ** depth, 1.0)
        return weight_F / weight_F.mean()

    @property
    def hidden_FT(self) -> Tensor:
        return self.hidden_ST[self.packed.row_F]

    def beside(self, other: "Reference") -> "Reference":
        """The rows of both."""
        mine, theirs = self.packed, other.packed
        packed = Packed(
            torch.cat([mine.ids_F, theirs.ids_F]),
            torch.cat([mine.position_F, theirs.position_F]),
            mine.lengths + theirs.lengths,
        )
        hidden_ST = torch.cat([self.hidden_ST, other.hidden_ST])
        answer_F = torch.cat([self.answer_F, other.answer_F])
        return Reference(packed, hidden_ST, answer_F, even=self.even and other.even)

    def take(self, rows: Sequence[int]) -> "Reference":
        """Some of the rows, in this order."""
        length_S = torch.tensor(self.packed.lengths)
        start_S = length_S.cumsum(0) - length_S
        index_F = torch.cat([torch.arange(int(length_S[s])) + start_S[s] for s in rows])
        ids_F, position_F = self.packed.ids_F[index_F], self.packed.position_F[index_F]
        packed = Packed(ids_F, position_F, tuple(self.packed.lengths[s] for s in rows))
        shots = tuple(self.shots[s] for s in rows) if self.shots else ()
        return Reference(packed, self.hidden_ST[list(rows)], self.answer_F[index_F], shots, self.even)

    @property
    def answers_W(self) -> Tensor:
        """Flat places whose next token is part of an answer."""
        return self.answer_F.nonzero().flatten()


def enough(t: int, slots: int) -> int:
    """How many reference tokens serve a prompt of t tokens of which `slots` stay.

    More of them always fit what unseen queries ask better, by far at high ratios, where each also costs less:
    a share of the prompt that grows with log2 of the ratio holds the cost at about three prefills.
    """
    return max(LEAST, round(SHARE * math.log2(t / slots) * t))


def reference(
    backbone: CausalLM,
    rendered: Rendered,
    shots: Shots,
    template: Template,
    *,
    queries: str,
    most: int | None,
    tokens: int,
    generator: torch.Generator,
) -> Reference:
    """queries: "auto", "shots", "repeat" or a file. At most `most` shots of about `tokens` tokens in all,
    balanced over labels, twins once; a repetition where all shots are twins, since nothing is left to read
    while they are hidden. Raises DataError for a bad file."""
    t = len(rendered.ids)
    if queries == "auto":
        queries = "repeat" if shots.kind == "plain" else "shots"
    if queries == "shots" and len(set(twins(shots.items, rendered))) == 1:
        queries = "repeat"
    if queries == "repeat":
        ids = _repeated(backbone, rendered)
        # the last tokens of a piece have the most of it to go by
        rows = _rows(ids, t, [(max(len(row) - REPEATED, 0), len(row) - 1) for row in ids])
        return replace(rows, even=True)
    if queries != "shots":
        return given(backbone, template, queries, t, most)
    return asked(rendered, shots, _balanced(shots, rendered, most, tokens, generator))


def asked(rendered: Rendered, shots: Shots, chosen: Sequence[int]) -> Reference:
    """These shots as queries, each blind to its own copy and its twins."""
    spans = [rendered.spans[s] for s in chosen]
    ids = [rendered.ids[span.start : span.end] for span in spans]
    # running text has no answer of its own: all of it is to be predicted
    answers = [(max(span.answer - span.start - 1, 0), span.end - span.start - 1) for span in spans]
    rows = _rows(ids, len(rendered.ids), answers, hidden_tokens(shots.items, rendered)[list(chosen)])
    return replace(rows, shots=tuple(chosen))


def given(backbone: CausalLM, template: Template, path: str, t: int, most: int | None) -> Reference:
    """The user's own queries, `most` at most, behind a prompt of t tokens; nothing is hidden from them."""
    ids = [query_ids(template, backbone.tokenizer, query.input) for query in read_queries(path)[:most]]
    return _rows(ids, t, [(len(row) - 1, len(row)) for row in ids])


def _rows(
    ids: Sequence[Sequence[int]],
    t: int,
    answers: Sequence[tuple[int, int]],
    hidden_ST: Tensor | None = None,
) -> Reference:
    """answers: the places [first, last) of each row whose next token is to be predicted."""
    packed = Packed.rows(ids, t)
    answer_F = torch.zeros(len(packed.ids_F), dtype=torch.bool)
    start = 0
    for row, (first, last) in zip(ids, answers, strict=True):
        answer_F[start + first : start + last] = True
        start += len(row)
    nothing_ST = torch.zeros(len(ids), t, dtype=torch.bool)
    return Reference(packed, nothing_ST if hidden_ST is None else hidden_ST, answer_F)


def _balanced(
    shots: Shots, rendered: Rendered, most: int | None, tokens: int, generator: torch.Generator
) -> list[int]:
    """Shots in random order, one of every label before a second of any; two at least. Of twins the first:
    another would ask the same of the same tokens."""
    seen: dict[str | None, int] = {}
    order = []
    alone = torch.tensor(sorted(set(twins(shots.items, rendered))))
    for s in alone[torch.randperm(len(alone), generator=generator)].tolist():
        label = shots.items[s].output
        seen[label] = seen.get(label, 0) + 1
        order.append((seen[label] if label is not None else 0, s))
    chosen: list[int] = []
    for _, s in sorted(order, key=lambda entry: entry[0]):
        tokens -= rendered.spans[s].end - rendered.spans[s].start
        if len(chosen) == most or (tokens < 0 and len(chosen) >= 2):
            break
        chosen.append(s)
    return sorted(chosen)


def _repeated(backbone: CausalLM, rendered: Rendered) -> list[list[int]]:
    """The prompt again in pieces, each after the words that ask for it."""
    ask = backbone.tokenizer.encode(REPEAT, add_special_tokens=False)
    text = rendered.ids[rendered.head :]
    return [[*ask, *text[at : at + PIECE]] for at in range(0, len(text), PIECE)]
