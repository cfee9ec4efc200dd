"""The compressor itself: shapes, what it starts from, its baselines, and what it refuses."""

from collections.abc import Callable

import pytest
import torch
from tiny import tiny_gemma3, tiny_gpt2, tiny_llama, tiny_qwen2
from torch import Tensor
from torch.nn.functional import softmax

from memtoken_cli.engine import ports
from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.engine.ports import Written
from memtoken_cli.io.errors import DataError, UsageError
from memtoken_cli.methods.memcom import model
from memtoken_cli.methods.memcom.config import Config
from memtoken_cli.methods.memcom.cross import CrossAttention, rotate
from memtoken_cli.methods.memcom.model import MemCom, compressor

FAMILIES = [tiny_llama, tiny_qwen2, tiny_gemma3, tiny_gpt2]
SHAPES = [{}, {"layers": "last"}, {"writer": "gist"}, {"enters": "next"}, {"weights": "frozen"}]
SLOTS = 5


def config(**changed: object) -> Config:
    return Config.model_validate({"slots": 8} | changed)


def prompts() -> tuple[Tensor, Tensor]:
    ids = torch.randint(4, 64, (3, 20), generator=torch.Generator().manual_seed(1))
    return ids, torch.tensor([20, 13, 20])


def keys(written: Written) -> Tensor:
    return torch.stack([torch.stack(kv) for kv in written.layers])


def stir(writer: object) -> None:
    """Cross-attention starts silent; give it a voice."""
    with torch.no_grad():
        for parameter in writer.new_parts().values():  # type: ignore[attr-defined]
            parameter += 0.1 * torch.randn_like(parameter)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("make", FAMILIES)
@torch.no_grad()
def test_any_family_and_shape_writes_its_slots(make: Callable[[], CausalLM], shape: dict[str, str]) -> None:
    backbone = make()
    written = compressor(backbone, config(**shape), 0).write(*prompts(), SLOTS)
    memory = written.row(backbone, 1)
    assert {kv.sizes for kv in memory.layers} == {(SLOTS,) * backbone.dims.kv_heads}
    assert len(memory.layers) == backbone.dims.layers
    assert memory.next_position == (13 + SLOTS if shape.get("writer") == "gist" else SLOTS)
    assert torch.isfinite(keys(written)).all()


@torch.no_grad()
def test_it_starts_from_memory_ignored() -> None:
    backbone = tiny_llama()
    writer = compressor(backbone, config(), 0)
    ids, length_B = prompts()
    written = writer.write(ids, length_B, SLOTS)
    assert torch.equal(keys(written), keys(writer.write(ids.flip(1), length_B, SLOTS)))
    # and then O_l is what the target's own layers make of the learned tokens alone
    assert isinstance(writer, MemCom)
    hidden = writer.hidden(ids, length_B, SLOTS)
    alone = backbone.model.get_decoder()(
        inputs_embeds=writer.tokens_ME[None, :SLOTS], output_hidden_states=True
    ).hidden_states
    torch.testing.assert_close(hidden[0][:1], alone[1])


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_padding_is_invisible_and_rows_are_independent(shape: dict[str, str]) -> None:
    writer = compressor(tiny_llama(), config(**shape), 0)
    stir(writer)
    ids, length_B = prompts()
    batch = keys(writer.write(ids, length_B, SLOTS))
    dirty = ids.clone()
    dirty[1, 13:] = 7
    torch.testing.assert_close(keys(writer.write(dirty, length_B, SLOTS)), batch)
    alone = keys(writer.write(ids[1:2, :13], length_B[1:2], SLOTS))
    torch.testing.assert_close(alone[:, :, 0], batch[:, :, 1], atol=2e-5, rtol=2e-5)
    changed = ids.clone()
    changed[0, 3] = 63 - changed[0, 3]
    other = keys(writer.write(changed, length_B, SLOTS))
    assert torch.equal(other[:, :, 1:], batch[:, :, 1:]) and not torch.allclose(
        other[:, :, 0], batch[:, :, 0]
    )


