"""The laws of compressing, for every method that writes `layers` memory without being trained first."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from tiny_prompt import FAMILIES, family, queries, rendered, shots, weights_hash

import memtoken_cli
from memtoken_cli import methods
from memtoken_cli.engine.memory import Layers
from memtoken_cli.engine.method import Budget, GenerateOptions, Made
from memtoken_cli.engine.packed import Packed
from memtoken_cli.io import artifact
from memtoken_cli.io.errors import DataError, UsageError

RATIOS = (1, 2.5, 4, 16, 60)
WRITERS = [n for n, spec in methods.discover().items() if "compress" in spec.verbs and spec.port == "layers"]


def compress(method: str, name: str, budget: Budget, seed: int = 0) -> Made:
    config = methods.config_module(method).Config()
    return methods.load(method).compress(family(name), shots(), budget, config, seed)


def ready(method: str) -> bool:
    """Whether its defaults suffice; one that wants a trained compressor has laws of its own."""
    try:
        compress(method, "gqa", Budget(slots=1))
    except UsageError:
        return False
    return True


READY = [method for method in WRITERS if ready(method)]
every = pytest.mark.parametrize("method", READY)
families = pytest.mark.parametrize("name", FAMILIES)


@cache
def once(method: str, name: str) -> Made:
    return compress(method, name, Budget(ratio=4))


def test_the_default_method_is_among_them():
    assert methods.default_for("compress") in READY


def test_the_others_say_what_they_want():
    for method in set(WRITERS) - set(READY):
        with pytest.raises(UsageError) as caught:
            compress(method, "gqa", Budget(ratio=4))
        assert caught.value.hint


@every
@families
@pytest.mark.parametrize("ratio", RATIOS)
def test_9_the_budget_is_met_and_never_exceeded(method, name, ratio):
    backbone, t = family(name), len(rendered(family(name)).ids)
    m = int(t / ratio)
    memory = compress(method, name, Budget(ratio=ratio)).memory
    assert isinstance(memory, Layers)
    total = sum(size for kv in memory.layers for size in kv.sizes)
    heads = backbone.dims.layers * backbone.dims.kv_heads
    room = sum(min(t, w - 1 if w else t) for w in backbone.dims.windows) * backbone.dims.kv_heads
    assert total == min(heads * m, room)
    assert memory.next_position == t


@every
@families
def test_9_the_stated_slots(method, name):
    for slots in (1, 7, 100):
        memory = compress(method, name, Budget(slots=slots)).memory
        assert memory.slots == slots


@every
@families
def test_7_the_model_stays_frozen(method, name):
    before = weights_hash(family(name))
    compress(method, name, Budget(ratio=8))
    assert weights_hash(family(name)) == before
    assert all(p.grad is None and not p.requires_grad for p in family(name).model.parameters())


@every
@families
def test_same_seed_same_bytes(method, name):
    first = once(method, name).memory.tensors()
    again = compress(method, name, Budget(ratio=4)).memory.tensors()
    assert first.keys() == again.keys()
    for key in first:
        assert torch.equal(first[key], again[key])


@every
@families
def test_a_memory_speaks_of_its_prompt(method, name):
    """Closer to the whole prompt than a memory of nothing."""
    backbone, memory = family(name), once(method, name).memory
    whole = backbone.prefill(rendered(backbone).ids)
    dims = backbone.dims
    nothing = Layers.empty(dims.layers, dims.kv_heads, dims.head_dim, whole.next_position)
    packed = Packed.rows(queries(backbone), whole.next_position)
    wanted, found, none = (
        backbone.run(packed, m, packed.last_B).log_softmax(-1) for m in (whole, memory, nothing)
    )
    far, near = ((wanted.exp() * (wanted - x)).sum(-1).mean() for x in (none, found))
    assert near < 0.7 * far


@every
@families
def test_answers_do_not_depend_on_the_batch(method, name):
    made, backbone, reader = once(method, name), family(name), methods.load(method)
    asked = ["where is it", "a much longer question, isn't it?", "x", "card", "what rate?"]

    def answers(questions, **options):
        return list(reader.answer(backbone, made.memory, made.about, questions, GenerateOptions(**options)))

    whole = answers(asked, max_new_tokens=4)
    assert whole == answers(asked, max_new_tokens=4, batch=2)
    assert whole == [answers([q], max_new_tokens=4)[0] for q in asked]
    labelled = answers(asked, labels=("card", "rate", "pin"))
    for together, q in zip(labelled, asked, strict=True):
        [alone] = answers([q], labels=("card", "rate", "pin"))
        assert alone.output == together.output
        assert alone.scores == pytest.approx(together.scores, abs=1e-4)


@every
def test_no_memory_at_all_is_an_error(method):
    with pytest.raises(DataError, match="keeps no token"):
        compress(method, "gqa", Budget(ratio=10_000))


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from tiny_prompt import family, shots
from memtoken_cli import methods
from memtoken_cli.engine.method import Budget
from memtoken_cli.io import artifact
method, path = sys.argv[1:]
made = methods.load(method).compress(
    family("gqa"), shots(), Budget(ratio=4), methods.config_module(method).Config(), 0
)
artifact.write(path, made.memory.tensors(), artifact.Header(method=method, kind="memory", port="layers"))
"""


def test_two_processes_write_the_same_bytes(tmp_path):
    """Also where hashes are seeded differently, and whatever this one did before."""
    method, root = methods.default_for("compress"), Path(memtoken_cli.__file__).parents[1]
    path = os.pathsep.join([str(root), str(root / "tests")])
    env = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "77"}
    subprocess.run([sys.executable, "-c", SCRIPT, method, str(tmp_path / "there")], env=env, check=True)
    here = once(method, "gqa").memory.tensors()
    artifact.write(tmp_path / "here", here, artifact.Header(method=method, kind="memory", port="layers"))
    assert (tmp_path / "there").read_bytes() == (tmp_path / "here").read_bytes()
