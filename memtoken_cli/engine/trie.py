"""Scoring whole label strings exactly: the labels as a prefix tree behind the query, in one packed forward.

A row is a query followed by the tree's inner nodes, each seeing the query and its own ancestors, so that a
shared prefix is computed once; the last token of a label needs no forward. `score_alone` is the plain
oracle. Knows nothing of templates, files or what a label means.

Shape suffixes: R rows (queries), K labels, P inner nodes of a tree, E edges (one a token of the tree), T
tokens of a row, A tokens of an answer, W wanted positions, V vocabulary, M tokens of the memory.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from ..io.errors import DataError
from .backbone import CausalLM
from .memory import Layers
from .packed import Packed

NODES = 512  # inner nodes of one tree; more labels are cut into several trees
LOGITS = 1 << 27  # floats of one forward's logits


@dataclass(frozen=True)
class Trie:
    """Label strings as a tree; node 0 is the query's last token, node p > 0 is the inner node p - 1.

    columns: which labels these are. token_P, depth_P (from 1) and ancestor_PP (True on itself and its
    ancestors) of the inner nodes; edge e is token_E predicted at node_E; path_EK is 1 where edge e is part
    of label k; nodes[k]: the node that predicts each token of label k.
    """

    columns: tuple[int, ...]
    token_P: Tensor
    depth_P: Tensor
    ancestor_PP: Tensor
    node_E: Tensor
    token_E: Tensor
    path_EK: Tensor
    nodes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, labels: Sequence[Sequence[int]], columns: Sequence[int] | None = None) -> "Trie":
        """From token sequences; see `tries` for the checks."""
        inner: dict[tuple[int, ...], int] = {(): 0}
        edges: dict[tuple[int, ...], int] = {}
        paths: list[list[int]] = []
        nodes: list[tuple[int, ...]] = []
        for label in labels:
            prefixes = [tuple(label[:i]) for i in range(len(label) + 1)]
            for prefix in prefixes[1:-1]:
                inner.setdefault(prefix, len(inner))
            paths.append([edges.setdefault(prefix, len(edges)) for prefix in prefixes[1:]])
            nodes.append(tuple(inner[prefix] for prefix in prefixes[:-1]))
        P, names = len(inner) - 1, list(inner)[1:]
        ancestor_PP = torch.zeros(P, P, dtype=torch.bool)
        for p, name in enumerate(names):
            ancestor_PP[p, [inner[name[:i]] - 1 for i in range(1, len(name) + 1)]] = True
        path_EK = torch.zeros(len(edges), len(labels), dtype=torch.float64)
        for k, path in enumerate(paths):
            path_EK[path, k] = 1.0
        return cls(
            tuple(range(len(labels)) if columns is None else columns),
            torch.tensor([name[-1] for name in names], dtype=torch.long),
            torch.tensor([len(name) for name in names], dtype=torch.long),
            ancestor_PP,
            torch.tensor([inner[name[:-1]] for name in edges], dtype=torch.long),
            torch.tensor([name[-1] for name in edges], dtype=torch.long),
            path_EK,
            tuple(nodes),
        )

    @property
    def size(self) -> int:
        return len(self.token_P)

    def packed(self, rows: Sequence[Sequence[int]], start: int) -> tuple[Packed, Tensor]:
        """The rows with this tree behind each, and wanted_W: each row's last token and then its inner
        nodes."""
        P, T = self.size, max(len(row) for row in rows) + self.size
        mask_BTT = torch.zeros(len(rows), T, T, dtype=torch.bool)
        position, wanted, before = [], [], 0
        for mask_TT, row in zip(mask_BTT, rows, strict=True):
            n = len(row)
            mask_TT[: n + P, :n] = torch.ones(n + P, n, dtype=torch.bool).tril()
            mask_TT[n : n + P, n : n + P] = self.ancestor_PP
            position += [torch.arange(n), n - 1 + self.depth_P]
            wanted.append(torch.arange(n - 1, n + P) + before)
            before += n + P
        ids_F = torch.cat([x for row in rows for x in (torch.tensor(row, dtype=torch.long), self.token_P)])
        lengths = tuple(len(row) + P for row in rows)
        return Packed(ids_F, torch.cat(position) + start, lengths, mask_BTT), torch.cat(wanted)


def tries(labels: Sequence[Sequence[int]], limit: int = NODES) -> list[Trie]:
    """The labels' trees, as few as keep each within `limit` inner nodes.

    Raises DataError where a label has no token, two are the same, or one begins another: the sum of a shorter
    label's log-probabilities would always be the larger one.
    """
    if not labels:
        raise DataError("there are no labels to choose from")
    order = sorted(range(len(labels)), key=lambda k: list(labels[k]))
    if not labels[order[0]]:
        raise DataError(f"label {order[0] + 1} has no tokens")
    for a, b in pairwise(order):
        if list(labels[a]) == list(labels[b])[: len(labels[a])]:
            same = len(labels[a]) == len(labels[b])
            raise DataError(
                f"labels {a + 1} and {b + 1} are the same tokens"
                if same
                else f"label {a + 1} begins label {b + 1}",
                hint="labels must differ"
                if same
                else "end the template with a text after {output}, such as \\n",
            )
    groups: list[list[int]] = [[]]
    seen: set[tuple[int, ...]] = set()
    for k in order:
        new = {tuple(labels[k][:i]) for i in range(1, len(labels[k]))}
        if groups[-1] and len(seen | new) > limit:
            groups.append([])
            seen = set()
        seen |= new
        groups[-1].append(k)
    return [Trie.of([labels[k] for k in group], group) for group in groups]


@dataclass
class Scored:
    """scores_RK: float64 log-probability of every label string. watched: float32 [A,V] a row, the
    distributions at the answer's tokens (the first only, where no answer was named); empty unless asked
    for."""

    scores_RK: Tensor
    watched: list[Tensor] = field(default_factory=list)


def batches(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Indices by length, longest first, in batches of at most `tokens` tokens (at least one index each)."""
    batch: list[int] = []
    total = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and total + lengths[index] > tokens:
            yield batch
            batch, total = [], 0
        batch.append(index)
        total += lengths[index]
    if batch:
        yield batch


