"""A session inside stock `generate`: a model without weights of its own, whose cache is the session.

    model = SessionModel(session.backbone)
    model.generate(ids, cache=SessionCache(session), max_new_tokens=50, do_sample=True)

The ids that the session has not read yet are read, across as many segments as they fill; each new token is
read when the next one is asked for, so that the last one has not been. Beams: give a session of one row a
beam (`session.select`); they end in `cache.session`.

Shape suffixes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Cache,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.io.errors import UsageError
from memtoken_cli.methods.rmt.generate_config import HISTORY, TAKE_BACK
from memtoken_cli.methods.rmt.session import Session

LOOKING_BACK = (RepetitionPenaltyLogitsProcessor, NoRepeatNGramLogitsProcessor)


class SessionCache(Cache):  # type: ignore[misc]
    """What `generate` carries from step to step: rows of a session, with all that they have read.

    known: how many of the columns of `generate`'s ids the session has read before. Moving or repeating rows
    makes a session of its own, here as `session`; without it the given one goes on."""

    def __init__(self, session: Session, known: int = 0, rows: Sequence[int] | None = None) -> None:
        super().__init__(layers=[])
        self.session, self.known = session, known
        self.rows = list(range(len(session)) if rows is None else rows)

    def read(self, ids_BT: Tensor) -> Tensor:
        """Logits [B,V] behind the columns ids_BT."""
        self.session.push(ids_BT, self.rows)
        self.known += ids_BT.shape[1]
        return self.session.logits(self.rows)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.known

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    @property
    def batch_size(self) -> int:
        return len(self.rows)

    @property
    def is_croppable(self) -> bool:
        return False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.session = self.session.select([self.rows[i] for i in indices.tolist()])
        self.rows = list(range(len(self.session)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.batch_select_indices(torch.arange(len(self.rows)).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Raises UsageError: a segment that is closed cannot be opened again."""
        raise UsageError(TAKE_BACK, hint="decode without them")

    def activate_past_recording(self) -> None:
        """Raises UsageError: nothing can be taken back."""
        raise UsageError(TAKE_BACK, hint="decode without them")

    def reset(self) -> None:
        """Raises UsageError: a session that has read nothing is a new one."""
        raise UsageError("the cache of a session cannot be reset", hint="Session.new(model)")


class SessionConfig(PreTrainedConfig):  # type: ignore[misc]
    """What `generate` asks of a model's configuration."""

    model_type = "memtok_session"


class SessionModel(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """Stock `generate` over sessions of one backbone. history: tokens that repetition penalty and n-gram bans
    see. Raises UsageError where the cache is no SessionCache."""

    config_class = SessionConfig
    main_input_name = "input_ids"

    def __init__(self, backbone: CausalLM, history: int = HISTORY) -> None:
        dims = backbone.dims
        super().__init__(SessionConfig(vocab_size=dims.vocab, num_hidden_layers=dims.layers))
        self.backbone, self.history = backbone, history
        self.generation_config = GenerationConfig()
        self.eval()

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @property
    def dtype(self) -> torch.dtype:
        return self.backbone.dtype

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        cache: Cache | None = None,
        is_first_iteration: bool | None = False,
        use_cache: bool | None = None,
    ) -> dict[str, Any]:
        """The ids that the session has not read."""
        if not isinstance(cache, SessionCache):
            raise UsageError("a session generates from its own cache", hint="cache=SessionCache(session)")
        return {"input_ids": input_ids[:, cache.known :], "cache": cache}

    def forward(
        self, input_ids: Tensor, cache: SessionCache, return_dict: bool = True
    ) -> CausalLMOutputWithPast:
        """Read input_ids [B,T] (T may be 0); logits [B,1,V] of the token behind them."""
        return CausalLMOutputWithPast(logits=cache.read(input_ids)[:, None], cache=cache)

    def _get_logits_processor(self, *args: Any, **named: Any) -> LogitsProcessorList:
        """Stock's, of which those that look back at the whole text see the newest `history` tokens."""
        found = super()._get_logits_processor(*args, **named)
        return LogitsProcessorList(
            Newest(p, self.history) if isinstance(p, LOOKING_BACK) else p for p in found
        )


class Newest(LogitsProcessor):  # type: ignore[misc]
    """A processor that sees the newest ids only."""

    def __init__(self, inner: LogitsProcessor, history: int) -> None:
        self.inner, self.history = inner, history

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        seen: Tensor = self.inner(input_ids[:, -self.history :], scores)
        return seen