@torch.no_grad()
def test_layer_wise_memory_is_the_targets_projection_of_each_layers_output() -> None:
    """The formula in plain steps: O_l stands where the target's layer l would read its input."""
    backbone = tiny_llama()
    writer = compressor(backbone, config(), 0)
    assert isinstance(writer, MemCom)
    stir(writer)
    ids, length_B = prompts()
    written, hidden = writer.write(ids, length_B, SLOTS), writer.hidden(ids, length_B, SLOTS)
    for layer, (_, v_BNMD) in enumerate(written.layers):
        block = backbone.layers[layer]
        v = block.self_attn.v_proj(block.input_layernorm(hidden[layer]))
        torch.testing.assert_close(v_BNMD.transpose(1, 2).flatten(2), v)
    late = compressor(backbone, config(enters="next"), 0)
    late.load_state_dict(writer.state_dict())  # type: ignore[attr-defined]
    block = backbone.layers[1]
    v = block.self_attn.v_proj(block.input_layernorm(hidden[0]))
    shifted = late.write(ids, length_B, SLOTS).layers[1][1]
    torch.testing.assert_close(shifted.transpose(1, 2).flatten(2), v)


@torch.no_grad()
def test_cross_attention_against_plain_steps() -> None:
    torch.manual_seed(0)
    cross = CrossAttention(12, 3)
    torch.nn.init.normal_(cross.out.weight)
    u, s = torch.randn(2, 4, 12), torch.randn(2, 7, 12)
    seen = torch.arange(7) < torch.tensor([[7], [5]])
    q = cross.query(cross.memory_norm(u))
    k, v = cross.key(cross.source_norm(s)), cross.value(cross.source_norm(s))
    out = torch.zeros(2, 4, 12)
    for b in range(2):
        for h in range(3):
            cut = slice(4 * h, 4 * h + 4)
            n = int(seen[b].sum())
            weight = softmax(q[b, :, cut] @ k[b, :n, cut].T / 2, -1)
            out[b, :, cut] = weight @ v[b, :n, cut]
    torch.testing.assert_close(cross(u, s, seen), cross.out(out))


