"""The paper's networks: tallies, what reaches what, the bank's growth, and who feels whom."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from memtoken_cli.methods.memprompttss.attention import Attention
from memtoken_cli.methods.memprompttss.config import RELEASED, Config
from memtoken_cli.methods.memprompttss.learn import network_of
from memtoken_cli.methods.memprompttss.memprompt import MemPrompt, crops
from memtoken_cli.methods.memprompttss.patches import PatchEncoder, overlap_average, places, positions, revin
from memtoken_cli.methods.memprompttss.placement import BOUNDARY, CORRECT, LABEL, WRONG, Said
from memtoken_cli.methods.memprompttss.prompttss import PromptTSS

SMALL = {
    "width": 16,
    "blocks": 2,
    "encoder_layers": 1,
    "rows": 32,
    "stride": 16,
    "windows": 3,
    "dropout": 0.0,
}
TALLIES = [(9, 4, 4_182_921), (12, 6, 4_188_172), (43, 9, 4_206_251), (6, 23, 4_220_678)]
DEAD = 264_832


def small(**more: object) -> Config:
    return Config.model_validate(SMALL | more)


def made(config: Config, seed: int = 0) -> MemPrompt:
    network = network_of(config, 3, 4, 2, seed)
    assert isinstance(network, MemPrompt)
    return network.eval()


def said(row: list[list[int]], kind: int = LABEL, value: int = 1, aspect: int = CORRECT) -> Said:
    row_BP = torch.tensor(row)
    return Said(row_BP, *(torch.full_like(row_BP, x) for x in (kind, aspect, value)))


def series(B: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(B, 64, 3, generator=torch.Generator().manual_seed(seed))


def count(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def shapes(K: int, C: int, D: int = 128) -> int:
    """The released network, summed by hand from the paper's shapes."""
    attention = 3 * D * D + 3 * D + D * D + D
    mlp, norm = D * 4 * D + 4 * D + 4 * D * D + D, 2 * D
    encoder = 16 * C * D + 3 * (attention + mlp + 2 * norm) + norm
    prompt = 2 * K * D + D + 3 * 2 * D
    writer = 2 * (attention + mlp + 3 * norm)
    reader = 6 * (4 * attention + 2 * mlp + 8 * norm)
    return encoder + prompt + writer + reader + norm + D * K + K


@pytest.mark.parametrize(("K", "C", "tally"), TALLIES)
def test_memprompt_has_the_published_number_of_parameters(K: int, C: int, tally: int) -> None:
    assert count(MemPrompt(Config(dead_tail=True), C, K)) == tally == shapes(K, C)
    assert count(MemPrompt(Config(), C, K)) == tally - DEAD


def test_prompttss_has_the_published_number_of_parameters() -> None:
    D, K, C = 128, 9, 4
    attention, norm = 4 * D * D + 4 * D, 2 * D
    encoder = 16 * C * D + 3 * (attention + 8 * D * D + 5 * D + 2 * norm) + norm
    blocks = 6 * (3 * attention + 4 * D * D + 3 * D + 4 * norm)
    prompt = 2 * K * D + D + 2 * D + 2048 * D
    by_hand = encoder + prompt + blocks + attention + norm + D * K + K
    assert count(PromptTSS(Config(), C, K)) == 2_526_089 == by_hand


@pytest.mark.parametrize(("rows", "patches"), [(256, 31), (512, 63)])
def test_patches_of_the_published_windows(rows: int, patches: int) -> None:
    encoder = PatchEncoder(small(rows=rows), 3).eval()
    assert encoder(torch.randn(2, rows, 3)).shape == (2, patches, 16)


def test_revin_uses_the_biased_variance_of_each_window_and_channel() -> None:
    x = series() * 5 + 3
    x[0, :, 1] = 2.0
    z = revin(x)
    mean, variance = x.double().mean(1, keepdim=True), x.double().var(1, correction=0, keepdim=True)
    torch.testing.assert_close(
        z.double(), (x.double() - mean) / (variance + 1e-5).sqrt(), rtol=1e-4, atol=1e-4
    )
    assert torch.equal(z[0, :, 1], torch.zeros(64))


def test_positions_are_the_usual_sines() -> None:
    code = positions(5, 8)
    for n in range(5):
        for i in range(4):
            angle = torch.tensor(n / 10000 ** (2 * i / 8))
            torch.testing.assert_close(code[n, 2 * i], angle.sin())
            torch.testing.assert_close(code[n, 2 * i + 1], angle.cos())
    torch.testing.assert_close(places(torch.tensor([3.0]), 8)[0], code[3])


