"""How exact float32 products are on this machine, for a while: `exact`, or from bfloat16 halves.

Queries and keys of a bfloat16 model are bfloat16 numbers already, so that their product loses nothing
by being computed from halves; solves stay exact.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch


@contextmanager
def matmul(dtype: torch.dtype) -> Iterator[None]:
    """Inside, float32 matrix products round their inputs to `dtype` (bfloat16), or to nothing (float32)."""
    flags = cast(Any, torch.backends.mkldnn).matmul
    before = flags.fp32_precision
    flags.fp32_precision = "bf16" if dtype == torch.bfloat16 else "ieee"
    try:
        yield
    finally:
        flags.fp32_precision = before
