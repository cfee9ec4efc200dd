"""A small prompt of labelled shots and the tiny model families that laws are checked on.

Models are frozen and made once a session: nothing in a test may change their weights.
"""

import hashlib
from functools import cache

import torch
from tiny import _sizes, _wrap, tiny_gemma3, tiny_gpt2, tiny_llama, tiny_qwen2
from transformers import Gemma2Config, Gemma2ForCausalLM, GptOssConfig, GptOssForCausalLM

from memtoken_cli.data.render import Rendered, Template, default_template, render
from memtoken_cli.data.shots import Shots, shots_of
from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.engine.memory import Layers
from memtoken_cli.engine.method import Budget
from memtoken_cli.methods.compact.config import Config
from memtoken_cli.methods.compact.method import Compact
from memtoken_cli.methods.compact.reference import Reference, reference

QUERIES = ("where is it", "a much longer question, isn't it?", "x")
LABELS = ("card", "rate", "pin")
TEXTS = (
    "where is my card", "card lost", "new card", "card broken", "rate now", "euro rate?", "rates today",
    "what rate", "pin code", "forgot pin", "change pin", "pin blocked",
)  # fmt: skip


def tiny_gemma2(seed: int = 0) -> CausalLM:
    """Soft-capped attention logits, small enough a cap to bend them; one layer slides over 8 tokens."""
    sizes = _sizes(2, 4, 2, 4096) | {"query_pre_attn_scalar": 8, "sliding_window": 8}
    sizes |= {"attn_logit_softcapping": 2.0, "layer_types": ["sliding_attention", "full_attention"]}
    return _wrap(Gemma2ForCausalLM, Gemma2Config(**sizes), "tiny-gemma2", seed, True)


def tiny_gptoss(seed: int = 0) -> CausalLM:
    """A learned attention sink a head; one layer slides over 8 tokens. Both experts always work: a choice
    between them would not be continuous."""
    sizes = _sizes(2, 4, 2, 4096) | {"sliding_window": 8, "num_local_experts": 2, "num_experts_per_tok": 2}
    sizes |= {"layer_types": ["sliding_attention", "full_attention"]}
    return _wrap(GptOssForCausalLM, GptOssConfig(**sizes), "tiny-gptoss", seed, True)


FAMILIES = {
    "gqa": tiny_llama,
    "mha": lambda: tiny_llama(kv_heads=4),
    "mqa": lambda: tiny_llama(kv_heads=1),
    "qkv-bias": tiny_qwen2,
    "sliding": tiny_gemma3,
    "softcap": tiny_gemma2,
    "sinks": tiny_gptoss,
    "learned-positions": tiny_gpt2,
}


@cache
def family(name: str) -> CausalLM:
    return FAMILIES[name]()


def records(n: int = len(TEXTS)) -> list[dict[str, str]]:
    return [{"input": TEXTS[i], "output": LABELS[i // 4]} for i in range(n)]


def shots(n: int = len(TEXTS)) -> Shots:
    return shots_of(records(n))


def rendered(backbone: CausalLM, given: Shots | None = None) -> Rendered:
    given = given or shots()
    return render(given, default_template(given), backbone.tokenizer)


def ids(backbone: CausalLM, text: str) -> list[int]:
    return backbone.tokenizer.encode(text, add_special_tokens=False)


def queries(backbone: CausalLM) -> list[list[int]]:
    return [ids(backbone, f"Input: {q}\nOutput:") for q in QUERIES]


def referred(
    backbone: CausalLM, given: Shots | None = None, most: int = 60, tokens: int = 10**6
) -> Reference:
    given = given or shots()
    return reference(
        backbone,
        rendered(backbone, given),
        given,
        Template(),
        queries="shots",
        most=most,
        tokens=tokens,
        generator=torch.Generator().manual_seed(0),
    )


def weights_hash(backbone: CausalLM) -> str:
    """Over every byte of every weight and buffer."""
    digest = hashlib.sha256()
    for name, x in sorted(backbone.model.state_dict().items()):
        digest.update(name.encode() + x.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@cache
def compacted(name: str, budget: str = "adaptive", bias: str = "mass", ratio: float = 4) -> Layers:
    """The shots' memory of a family, in float32."""
    config = Config(budget=budget, bias=bias, dtype="float32", calibrate="off")
    made = Compact().compress(family(name), shots(), Budget(ratio=ratio), config, 0)
    assert isinstance(made.memory, Layers)
    return made.memory


def memory_of(name: str, kind: str) -> Layers:
    """kind: "whole" (every token), "even" (as many in each head, no bias), "ragged" (adaptive, with bias)."""
    if kind == "whole":
        return family(name).prefill(rendered(family(name)).ids)
    return compacted(name, "uniform", "none") if kind == "even" else compacted(name)


KINDS = ("whole", "even", "ragged")
