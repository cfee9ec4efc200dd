"""How shots become text and token ids.

`Template` cuts text; `render`, `query_ids` and `answer_ids` cut tokens, always as encode(before) +
encode(after) without special tokens, so that a query's ids equal the front of a shot's: that makes a memory
reusable. A tokenizer enters by its protocol only; no torch here.
"""

from __future__ import annotations

from dataclasses import dataclass
from string import Formatter
from typing import TYPE_CHECKING, Any, Protocol

from memtoken_cli.io.errors import DataError, UsageError

if TYPE_CHECKING:
    from memtoken_cli.data.shots import Shot, Shots

DEFAULT = "Input: {input}\nOutput: {output}\n\n"
CHAT = "chat"
HINT = r"such as template='Query: {input}\nIntent: {output}\n\n'"
_PROBE = ({"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"})


class Tokenizer(Protocol):
    """What is asked of a tokenizer; every Hugging Face one has it."""

    bos_token_id: int | None
    chat_template: str | None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...
    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool = False
    ) -> Any: ...


class Template:
    """How a pair becomes text: "{input}", then "{output}", once each; "{{" and "}}" are plain braces.

    `Template(text)` takes the text as it is (an artifact's); `Template.parse(text)` decodes \\n, \\t and \\\\
    first (a command line's). The text "chat" stands for the model's own chat template. Raises UsageError.
    """

    def __init__(self, text: str = DEFAULT) -> None:
        self.text = text
        self.chat = text == CHAT
        self.front, self.middle, self.gap, self.end = ("", "", "", "") if self.chat else _cut(text)

    @classmethod
    def parse(cls, text: str) -> Template:
        """A template as typed: backslash escapes decoded. Raises UsageError."""
        return cls(text if text == CHAT else _unescape(text))

    def shot(self, shot: Shot) -> tuple[str, str]:
        """(before, after): the shot's text cut before the whitespace in front of its output.

        A shot without an output is all `after`, followed by a blank line.
        """
        if shot.output is None:
            return "", shot.input.rstrip("\n") + "\n\n"
        return self.query(shot.input), self.answer(shot.output)

    def query(self, text: str) -> str:
        """The prompt of a query: what precedes the answer."""
        return self.front + text + self.middle

    def answer(self, label: str) -> str:
        """The text that answers a query: its leading whitespace, the label and the template's end."""
        return self.gap + label + self.end

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Template) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"Template({self.text!r})"


def default_template(shots: Shots) -> Template:
    """The template for a source where the user gives none: its chat for messages, bare text for text."""
    if shots.kind == "messages":
        return Template(CHAT)
    return Template(DEFAULT if shots.kind == "pairs" else "{input}{output}")


@dataclass(frozen=True)
class Span:
    """A shot's tokens [start, end) in the prompt; `answer`: the first of its output, or start."""

    start: int
    answer: int
    end: int


@dataclass(frozen=True)
class Rendered:
    """A prompt's token ids, a span a shot, and `head`: the tokens before them (BOS and instruction)."""

    ids: list[int]
    spans: list[Span]
    head: int


def render(shots: Shots, template: Template, tokenizer: Tokenizer, instruction: str = "") -> Rendered:
    """The prompt that the shots make, after BOS (where the tokenizer adds one) and the instruction.

    Raises DataError where the tokenizer has no chat template or one whose turns cannot be joined.
    """
    ids = _head(template, tokenizer, instruction)
    head = len(ids)
    spans = []
    for shot in shots.items:
        before, after = _pieces(template, tokenizer, shot, f"{shots.source}:{shot.line}")
        start = len(ids)
        ids += _encode(tokenizer, before)
        answer = len(ids)
        ids += _encode(tokenizer, after)
        spans.append(Span(start, answer, len(ids)))
    return Rendered(ids, spans, head)


def query_ids(template: Template, tokenizer: Tokenizer, text: str) -> list[int]:
    """A query's token ids: what a shot's would be before its output."""
    if not template.chat:
        return _encode(tokenizer, template.query(text))
    return _encode(tokenizer, _chat_pieces(tokenizer, ({"role": "user", "content": text}, _PROBE[1]))[0])


