"""Benches of memory policies: cells in processes of their own, trainings that differ in one thing only, what
recipes expect, the forecast of a dry run."""

import json
import os
from pathlib import Path

import pytest
import torch
from cli_fixtures import memtok

from memtoken_cli.engine import resident
from memtoken_cli.engine.expect import unmet
from memtoken_cli.engine.stream import Bptt
from memtoken_cli.io.errors import UsageError
from memtoken_cli.methods.rmt import cell, quality, sketch, speed, variants
from memtoken_cli.methods.rmt.learn import scores
from memtoken_cli.methods.rmt.quality import Entrant
from memtoken_cli.methods.rmt.run import built, trainable
from memtoken_cli.methods.rmt.sheet import Result
from memtoken_cli.recipe.canonical import dump
from memtoken_cli.recipe.schema import Recipe, load, parse

__all__ = ["memtok"]

RECIPE = """
method: rmt
model: {new: llama, layers: 2, width: 32, heads: 4, context: 64, tie: false}
task: {name: copy, length: 6, symbols: 4}
rmt: {slots: 2, segment: 6, mask: blocks, d_mem: 4}
curriculum: {start: 2}
data: {tests: 20, batch: 8, sizes: [3, 6]}
train: {steps: 2, batch: 4, lr: 0.001, log_every: 1}
"""


def recipe(*overrides: str) -> Recipe:
    return parse(RECIPE, "copy.yaml", list(overrides))


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "copy.yaml"
    path.write_text(RECIPE)
    return path


def request(name: Recipe, length: int, generate: int = 4) -> dict[str, object]:
    return {
        "recipe": dump(name.resolved()),
        "length": length,
        "generate": generate,
        "repeats": 1,
        "device": "cpu",
    }


@pytest.mark.parametrize(
    ("policy", "floats"),
    [("rmt", 2 * 32), ("prmt", 2 * 2 * 32), ("none", 0), ("armt", 2 * 24 * 32 + 2 * 24 + 0.25)],
)
def test_a_cell_tells_the_bytes_of_the_state(policy, floats):
    found = cell.measure(request(recipe(f"rmt.policy={policy}"), 20))
    assert found["state_bytes"] == 4 * floats
    assert found["segments"] == 4
    assert found["tokens_per_second"] > 0
    assert found["ms_per_token"] > 0
    assert found["peak_mib"] >= 0


def test_a_cell_says_why_a_policy_cannot():
    found = cell.measure(request(recipe("rmt.policy=full"), 100))
    assert list(found) == ["why"]
    assert "64" in found["why"]
    assert "why" in cell.measure(request(recipe("rmt.policy=xl", "model.new=gpt2"), 12))


def test_reading_in_a_cell_is_segment_after_segment():
    bench = built(recipe("rmt.policy=armt"), "cpu")
    ids = torch.arange(24)[None] % 8
    with torch.no_grad():
        bench.policy.memories[0].v.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
        state = bench.policy.start(1)
        for part in ids.split(6, 1):
            _, state = bench.policy.segment(part, torch.tensor([6]), state, None)
        for mode in ("on", "off"):
            bench.policy.config = bench.config.model_copy(update={"diagonal": mode})
            found = cell._reader(bench.policy, 24)(ids, bench.policy.start(1))
            for a, b in zip(found, state, strict=True):
                assert torch.allclose(a.float(), b.float(), atol=1e-5)


def test_the_table_of_speed_has_a_process_a_cell(monkeypatch):
    asked: list[dict[str, object]] = []

    def run(command, input, **_):
        asked.append(json.loads(input))
        length = asked[-1]["length"]
        code = -9 if length == 60 else 0
        return type("Ran", (), {"returncode": code, "stdout": 'noise\n{"peak_mib": 1.0}\n', "stderr": ""})

    monkeypatch.setattr(speed.subprocess, "run", run)
    section = recipe("lengths=[12,60]", "rmt.d_mem=4")
    rows = speed.table(section, ["rmt", "armt"], None, lambda text: None)
    names = [(row["method"], row["length"]) for row in rows]
    assert names == [(n, t) for n in ("rmt", "armt", "armt-diagonal") for t in (12, 60)]
    assert [parse(a["recipe"]).config.diagonal for a in asked] == ["auto"] * 2 + ["off"] * 2 + ["on"] * 2
    assert rows[0]["peak_mib"] == 1.0
    assert rows[1]["why"] == "killed by signal 9"


def test_a_real_child_answers(memtok, written):
    asked = ("lengths=[12]", "policies=[rmt]", "repeats=1", "plot=p.svg", "model.ffn=65536")
    ran = memtok("bench", str(written), *asked, "--json", "-q")
    assert ran.code == 0, ran.err
    (row,) = json.loads(ran.out)["rows"]
    assert row["method"] == "rmt" and row["state_bytes"] == 256 and row["tokens_per_second"] > 0
    assert Path("p.svg").stat().st_size > 1000
    if os.access(resident.CLEAR, os.W_OK):  # ten columns of 65,536 numbers, and not the 48 MiB of weights
        assert 2.5 < row["peak_mib"] < 40


