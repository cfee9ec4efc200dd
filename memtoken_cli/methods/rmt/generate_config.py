"""What `memtok generate` is asked of a session: the KEY=VALUE arguments. No torch here.

Names and meanings of what shapes the text are those of transformers' GenerationConfig; how they are obeyed
across segments is the session's business.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

ROLLBACK = (
    "assistant_model",
    "assistant_early_exit",
    "num_assistant_tokens",
    "prompt_lookup_num_tokens",
    "max_matching_ngram_size",
)
TAKE_BACK = (
    "assisted and prompt-lookup decoding take tokens back, and a segment that is closed stays in the memory"
)
HISTORY = 2048  # ids of a row that are kept for what looks back
NEW = 256  # ids of a continuation
MINE = frozenset({"suffix", "template", "save_every", "errors", "reset"})
Positive = Field(default=None, gt=0)
Share = Field(default=None, ge=0, le=1)
Count = Field(default=None, ge=0)


class GenerateKeys(BaseModel):
    """The keys of `memtok generate` for a trained recurrent memory or a session of one.

    Attributes:
        max_new_tokens: 0 only reads.
        suffix: text behind the input; \\n is a line end.
        template: chat puts the input into the tokenizer's chat template, as the user's turn.
        save_every: write the session each time this many segments were read.
        history: tokens that penalties and bans of repetition see.
        errors: replace reads what is not UTF-8 as U+FFFD, and counts it.
        reset: begin with the trained start instead of the session's state.
        stop, beams: short for stop_strings, num_beams.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_new_tokens: int = Field(default=NEW, ge=0)
    suffix: str = ""
    template: Literal["chat", "none"] = "none"
    save_every: int | None = Field(default=None, ge=1)
    history: int = Field(default=HISTORY, ge=1)
    errors: Literal["strict", "replace"] = "strict"
    reset: bool = False

    min_new_tokens: int | None = Count
    max_time: float | None = Positive
    stop_strings: str | list[str] | None = None
    stop: str | list[str] | None = None
    eos_token_id: int | list[int] | None = None
    forced_eos_token_id: int | list[int] | None = None

    do_sample: bool | None = None
    temperature: float | None = Field(default=None, ge=0)
    top_k: int | None = Count
    top_p: float | None = Field(default=None, gt=0, le=1)
    min_p: float | None = Share
    top_h: float | None = Field(default=None, gt=0, le=1)
    typical_p: float | None = Field(default=None, gt=0, le=1)
    epsilon_cutoff: float | None = Field(default=None, ge=0, lt=1)
    eta_cutoff: float | None = Field(default=None, ge=0, lt=1)

    num_beams: int | None = Field(default=None, ge=1)
    beams: int | None = Field(default=None, ge=1)
    length_penalty: float | None = None
    early_stopping: bool | Literal["never"] | None = None

    repetition_penalty: float | None = Positive
    no_repeat_ngram_size: int | None = Count
    bad_words_ids: list[list[int]] | None = None
    sequence_bias: list[list[list[int] | float]] | None = None
    suppress_tokens: list[int] | None = None
    begin_suppress_tokens: list[int] | None = None
    exponential_decay_length_penalty: tuple[int, float] | None = None
    renormalize_logits: bool | None = None
    remove_invalid_values: bool | None = None

    assistant_model: Any = None
    assistant_early_exit: Any = None
    num_assistant_tokens: Any = None
    prompt_lookup_num_tokens: Any = None
    max_matching_ngram_size: Any = None

    @field_validator(*ROLLBACK)
    @classmethod
    def _ahead(cls, value: Any) -> Any:
        if value is not None:
            raise ValueError(TAKE_BACK)
        return value

    @field_validator("suffix", "stop", "stop_strings")
    @classmethod
    def _lines(cls, value: str | list[str] | None) -> str | list[str] | None:
        if isinstance(value, list):
            return [_unescaped(text) for text in value]
        return None if value is None else _unescaped(value)

    @model_validator(mode="after")
    def _once(self) -> GenerateKeys:
        for short, name in (("stop", "stop_strings"), ("beams", "num_beams")):
            given = vars(self)
            if given[short] is not None and given[name] is not None:
                raise ValueError(f"{short} and {name} are one key: leave one out")
        return self

    def generation(self) -> dict[str, Any]:
        """What was asked of the text, by GenerationConfig's names, with max_new_tokens and history."""
        given = {k: v for k, v in self.model_dump(exclude=set(MINE)).items() if v is not None}
        for short, name in (("stop", "stop_strings"), ("beams", "num_beams")):
            if short in given:
                given[name] = given.pop(short)
        return given


def _unescaped(text: str) -> str:
    return text.replace("\\n", "\n").replace("\\t", "\t")
