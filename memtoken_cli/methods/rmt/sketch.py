"""What training a recipe would take, before anything is trained: parameters, columns, bytes of state and of
activations.

Activations are what one segment of one row keeps for its backward, measured, times rows and segments. Scored
tokens add their logits and the log-probabilities, in float32.

Shape suffixes: B rows, T tokens of a row, N segments, S tokens of a segment.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from memtoken_cli.data.streams import IGNORE, vocabulary
from memtoken_cli.data.task_config import TaskSection
from memtoken_cli.engine import seeds
from memtoken_cli.methods.rmt.cached import Cached
from memtoken_cli.methods.rmt.config import TrainConfig
from memtoken_cli.methods.rmt.cut import cut
from memtoken_cli.methods.rmt.learn import targets
from memtoken_cli.methods.rmt.policy import State
from memtoken_cli.methods.rmt.run import Bench, built, trainable
from memtoken_cli.recipe.schema import Recipe
from memtoken_cli.recipe.sections import NewModel

FLOAT = 4  # bytes
FILLED = 3  # segments after which a window is full


def sketch(recipe: Recipe) -> dict[str, Any]:
    """JSON-ready. Raises as training would where parts do not fit: UsageError, DataError; only a text may be
    missing."""
    with tempfile.TemporaryDirectory(prefix="memtok-") as folder:
        bench = built(_with_text(recipe, Path(folder)), "cpu")
    trained = trainable(bench.backbone, bench.policy, bench.config)
    S = bench.config.segment
    segments = -(-bench.stream.tokens(bench.stream.size()) // S)
    columns = _columns(bench)
    return {
        "parameters": _groups(bench, trained),
        "tokens_per_segment": S,
        "columns_per_segment": columns,
        "overhead": round(columns / S, 3),
        "segments": segments,
        "state_bytes": _state_bytes(bench, segments),
        "activation_bytes": _activations(bench, recipe, segments, trained),
    }


def _with_text(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with some text to read, where it needs one and names none."""
    task: TaskSection = recipe.own["task"]
    if task.name != "text" or recipe.data.path is not None:
        return recipe
    path = folder / "text"
    words = 2 * recipe.config.segment * (task.segments or 1) + 1000
    path.write_text("the " * words)  # a token each, or a byte a letter
    model = recipe.model
    if task.words and isinstance(model, NewModel) and model.vocab is None:
        model = model.model_copy(update={"vocab": len(vocabulary()) + task.words})
    return replace(recipe, model=model, data=recipe.data.model_copy(update={"path": str(path)}))


def _groups(bench: Bench, trained: dict[str, Parameter]) -> dict[str, int]:
    """Numbers of parameters: of the backbone, of the policy by the first part of a name; and those that are
    trained."""
    low_rank = [p for name, p in trained.items() if name.startswith("lora.")]
    groups = {"backbone": sum(p.numel() for p in bench.backbone.model.parameters())}
    groups["backbone"] -= sum(p.numel() for p in low_rank)
    for name, p in bench.policy.parameters().items():
        group = name.partition(".")[0]
        groups[group] = groups.get(group, 0) + p.numel()
    if low_rank:
        groups["lora"] = sum(p.numel() for p in low_rank)
    return groups | {"trained": sum(p.numel() for p in trained.values())}


def _columns(bench: Bench) -> int:
    """Of a whole segment, memory included."""
    if isinstance(bench.policy, Cached):
        return bench.config.segment
    places = bench.policy.places
    return places.before + bench.config.segment + places.write


@torch.no_grad()
def _state_bytes(bench: Bench, segments: int) -> int:
    """Of one row; of full attention, which keeps everything, at the end of a training row."""
    if not isinstance(bench.policy, Cached):
        return _bytes(bench.policy.start(1))
    if bench.config.policy == "full":
        return segments * _bytes(_read(bench, 1))
    return _bytes(_read(bench, FILLED))


def _bytes(state: State) -> int:
    return sum(x.numel() * x.element_size() for x in state)


def _read(bench: Bench, segments: int) -> State:
    """The state after so many segments of one row."""
    S, device = bench.config.segment, bench.backbone.device
    ids_1S = torch.arange(S, device=device)[None] % bench.backbone.dims.vocab
    state = bench.policy.start(1)
    for _ in range(segments):
        _, state = bench.policy.segment(ids_1S, torch.full((1,), S, device=device), state, None)
    return state


def _activations(
    bench: Bench, recipe: Recipe, segments: int, trained: dict[str, Parameter]
) -> dict[str, int]:
    """By mode, for the rows of one backward; last and window with the recipe's number, or 1."""
    said: TrainConfig = recipe.train
    rows = said.micro or said.batch
    one = _kept(bench, trained)
    scored_N = _scored(bench, recipe)
    token = 2 * FLOAT * bench.backbone.dims.vocab
    logits, most = token * sum(scored_N), token * max(scored_N)
    number = bench.config.bptt.partition(":")[2]
    k = int(number or 1)
    # a segment with a loss stays until the end, also where its state was detached
    needed = sum(scored > 0 or t >= segments - k - 1 for t, scored in enumerate(scored_N))
    modes = {
        "full": segments * one + logits,
        f"last:{k}": needed * one + logits,
        f"window:{k}": min(k + 1, segments) * one + most,
        "replay": one + most + segments * _state_bytes(bench, segments),
    }
    return {mode: rows * size for mode, size in modes.items()}


def _kept(bench: Bench, trained: dict[str, Parameter]) -> int:
    """Bytes that the second segment of one row keeps for its backward, without logits."""
    own = {p.untyped_storage().data_ptr() for p in bench.backbone.model.parameters()}
    own |= {p.untyped_storage().data_ptr() for p in trained.values()}
    found: dict[int, int] = {}

    def note(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            held.append(x)  # or another tensor could get its place
            found[storage.data_ptr()] = storage.nbytes()
        return x

    held: list[Tensor] = []
    for p in trained.values():
        p.requires_grad_(True)
    with torch.enable_grad():
        first = tuple(x.detach().requires_grad_(x.is_floating_point()) for x in _read(bench, 1))
        S, device = bench.config.segment, bench.backbone.device
        ids_1S = torch.arange(S, device=device)[None] % bench.backbone.dims.vocab
        count_1 = torch.full((1,), S, device=device)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            kept = bench.policy.segment(ids_1S, count_1, first, None)
    del kept
    return sum(found.values())


def _scored(bench: Bench, recipe: Recipe) -> list[int]:
    """Scored tokens of each segment of a training row of full size."""
    rows = bench.stream.draw(bench.stream.size(), 1, seeds.generator(recipe.seed, "sketch"))
    cuts = cut(rows.length_B, bench.config.segment, bench.config.align)
    target_BT = targets(rows, cuts, bench.config.loss)
    return [int((cuts.take(target_BT, t, IGNORE) != IGNORE).sum()) for t in range(len(cuts))]