def test_what_recipes_differ_in():
    base = recipe()
    other = variants.with_policy(base, "xl").resolved()
    assert other.pop("rmt") == base.resolved()["rmt"] | {"policy": "xl"}
    plain = base.resolved()
    plain.pop("rmt")
    assert other == plain
    level = variants.flat(base, 6)
    assert level.own["curriculum"].start == 6
    assert level.resolved() | {"curriculum": None} == base.resolved() | {"curriculum": None}
    with pytest.raises(UsageError, match="armt has no read block"):
        variants.with_policy(recipe("rmt.positions=zero"), "armt")


def test_policies_are_trained_alike_and_resumed(memtok, written):
    asked = (str(written), "quality=true", "policies=[rmt,none]", "flat=true", "tests=8", "--json")
    ran = memtok("bench", *asked)
    assert ran.code == 0, ran.err
    rows = json.loads(ran.out)["rows"]
    assert [row["method"] for row in rows] == ["rmt", "none", "none-flat"]
    own, none = rows[0], rows[1]
    assert own["figures"]["accuracy_over_none"] == own["accuracy"] - max(r["accuracy"] for r in rows[1:])
    assert own["accuracy_at_6"] == own["accuracy"]
    assert {"no_memory", "shuffled"} <= own.keys()
    assert not {"no_memory", "shuffled"} & none.keys()
    folder = Path("runs/rmt-copy")
    assert (folder / "memory.safetensors").exists()
    assert (folder / "none" / "memory.safetensors").exists()
    assert (folder / "none-flat" / "memory.safetensors").exists()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    again = memtok("bench", *asked)
    assert json.loads(again.out)["rows"] == rows
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == before
    # the run of `memtok evaluate` is the same one
    ran = memtok("evaluate", str(written), "tests=8", "--json")
    assert json.loads(ran.out)["accuracy"] == own["accuracy"]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == before


def test_seeds_are_tested_on_the_same_rows(memtok, written):
    asked = (str(written), "quality=true", "policies=[rmt]", "seeds=[0,1]", "sizes=[6]", "tests=8", "--json")
    ran = memtok("bench", *asked)
    assert ran.code == 0, ran.err
    (row,) = json.loads(ran.out)["rows"]
    assert row["seeds"] == 2
    assert row["accuracy"] == pytest.approx(sum(row["each"]) / 2)
    assert Path("runs/rmt-copy/seed-1/memory.safetensors").exists()


def test_a_rival_that_cannot_be_trained_is_a_row_that_says_so(memtok, written):
    learned = ("model.new=gpt2", "quality=true", "tests=4")
    ran = memtok("bench", str(written), *learned, "policies=[rmt,xl]", "--json")
    assert ran.code == 0, ran.err
    rows = json.loads(ran.out)["rows"]
    assert "relative positions" in rows[1]["why"]
    ran = memtok("bench", str(written), *learned, "rmt.policy=xl", "policies=[xl]", "--json")
    assert ran.code == 2


def test_what_a_recipe_expects_decides_the_exit(memtok, written, monkeypatch):
    plain = (str(written), "tests=8", "policies=[rmt,none]", "sizes=[6]")
    assert memtok("bench", *plain, "expect.accuracy_over_none=-1").code == 0
    ran = memtok("bench", *plain, "expect.accuracy_over_none=0.99")
    assert ran.code == 4
    assert "expect.accuracy_over_none: 0.99" in ran.err
    # nothing is held against a bench of speed alone
    monkeypatch.setattr(speed, "cell", lambda *_: {"tokens_per_second": 1.0})
    ran = memtok("bench", *plain, "lengths=[6]", "expect.accuracy_over_none=0.99")
    assert ran.code == 0, ran.err


def test_figures_are_over_the_better_of_a_rival():
    def entrant(name: str, accuracy: float) -> Entrant:
        result = Result([], {"accuracy": accuracy}, 6, {6: torch.full((4,), accuracy).double().numpy()})
        return Entrant(name, (result,))

    entrants = [entrant("rmt", 0.9), entrant("xl", 0.3), entrant("xl-flat", 0.5), Entrant("full", why="no")]
    rows = quality.rows(recipe(), entrants)
    assert rows[0]["figures"]["accuracy_over_xl"] == pytest.approx(0.4)
    assert "accuracy_over_full" not in rows[0]["figures"]
    assert unmet({"accuracy_over_xl": 0.39, "rmt": 0.9}, rows, "rmt") == []
    assert unmet({"accuracy_over_xl": 0.41}, rows, "rmt")
    assert unmet({"accuracy_over_full": 0.0}, rows, "rmt")


