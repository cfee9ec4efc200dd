"""Text to ids and ids to text, both as they come: BOS once, the chat template around the input, whole
characters out.

What a session does with ids is not known here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from memtoken_cli.data.spelling import plain_ids
from memtoken_cli.io.errors import UsageError

MARK = "\N{REPLACEMENT CHARACTER}"
CONTEXT = 8  # ids before new ones: decoders look back at where a word begins
HELD = 64  # ids after which a bad character is given out as it stands
HERE = "\N{WHITE SQUARE}here\N{WHITE SQUARE}"


@dataclass
class Hearing:
    """Ids of pieces of a text, each tokenised alone; special tokens written out in a text are plain text.

    started: whether anything was read before, so that no BOS is due."""

    tokenizer: PreTrainedTokenizerBase
    started: bool = False

    def ids(self, piece: str) -> list[int]:
        return self._first() + plain_ids(self.tokenizer, [piece])[0]

    def marked(self, text: str) -> list[int]:
        """Ids of a template's own text: special tokens in it are what they say."""
        ids = list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        bos = self.tokenizer.bos_token_id
        if ids and ids[0] == bos:
            ids = ids[1:] if self.started else ids
            self.started = True
        return self._first() + ids

    def _first(self) -> list[int]:
        """BOS where the tokenizer has one in front of a text, once."""
        if self.started:
            return []
        self.started = True
        bos = self.tokenizer.bos_token_id
        empty = list(self.tokenizer("", verbose=False)["input_ids"])
        return [bos] if bos is not None and empty[:1] == [bos] else []


def around(tokenizer: PreTrainedTokenizerBase, answered: bool) -> tuple[str, str]:
    """What the chat template has before and behind a user's turn; `answered`: and the head of the answer's.

    Raises UsageError where the tokenizer has no template, or one that changes what it is given."""
    if not tokenizer.chat_template:
        raise UsageError("template=chat: the model's tokenizer has no chat template", hint="template=none")
    turn = [{"role": "user", "content": HERE}]
    text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=answered)
    before, found, behind = str(text).partition(HERE)
    if not found:
        raise UsageError("template=chat: the chat template does not show the user's text as it is")
    return before, behind


class Speaking:
    """Text of ids as they come. In all it is the text of all of the ids; a character is given out when all of
    its bytes are there."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._said = ""  # what of their text was given out

    def add(self, ids: Iterable[int]) -> str:
        self._ids += ids
        text = self._text(self._ids)
        if text.endswith(MARK) and len(self._ids) < HELD:
            # an unfinished character is one mark at the end; marks before it stay what they are
            return self._give(text[:-1])
        new = self._give(text)
        self._ids = self._ids[-CONTEXT:]
        self._said = self._text(self._ids)
        return new

    def end(self) -> str:
        """What was held back."""
        return self._give(self._text(self._ids))

    def _give(self, text: str) -> str:
        if len(text) <= len(self._said):
            return ""
        new, self._said = text[len(self._said) :], text
        return new

    def _text(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
