"""Answering queries from a memory: the likeliest of given labels, or decoded text. Shared by every method.

`about` is what an artifact's header says of its prompt: {"template": str, "labels": [str] | None,
"calibration": {label: bias} | None}. Scoring itself is `trie.py`, decoding `decode.py`.

Shape suffixes: R rows (queries), K labels.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..data.render import Template, answer_ids, query_ids
from ..io.errors import DataError
from .backbone import CausalLM
from .decode import generate
from .memory import Layers, Memory
from .method import Answer, GenerateOptions
from .trie import Trie, check_lengths, empty_memory, score, tries

Scoring = Literal["whole", "first_token"]
CHUNK = 256  # queries scored before their answers are given out


def label_trees(
    backbone: CausalLM, template: Template, labels: Sequence[str], scoring: Scoring = "whole"
) -> list[Trie]:
    """The trees that score these labels behind a query; `first_token` scores each by its first token alone.

    Raises DataError where labels are the same, one begins another, or first tokens are not distinct.
    """
    whole = [answer_ids(template, backbone.tokenizer, label) for label in labels]
    if scoring == "whole":
        return tries(whole)
    first = [ids[:1] for ids in whole]
    seen: dict[int, str] = {}
    for label, ids in zip(labels, first, strict=True):
        if ids and seen.setdefault(ids[0], label) != label:
            text = f"labels {seen[ids[0]]!r} and {label!r} begin with the same token"
            raise DataError(text, hint="score them whole: labels=whole")
    return tries(first)


def answer(
    backbone: CausalLM,
    memory: Memory | None,
    about: Mapping[str, Any],
    queries: Sequence[str],
    options: GenerateOptions,
) -> Iterator[Answer]:
    """One Answer a query, in order, given out as batches finish.

    With options.labels: scores are the labels' log-probabilities, plus the artifact's calibration where it
    covers all of them and options.calibrate. Otherwise text up to options.stop (default: the template's
    end), stripped. Raises DataError for a query that does not fit, or a memory that does not enter by the
    `layers` port.
    """
    if memory is None:
        memory = empty_memory(backbone)
    if not isinstance(memory, Layers):
        raise DataError(f"queries read a memory of the layers port, this one is of the {memory.port} port")
    template = Template(str(about["template"]))
    rows = [query_ids(template, backbone.tokenizer, query) for query in queries]
    if options.labels:
        yield from _choose(backbone, memory.to(backbone.device), about, template, rows, options)
        return
    stop = options.stop or ((template.end,) if template.end else ())
    for text in generate(backbone, memory, rows, options, stop):
        yield Answer(text.strip())


def _choose(
    backbone: CausalLM,
    memory: Layers,
    about: Mapping[str, Any],
    template: Template,
    rows: Sequence[Sequence[int]],
    options: GenerateOptions,
) -> Iterator[Answer]:
    labels = options.labels or ()
    trees = label_trees(backbone, template, labels)
    check_lengths(backbone, memory, rows, 1)
    bias_K = bias_of(about, labels) if options.calibrate else torch.zeros(len(labels), dtype=torch.float64)
    for at in range(0, len(rows), CHUNK):
        for scores_K in score(backbone, memory, rows[at : at + CHUNK], trees).scores_RK + bias_K:
            named = dict(zip(labels, scores_K.tolist(), strict=True))
            yield Answer(labels[int(scores_K.argmax())], named)


def bias_of(about: Mapping[str, Any], labels: Sequence[str]) -> Tensor:
    """float64 [K]: what calibration adds to each label's score; zeros where it does not know all of them."""
    calibration: Mapping[str, float] = about.get("calibration") or {}
    known = all(label in calibration for label in labels)
    return torch.tensor([calibration[label] if known else 0.0 for label in labels], dtype=torch.float64)
