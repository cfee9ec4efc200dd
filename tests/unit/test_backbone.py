"""A causal LM as a backbone: what it says of itself, how rows are packed, and what it leaves as it was."""

import pytest
import torch
from tiny import tiny_gemma3, tiny_gpt2, tiny_llama, tiny_tokenizer
from tiny_prompt import FAMILIES, family, queries, rendered, weights_hash
from transformers import MambaConfig, MambaForCausalLM

from memtoken_cli.engine.attend import Read
from memtoken_cli.engine.backbone import CausalLM, hides
from memtoken_cli.engine.memory import LayerKV, Layers
from memtoken_cli.engine.packed import Packed
from memtoken_cli.engine.reading import reading
from memtoken_cli.io.errors import DataError, UsageError

CPU = torch.device("cpu")


def test_dims_are_the_models():
    dims = tiny_llama(layers=3, context=500).dims
    assert (dims.layers, dims.heads, dims.kv_heads, dims.head_dim) == (3, 4, 2, 8)
    assert (dims.width, dims.vocab, dims.context, dims.windows) == (32, 64, 500, (None,) * 3)
    assert tiny_gemma3(window=5).dims.windows == (5, None)
    assert tiny_gpt2(context=77).dims.context == 77 and tiny_gpt2().dims.kv_heads == 4


def test_a_model_without_keys_and_values_is_refused():
    config = MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4)
    with pytest.raises(DataError, match=r"mamba carry no keys and values") as caught:
        CausalLM(MambaForCausalLM(config), tiny_tokenizer(), "mamba")
    assert "smollm2-135m" in (caught.value.hint or "")


def test_fingerprints_tell_models_apart_but_not_dtypes():
    first = tiny_llama().fingerprint
    assert first == tiny_llama().fingerprint != tiny_llama(seed=1).fingerprint
    assert tiny_llama(layers=3).fingerprint != first
    half = tiny_llama()
    half.model.to(torch.bfloat16)
    assert half.fingerprint == first
    assert tiny_llama().tokenizer_digest == tiny_gpt2().tokenizer_digest
    other = tiny_llama()
    other.tokenizer.add_tokens(["memtok"])
    assert other.tokenizer_digest != tiny_llama().tokenizer_digest


@pytest.mark.parametrize("name", FAMILIES)
def test_prefill_keeps_every_token_a_window_can_still_see(name):
    backbone, text = family(name), rendered(family(name)).ids
    memory = backbone.prefill(text)
    for kv, window in zip(memory.layers, backbone.dims.windows, strict=True):
        size = len(text) if window is None else window - 1
        assert kv.sizes == (size,) * backbone.dims.kv_heads and kv.bias_X is None
        if window is not None:
            first = list(range(len(text) - size, len(text)))
            assert kv.pos_X.tolist() == first * backbone.dims.kv_heads
    assert memory.next_position == len(text)


def test_a_prompt_beyond_the_context_is_refused():
    backbone = tiny_gpt2(context=16)
    assert backbone.prefill([5] * 16).slots == 16
    with pytest.raises(DataError, match="17 tokens do not fit the 16 of tiny-gpt2"):
        backbone.prefill([5] * 17)


def test_packed_rows_begin_where_they_are_told():
    packed = Packed.rows([[7, 8, 9], [5], [6, 6]], 10)
    assert packed.ids_F.tolist() == [7, 8, 9, 5, 6, 6]
    assert packed.position_F.tolist() == [10, 11, 12, 10, 10, 11]
    assert packed.row_F.tolist() == [0, 0, 0, 1, 2, 2] and packed.last_B.tolist() == [2, 3, 5]
    packing = packed.packing(CPU)
    assert packing.cols_F.tolist() == [0, 1, 2, 0, 0, 1]
    assert packing.index_BT.tolist() == [[0, 1, 2], [3, 3, 3], [4, 5, 4]]
    assert packing.mask_BTT[1].tolist() == [[True, False, False]] * 3


@pytest.mark.parametrize("name", FAMILIES)
def test_packed_equals_one_by_one(name):
    """Every position of every row, as an uncached forward over the prompt and that row alone has it."""
    backbone = family(name)
    text, rows = rendered(backbone).ids, queries(backbone)
    memory, packed = backbone.prefill(text), Packed.rows(rows, len(text))
    together = backbone.run(packed, memory, torch.arange(len(packed.ids_F)))
    alone = [backbone.run(Packed.rows([row], len(text)), memory, torch.arange(len(row))) for row in rows]
    plain = [
        backbone.model(input_ids=torch.tensor([[*text, *row]]), use_cache=False).logits[0, -len(row) :]
        for row in rows
    ]
    torch.testing.assert_close(together, torch.cat(alone), atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(together, torch.cat(plain), atol=2e-5, rtol=1e-5)


def test_only_wanted_positions_come_back():
    backbone = family("gqa")
    rows = queries(backbone)
    memory, packed = backbone.prefill([5, 6, 7]), Packed.rows(rows, 3)
    every = backbone.run(packed, memory, torch.arange(len(packed.ids_F)))
    wanted_W = torch.tensor([0, 4, len(packed.ids_F) - 1])
    found = backbone.run(packed, memory, wanted_W)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, every[wanted_W], atol=1e-6, rtol=1e-6)


