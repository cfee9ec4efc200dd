"""How a query becomes a prompt's token ids: the model's chat template with its generation header.

A response is tokenised by itself and joined as ids, so that nothing merges across the border.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from memtoken_cli.io.errors import DataError

SENTINEL = "\ue000query\ue001"  # private-use characters: no template changes them
PLAIN = ("", "\n")  # around the query where a tokenizer has no chat template


@dataclass(frozen=True)
class Prompt:
    """Token ids, and the run [start, end) of them that is the user's own text."""

    ids: tuple[int, ...]
    user: tuple[int, int]

    def part(self, of: range) -> Prompt:
        """The prompt of these of the user's tokens alone."""
        start, end = self.user
        own = self.ids[start + of.start : start + of.stop]
        return Prompt((*self.ids[:start], *own, *self.ids[end:]), (start, start + len(own)))


def opening(tokenizer: PreTrainedTokenizerBase) -> str:
    """The BOS of a tokenizer that puts one in front of texts, or nothing."""
    adds = tokenizer.bos_token and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
    return str(tokenizer.bos_token) if adds else ""


class Prompts:
    """The prompts of one tokenizer. Raises DataError where its chat template does not repeat the query."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    @cached_property
    def frame(self) -> tuple[str, str]:
        """What stands before and behind the user's text."""
        if not self.tokenizer.chat_template:
            return opening(self.tokenizer) + PLAIN[0], PLAIN[1]
        turn = [{"role": "user", "content": SENTINEL}]
        text = str(self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
        before, found, after = text.partition(SENTINEL)
        if not found or SENTINEL in after:
            raise DataError("the model's chat template does not repeat the user's text just once")
        return before, after

    @property
    def digest(self) -> str:
        """Of the template: prompts of another one would not be those a bank was made with."""
        return hashlib.sha256("\0".join(self.frame).encode()).hexdigest()

    def render(self, query: str, instruction: str | None = None) -> Prompt:
        """The prompt of a query; an instruction comes first, then a blank line."""
        before, after = self.frame
        text = f"{instruction}\n\n{query}" if instruction else query
        coded = self.tokenizer(before + text + after, add_special_tokens=False, return_offsets_mapping=True)
        start, end = len(before), len(before) + len(text)
        inside = [i for i, (a, b) in enumerate(coded.offset_mapping) if a < end and b > start]
        # a text that left no token of its own (blank, say) is taken by the one before its border
        edge = sum(b <= start for _, b in coded.offset_mapping)
        user = (inside[0], inside[-1] + 1) if inside else (max(0, edge - 1), max(1, edge))
        return Prompt(tuple(coded.input_ids), user)

    def response(self, text: str) -> tuple[int, ...]:
        """An answer's ids, without an end token."""
        return tuple(self.tokenizer(text, add_special_tokens=False).input_ids)

    @property
    def end(self) -> int:
        """The id that ends an answer. Raises DataError where the tokenizer has none."""
        found = self.tokenizer.eos_token_id
        if not isinstance(found, int):
            raise DataError("the model's tokenizer has no end token")
        return found
