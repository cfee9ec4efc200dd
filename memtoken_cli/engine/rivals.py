"""Baselines that a compressed memory must beat: fewer shots, and published ways to evict keys and values.

Each writes a `Layers` memory of at most `slots` tokens per layer and head (in each, unless its paper spends
the budget globally). Evicted prompts go on at the whole prompt's next position. Position 0, the attention
sink, is always kept. How attention is watched is in `watch.py`.

Shape suffixes: N key/value heads, M tokens of a head, D head width, C queries of a chunk, L layers.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..data.render import render
from ..data.shots import balanced
from ..io.errors import UsageError, nearest
from .contest import Contestant, Context, subset
from .expected import expected_attention
from .memory import LayerKV, Layers
from .method import Made
from .trie import empty_memory
from .watch import context_attention, repeat_attention

WINDOW, POOL = 32, 7  # SnapKV's observation window and pooling kernel
SAFE = 0.2  # of a head's even share, which AdaKV leaves it


def full(ctx: Context, slots: int) -> Made:
    """Every token of the prompt, whatever the budget."""
    return Made(ctx.full)


def none(ctx: Context, slots: int) -> Made:
    """No shot: BOS and the instruction only."""
    head = ctx.rendered.ids[: ctx.rendered.head]
    return Made(ctx.backbone.prefill(head) if head else empty_memory(ctx.backbone))


def fewer(ctx: Context, slots: int) -> Made:
    """As many shots as fit into `slots` tokens with the head: balanced over labels, then by order."""
    lengths = [span.end - span.start for span in ctx.rendered.spans]
    for k in range(len(lengths), 0, -1):
        chosen = balanced(ctx.shots, k, ctx.seed)
        if ctx.rendered.head + sum(lengths[i] for i in chosen) <= slots:
            break
    else:
        return replace(none(ctx, slots), about={"shots": []})
    rendered = render(subset(ctx.shots, chosen), ctx.template, ctx.backbone.tokenizer, ctx.instruction)
    return Made(ctx.backbone.prefill(rendered.ids), {"shots": chosen}, {"shots": len(chosen)})


def random(ctx: Context, slots: int) -> Made:
    """Tokens drawn by the seed, the same in every layer and head."""
    score_T = torch.rand(ctx.tokens, generator=torch.Generator().manual_seed(ctx.seed))
    return Made(evict(ctx.full, [_last(score_T, kv) for kv in ctx.full.layers], slots))


def uniform(ctx: Context, slots: int) -> Made:
    """Evenly spaced tokens."""
    chosen = [
        [torch.linspace(0, size - 1, min(slots, size)).round().long() for size in kv.sizes]
        for kv in ctx.full.layers
    ]
    layers = tuple(kv.take(c) for kv, c in zip(ctx.full.layers, chosen, strict=True))
    return Made(replace(ctx.full, layers=layers))


def knorm(ctx: Context, slots: int) -> Made:
    """The keys of smallest norm (Devoto et al. 2024, "A simple and effective L2 norm-based strategy",
    2406.11430)."""
    scores = [-_heads(kv).float().norm(dim=-1) for kv in ctx.full.layers]
    return Made(evict(ctx.full, scores, slots))


def snapkv(ctx: Context, slots: int) -> Made:
    """SnapKV (Li et al. 2024, 2404.14469): attention of the prompt's last 32 queries, max-pooled over 7
    neighbours; the window itself is kept (half of the budget at most)."""

    def add(total_NM: Tensor, weight_NGCM: Tensor, first: int) -> None:
        inside = slice(max(0, ctx.tokens - WINDOW - first), None)
        total_NM += weight_NGCM[:, :, inside].sum((1, 2))

    window = min(WINDOW, slots // 2)
    scores = []
    for total_NM in context_attention(ctx.backbone, ctx.rendered.ids, add):
        pooled_NM = torch.nn.functional.max_pool1d(total_NM, POOL, stride=1, padding=POOL // 2)
        scores.append(_keep_last(pooled_NM, window))
    return Made(evict(ctx.full, _aligned(scores, ctx.full), slots))


def h2o(ctx: Context, slots: int) -> Made:
    """H2O (Zhang et al. 2023, 2306.14048): attention received from all of the prompt's queries, summed; half
    of the budget goes to the most recent tokens."""

    def add(total_NM: Tensor, weight_NGCM: Tensor, first: int) -> None:
        total_NM += weight_NGCM.sum((1, 2))

    scores = [_keep_last(x, slots // 2) for x in context_attention(ctx.backbone, ctx.rendered.ids, add)]
    return Made(evict(ctx.full, _aligned(scores, ctx.full), slots))


def kvzip(ctx: Context, slots: int) -> Made:
    """KVzip (Kim et al. 2025, 2505.23416): the largest attention a token receives while the model is asked
    to repeat the context, in chunks of 2,048; the budget is spent over all layers and heads together
    (non-uniform)."""
    ask = ctx.backbone.tokenizer.encode(
        "\n\nRepeat the previous context exactly.\n\n", add_special_tokens=False
    )
    scores = repeat_attention(ctx.backbone, ctx.full, ctx.rendered.ids, ask)
    return Made(evict_globally(ctx.full, scores, slots))


def expected(ctx: Context, slots: int) -> Made:
    """Expected attention (Devoto et al. 2025, 2510.00636): what queries to come should look at, in closed
    form, times the length of the value (see `expected.py`). As there, heads of a layer share its budget by
    AdaKV (Feng et al. 2024, 2407.11550): every head keeps its best fifth, the rest is the layer's best."""
    scores = expected_attention(ctx.backbone, ctx.full, ctx.rendered.ids)
    return Made(evict_in_layers(ctx.full, scores, slots))


