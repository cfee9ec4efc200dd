"""Where prompts disagree: the later label wins, a repeated id replaces, `label` against `not` is an error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from memtoken_cli.data.prompt_types import Prompt, Type
from memtoken_cli.io.errors import DataError

_ORDER: tuple[Type, ...] = ("label", "not", "boundary", "no-boundary", "same")


class Contradiction(DataError):
    """`label` and `not` of one row are equal."""

    def __init__(self, message: str, later: Prompt, *, hint: str, where: str) -> None:
        super().__init__(message, hint=hint, where=where)
        self.later = later


def canonical(prompt: Prompt) -> tuple[Any, ...]:
    """The key of canonical order: level, row, type."""
    kind = _ORDER.index(prompt.type)
    return prompt.level, prompt.start, kind, prompt.end, prompt.labels, prompt.weight, prompt.id


def settle(prompts: Sequence[Prompt], name: str = "") -> tuple[tuple[Prompt, ...], tuple[str, ...]]:
    """(prompts in canonical order, warnings): in the order spoken, later labels take rows from earlier ones.

    An earlier interval may fall into pieces; a repeated id replaces what had it. `name`: of the source.
    Raises DataError where `label` and `not` of one row and level are equal.
    """
    warnings: list[str] = []
    by_id: dict[str, Prompt] = {}
    for prompt in prompts:
        old = by_id.pop(prompt.id, None)
        if old is not None and replace(old, line=0) != replace(prompt, line=0):
            warnings.append(f"id {prompt.id!r} of {_at(old, name)} is replaced by {_at(prompt, name)}")
        by_id[prompt.id] = prompt
    order = {id_: i for i, id_ in enumerate(by_id)}
    out: list[Prompt] = []
    for group in _touching(list(by_id.values())):
        if len(group) > 1:
            group.sort(key=lambda p: order[p.id])
            group = _cut(group, name, warnings)
            _consistent(group, name, order)
        out += group
    return tuple(sorted(out, key=canonical)), tuple(warnings)


def _at(prompt: Prompt, name: str) -> str:
    return f"{name}:{prompt.line}" if name and prompt.line else f"prompt {prompt.id}"


def _touching(prompts: list[Prompt]) -> Iterator[list[Prompt]]:
    """Groups of one level whose rows overlap."""
    group: list[Prompt] = []
    end = 0
    for prompt in sorted(prompts, key=lambda p: (p.level, p.start)):
        if group and (prompt.level != group[0].level or prompt.start >= end):
            yield group
            group, end = [], 0
        group.append(prompt)
        end = max(end, prompt.end)
    if group:
        yield group


def _cut(group: list[Prompt], name: str, warnings: list[str]) -> list[Prompt]:
    """The group with each label cut by later labels that differ."""
    out: list[Prompt] = []
    for prompt in group:
        if prompt.type == "label":
            pieces = []
            for old in out:
                if old.type != "label" or old.labels == prompt.labels or not _overlap(old, prompt):
                    pieces.append(old)
                    continue
                rows = max(old.start, prompt.start), min(old.end, prompt.end) - 1
                told = f"row {rows[0]}" if rows[0] == rows[1] else f"rows {rows[0]} to {rows[1]}"
                warnings.append(
                    f"two labels for {told}: {prompt.labels[0]!r} of {_at(prompt, name)} wins over "
                    f"{old.labels[0]!r} of {_at(old, name)}"
                )
                pieces += _without(old, prompt)
            out = pieces
        out.append(prompt)
    return out


def _without(old: Prompt, new: Prompt) -> list[Prompt]:
    """What is left of a prompt outside another's rows; a second piece has an id of its own."""
    left = [replace(old, end=new.start)] if old.start < new.start else []
    right = [replace(old, start=new.end)] if new.end < old.end else []
    if left and right:
        right = [replace(right[0], id=f"{old.id}~{new.end}")]
    return left + right


def _consistent(group: list[Prompt], name: str, order: Mapping[str, int]) -> None:
    for prompt in (p for p in group if p.type == "not"):
        for label in (p for p in group if p.type == "label"):
            if label.labels[0] in prompt.labels and _overlap(prompt, label):
                one, two = sorted(
                    (prompt, label), key=lambda p: order.get(p.id, order.get(p.id.split("~")[0], 0))
                )
                row = max(prompt.start, label.start)
                raise Contradiction(
                    f"label and not of row {row} are both {label.labels[0]!r} (see also {_at(one, name)})",
                    two,
                    hint="remove one of the two",
                    where=_at(two, name),
                )


def _overlap(a: Prompt, b: Prompt) -> bool:
    return a.start < b.end and b.start < a.end
