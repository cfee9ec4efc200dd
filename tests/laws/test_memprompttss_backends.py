"""The paper's backends under the laws: 1, 2, 3, 6, 7, 8, 10, 11. (4, 5 and 9 are about language models.)"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_memprompt import BACKENDS, RECIPES, Here, recipe
from torch import Tensor
from torch.nn.functional import cross_entropy

from memtoken_cli.engine import stream
from memtoken_cli.engine.dist import World
from memtoken_cli.io import artifact
from memtoken_cli.io.artifact import Header
from memtoken_cli.io.errors import UsageError
from memtoken_cli.methods.memprompttss.config import Config
from memtoken_cli.methods.memprompttss.learn import Learning, Network, network_of
from memtoken_cli.methods.memprompttss.memprompt import MemPrompt
from memtoken_cli.methods.memprompttss.paper_data import material
from memtoken_cli.methods.memprompttss.paper_exam import Model, exam
from memtoken_cli.methods.memprompttss.patches import overlap_average
from memtoken_cli.methods.memprompttss.placement import Said, joined
from memtoken_cli.methods.memprompttss.train import open_trained, train
from memtoken_cli.recipe.schema import load


def config(**more: object) -> Config:
    small = {"width": 16, "blocks": 2, "encoder_layers": 1, "rows": 32, "stride": 16, "windows": 3}
    return Config.model_validate(small | {"dropout": 0.0} | more)


def made(**more: object) -> Network:
    return network_of(config(**more), 3, 4, 1, 0).eval()


def bank_of(**more: object) -> MemPrompt:
    network = made(**more)
    assert isinstance(network, MemPrompt)
    return network


def series(B: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(B, 64, 3, generator=torch.Generator().manual_seed(seed))


def everything_said(B: int = 2) -> Said:
    """Labels and boundaries, right and negated, with both bits."""
    row = torch.arange(8).expand(B, 8) * 7 + torch.arange(B)[:, None]
    kind = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]).expand(B, 8)
    aspect = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1]).expand(B, 8)
    value = torch.tensor([0, 1, 2, 3, 0, 0, 1, 1]).expand(B, 8)
    return Said(row, kind, aspect, value)


def logits(network: Network, x: Tensor, said: Said) -> Tensor:
    return network.step(x, network.encode(x), network.start(len(x)), said, 0)[1]


def test_1_an_empty_memory_is_invisible_to_the_last_bit() -> None:
    network, x = bank_of(), series()
    z = network.encode(x)
    none = network.windows(z, *network.start(2))
    m, at = torch.randn(2, 5, 16), torch.zeros(2, 5, dtype=torch.int64)
    masked = network.windows(z, m, at, torch.zeros(2, 5, dtype=torch.bool))
    assert torch.equal(masked, none) and not torch.equal(network.windows(z, m, at), none)
    by_hand = z.flatten(0, 1)
    for block in network.blocks:
        h = block.norm_self_x(by_hand)
        by_hand = by_hand + block.self_x(h, h, h)
        by_hand = by_hand + block.mlp_x(block.norm_mlp_x(by_hand))
    released = bank_of(empty_read="bias")
    released.load_state_dict(network.state_dict())
    for block in released.blocks:
        torch.nn.init.normal_(block.read_x.out.bias)
    rows = overlap_average(network.head(network.norm(by_hand)), 16, 8).unflatten(0, (2, 3))
    torch.testing.assert_close(rows, none)
    assert not torch.allclose(released.windows(z, *released.start(2)), none, atol=1e-3)
    own = made(backend="prompttss")
    silent = own.prompts(Said.none(2), 64)
    assert torch.equal(silent, torch.zeros(2, 64, 16)), "and nothing said is nothing shown"


def test_2_masked_tokens_are_invisible() -> None:
    network, x = bank_of(), series()
    z = network.encode(x)
    m, at = torch.randn(2, 7, 16), torch.zeros(2, 7, dtype=torch.int64)
    seen = torch.tensor([True, False, True, True, False, True, False]).expand(2, 7)
    kept = network.windows(z, m[:, seen[0]], at[:, seen[0]])
    torch.testing.assert_close(network.windows(z, m, at, seen), kept, rtol=0, atol=1e-5)
    assert not torch.allclose(network.windows(z, m, at), kept, atol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_3_rows_of_a_batch_are_independent_unless_as_released(backend: str) -> None:
    said = everything_said()
    x = series()
    other = x.clone()
    other[1] = series(seed=9)[1]
    for over_time in (True, False):
        network = made(backend=backend, time_attention=over_time)
        with torch.no_grad():
            same = torch.equal(logits(network, x, said)[0], logits(network, other, said)[0])
            # nudged behind the embedding: normalisation would carry a row's change to the whole window
            network.encoder.embed.register_forward_hook(_nudge_last)
            first = network.encoder(x[:, :32])[0, 0]
            network.encoder.embed._forward_hooks.clear()
            plain = network.encoder(x[:, :32])[0, 0]
        assert same == over_time
        assert torch.equal(first, plain) != over_time, "a patch feels the others of its window"


def _nudge_last(_module: torch.nn.Module, _args: object, out: Tensor) -> Tensor:
    nudged = out.clone()
    nudged[0, -1] = torch.randn(out.shape[-1], generator=torch.Generator().manual_seed(3))
    return nudged


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("run")
    return train(recipe(), Here(folder)), folder


def test_6_what_is_saved_answers_the_same(trained: tuple[Path, Path], tmp_path: Path) -> None:
    path, _ = trained
    one, two = open_trained(path), open_trained(path)
    x, said = torch.randn(2, 64, 2), everything_said()
    said = Said(said.row_BP, said.kind_BP, said.aspect_BP, said.value_BP.clamp(max=1))
    found = [logits(t.network, x, said) for t in (one, two)]
    assert torch.equal(*found)
    fresh = network_of(one.config, 2, 3, 2, recipe().seed).eval()
    assert not torch.allclose(logits(fresh, x, said), found[0], atol=1e-4)
    assert one.channels == ("c0", "c1") and len(one.classes) == 2
    assert all(not p.requires_grad for p in one.network.parameters())
    artifact.write(tmp_path / "other", {"x": torch.zeros(1)}, Header(method="tokmem", kind="memory"))
    with pytest.raises(UsageError, match="memory of tokmem, not a trained backend"):
        open_trained(tmp_path / "other")


def test_7_every_parameter_gets_a_gradient_but_the_dead_tail() -> None:
    x, y = series(), torch.randint(0, 4, (2, 3, 32))
    for more in (
        {},
        {"dead_tail": True},
        {"backend": "prompttss"},
        {"token_time": True, "window_stats": True},
    ):
        network = made(**more)
        cross_entropy(logits(network, x, everything_said()).permute(0, 3, 1, 2), y).backward()
        dead = {n for n, p in network.named_parameters() if p.grad is None or not bool(p.grad.any())}
        if "dead_tail" in more:
            tail = {n for n, _ in network.named_parameters() if n.startswith("blocks.1.memory.")}
            assert dead == tail and tail
        else:
            assert dead == set()


@pytest.mark.parametrize("backend", BACKENDS)
def test_8_iterations_add_up_to_one_and_parts_to_the_whole(backend: str) -> None:
    network, x = made(backend=backend), series(3)
    parts = [Said(*(f[:, i : i + 2] for f in fields(everything_said(3)))) for i in range(0, 8, 2)]
    with torch.no_grad():
        z = network.encode(x)
        last: list[Tensor] = []

        def one(r: int, state: stream.State) -> tuple[stream.State, None]:
            state, out = network.step(x, z, state, parts[r], 0)
            last.append(out)
            return state, None

        stream.run(one, network.start(3), 4)
        torch.testing.assert_close(last[-1], logits(network, x, joined(parts)), rtol=0, atol=1e-5)


def fields(said: Said) -> tuple[Tensor, ...]:
    return said.row_BP, said.kind_BP, said.aspect_BP, said.value_BP


def test_8_windows_encoded_once_and_the_test_in_parts_give_the_same_answers() -> None:
    said = recipe()
    found = material(said.data, said.config, 0)
    network = network_of(said.config, len(found.channels), found.outputs, 2, 0).eval()
    answers = []
    for cache, batch in ((True, 99), (False, 99), (True, 1)):
        model = Model(
            network, said.config.model_copy(update={"cache": cache}), (3, 2), batch, torch.device("cpu")
        )
        of = list(range(len(found.test)))
        answers.append(model(found.test, of, 0, [everything_said(len(of)), everything_said(len(of))]))
    for other in answers[1:]:
        assert all(torch.equal(a, b) for a, b in zip(answers[0], other, strict=True))


def test_10_copies_of_a_row_share_what_they_read() -> None:
    network, x = bank_of(), series()
    said = everything_said()
    copies = Said(torch.full_like(said.row_BP, 16), said.kind_BP, said.aspect_BP, said.value_BP)
    fast = network.write(x, copies)
    naive = torch.cat(
        [network.write(x, Said(*(f[:, i : i + 1] for f in fields(copies)))) for i in range(8)], 1
    )
    torch.testing.assert_close(fast, naive, rtol=0, atol=1e-5)
    network.train()  # dropout is 0: only the sharing is gone
    torch.testing.assert_close(network.write(x, copies), fast, rtol=0, atol=1e-5)


def test_10_the_loss_is_the_mean_over_windows_of_the_mean_over_rows() -> None:
    said = recipe()
    found = material(said.data, said.config.model_copy(update={"tail": "drop"}), 0)
    network = network_of(said.config, len(found.channels), found.outputs, 2, 0)
    task = Learning(network, found, said.config, said.train, 0, World())
    batch = task.batch(_at(0), torch.Generator())
    loss = task.loss(batch)
    state, out = network.step(
        batch.x_BLC, network.encode(batch.x_BLC), network.start(2), batch.said, batch.level
    )
    y = torch.stack([batch.y_BL[:, w * 16 : w * 16 + 32] for w in range(3)], 1)
    slow = torch.stack(
        [torch.stack([cross_entropy(out[b, w], y[b, w]) for w in range(3)]).mean() for b in range(2)]
    )
    torch.testing.assert_close(loss.total / loss.count, slow.mean())
    assert batch.iteration == 0 and len(batch[0:1]) == 1 and torch.equal(batch[1:2].x_BLC, batch.x_BLC[1:])
    task.observe(_at(0), {})
    torch.testing.assert_close(task.kept[0], state[0].detach())


def _at(index: int):  # type: ignore[no-untyped-def]
    from memtoken_cli.engine.task import At

    return At(index + 1, "all", index, 8)


@pytest.mark.slow
def test_11_the_tiny_bank_is_worth_what_the_recipe_says(tmp_path: Path) -> None:
    from memtoken_cli.engine.expect import unmet

    tiny = load(RECIPES / "tiny.yaml", ["data.seeds=1"])
    assert tiny.expect["memprompt.over_bank_off"] >= 0.1
    rows = exam(tiny, Here(tmp_path))
    assert unmet(tiny.expect, rows, "memprompttss") == []
    accuracy = {row["method"]: row["accuracy"] for row in rows}
    assert accuracy["memprompt"] - accuracy["bank_shuffled"] >= 0.2
    assert accuracy["memprompt"] > accuracy["majority"] + 0.1


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_read(path: Path) -> None:
    assert load(path).method == "memprompttss"


def test_the_papers_recipes_state_the_published_configuration() -> None:
    for name, tally in (("paper", 3_918_089), ("prompttss", 2_526_089)):
        said = load(RECIPES / f"{name}.yaml", ["data.path=somewhere"])
        network = network_of(said.config, 4, 9, 1, 0)
        assert sum(p.numel() for p in network.parameters()) == tally
        assert (said.train.lr, said.train.weight_decay, said.train.clip) == (1e-4, 0.01, 1.0)
        assert (said.train.batch, said.train.iterations, said.train.prompts) == (4, 8, 4)
        assert said.train.decay == "constant" and said.train.patience == 10 and said.seed == 42
