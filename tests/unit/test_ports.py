"""Entering a batch of memories: the keys, values and logits are the backbone's own, for every family."""

from collections.abc import Callable

import pytest
import torch
from tiny import tiny_gemma3, tiny_gpt2, tiny_llama, tiny_qwen2
from torch import Tensor

from memtoken_cli.engine import ports
from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.engine.packed import Packed
from memtoken_cli.io.errors import DataError

FAMILIES = [tiny_llama, tiny_qwen2, tiny_gemma3, tiny_gpt2]
B, T, CUT = 3, 14, 8

Make = Callable[[], CausalLM]


def ids() -> Tensor:
    return torch.randint(4, 64, (B, T), generator=torch.Generator().manual_seed(3))


def causal(size: int) -> Tensor:
    return torch.ones(size, size, dtype=torch.bool).tril().expand(B, size, size)


def place(start: int, stop: int) -> Tensor:
    return torch.arange(start, stop).expand(B, stop - start)


def inputs_of_layers(backbone: CausalLM, ids_BT: Tensor) -> list[Tensor]:
    found: list[Tensor] = []

    def see(_layer: object, args: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        found.append(args[0] if args else named["hidden_states"])

    hooks = [m.register_forward_pre_hook(see, with_kwargs=True) for m in ports.decoder_layers(backbone.model)]
    backbone.model(input_ids=ids_BT)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("make", FAMILIES)
@torch.no_grad()
def test_rows_without_memory_are_the_models_own_forward(make: Make) -> None:
    backbone = make()
    got = ports.read_rows(backbone, None, ids(), causal(T), place(0, T), torch.arange(T))
    torch.testing.assert_close(got, backbone.model(input_ids=ids()).logits)


@pytest.mark.parametrize("make", FAMILIES)
@torch.no_grad()
def test_a_prefix_enters_as_if_it_stood_in_front(make: Make) -> None:
    backbone = make()
    front = backbone.model.get_input_embeddings()(ids()[:, :CUT])
    written = ports.enter_prefix(backbone, front, place(0, CUT), torch.full((B,), CUT))
    rest = T - CUT
    got = ports.read_rows(backbone, written, ids()[:, CUT:], causal(rest), place(CUT, T), torch.arange(rest))
    torch.testing.assert_close(got, backbone.model(input_ids=ids()).logits[:, CUT:], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("make", FAMILIES)
@torch.no_grad()
def test_the_layers_own_inputs_make_their_own_keys_and_values(make: Make) -> None:
    backbone = make()
    hidden = inputs_of_layers(backbone, ids()[:, :CUT])
    written = ports.enter_hidden(backbone, hidden, place(0, CUT), torch.full((B,), CUT))
    for b in range(B):
        whole = backbone.prefill(ids()[b, :CUT].tolist())
        for mine, kv in zip(written.row(backbone, b).layers, whole.layers, strict=True):
            kept = kv.sizes[0]  # a sliding layer of the prefill has dropped what it cannot see again
            for x, y in ((mine.k_XD, kv.k_XD), (mine.v_XD, kv.v_XD)):
                last = torch.cat([head[-kept:] for head in x.split(mine.sizes)])
                torch.testing.assert_close(last, y, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("make", FAMILIES)
@torch.no_grad()
def test_serving_a_row_equals_reading_it_in_the_batch(make: Make) -> None:
    backbone = make()
    hidden = [torch.randn(B, CUT, backbone.dims.width) for _ in range(backbone.dims.layers)]
    written = ports.enter_hidden(backbone, hidden, place(0, CUT), torch.full((B,), CUT))
    rest = T - CUT
    batch = ports.read_rows(
        backbone, written, ids()[:, CUT:], causal(rest), place(CUT, T), torch.arange(rest)
    )
    for b in range(B):
        memory = written.row(backbone, b)
        packed = Packed.rows([ids()[b, CUT:].tolist()], memory.next_position)
        alone = backbone.run(packed, memory, torch.arange(rest))
        torch.testing.assert_close(alone, batch[b], atol=3e-5, rtol=3e-5)


@torch.no_grad()
def test_rows_of_a_batch_do_not_see_each_other() -> None:
    backbone = tiny_llama()
    hidden = [torch.randn(B, CUT, 32) for _ in range(2)]

    def read(hidden: list[Tensor], ids_BT: Tensor) -> Tensor:
        written = ports.enter_hidden(backbone, hidden, place(0, CUT), torch.full((B,), CUT))
        return ports.read_rows(backbone, written, ids_BT, causal(T), place(CUT, CUT + T), torch.arange(T))

    before = read(hidden, ids())
    changed = [torch.cat([h[:2], torch.randn(1, CUT, 32)]) for h in hidden]
    other = torch.cat([ids()[:2], ids()[2:].flip(1)])
    after = read(changed, other)
    torch.testing.assert_close(after[:2], before[:2])
    assert not torch.allclose(after[2], before[2], atol=1e-2)


def test_gradients_reach_what_was_written_and_nothing_else() -> None:
    backbone = tiny_gemma3()
    hidden = [torch.randn(B, CUT, backbone.dims.width, requires_grad=True) for _ in range(2)]
    written = ports.enter_hidden(backbone, hidden, place(0, CUT), torch.full((B,), CUT))
    logits = ports.read_rows(backbone, written, ids(), causal(T), place(CUT, CUT + T), torch.arange(T))
    logits.logsumexp(-1).sum().backward()
    assert all(h.grad is not None and float(h.grad.abs().sum()) > 0 for h in hidden)
    assert all(p.grad is None for p in backbone.model.parameters())


def test_one_tensor_a_layer() -> None:
    with pytest.raises(DataError, match="3 layers of memory for the 2"):
        hidden = [torch.randn(B, CUT, 32)] * 3
        ports.enter_hidden(tiny_llama(), hidden, place(0, CUT), torch.full((B,), CUT))