RIVALS: dict[str, Contestant] = {
    "full": Contestant("full", full, whole=True),
    "none": Contestant("none", none, calibrated_by="nobody", whole=True),
    "fewer": Contestant("fewer", fewer, calibrated_by="own"),
    "random": Contestant("random", random),
    "uniform": Contestant("uniform", uniform),
    "knorm": Contestant("knorm", knorm),
    "snapkv": Contestant("snapkv", snapkv),
    "h2o": Contestant("h2o", h2o),
    "kvzip": Contestant("kvzip", kvzip),
    "expected": Contestant("expected", expected),
}


def rivals(names: Sequence[str]) -> list[Contestant]:
    """The baselines of these names. Raises UsageError naming the nearest where there is none."""
    for name in names:
        if name not in RIVALS:
            close = nearest(name, RIVALS)
            raise UsageError(
                f"unknown baseline {name!r}",
                hint=f"did you mean {close}?" if close else f"baselines: {', '.join(RIVALS)}",
            )
    return [RIVALS[name] for name in names]


def evict(memory: Layers, scores: Sequence[Tensor], slots: int) -> Layers:
    """The `slots` best tokens of every head by score_NM, in order, position 0 among them where it is still
    there."""
    layers = []
    for kv, score_NM in zip(memory.layers, scores, strict=True):
        ranked_NM = _with_sink(kv, score_NM)
        chosen = ranked_NM.topk(min(slots, ranked_NM.shape[1]), dim=1).indices.sort(dim=1).values
        layers.append(kv.take(list(chosen)))
    return replace(memory, layers=tuple(layers))


def evict_globally(memory: Layers, scores: Sequence[Tensor], slots: int) -> Layers:
    """The best tokens over all layers and heads, `slots` a head on average; every head keeps position 0."""
    ranked = [_with_sink(kv, score_NM) for kv, score_NM in zip(memory.layers, scores, strict=True)]
    flat = torch.cat([x.flatten() for x in ranked])
    total = sum(min(slots, x.shape[1]) * x.shape[0] for x in ranked)
    kept = torch.zeros_like(flat, dtype=torch.bool)
    kept[flat.topk(total).indices] = True
    layers = []
    for kv, kept_NM in zip(memory.layers, torch.split(kept, [x.numel() for x in ranked]), strict=True):
        heads = kept_NM.view(len(kv.sizes), -1)
        layers.append(kv.take([head.nonzero()[:, 0] for head in heads]))
    return replace(memory, layers=tuple(layers))


def evict_in_layers(memory: Layers, scores: Sequence[Tensor], slots: int) -> Layers:
    """The best tokens over the heads of each layer, SAFE of `slots` in each of them at least."""
    layers: list[LayerKV] = []
    for kv, score_NM in zip(memory.layers, scores, strict=True):
        best_NK = score_NM.topk(int(SAFE * min(slots, score_NM.shape[1])), dim=1).indices
        safe_NM = score_NM.float().scatter(1, best_NK, float("inf"))
        layers += evict_globally(Layers((kv,), memory.next_position), [safe_NM], slots).layers
    return replace(memory, layers=tuple(layers))


def _with_sink(kv: LayerKV, score_NM: Tensor) -> Tensor:
    """Position 0 above all else; a sliding window may have lost it already."""
    if kv.pos_X is not None and int(kv.pos_X[0]) != 0:
        return score_NM
    out_NM = score_NM.float().clone()
    out_NM[:, 0] = float("inf")
    return out_NM


def _keep_last(score_NM: Tensor, window: int) -> Tensor:
    out_NM = score_NM.float().clone()
    if window:
        out_NM[:, -window:] = out_NM.max() + 1
    return out_NM


def _heads(kv: LayerKV) -> Tensor:
    """k_NMD of heads of equal length."""
    return kv.k_XD.view(len(kv.sizes), kv.sizes[0], -1)


def _last(score_T: Tensor, kv: LayerKV) -> Tensor:
    """Scores of the tokens that the layer still has (the last ones), the same for each head; on its
    device."""
    return score_T[-kv.sizes[0] :].expand(len(kv.sizes), -1).to(kv.k_XD.device)


def _aligned(scores: Sequence[Tensor], memory: Layers) -> list[Tensor]:
    return [x[:, -kv.sizes[0] :] for x, kv in zip(scores, memory.layers, strict=True)]
