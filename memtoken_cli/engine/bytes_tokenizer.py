"""A tokenizer of bytes: no merges, so any text has as many ids as UTF-8 bytes, and ids give back the text.

It adds nothing to a text. Which id is which byte comes with the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from memtoken_cli.engine.fresh import END, PAD, START, UNKNOWN, with_special_words


def bytes_tokenizer(vocabulary: Sequence[str]) -> PreTrainedTokenizerFast:
    """`vocabulary`: in id order, the 256 names that byte-level tokenizers (GPT-2) give to bytes, and PAD,
    START, END and UNKNOWN. Raises ValueError where one is not there."""
    missing = {*pre_tokenizers.ByteLevel.alphabet(), PAD, START, END, UNKNOWN} - set(vocabulary)
    if missing:
        raise ValueError(f"no word for {', '.join(sorted(missing))}")
    core = Tokenizer(models.BPE({word: i for i, word in enumerate(vocabulary)}, [], unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return with_special_words(core)