class Watch:
    packing = None
    position_BT = None

    def __init__(self, backbone):
        self.backbone, self.grams = backbone, []

    def __call__(self, site):
        self.grams.append(self.backbone.output_gram(site))
        return site.q_BHTD.transpose(1, 2)


@pytest.mark.parametrize("name", ["gqa", "learned-positions", "sliding"])
def test_the_output_projection_is_found(name):
    backbone = family(name)
    watch = Watch(backbone)
    hooks = sum(len(m._forward_pre_hooks) for m in backbone.model.modules())
    with torch.no_grad(), reading(backbone.model, watch):
        backbone.model(input_ids=torch.tensor([[5, 6]]), use_cache=False)
    grams = [gram() for gram in watch.grams]
    assert sum(len(m._forward_pre_hooks) for m in backbone.model.modules()) == hooks
    for number, layer in enumerate(backbone.layers):
        gpt2 = name == "learned-positions"
        w_ED = layer.attn.c_proj.weight.T if gpt2 else layer.self_attn.o_proj.weight
        w_HED = w_ED.view(-1, backbone.dims.heads, backbone.dims.head_dim).transpose(0, 1)
        torch.testing.assert_close(grams[number], w_HED.transpose(1, 2) @ w_HED, atol=1e-4, rtol=1e-4)


def test_hiding_follows_what_was_chosen_and_what_a_window_kept():
    whole = Layers((LayerKV(torch.zeros(12, 4), torch.zeros(12, 4), (6, 6)),
                    LayerKV(torch.zeros(4, 4), torch.zeros(4, 4), (2, 2))), 6)  # fmt: skip
    hidden_FT = torch.tensor([[0, 1, 0, 0, 1, 0], [1, 0, 0, 1, 0, 1]], dtype=torch.bool)
    plain = hides(hidden_FT, whole)
    assert torch.equal(plain(0, 1, 0, 2), hidden_FT)
    assert torch.equal(plain(1, 0, 1, 2), hidden_FT[1:, 4:])
    pick = torch.tensor
    chosen = hides(hidden_FT, whole, [[pick([1, 4]), pick([0])], [pick([1]), pick([0, 1])]])
    assert chosen(0, 0, 0, 2).tolist() == [[True, True], [False, False]]
    assert chosen(1, 0, 0, 2).tolist() == [[False], [True]]


def test_the_model_is_left_as_it_was():
    backbone = tiny_llama()
    before, weights = backbone.model.config._attn_implementation, weights_hash(backbone)
    memory = backbone.prefill([5, 6, 7])
    ids = torch.tensor([[8, 9]])
    plain = backbone.model(input_ids=ids).logits
    with backbone.attached(memory) as model:
        assert not torch.allclose(model(input_ids=ids).logits, plain)
    with pytest.raises(RuntimeError, match="inside"), backbone.attached(memory):
        raise RuntimeError("inside")
    assert backbone.model.config._attn_implementation == before
    assert torch.equal(backbone.model(input_ids=ids).logits, plain)
    assert weights_hash(backbone) == weights
    assert not backbone.model._forward_pre_hooks
    assert not any(p.requires_grad for p in backbone.model.parameters())


def test_attached_goes_on_at_the_memorys_position():
    backbone = family("gqa")
    memory = backbone.prefill([5, 6, 7, 8])
    ids = torch.tensor([[9, 10, 11]])
    plain = backbone.model(input_ids=torch.tensor([[5, 6, 7, 8, 9, 10, 11]])).logits[:, 4:]
    with torch.no_grad(), backbone.attached(memory) as model:
        for given in ({}, {"attention_mask": torch.ones(1, 3)}, {"position_ids": torch.arange(3)[None]}):
            torch.testing.assert_close(model(input_ids=ids, **given).logits, plain, atol=2e-5, rtol=1e-5)
        embeds = model.get_input_embeddings()(ids)
        torch.testing.assert_close(model(inputs_embeds=embeds).logits, plain, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(model(ids).logits, plain, atol=2e-5, rtol=1e-5)


def test_an_uneven_or_biased_memory_is_no_ordinary_cache():
    backbone = family("gqa")
    memory = backbone.prefill([5, 6, 7, 8])
    kv = memory.layers[0]
    uneven = Layers((kv.take([torch.tensor([0, 1]), torch.tensor([0])]), memory.layers[1]), 4)
    biased = Layers((LayerKV(kv.k_XD, kv.v_XD, kv.sizes, torch.zeros(8)), memory.layers[1]), 4)
    for unfit in (uneven, biased):
        with pytest.raises(UsageError) as caught:
            backbone.to_cache(unfit)
        assert "budget=uniform bias=none" in (caught.value.hint or "")
    assert backbone.to_cache(memory).get_seq_length() == 4


def test_readers_nest():
    backbone = family("gqa")
    first, second = backbone.prefill([5, 6, 7]), backbone.prefill([9, 10])
    ids = torch.tensor([[8]])
    with torch.no_grad(), backbone.attached(first) as model:
        outer = model(input_ids=ids).logits
        with reading(model, Read(second.layers)):
            assert not torch.allclose(model(input_ids=ids).logits, outer)
        assert torch.equal(model(input_ids=ids).logits, outer)