def test_overlap_average_is_the_double_loop() -> None:
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    total, n = torch.zeros(2, 4 * 8 + 16, 3, dtype=torch.float64), torch.zeros(4 * 8 + 16)
    for p in range(5):
        for row in range(16):
            total[:, p * 8 + row] += x[:, p]
            n[p * 8 + row] += 1
    torch.testing.assert_close(overlap_average(x, 16, 8), total / n[:, None].double(), rtol=1e-12, atol=1e-12)


def test_attention_is_softmax_written_out() -> None:
    torch.manual_seed(0)
    layer = Attention(8, 2, 0.0).double().eval()
    q, m = torch.randn(2, 5, 8).double(), torch.randn(2, 3, 8).double()
    seen = torch.tensor([[True, True, False], [True, False, True]])
    Wq, Wk, Wv = layer.weight.chunk(3)
    bq, bk, bv = layer.bias.chunk(3)
    out = torch.zeros(2, 5, 8, dtype=torch.float64)
    looks = torch.zeros(2, 5, 3, dtype=torch.float64)
    for b in range(2):
        for h in (slice(0, 4), slice(4, 8)):
            Q, K, V = (q[b] @ Wq.T + bq)[:, h], (m[b] @ Wk.T + bk)[:, h], (m[b] @ Wv.T + bv)[:, h]
            logits = Q @ K.T / 2
            looks[b] += logits.softmax(-1) / 2
            out[b, :, h] = logits.masked_fill(~seen[b], -torch.inf).softmax(-1) @ V
    torch.testing.assert_close(layer(q, m, m, seen), layer.out(out))
    torch.testing.assert_close(layer.weights(q, m), looks)
    nothing = layer(q, m[:, :0], m[:, :0])
    torch.testing.assert_close(nothing, layer.out.bias.expand(2, 5, 8))


def test_crops_are_centred_moved_inside_and_filled_with_zeros() -> None:
    x = torch.arange(20.0)[None, :, None] + 1
    got = crops(x, torch.tensor([[0, 10, 19]]), 8)[0, :, :, 0]
    assert got.tolist() == [[*range(1, 9)], [*range(7, 15)], [*range(13, 21)]]
    assert crops(x, torch.tensor([[5]]), 24)[0, 0, :, 0].tolist() == [*range(1, 21), 0, 0, 0, 0]


def test_a_prompt_is_the_sum_of_what_it_says() -> None:
    network = made(small(writer_layers=1))
    x = series(1)
    with torch.no_grad():
        for kind, aspect, value, hot in (
            (LABEL, CORRECT, 2, 2),
            (LABEL, WRONG, 2, 6),
            (BOUNDARY, CORRECT, 1, None),
            (BOUNDARY, WRONG, 0, None),
        ):
            said_D = network.boundary.weight[value % 2]
            if hot is not None:
                said_D = network.label(one_hot(torch.tensor(hot), 8).float())
            q = said_D + network.kind.weight[kind] + network.aspect.weight[aspect]
            got = network.write(x, said([[9]], kind, value, aspect))
            torch.testing.assert_close(got, network.write_vectors(x, torch.tensor([[9]]), q[None, None]))


def test_the_writer_reads_its_context_through_the_encoder_of_windows() -> None:
    network, x = made(small()), series(1)
    near, far = x.clone(), x.clone()
    near[0, 8], far[0, 63] = 9.0, 9.0
    tokens = [network.write(one, said([[5]])) for one in (x, near, far)]
    assert not torch.equal(tokens[0], tokens[1]) and torch.equal(tokens[0], tokens[2])
    network.write(x, said([[5]])).sum().backward()
    assert network.encoder.embed.weight.grad is not None and network.encoder.embed.weight.grad.abs().sum() > 0


def test_the_bank_grows_by_its_prompts_and_forgets_the_oldest() -> None:
    x = series()
    for capacity in (None, 5):
        network = made(small(capacity=capacity))
        z, state, every = network.encode(x), network.start(2), []
        for r in range(4):
            prompts = said([[r, 9 + r], [20 + r, 40]], value=r)
            every.append(network.write(x, prompts))
            state, _ = network.step(x, z, state, prompts, 0)
            kept = torch.cat(every, 1)[:, -(capacity or 99) :]
            assert state[0].shape[1] == min(2 * (r + 1), capacity or 99)
            torch.testing.assert_close(state[0], kept)
            assert state[1].tolist()[0][-2:] == [r, 9 + r]


def test_old_tokens_get_no_gradient_and_new_ones_do() -> None:
    network, x = made(small()), series()
    old = torch.randn(2, 3, 16, requires_grad=True)
    state, logits = network.step(
        x, network.encode(x), (old.detach(), torch.zeros(2, 3, dtype=torch.int64)), said([[1], [2]]), 0
    )
    logits.sum().backward()
    assert old.grad is None
    weight = network.label.weight.grad
    assert weight is not None and weight.abs().sum() > 0
    assert state[0].requires_grad  # the task detaches, after the step