@torch.no_grad()
def score(
    backbone: CausalLM,
    memory: Layers,
    rows: Sequence[Sequence[int]],
    trees: Sequence[Trie],
    *,
    batch_tokens: int = 4096,
    hidden_RM: Tensor | None = None,
    watch: bool = False,
    gold: Sequence[int] | None = None,
) -> Scored:
    """Log-probability of every label after every row, each row reading `memory` at its next position.

    hidden_RM: True where a row must not see a token of a whole memory. watch: keep the distributions too, at
    the tokens of label gold[r] where `gold` is given. Results are in the order of the rows, whatever the
    batches. Raises DataError where a row is empty or does not fit the backbone's context.
    """
    check_lengths(backbone, memory, rows, 1 + max((int(t.depth_P.max()) for t in trees if t.size), default=0))
    memory = memory.to(backbone.device)
    K = sum(len(tree.columns) for tree in trees)
    found = Scored(torch.zeros(len(rows), K, dtype=torch.float64))
    watched: dict[int, Tensor] = {}
    for number, tree in enumerate(trees):
        of_label = dict(zip(tree.columns, tree.nodes, strict=True))
        room = max(1, LOGITS // backbone.dims.vocab // (1 + tree.size)) * (1 + tree.size)
        for chosen in batches([len(row) + tree.size for row in rows], min(batch_tokens, room)):
            packed, wanted_W = tree.packed([rows[r] for r in chosen], memory.next_position)
            hidden_BM = None if hidden_RM is None else hidden_RM[chosen]
            logits_BWV = backbone.run(packed, memory, wanted_W, hidden_BM).view(
                len(chosen), 1 + tree.size, -1
            )
            total_BW = logits_BWV.logsumexp(-1)
            node_E, token_E = tree.node_E.to(logits_BWV.device), tree.token_E.to(logits_BWV.device)
            edge_BE = (logits_BWV[:, node_E, token_E] - total_BW[:, node_E]).double().cpu()
            found.scores_RK[torch.tensor(chosen)[:, None], torch.tensor(tree.columns)] = (
                edge_BE @ tree.path_EK
            )
            for b, r in enumerate(chosen if watch else ()):
                path = of_label.get(gold[r]) if gold is not None else (0,) if number == 0 else None
                if path is not None:
                    at = list(path)
                    watched[r] = (logits_BWV[b, at] - total_BW[b, at, None]).cpu()
    found.watched = [watched[r] for r in sorted(watched)]
    return found


@torch.no_grad()
def score_alone(
    backbone: CausalLM, ids: Sequence[int], rows: Sequence[Sequence[int]], labels: Sequence[Sequence[int]]
) -> Tensor:
    """`score` the plain way: one uncached forward over (ids, row, label) a label; scores_RK."""
    out_RK = torch.zeros(len(rows), len(labels), dtype=torch.float64)
    for r, row in enumerate(rows):
        for k, label in enumerate(labels):
            text = torch.tensor([[*ids, *row, *label]], device=backbone.device)
            logits = backbone.model(input_ids=text, use_cache=False).logits[0, -len(label) - 1 : -1].float()
            picked = logits.log_softmax(-1).cpu()[range(len(label)), list(label)]
            out_RK[r, k] = picked.double().sum()
    return out_RK


def empty_memory(backbone: CausalLM) -> Layers:
    """Nothing in front of the query, which begins at position 0."""
    return Layers.empty(backbone.dims.layers, backbone.dims.kv_heads, backbone.dims.head_dim)


def check_lengths(backbone: CausalLM, memory: Layers, rows: Sequence[Sequence[int]], more: int) -> None:
    """Raises DataError for the first row that is empty, or that `more` tokens later is beyond the context."""
    for number, row in enumerate(rows, 1):
        end = memory.next_position + len(row) + more
        context = backbone.dims.context
        if not row:
            raise DataError(f"query {number} has no tokens")
        if end > context:
            raise DataError(
                f"query {number} of {len(row)} tokens ends at {end}, beyond the {context} of {backbone.name}",
                hint="shorten the query or lower max_new_tokens",
            )
