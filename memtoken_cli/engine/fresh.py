"""New small backbones: a Hugging Face model with random weights over a given vocabulary, and its first
training.

For tasks that need no pretrained model. What comes out is a plain model directory that `models.load`, or any
other program, reads. What it is trained on is the caller's.

Shape suffixes: B rows, T tokens, W wanted columns, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from memtoken_cli.engine import seeds
from memtoken_cli.engine.adam import Decay
from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.engine.task import At, Loss, Phase
from memtoken_cli.io import atomic
from memtoken_cli.io.errors import UsageError
from memtoken_cli.io.progress import silence_third_party

PAD, UNKNOWN, START, END = "<pad>", "<unk>", "<s>", "</s>"
# what writes into the residual stream; transformers scales GPT-2's own
RESIDUAL = ("o_proj.weight", "down_proj.weight")


class Size(Protocol):
    """What a recipe's `model: {new: ...}` says; see `recipe.sections.NewModel`."""

    @property
    def new(self) -> str: ...
    @property
    def layers(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def kv_heads(self) -> int | None: ...
    @property
    def head_dim(self) -> int | None: ...
    @property
    def ffn(self) -> int | None: ...
    @property
    def vocab(self) -> int | None: ...
    @property
    def context(self) -> int: ...
    @property
    def init_std(self) -> float | None: ...
    @property
    def scale_residual(self) -> bool: ...
    @property
    def tie(self) -> bool: ...


class Schedule(Protocol):
    """What a recipe's `model.pretrain` says; see `recipe.sections.TrainSection`."""

    @property
    def steps(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def warmup(self) -> float: ...
    @property
    def decay(self) -> Decay: ...
    @property
    def decay_to(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def clip(self) -> float: ...
    @property
    def betas(self) -> tuple[float, float]: ...


def new_backbone(
    size: Size,
    vocabulary: Sequence[str],
    seed: int,
    name: str = "new",
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> CausalLM:
    """A model with random weights. `vocabulary`: its words in id order, at which the tokenizer splits
    unless another is given.

    Raises UsageError where `size.vocab` has no room for the vocabulary.
    """
    rows = size.vocab or len(vocabulary)
    if rows < len(vocabulary):
        raise UsageError(f"vocab: {rows} has no room for the task's {len(vocabulary)} words")
    pad, start, end = (list(vocabulary).index(word) for word in (PAD, START, END))
    ids = {"vocab_size": rows, "pad_token_id": pad, "bos_token_id": start, "eos_token_id": end}
    model = _model(size, ids, seed)
    return CausalLM(model, tokenizer or word_tokenizer(vocabulary), name)


def word_tokenizer(vocabulary: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer that splits at whitespace and puts `<s>` in front: attention needs a token without meaning.

    A word that is not in the vocabulary is `<unk>`.
    """
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    start = (START, list(vocabulary).index(START))
    core.post_processor = processors.TemplateProcessing(single=f"{START} $A", special_tokens=[start])
    return with_special_words(core)


def with_special_words(core: Tokenizer) -> PreTrainedTokenizerFast:
    """A tokenizer of a new model as transformers takes it; `core` knows PAD, START, END and UNKNOWN."""
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=START,
        unk_token=UNKNOWN,
        eos_token=END,
        clean_up_tokenization_spaces=False,
    )


def _model(size: Size, ids: dict[str, Any], seed: int) -> PreTrainedModel:
    # the families' 0.02 is made for widths of a thousand and more: here attention would start out flat
    spread = {"initializer_range": size.width**-0.5}
    common: dict[str, Any] = (
        ids
        | spread
        | {
            "hidden_size": size.width,
            "intermediate_size": size.ffn or 4 * size.width,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.kv_heads or size.heads,
            "max_position_embeddings": size.context,
            "tie_word_embeddings": size.tie,
        }
    )
    with torch.random.fork_rng():
        torch.manual_seed(seeds.derive(seed, "new model"))
        model = _family(size, ids, spread, common)
        if size.init_std is not None:
            torch.nn.init.normal_(model.get_input_embeddings().weight, std=size.init_std)
    if size.scale_residual:
        with torch.no_grad():
            for key, weight in model.named_parameters():
                if key.endswith(RESIDUAL):
                    weight.div_(math.sqrt(2 * size.layers))
    return model


def _family(
    size: Size, ids: dict[str, Any], spread: dict[str, Any], common: dict[str, Any]
) -> PreTrainedModel:
    head = size.head_dim or size.width // size.heads
    if size.new == "llama":
        return LlamaForCausalLM(LlamaConfig(**common, head_dim=head))
    if size.new == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**common, head_dim=head))
    if size.new == "gemma3":
        whole = {"layer_types": ["full_attention"] * size.layers, "query_pre_attn_scalar": head}
        return Gemma3ForCausalLM(Gemma3TextConfig(**common, head_dim=head, **whole))
    if size.new == "gpt2":
        config = GPT2Config(
            **ids,
            **spread,
            n_embd=size.width,
            n_inner=common["intermediate_size"],
            n_layer=size.layers,
            n_head=size.heads,
            n_positions=size.context,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            tie_word_embeddings=size.tie,
        )
        return GPT2LMHeadModel(config)
    raise UsageError(f"new: {size.new} is not a family", hint="new: llama, gpt2, qwen3 or gemma3")


@dataclass(frozen=True)
class Lesson:
    """A batch of whole sequences: ids_BT, and the targets target_BW of the tokens at the columns column_W."""

    ids_BT: Tensor
    column_W: Tensor
    target_BW: Tensor

    def __len__(self) -> int:
        return len(self.ids_BT)

    def __getitem__(self, rows: slice) -> Lesson:
        return Lesson(self.ids_BT[rows], self.column_W, self.target_BW[rows])


Lessons = Callable[[At, torch.Generator], Lesson]


@dataclass
class Pretraining:
    """The `Task` of a backbone's first training: every parameter, cross-entropy at the wanted columns."""

    backbone: CausalLM
    lessons: Lessons
    phase: Phase

    @classmethod
    def of(cls, backbone: CausalLM, lessons: Lessons, said: Schedule) -> Pretraining:
        """All of the backbone's parameters, as a recipe's `pretrain` says."""
        parameters = dict(backbone.model.named_parameters())
        warmup = round(said.warmup * said.steps)
        return cls(
            backbone,
            lessons,
            Phase(
                "pretrain",
                said.steps,
                said.lr,
                parameters,
                warmup,
                said.decay,
                said.weight_decay,
                said.clip or None,
                said.betas,
                said.decay_to,
            ),
        )

    def phases(self) -> Sequence[Phase]:
        return [self.phase]

    def batch(self, at: At, generator: torch.Generator) -> Any:
        return self.lessons(at, generator)

    def loss(self, part: Lesson) -> Loss:
        device = self.backbone.device
        out = self.backbone.model(
            input_ids=part.ids_BT.to(device), use_cache=False, logits_to_keep=part.column_W.to(device)
        )
        logits, target = out.logits.float().flatten(0, 1), part.target_BW.flatten().to(device)
        right = float((logits.argmax(-1) == target).sum())
        count = float(target.numel())
        return Loss(cross_entropy(logits, target, reduction="sum"), count, {"accuracy": (right, count)})

    def state(self) -> Mapping[str, Any]:
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        pass


def save(backbone: CausalLM, folder: Path) -> Path:
    """The model and its tokenizer as a plain Hugging Face directory; it appears whole, by one rename."""
    silence_third_party()
    with atomic.directory(folder) as unfinished:
        backbone.model.save_pretrained(unfinished)
        backbone.tokenizer.save_pretrained(unfinished)
    return folder
