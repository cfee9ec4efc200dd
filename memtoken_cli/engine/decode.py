"""Decoding text behind a memory: stock `generate`, left-padded batches, one copy of the memory for all rows.

Rows come back in the order of the queries, whatever the batches. Knows nothing of templates or labels.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from .backbone import CausalLM
from .memory import Layers
from .method import GenerateOptions
from .trie import check_lengths, empty_memory

WINDOW = 16  # batches that are sorted by length together: bounds how long the first answer waits


@dataclass
class StopText(StoppingCriteria):  # type: ignore[misc]
    """A row is done when its new text holds one of `stop`."""

    backbone: CausalLM
    stop: tuple[str, ...]
    prompt: int

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        texts = _text(self.backbone, input_ids[:, self.prompt :])
        return torch.tensor([_cut(text, self.stop) is not None for text in texts], device=input_ids.device)


def generate(
    backbone: CausalLM,
    memory: Layers | None,
    rows: Sequence[Sequence[int]],
    options: GenerateOptions,
    stop: tuple[str, ...] = (),
) -> Iterator[str]:
    """The continuation of every row of token ids, in order; cut before the first of `stop`, not stripped.

    `memory` None: nothing in front. Greedy unless options.temperature > 0, with options.beams beams;
    sampling is seeded and depends on the batch. Raises DataError where a row and its continuation do not fit
    the context.
    """
    if memory is None:
        memory = empty_memory(backbone)
    check_lengths(backbone, memory, rows, options.max_new_tokens)
    size = max(1, options.batch // max(1, options.beams))
    for start in range(0, len(rows), size * WINDOW):
        window = range(start, min(start + size * WINDOW, len(rows)))
        order = sorted(window, key=lambda i: -len(rows[i]))
        done: dict[int, str] = {}
        for at in range(0, len(order), size):
            chosen = order[at : at + size]
            texts = _batch(
                backbone, memory, [rows[i] for i in chosen], options, stop, options.seed + start + at
            )
            done |= dict(zip(chosen, texts, strict=True))
        yield from (done[i] for i in window)


@torch.no_grad()
def _batch(
    backbone: CausalLM,
    memory: Layers,
    rows: Sequence[Sequence[int]],
    options: GenerateOptions,
    stop: tuple[str, ...],
    seed: int,
) -> list[str]:
    T, config = max(map(len, rows)), _config(backbone, options)
    ids_BT = torch.full((len(rows), T), int(config.pad_token_id or 0))
    mask_BT = torch.zeros(len(rows), T, dtype=torch.long)
    for b, row in enumerate(rows):
        ids_BT[b, T - len(row) :] = torch.tensor(row)
        mask_BT[b, T - len(row) :] = 1
    stopping = StoppingCriteriaList([StopText(backbone, stop, T)] if stop else [])
    devices = [backbone.device] if backbone.device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices),
        backbone.attached(memory) as model,
        _own_config(model, config),
    ):
        torch.manual_seed(seed)
        out_BT = model.generate(
            ids_BT.to(backbone.device),
            attention_mask=mask_BT.to(backbone.device),
            generation_config=config,
            stopping_criteria=stopping,
        )
    cut = [(text, _cut(text, stop)) for text in _text(backbone, out_BT[:, T:])]
    return [text[:end] for text, end in cut]


def _text(backbone: CausalLM, ids_BT: Tensor) -> list[str]:
    texts: list[str] = backbone.tokenizer.batch_decode(
        ids_BT.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return texts


def _cut(text: str, stop: tuple[str, ...]) -> int | None:
    """Where the first stop begins, or None."""
    found = [at for at in (text.find(s) for s in stop) if at >= 0]
    return min(found, default=None)


def end_ids(backbone: CausalLM) -> list[int]:
    """The tokens that end a text: the tokenizer's and those that the model declares, ascending."""
    own = backbone.model.generation_config
    declared = own.eos_token_id if own is not None else None
    ends = {backbone.tokenizer.eos_token_id} | set(declared if isinstance(declared, list) else [declared])
    return sorted(int(e) for e in ends if e is not None)


def _config(backbone: CausalLM, options: GenerateOptions) -> GenerationConfig:
    """Everything said here, so that a model's own generation defaults do not leak in."""
    tokenizer, eos = backbone.tokenizer, end_ids(backbone)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(eos), 0)
    sample = options.temperature > 0
    config = GenerationConfig(
        max_new_tokens=options.max_new_tokens,
        do_sample=sample,
        num_beams=options.beams,
        eos_token_id=eos or None,
        pad_token_id=pad,
        use_cache=True,
    )
    if sample:
        config.temperature = options.temperature
        config.top_k = options.top_k or 0
        config.top_p = 1.0 if options.top_p is None else options.top_p
    return config


@contextmanager
def _own_config(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """`generate` fills what a config leaves open from the model's own: while it runs, they are the same."""
    before = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = before
