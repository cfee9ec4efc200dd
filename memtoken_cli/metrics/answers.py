"""Is an answer in words the right one? Exactly, or by the labels in it (BABILong, arXiv 2406.10149)."""

from __future__ import annotations

import re
from collections.abc import Collection


def exact(made: str, target: str) -> bool:
    """The same text, white space around it and case aside."""
    return made.strip().casefold() == target.strip().casefold()


def only_label(made: str, question: str, target: str, labels: Collection[str]) -> bool:
    """The one label that the first sentence of `made` names, those of the question aside, is the target.

    Labels are whole words, whatever their case. A target that is a list, `apple,milk`, is right where exactly
    its items are named.
    """
    items = {part for label in labels for part in _items(label)}
    named = _named(made.split(".")[0], items) - _named(question, items)
    return named == set(_items(target))


def _items(label: str) -> list[str]:
    return [item.strip().casefold() for item in label.split(",")]


def _named(text: str, labels: Collection[str]) -> set[str]:
    folded = text.casefold()
    return {label for label in labels if re.search(rf"(?<!\w){re.escape(label)}(?!\w)", folded)}