def answer_ids(template: Template, tokenizer: Tokenizer, label: str) -> list[int]:
    """An answer's token ids as they stand in a shot, the template's end included."""
    if not template.chat:
        return _encode(tokenizer, template.answer(label))
    return _encode(
        tokenizer, _chat_pieces(tokenizer, (_PROBE[0], {"role": "assistant", "content": label}))[1]
    )


def _pieces(template: Template, tokenizer: Tokenizer, shot: Shot, where: str) -> tuple[str, str]:
    if not template.chat:
        return template.shot(shot)
    turns = shot.messages
    if not turns and shot.output is not None:
        turns = ({"role": "user", "content": shot.input}, {"role": "assistant", "content": shot.output})
    if not turns:
        raise DataError(
            "running text has no turns for a chat template", hint="leave template= out", where=where
        )
    return _chat_pieces(tokenizer, turns, where)


def _chat_pieces(
    tokenizer: Tokenizer, turns: tuple[dict[str, str], ...], where: str | None = None
) -> tuple[str, str]:
    """(before, after) of a conversation as it continues another one: the same in every place."""
    base = _chat(tokenizer, _PROBE, where)
    whole = _chat(tokenizer, _PROBE + turns, where)
    asked = _chat(tokenizer, _PROBE + turns[:-1], where, asking=True)
    if not (asked.startswith(base) and whole.startswith(asked)):
        raise _unjoinable(where)
    return asked[len(base) :], whole[len(asked) :]


def _head(template: Template, tokenizer: Tokenizer, instruction: str) -> list[int]:
    if template.chat:
        system = ({"role": "system", "content": instruction},) if instruction else ()
        turn = "".join(_chat_pieces(tokenizer, _PROBE))
        text = _chat(tokenizer, system + _PROBE, None)
        if not text.endswith(turn):
            raise _unjoinable(None)
        return _with_bos(tokenizer, _encode(tokenizer, text[: len(text) - len(turn)]))
    lead = instruction if not instruction or instruction.endswith("\n") else instruction + "\n\n"
    return _with_bos(tokenizer, _encode(tokenizer, lead))


def _with_bos(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    bos = tokenizer.bos_token_id
    adds = bos is not None and tokenizer.encode("a", add_special_tokens=True)[:1] == [bos]
    return [bos, *ids] if bos is not None and adds and ids[:1] != [bos] else ids


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False)) if text else []


def _chat(
    tokenizer: Tokenizer, turns: tuple[dict[str, str], ...], where: str | None, asking: bool = False
) -> str:
    if not tokenizer.chat_template:
        hint = HINT + ', with {"input", "output"} records'
        raise DataError("the model's tokenizer has no chat template", hint=hint, where=where)
    try:
        text = tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=asking)
    except Exception as error:  # a chat template is the model's own program and raises what it likes
        raise DataError(f"the model's chat template refuses these messages: {error}", where=where) from error
    return str(text)


def _unjoinable(where: str | None) -> DataError:
    hint = HINT + ', with {"input", "output"} records'
    return DataError(
        "the turns of the model's chat template cannot be joined to one prompt", hint=hint, where=where
    )


def _unescape(text: str) -> str:
    out = []
    rest = iter(text)
    for char in rest:
        if char != "\\":
            out.append(char)
            continue
        following = next(rest, "")
        out.append({"n": "\n", "t": "\t", "\\": "\\"}.get(following, "\\" + following))
    return "".join(out)


def _cut(text: str) -> tuple[str, str, str, str]:
    """(text before {input}, between, the whitespace in front of {output}, text after it)."""
    try:
        parts = list(Formatter().parse(text))
    except ValueError as error:
        raise UsageError(f"bad template {text!r}: {error}", hint=HINT) from None
    literals = [""]
    names: list[str] = []
    for literal, name, spec, conversion in parts:
        literals[-1] += literal
        if name is None:
            continue
        if name not in ("input", "output") or spec or conversion:
            shown = name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
            raise UsageError(f"unknown field {{{shown}}} in template {text!r}", hint=HINT)
        names.append(name)
        literals.append("")
    if names != ["input", "output"]:
        raise UsageError(f"a template needs {{input}} and then {{output}}, once each: {text!r}", hint=HINT)
    front, between, end = literals
    middle = between.rstrip()
    return front, middle, between[len(middle) :], end
