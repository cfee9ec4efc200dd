"""Training on a text in order: steps equal a graph detached by hand, and resuming gives the same bits."""

import pytest
import torch
import torch.distributed as td

from memtoken_cli.engine.checkpoint import run_dir
from memtoken_cli.engine.fit import fit
from memtoken_cli.engine.stream import Bptt
from memtoken_cli.engine.task import At
from memtoken_cli.io.errors import UsageError
from memtoken_cli.methods.rmt.config import Config
from memtoken_cli.methods.rmt.learn import Learning, scores
from memtoken_cli.methods.rmt.ordered import Reading
from memtoken_cli.methods.rmt.run import built, learning, locked
from memtoken_cli.recipe.schema import load

RECIPE = """
method: rmt
seed: 3
model: {new: llama, layers: 2, width: 16, heads: 2, ffn: 32, context: 128}
task: {name: text, document_break: "#", segments: 1}
data: {path: PATH}
rmt: {slots: 2, segment: 8, bptt: "window:2", restart: 0, loss: all, d_mem: 4, state_norm: final}
train: {steps: 12, batch: 3, lr: 1e-2}
"""
# documents of two segments, and a short one, and five
TEXT = "a text of two s!#a bit#and this is now a text of five segments??#two segments, no more#" * 3


def recipe(tmp_path, *overrides, text=TEXT):
    (tmp_path / "text.txt").write_text(text)
    (tmp_path / "r.yaml").write_text(RECIPE.replace("PATH", str(tmp_path / "text.txt")))
    return load(str(tmp_path / "r.yaml"), list(overrides))


def task(tmp_path, *overrides, text=TEXT):
    said = recipe(tmp_path, *overrides, text=text)
    made = learning(said, built(said, "cpu"))
    assert isinstance(made, Reading)
    for parameter in made.parameters.values():
        parameter.requires_grad_()
    return made


def taken(made, index):
    """The batch of a step, and its loss with the gradients in the parameters."""
    for parameter in made.parameters.values():
        parameter.grad = None
    batch = made.batch(At(index + 1, "train", index, 12), torch.Generator())
    loss = made.loss(batch[: len(batch)])
    loss.total.backward()
    made.observe(
        At(index + 1, "train", index, 12),
        {
            "loss": float(loss.total.detach()) / loss.count,
            "accuracy": loss.metrics["accuracy"][0] / loss.count,
        },
    )
    return batch, loss


def gradients(made):
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in made.parameters.values()]


def by_hand(made, back, index, stored):
    """The loss of segment `index` for every row alone, from its last start or a stored state on."""
    policy, rows = made.base.policy, made.base.train.batch
    reader = made.text.ordered(rows)
    windows = [made._restarted(next(reader), t) for t in range(index + 1)]
    total = 0.0
    for b in range(rows):
        document = max(t for t, w in enumerate(windows) if w.fresh_B[b])
        start = max(index - back, document)
        state = policy.start(1) if start == document else stored[b, start]
        for w in windows[start:]:
            n = int(w.sequences.length_B[b])
            ids, target = w.sequences.ids_BT[b : b + 1, :n], w.sequences.target_BT[b, :n]
            logits, state = policy.segment(ids, torch.tensor([n]), state, torch.arange(n))
        stored[b, index + 1] = tuple(x.detach() for x in state)
        total = total + torch.nn.functional.cross_entropy(logits[0], target, reduction="sum")
    return total


