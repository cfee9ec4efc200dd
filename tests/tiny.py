"""Tiny random models of several families and a character tokenizer, for tests: made in milliseconds, no
files needed.

`from tiny import tiny_llama` works in any test (pytest puts this folder on the path).
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from memtoken_cli.engine.backbone import CausalLM

VOCAB = 64
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789 \n:.,?!'-_/ABCDEGILMOQST"
CHAT = (
    "{% for message in messages %}{{ message['role'][0] + ': ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'a: ' }}{% endif %}"
)


def tiny_tokenizer(bos: bool = True) -> PreTrainedTokenizerFast:
    """One token a character (60 of them), `<s>` in front where `bos`; anything else is `<unk>`."""
    vocab = {token: i for i, token in enumerate((*SPECIAL, *LETTERS))}
    assert len(vocab) == VOCAB
    core = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", vocab["<s>"])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=CHAT,
        clean_up_tokenization_spaces=False,
    )


def _sizes(depth: int, heads: int, kv_heads: int, context: int) -> dict[str, object]:
    return {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 8,
        "max_position_embeddings": context,
        "initializer_range": 0.3,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def _wrap(make: type[PreTrainedModel], config: object, name: str, seed: int, bos: bool) -> CausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make(config)  # type: ignore[call-arg]
    return CausalLM(model.eval(), tiny_tokenizer(bos), name)


def tiny_llama(
    seed: int = 0, layers: int = 2, heads: int = 4, kv_heads: int = 2, context: int = 4096, bos: bool = True
) -> CausalLM:
    """Grouped queries by default; kv_heads=heads is MHA, kv_heads=1 is MQA."""
    return _wrap(
        LlamaForCausalLM, LlamaConfig(**_sizes(layers, heads, kv_heads, context)), "tiny-llama", seed, bos
    )


def tiny_qwen2(seed: int = 0, layers: int = 2, bos: bool = False) -> CausalLM:
    """Biased query, key and value projections; no BOS by default, as in the family."""
    return _wrap(Qwen2ForCausalLM, Qwen2Config(**_sizes(layers, 4, 2, 4096)), "tiny-qwen2", seed, bos)


def tiny_gemma3(seed: int = 0, window: int = 8, bos: bool = True) -> CausalLM:
    """One layer with a sliding window, then one that sees everything."""
    sizes = _sizes(2, 4, 2, 4096) | {"query_pre_attn_scalar": 8, "sliding_window": window}
    config = Gemma3TextConfig(**sizes, layer_types=["sliding_attention", "full_attention"])
    return _wrap(Gemma3ForCausalLM, config, "tiny-gemma3", seed, bos)


def tiny_gpt2(seed: int = 0, context: int = 1024, bos: bool = False) -> CausalLM:
    """Learned positions and full multi-head attention."""
    config = GPT2Config(
        vocab_size=VOCAB,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=context,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return _wrap(GPT2LMHeadModel, config, "tiny-gpt2", seed, bos)


def save(backbone: CausalLM, folder: Path) -> Path:
    """The model and its tokenizer as a local directory that `--model` takes."""
    backbone.model.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)
    return folder
