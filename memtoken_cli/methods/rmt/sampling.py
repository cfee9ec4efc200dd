"""How a continuation is chosen: the fields of transformers' GenerationConfig that make sense for a session.

Nothing here knows sessions. Fields that count from the start of a text are shifted for a text that is written
in blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import GenerationConfig

from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.engine.decode import end_ids
from memtoken_cli.io.errors import UsageError, nearest
from memtoken_cli.methods.rmt.generate_config import HISTORY, NEW, TAKE_BACK

LENGTH = ("max_new_tokens", "min_new_tokens", "max_time", "stop_strings", "eos_token_id", "pad_token_id",
          "forced_eos_token_id", "exponential_decay_length_penalty")  # fmt: skip
DRAWS = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
BEAMS = ("length_penalty", "early_stopping")
PAST = ("repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "sequence_bias", "watermarking_config")
SCORES = (*PAST, "suppress_tokens", "begin_suppress_tokens", "renormalize_logits", "remove_invalid_values")
LOOK_BACK = (*PAST, "stop_strings")
FLOATS = (*(key for key in DRAWS if key != "top_k"), "repetition_penalty", "length_penalty")
OWN = ("history", "seed")
KEYS = (*LENGTH, "do_sample", "num_beams", *DRAWS, *BEAMS, *SCORES, *OWN)

ENCODER = "it is for models with an encoder"
COUNTS = "it counts the input, which has no end here"
KEEPS = "a session is its own cache"
ONE = "one session goes on in one way"
REASONS: Mapping[str, str] = {
    **dict.fromkeys(
        ("prompt_lookup_num_tokens", "max_matching_ngram_size", "assistant_model", "assistant_early_exit",
         "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold",
         "assistant_lookbehind", "target_lookbehind", "assistant_ensemble_weight", "is_assistant",
         "speculation_type", "use_mtp", "token_healing"),
        TAKE_BACK,
    ),
    **dict.fromkeys(
        ("encoder_repetition_penalty", "encoder_no_repeat_ngram_size", "decoder_start_token_id",
         "forced_bos_token_id", "bos_token_id"),
        ENCODER,
    ),
    **dict.fromkeys(("max_length", "min_length"), COUNTS),
    **dict.fromkeys(
        ("use_cache", "cache_implementation", "cache_config", "max_cache_len", "prefill_chunk_size",
         "compile_config", "disable_compile"),
        KEEPS,
    ),
    "num_return_sequences": ONE,
    "guidance_scale": "it needs a second session that has not read the prompt",
}  # fmt: skip
INSTEAD = {
    "max_length": "max_new_tokens",
    "min_length": "min_new_tokens",
    "num_return_sequences": "fork the session and give each copy a seed",
    "token_healing": "end the prompt at a word's end",
}


@dataclass(frozen=True)
class Sampling:
    """How to continue, as `sampling` checked it.

    said: fields of a GenerationConfig, all but max_new_tokens, that of the whole continuation. history:
    tokens that what looks back may see. seed: None goes on with the session's draws."""

    said: Mapping[str, Any]
    max_new_tokens: int = NEW
    history: int = HISTORY
    seed: int | None = None

    @property
    def beams(self) -> int:
        return int(self.said["num_beams"])

    @property
    def draws(self) -> bool:
        return bool(self.said["do_sample"])

    @property
    def looks_back(self) -> bool:
        """Whether anything depends on tokens before the last."""
        return any(self.said.get(key) is not None for key in LOOK_BACK)

    def block(self, done: int, size: int, seconds: float | None = None) -> GenerationConfig:
        """For `size` ids behind `done` that were made before; seconds: how many are left of max_time."""
        said = dict(self.said) | {"max_new_tokens": size, "max_time": seconds}
        said.pop("stop_strings", None)  # searched by a criterion that is made once
        least = min(max(0, said.pop("min_new_tokens", 0) - done), size)
        if least:
            said["min_new_tokens"] = least
        if done:
            said.pop("begin_suppress_tokens", None)
        if done + size < self.max_new_tokens:
            said.pop("forced_eos_token_id", None)
        if (decay := said.get("exponential_decay_length_penalty")) is not None:
            said["exponential_decay_length_penalty"] = (decay[0] - done, decay[1])
        return GenerationConfig(**said)


def sampling(keys: Mapping[str, Any], backbone: CausalLM) -> Sampling:
    """From the keys of a user, by GenerationConfig's names, with history and seed; greedy unless one of them
    draws. What is None was not given. Raises UsageError for keys that do not exist or make no sense here."""
    given = {key: value for key, value in keys.items() if value is not None}
    for key in given:
        _known(key)
    drawn = [key for key in DRAWS if key in given and given.get("temperature") != 0]
    sample = given.get("do_sample", bool(drawn))
    if sample and given.get("temperature") == 0:
        raise UsageError("temperature=0 does not draw", hint="do_sample=false, or a temperature above 0")
    if drawn and not sample:
        raise UsageError(f"{drawn[0]} is about drawing, and do_sample=false", hint="leave one of them out")
    left = set(OWN) if sample else {*OWN, *DRAWS}
    said: dict[str, Any] = {key: value for key, value in given.items() if key not in left}
    said |= {key: float(said[key]) for key in FLOATS if isinstance(said.get(key), int)}
    said["do_sample"] = sample
    if said.setdefault("num_beams", 1) == 1 and (lost := next((k for k in BEAMS if k in said), None)):
        raise UsageError(f"{lost} is about beams, and there is one", hint="num_beams=4")
    if sample:
        said = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} | said
    ends = end_ids(backbone)
    said.setdefault("eos_token_id", ends or None)
    pad = backbone.tokenizer.pad_token_id
    said.setdefault("pad_token_id", pad if pad is not None else next(iter(ends), 0))
    if "sequence_bias" in said and not isinstance(said["sequence_bias"], dict):
        said["sequence_bias"] = {tuple(ids): float(bias) for ids, bias in said["sequence_bias"]}
    most = said.pop("max_new_tokens", NEW)
    _counted("max_new_tokens", most, 0)
    _counted("history", given.get("history", HISTORY), 1)
    _counted("num_beams", said["num_beams"], 1)
    _built(said)
    return Sampling(said, most, given.get("history", HISTORY), given.get("seed"))


def _known(key: str) -> None:
    if key in KEYS:
        return
    if key in REASONS:
        raise UsageError(f"{key} cannot be used here: {REASONS[key]}", hint=INSTEAD.get(key))
    if key in vars(GenerationConfig()):
        raise UsageError(f"{key} has no meaning for text that is written as it comes", hint="leave it out")
    near = nearest(key, KEYS)
    raise UsageError(f"no key {key!r} of generation", hint=f"did you mean {near}?" if near else None)


def _counted(key: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UsageError(f"{key}={value} is not a whole number from {least} on")


def _built(said: Mapping[str, Any]) -> None:
    """Raises UsageError where transformers refuses the values."""
    try:
        GenerationConfig(**said).validate(strict=True)
    except (ValueError, TypeError) as error:
        raise UsageError(f"generation: {str(error).splitlines()[0]}") from None