@torch.no_grad()
def test_each_token_starts_by_looking_at_its_own_share() -> None:
    torch.manual_seed(0)
    T, slots = 40, 5
    cross = CrossAttention(64, 2, copies=1.0)
    s = torch.randn(1, T, 64)
    place_M, place_T = torch.arange(slots) + 0.5, (torch.arange(T) + 0.5) * slots / T
    out = cross(torch.randn(1, slots, 64), s, None, place_M[None], place_T[None])[0]
    source = cross.source_norm(s)[0]
    shares = source.view(slots, T // slots, 64).mean(1)
    alike = torch.nn.functional.cosine_similarity(out[:, None], shares[None], dim=-1)
    assert torch.equal(alike.argmax(1), torch.arange(slots)) and float(alike.diagonal().min()) > 0.7
    everywhere = cross(torch.randn(1, slots, 64), s)[0]
    assert float(torch.nn.functional.cosine_similarity(everywhere, source.mean(0)[None]).min()) > 0.8


@torch.no_grad()
def test_the_first_memory_token_starts_as_the_models_own_first_token() -> None:
    with_bos, without = tiny_llama(), tiny_qwen2()
    writers = [compressor(backbone, config(), 0) for backbone in (with_bos, without)]
    first, other = (w.tokens_ME[0] for w in writers)  # type: ignore[attr-defined]
    assert torch.equal(first, with_bos.model.get_input_embeddings().weight[1])
    assert not any(torch.equal(other, row) for row in without.model.get_input_embeddings().weight)


@torch.no_grad()
def test_copies_are_at_the_scale_of_a_usual_token() -> None:
    backbone = tiny_llama()
    backbone.model.get_input_embeddings().weight[0] *= 1000  # the sample's first token
    states = model.outputs_of(backbone.model, lambda: backbone.model(input_ids=torch.arange(64)[None]))
    usual = [float(x[0, 1:].square().mean().sqrt()) for x in states]
    assert model.scales(backbone.model.get_decoder()) == pytest.approx(usual, rel=0.2)


@torch.no_grad()
def test_it_may_start_from_copies_of_the_source() -> None:
    writer = compressor(tiny_llama(), config(start="copy"), 0)
    ids, length_B = prompts()
    assert not torch.equal(
        keys(writer.write(ids, length_B, SLOTS)), keys(writer.write(ids.flip(1), length_B, SLOTS))
    )


def test_rotation_is_relative_and_keeps_lengths() -> None:
    x, y = torch.randn(1, 1, 1, 9), torch.randn(1, 1, 1, 9)
    at = [rotate(x, torch.tensor([[p]])) @ rotate(y, torch.tensor([[p + 2.5]])).mT for p in (0.0, 11.25)]
    torch.testing.assert_close(*at)
    torch.testing.assert_close(rotate(x, torch.tensor([[3.0]])).norm(), x.norm())
    assert not torch.allclose(rotate(x, torch.tensor([[3.0]])), x)


@torch.no_grad()
def test_gist_is_the_models_own_reading_of_source_and_tokens() -> None:
    backbone = tiny_llama()
    writer = compressor(backbone, config(writer="gist"), 0)
    ids = prompts()[0][:1]
    tokens = writer.tokens_ME[None, :SLOTS]  # type: ignore[attr-defined]
    x = torch.cat([backbone.model.get_input_embeddings()(ids), tokens], 1)
    whole = backbone.prefill_embeds(x[0])
    written = writer.write(ids, torch.tensor([20]), SLOTS)
    for (k, v), kv in zip(written.layers, whole.layers, strict=True):
        for mine, theirs in ((k, kv.k_XD), (v, kv.v_XD)):
            last = theirs.view(2, 20 + SLOTS, -1)[:, 20:]
            torch.testing.assert_close(mine[0], last, atol=2e-5, rtol=2e-5)
    assert written.row(backbone).next_position == 20 + SLOTS


def test_positions() -> None:
    writer = compressor(tiny_llama(), config(positions="spread"), 0)
    assert isinstance(writer, MemCom)
    place_BM, next_B = writer.positions(torch.tensor([20, 13]), 5)
    assert place_BM.tolist() == [[0, 5, 10, 14, 19], [0, 3, 6, 9, 12]] and next_B.tolist() == [20, 13]


def test_what_each_phase_may_move() -> None:
    def parts(**changed: object) -> tuple[set[str], set[str]]:
        writer = compressor(tiny_llama(), config(**changed), 0)
        new, copied = set(writer.new_parts()), set(writer.copied_parts())
        assert not new & copied
        return new, copied

    new, copied = parts()
    assert (
        "tokens_ME" in new and "cross.1.out.weight" in new and "source.layers.0.mlp.up_proj.weight" in copied
    )
    assert not any("embed" in name for name in copied)
    assert parts(weights="frozen")[1] == set()
    assert "project.out.weight" in parts(layers="last")[0]
    assert parts(writer="gist")[0] == {"tokens_ME"}


def test_more_tokens_than_it_has() -> None:
    with pytest.raises(DataError, match="9 memory tokens, but the compressor was trained with at most 8"):
        compressor(tiny_llama(), config(), 0).write(*prompts(), 9)


def test_low_rank_parts_need_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(UsageError, match="peft") as caught:
        compressor(tiny_llama(), config(weights="lora"), 0)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "bad", [{"writer": "gist", "layers": "last"}, {"writer": "gist", "positions": "spread"}]
)
def test_shapes_that_contradict_themselves(bad: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="writer: gist"):
        config(**bad)


def test_layers_of_a_stack_are_seen_and_changed_in_order() -> None:
    stack = tiny_gpt2().model.get_decoder()
    ids = torch.tensor([[5, 6, 7]])
    plain = model.outputs_of(stack, lambda: stack(input_ids=ids))
    again = model.outputs_of(stack, lambda: stack(input_ids=ids), lambda layer, x: x + layer)
    torch.testing.assert_close(again[0], plain[0])
    torch.testing.assert_close(again[1], plain[1] + 1)
    assert len(ports.decoder_layers(stack)) == 2
