"""Prompts of several turns: what in-context and retrieval baselines show before the query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from memtoken_cli.methods.tokmem.prompt import opening


@dataclass(frozen=True)
class Shown:
    """A demonstration: what the user said, and the response."""

    query: str
    response: str


def turns(
    tokenizer: PreTrainedTokenizerBase, query: str, shown: Sequence[Shown] = (), definition: str = ""
) -> tuple[int, ...]:
    """Ids of demonstrations as chat turns and then the query, with the generation header.

    The definition stands before the first thing that the user says, a blank line between. A tokenizer without
    a chat template shows each query and response on a line of its own.
    """
    said = [*((one.query, one.response) for one in shown), (query, None)]
    if definition:
        said[0] = (f"{definition}\n\n{said[0][0]}", said[0][1])
    if tokenizer.chat_template:
        messages = []
        for user, response in said:
            messages.append({"role": "user", "content": user})
            if response is not None:
                messages.append({"role": "assistant", "content": response})
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    else:
        text = opening(tokenizer) + "".join(
            f"{user}\n" + (f"{response}\n" if response is not None else "") for user, response in said
        )
    return tuple(tokenizer(text, add_special_tokens=False).input_ids)
