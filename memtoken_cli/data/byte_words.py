"""Bytes as the words of a vocabulary, for small models that read any text.

Words are named as byte-level tokenizers name bytes (GPT-2): printable ones of Latin-1 by themselves, the
others by the characters from U+0100 on.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from memtoken_cli.data.streams import FIRST, vocabulary

_OWN = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
_OTHER = [byte for byte in range(256) if byte not in _OWN]
BYTE_WORDS = vocabulary(*(chr(b) if b in _OWN else chr(0x100 + _OTHER.index(b)) for b in range(256)))


def byte_ids(text: str) -> NDArray[np.int32]:
    """int32 ids of the text's UTF-8 bytes: byte b is FIRST + b."""
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32) + FIRST