@pytest.mark.parametrize("policy", ["rmt", "prmt", "armt", "xl", "window", "sink", "none"])
@pytest.mark.parametrize(("back", "restart"), [(0, 0), (2, 0), (2, 0.4)])
def test_a_step_equals_a_graph_that_is_detached_by_hand(tmp_path, policy, back, restart):
    made = task(tmp_path, f"rmt.policy={policy}", f"rmt.bptt=window:{back}", f"rmt.restart={restart}")
    stored = {}
    for index in range(9):
        batch, loss = taken(made, index)
        assert len(batch.parts) == min(index, back) + 1
        found = gradients(made)
        for parameter in made.parameters.values():
            parameter.grad = None
        expected = by_hand(made, back, index, stored)
        expected.backward()
        assert float(loss.total.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
        for a, b in zip(found, gradients(made), strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_static_tokens_are_the_newest_in_every_segment(tmp_path):
    made = task(tmp_path, "rmt.policy=static")
    memory = made.parameters["memory.init_MD"]
    for index in range(5):
        batch, loss = taken(made, index)
        found = memory.grad.clone()
        assert found.abs().sum() > 0
        said = batch.parts[-1].sequences
        logits, _ = made.base.policy.segment(
            said.ids_BT, said.length_B, made.base.policy.start(3), torch.arange(said.ids_BT.shape[1])
        )
        expected = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), said.target_BT.flatten(), ignore_index=-100, reduction="sum"
        )
        assert float(loss.total.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
        torch.testing.assert_close(found, torch.autograd.grad(expected, memory)[0])
        with torch.no_grad():
            memory.add_(1.0)


ONE = ("task.document_break=null", "train.batch=4")  # a text of one document


@pytest.mark.parametrize("restart", [0, 0.2, 1])
def test_the_first_memory_is_trained_where_a_reader_restarts(tmp_path, restart):
    made = task(tmp_path, *ONE, f"rmt.restart={restart}", text=TEXT * 4)
    drawn = []
    for index in range(24):
        batch, _ = taken(made, index)
        began = [bool(part.fresh_B.any()) for part in batch.parts]
        drawn += batch.parts[-1].fresh_B.tolist() if index else []
        first = made.parameters["memory.init_MD"].grad
        assert (first is not None and bool(first.any())) == any(began)
    assert {0: sum(drawn) == 0, 1: all(drawn)}.get(restart, 0.1 < sum(drawn) / len(drawn) < 0.35)


def test_restarts_are_the_seeds_and_the_steps(tmp_path):
    """However a step is come to; the text itself goes on."""

    def read(made, start):
        steps = [made.batch(At(i + 1, "train", i, 99), torch.Generator()) for i in range(start, 12)]
        return [(p.fresh_B.tolist(), p.sequences.ids_BT.tolist()) for s in steps for p in s.parts[-1:]]

    said = (*ONE, "rmt.restart=0.3")
    whole = read(task(tmp_path, *said), 0)
    assert read(task(tmp_path, *said), 7) == whole[7:]
    other = read(task(tmp_path, *said, "seed=4"), 0)
    assert [fresh for fresh, _ in other] != [fresh for fresh, _ in whole]
    assert [ids for _, ids in other] == [ids for _, ids in read(task(tmp_path, *ONE), 0)]


def test_restarts_belong_to_a_run_that_has_them(tmp_path):
    assert "restart: 0.5" in locked(recipe(tmp_path, "rmt.restart=0.5"))
    assert "restart:" not in locked(recipe(tmp_path, "rmt.bptt=full"))
    assert recipe(tmp_path, "rmt.bptt=full").config.restart == 0
    assert Config().restart == 1 / 16


def test_a_run_belongs_to_what_its_initial_checkpoint_holds(tmp_path):
    """Not to its name alone: the same name with other weights is another run."""
    path = tmp_path / "start.safetensors"
    said = []
    for content in (b"one", b"two", b"one"):
        path.write_bytes(content)
        said.append(locked(recipe(tmp_path, f"rmt.init={path}")))
    assert said[0] == said[2] != said[1]


def test_an_early_token_is_out_of_reach(tmp_path):
    """`Z` is read in the first segment only; its embedding is an input and nothing else."""
    text = "aZbcdefg" + "hijk lmn" * 12
    for back in (0, 1, 2, 3, 4):
        said = ("task.document_break=#", f"rmt.bptt=window:{back}", "train.batch=1", "model.tie=false")
        made = task(tmp_path, *said, text=text)
        told = []
        for index in range(5):
            taken(made, index)
            z = int(made.text.training.ids_K[1])
            told.append(bool(made.parameters["weights.model.embed_tokens.weight"].grad[z].any()))
        assert told == [index <= back for index in range(5)]


def graph_by_hand(made, part, last):
    """Rows of whole segments, with every boundary but the last `last` detached; scored are all tokens."""
    policy, state = made.policy, made.policy.start(len(part))
    count, total = part.ids_BT.shape[1] // 8, 0.0
    for t in range(count):
        if 0 < t < count - last:
            state = tuple(x.detach() for x in state)
        columns = slice(8 * t, 8 * t + 8)
        ids, target = part.ids_BT[:, columns], part.target_BT[:, columns]
        logits, state = policy.segment(ids, torch.full((len(part),), 8), state, torch.arange(8))
        total = total + torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), target.flatten(), ignore_index=-100, reduction="sum"
        )
    return total