def test_memory_is_a_set_and_reaches_windows_without_a_prompt() -> None:
    network, x = made(small()), series()
    z = network.encode(x)
    m, at = torch.randn(2, 4, 16), torch.zeros(2, 4, dtype=torch.int64)
    logits = network.windows(z, m, at)
    torch.testing.assert_close(network.windows(z, m[:, [2, 0, 3, 1]], at), logits, rtol=0, atol=1e-5)
    other = m.clone()
    other[:, 0] = torch.randn(2, 16)
    moved = (network.windows(z, other, at) - logits).abs().amax((0, 2, 3))
    assert bool((moved > 1e-4).all()), "every window reads every token"
    own = PromptTSS(small(), 3, 4).eval()
    with torch.no_grad():
        before = own.step(x, z, own.start(2), Said.none(2), 0)[1]
        after = own.step(x, z, own.start(2), said([[1], [1]]), 0)[1]
    moved = (before - after).abs().amax((0, 2, 3))
    assert moved[0] > 1e-6 and torch.equal(before[:, 1:], after[:, 1:]), (
        "a window of prompttss sees its own only"
    )


def test_what_prompttss_is_told_adds_up() -> None:
    network = PromptTSS(small(), 3, 4).eval()
    several = Said(
        torch.tensor([[3, 3, 5, 7]]),
        torch.tensor([[LABEL, LABEL, BOUNDARY, BOUNDARY]]),
        torch.tensor([[WRONG, WRONG, CORRECT, WRONG]]),
        torch.tensor([[0, 2, 1, 1]]),
    )
    p = network.prompts(several, 16)[0]
    torch.testing.assert_close(p[3], network.label(torch.tensor([0, 0, 0, 0, 1.0, 0, 1, 0])))
    torch.testing.assert_close(p[5], network.boundary.weight[1])
    torch.testing.assert_close(p[7], network.boundary.weight[0])
    silent = [i for i in range(16) if i not in (3, 5, 7)]
    assert torch.equal(p[silent], torch.zeros(13, 16))


@pytest.mark.parametrize("extra", ["token_time", "window_stats", "level_token"])
def test_extras_change_what_they_say_they_change(extra: str) -> None:
    plain, network = made(small()), made(small(**{extra: True}))
    x = series()
    z = network.encode(x)
    tokens = said([[5], [5]])

    def logits(x: Tensor, prompts: Said, level: int = 0) -> Tensor:
        return network.step(x, network.encode(x), network.start(2), prompts, level)[1]

    with torch.no_grad():
        if extra == "token_time":
            m = network.write(x, tokens)
            here, there = (network.windows(z, m, torch.full((2, 1), row)) for row in (5, 30))
            assert not torch.allclose(here, there, atol=1e-4)
            assert count(network) == count(plain)
        elif extra == "window_stats":
            assert z.shape[2] == plain.encode(x).shape[2] + 1
            torch.testing.assert_close(plain.encode(x * 2 + 7), plain.encode(x), rtol=0, atol=1e-3)
            assert not torch.allclose(network.encode(x * 2 + 7), z, atol=0.1)
        else:
            assert not torch.allclose(logits(x, tokens, 0), logits(x, tokens, 1), atol=1e-4)
        assert logits(x, tokens).shape == (2, 3, 32, 4)


@pytest.mark.parametrize("backend", ["memprompt", "prompttss"])
def test_before_training_a_window_answers_with_what_it_was_told(backend: str) -> None:
    right = {}
    for start in ("copy", "random"):
        network = network_of(small(width=64, backend=backend, start=start), 3, 4, 1, 0).eval()
        x, told = series(1), []
        with torch.no_grad():
            for k in range(4):
                prompts = said([[5]], value=k)
                logits = network.step(x, network.encode(x), network.start(1), prompts, 0)[1]
                told.append(float((logits[0, 0].argmax(-1) == k).double().mean()))
        right[start] = sum(told) / 4
    assert right["copy"] > 0.7 > 0.4 > right["random"]


def test_paper_compat_is_the_whole_column_and_gives_way_to_a_key() -> None:
    compat = Config.model_validate({"paper_compat": True, "tail": "pad"})
    assert {key: getattr(compat, key) for key in RELEASED} == RELEASED | {"tail": "pad"}
    assert all(getattr(Config(), key) != value for key, value in RELEASED.items())
    assert Config.model_validate(compat.model_dump()) == compat


@pytest.mark.parametrize(
    "wrong",
    [
        {"width": 18},
        {"rows": 250},
        {"rows": 36, "stride": 12},
        {"context": 20},
        {"patch": 8, "patch_stride": 9},
    ],
)
def test_shapes_that_do_not_fit_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"not a multiple|not patch|leaves rows out"):
        Config.model_validate(SMALL | wrong)