def test_figures_of_a_text_are_bits_under_a_rival():
    def entrant(name: str, bits: float) -> Entrant:
        return Entrant(name, (Result([], {"bits_per_byte": bits}, None, {}),))

    (own, _) = quality.rows(recipe(), [entrant("rmt", 2.0), entrant("none", 2.1)])
    assert own["figures"]["bits_per_byte_under_none"] == pytest.approx(0.1)


def test_an_artifact_is_evaluated_on_its_task_or_one_with_its_words(memtok, written):
    assert memtok("train", str(written), "--out", "run").code == 0
    path = "run/memory.safetensors"
    ran = memtok("evaluate", path, "tests=8", "sizes=[2,6]", "plot=p.png", "--json")
    assert ran.code == 0, ran.err
    rows = json.loads(ran.out)["rows"]
    assert [(row["size"], row["segments"]) for row in rows] == [(2, 1), (6, 3)]
    assert Path("p.png").stat().st_size > 1000
    taught = json.loads(memtok("evaluate", path, "tests=8", "teacher=true", "--json").out)["rows"]
    assert taught[0]["size"] == 6
    other = ("task.name=reverse", "task.symbols=4", "task.length=4")
    assert memtok("evaluate", path, "tests=8", *other).code == 0
    ran = memtok("evaluate", path, "tests=8", "task.name=retrieval")
    assert ran.code == 2 and "words" in ran.err
    ran = memtok("evaluate", path, "task.lenth=4")
    assert ran.code == 2 and "length" in ran.err
    assert memtok("evaluate", path, "--data", "x.txt").code == 2
    assert memtok("evaluate", path, "plot=p.bmp").code == 2


def test_the_seed_of_an_artifacts_test_set(memtok, written):
    assert memtok("train", str(written), "--out", "run", "--seed", "3").code == 0
    path = "run/memory.safetensors"

    def told(*more: str) -> object:
        return json.loads(memtok("evaluate", path, "tests=40", "--json", *more).out)["rows"]

    assert told() == told("--seed", "3")
    assert told() != told("--seed", "4")


def test_a_dry_run_tells_what_training_takes(memtok, written):
    ran = memtok("train", str(written), "--dry-run", "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)["sketch"]
    bench = built(recipe(), "cpu")
    assert found["parameters"]["backbone"] == sum(p.numel() for p in bench.backbone.model.parameters())
    assert found["parameters"]["memory"] == 2 * 32 + 32  # the slots and the gain
    assert found["overhead"] == round((6 + 2 * 2) / 6, 3)
    assert (found["segments"], found["state_bytes"]) == (3, 4 * 2 * 32)
    # the text is still a recipe
    text = memtok("train", str(written), "--dry-run").text
    assert parse(text).resolved() == recipe().resolved()
    assert "# parameters:" in text


@pytest.mark.parametrize("policy", ["rmt", "armt", "xl", "full"])
def test_activations_are_about_what_training_keeps(policy):
    asked = recipe(f"rmt.policy={policy}", "train.batch=2")
    bench = built(asked, "cpu")
    own = {p.untyped_storage().data_ptr() for p in bench.backbone.model.parameters()}
    trained = trainable(bench.backbone, bench.policy, bench.config)
    own |= {p.untyped_storage().data_ptr() for p in trained.values()}
    for p in trained.values():
        p.requires_grad_(True)
    kept: dict[int, torch.Tensor] = {}

    def note(x: torch.Tensor) -> torch.Tensor:
        if x.untyped_storage().data_ptr() not in own:
            kept[x.untyped_storage().data_ptr()] = x
        return x

    rows = bench.stream.draw(6, 2, torch.Generator().manual_seed(0))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        told = scores(bench.policy, rows, bench.config, Bptt(), bench.backbone.device)
    found = sum(x.untyped_storage().nbytes() for x in kept.values())
    del told
    assert sketch.sketch(asked)["activation_bytes"]["full"] == pytest.approx(found, rel=0.35)


def test_a_sketch_of_a_text_needs_no_text():
    text = RECIPE.replace("{name: copy, length: 6, symbols: 4}", "{name: text, segments: 4}")
    found = sketch.sketch(parse(text.replace("curriculum: {start: 2}", ""), "text.yaml"))
    assert found["segments"] == 4


def test_the_shipped_recipes_are_sound():
    for path in sorted((Path(__file__).parents[2] / "recipes" / "rmt").glob("*.yaml")):
        assert load(path).method == "rmt"


def test_a_bench_of_nothing_but_failures_fails(memtok, written):
    """A text is needed, and none is named: every cell says so, and so does the exit code."""
    text = ("task.name=text", "task.length=null", "task.symbols=null")
    ran = memtok("bench", str(written), *text, "lengths=[12]", "policies=[rmt]")
    assert ran.code == 2 and "the task text needs a text" in ran.err