@pytest.mark.parametrize("policy", ["rmt", "prmt", "armt", "window"])
@pytest.mark.parametrize("mode", ["full", "last:0", "last:1", "last:2", "last:9"])
def test_whole_streams_equal_a_graph_that_is_detached_by_hand(tmp_path, policy, mode):
    overrides = (f"rmt.policy={policy}", f"rmt.bptt={mode}", "task.segments=4", "task.document_break=null")
    said = recipe(tmp_path, *overrides)
    made = learning(said, built(said, "cpu"))
    assert isinstance(made, Learning)
    parameters = [p.requires_grad_() for p in made.parameters.values()]
    part = made.stream.draw(4, 2, torch.Generator().manual_seed(1))
    last = {"full": 9}.get(mode, int(mode[-1]) if mode != "full" else 0)
    expected = torch.autograd.grad(graph_by_hand(made, part, last), parameters, materialize_grads=True)
    told = scores(made.policy, part, made.config, Bptt.parse(mode), torch.device("cpu"))
    found = torch.autograd.grad(told.total, parameters, materialize_grads=True)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5 * max(1.0, float(b.abs().max())), rtol=1e-4)


@pytest.mark.parametrize("micro", [1, 2])
def test_parts_of_a_batch_are_the_batch(tmp_path, micro):
    whole, parted = task(tmp_path), task(tmp_path)
    for index in range(6):
        _, loss = taken(whole, index)
        for parameter in parted.parameters.values():
            parameter.grad = None
        batch = parted.batch(At(index + 1, "train", index, 12), torch.Generator())
        losses = [parted.loss(batch[i : i + micro]) for i in range(0, 3, micro)]
        for one in losses:
            one.total.backward()
        parted.window.advance()
        assert sum(one.count for one in losses) == loss.count
        for a, b in zip(gradients(parted), gradients(whole), strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
        for a, b in zip(parted.window.kept[-1], whole.window.kept[-1], strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


class Crash(Exception):
    pass


def run(tmp_path, name, crash=None, *overrides):
    """The bytes of the last checkpoint, and the log, of a training that may crash behind a step."""
    made = task(tmp_path, *overrides)
    observe = made.observe

    def crashing(at, means):
        if at.step == crash:
            raise Crash
        return observe(at, means)

    made.observe = crashing
    with run_dir(tmp_path / name, "recipe") as rundir:
        fit(made, rundir, seed=3, save_every=4, log_every=3, micro=2)
    newest = sorted((tmp_path / name / "checkpoints").iterdir())[-1]
    files = [p for p in sorted(newest.iterdir()) if p.is_file()]
    return {p.name: p.read_bytes() for p in files} | {"log": (tmp_path / name / "events.jsonl").read_bytes()}


@pytest.mark.parametrize(
    ("policy", "crash"),
    [("rmt", 6), ("rmt", 10), ("armt", 10), ("window", 10), ("window", 6), ("sink", 6), ("none", 6)],
)
@pytest.mark.parametrize("restart", [0, 0.4])
def test_resuming_gives_the_same_bits(tmp_path, policy, crash, restart):
    overrides = (f"rmt.policy={policy}", "rmt.state_noise=0.1", f"rmt.restart={restart}")
    expected = run(tmp_path, "whole", None, *overrides)
    with pytest.raises(Crash):
        run(tmp_path, "crashed", crash, *overrides)
    assert run(tmp_path, "crashed", None, *overrides) == expected


def test_what_it_cannot_do_is_refused(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="in order") as caught:
        task(tmp_path, "task.name=copy", "task.segments=null", "task.document_break=null")
    assert "task.name=text" in caught.value.hint
    with pytest.raises(UsageError, match="every token"):
        task(tmp_path, "rmt.loss=last:2")
    monkeypatch.setattr(td, "is_initialized", lambda: True)
    monkeypatch.setattr(td, "get_world_size", lambda: 2)
    with pytest.raises(UsageError, match="one process"):
        task(tmp_path)


def test_enough_ends_it(tmp_path):
    made = task(
        tmp_path, "train.stop_at=0.001", "curriculum.check_every=3", "train.steps=200", "train.lr=0.01"
    )
    with run_dir(tmp_path / "out", "recipe") as rundir:
        result = fit(made, rundir, seed=3)
    assert 3 <= result.steps < 200
