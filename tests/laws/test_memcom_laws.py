"""MemCom under the engine's laws: frozen stays frozen, what is trained moves, files keep it, budgets hold."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from tiny import save as save_model
from tiny import tiny_llama
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from memtoken_cli.data.intents import intents
from memtoken_cli.data.render import render
from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.engine.fresh import new_backbone
from memtoken_cli.engine.memory import Layers
from memtoken_cli.engine.method import Budget, GenerateOptions
from memtoken_cli.engine.seeds import generator
from memtoken_cli.engine.task import At
from memtoken_cli.io.errors import DataError, UsageError
from memtoken_cli.methods.memcom.config import Config, DataConfig, TrainConfig
from memtoken_cli.methods.memcom.episodes import IGNORE, ShotEpisodes
from memtoken_cli.methods.memcom.learn import Compression, teacher_logits
from memtoken_cli.methods.memcom.method import MemCom
from memtoken_cli.methods.memcom.model import compressor
from memtoken_cli.methods.memcom.run import open_compressor, train
from memtoken_cli.methods.memcom.source import course_of
from memtoken_cli.recipe.schema import Recipe, load, parse

STREAM = """
method: memcom
model: {new: llama, layers: 2, width: 16, heads: 2, context: 128, pretrain: {steps: 2, batch: 2}}
data: {stream: {filler: 1, pool: 2}, counts: [8], queries: 4, exam: {tasks: 2, queries: 4}}
memcom: {slots: 16}
train: {steps: 2, whole_steps: 2, batch: 3, ratios: [2, 4], whole_lr: 0.001}
"""


@dataclass(frozen=True)
class Here:
    """A run in a folder, told nothing else."""

    out: Path
    fresh: bool = False
    device: str | None = "cpu"
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        self.notes.append(text)


def recipe(*overrides: str) -> Recipe:
    return parse(STREAM, "tiny.yaml", overrides)


def weights(backbone: CausalLM) -> str:
    digest = hashlib.sha256()
    for name, x in sorted(backbone.model.state_dict().items()):
        digest.update(name.encode() + x.numpy().tobytes())
    return digest.hexdigest()


def shots(count: int = 12) -> ShotEpisodes:
    from memtoken_cli.data.render import Template
    from memtoken_cli.data.shots import Query

    records = [Query(s.input, s.output, s.line) for s in intents(80, 0)[0].items]
    return ShotEpisodes(records, Template(), tiny_llama().tokenizer, 4, (count,), 3, 4000)


TRAINED = [
    {},
    {"layers": "last"},
    {"writer": "gist"},
    {"enters": "next"},
    {"positions": "spread"},
    {"weights": "frozen"},
]


@pytest.mark.parametrize("shape", TRAINED)
def test_law_7_the_target_stays_frozen_and_everything_else_moves(shape: dict[str, str]) -> None:
    backbone = tiny_llama()
    before = weights(backbone)
    writer = compressor(backbone, Config.model_validate({"slots": 200} | shape), 0)
    said = TrainConfig(steps=2, whole_steps=2, batch=2, lr=1e-2, whole_lr=1e-2, ratios=(4,))
    task = Compression(backbone, writer, shots(4), said)
    trained: set[str] = set()
    for phase in task.phases():
        moved: set[str] = set()
        for parameter in (writer.new_parts() | writer.copied_parts()).values():
            parameter.requires_grad_(any(parameter is p for p in phase.parameters.values()))
        for step in range(2):
            task.loss(task.batch(At(step + 1, phase.name, step, 2), generator(step))).total.backward()
            with torch.no_grad():
                for name, p in phase.parameters.items():
                    if p.grad is not None and bool(p.grad.abs().sum() > 0):
                        moved.add(name)
                        p -= 0.01 * p.grad.sign()
                        p.grad = None
        assert phase.parameters.keys() == moved
        trained |= moved
    last = "source.layers.1.mlp.up_proj.weight"  # read by nobody where memory is what stands in front of it
    unread = shape in ({"writer": "gist"}, {"enters": "next"})
    assert (last in trained) == (not unread and shape != {"weights": "frozen"})
    assert "tokens_ME" in trained
    assert all(p.grad is None for p in backbone.model.parameters())
    assert weights(backbone) == before


@pytest.mark.parametrize("distill", [0.0, 0.3, 1.0])
def test_law_10_the_loss_is_the_naive_one(distill: float) -> None:
    """Every query alone behind its own memory, and behind its whole prompt, by the model's own forward."""
    backbone = tiny_llama()
    writer = compressor(backbone, Config(slots=200), 0)
    with torch.no_grad():
        for parameter in writer.new_parts().values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator(9))
    task = Compression(backbone, writer, shots(4), TrainConfig(batch=2, ratios=(4,), distill=distill))
    part = task.batch(At(1, "new", 0, 1), generator(3))
    got = task.loss(part)

    total, count = torch.zeros(()), 0
    for b in range(2):
        length = int(part.length_B[b])
        memory = writer.write(part.source_BT[b : b + 1, :length], part.length_B[b : b + 1], part.slots)
        starts = ((part.offset_BU[b] == 0) & part.after_BU[b].bool()).nonzero()[:, 0].tolist()
        real = int(part.after_BU[b].nonzero()[-1]) + 1
        for start, stop in zip(starts, [*starts[1:], real], strict=True):
            ids = part.after_BU[b, start:stop]
            with backbone.attached(memory.row(backbone)) as model:
                ours = model(input_ids=ids[None]).logits[0]
            whole = torch.cat([part.source_BT[b, :length], ids])
            full = backbone.model(input_ids=whole[None]).logits[0, length:]
            for w, u in enumerate(part.wanted_W.tolist()):
                if start <= u < stop and int(part.target_BW[b, w]) != IGNORE:
                    mine, teacher = ours[u - start].log_softmax(-1), full[u - start].log_softmax(-1)
                    total = total + (1 - distill) * cross_entropy(mine, part.target_BW[b, w])
                    total = total + distill * kl_div(mine, teacher, reduction="sum", log_target=True)
                    count += 1
    assert got.count == count
    torch.testing.assert_close(got.total, total, rtol=2e-5, atol=1e-4)


def test_a_part_of_a_batch_weighs_what_it_weighs_in_the_whole() -> None:
    backbone = tiny_llama()
    writer = compressor(backbone, Config(slots=200), 0)
    task = Compression(backbone, writer, shots(4), TrainConfig(batch=4, ratios=(4,), autoencode=0.5))
    batch = task.batch(At(1, "new", 0, 1), generator(0))
    whole = task.loss(batch)
    parts = [task.loss(batch[slice(i, i + 2)]) for i in (0, 2)]
    torch.testing.assert_close(parts[0].total + parts[1].total, whole.total, rtol=1e-5, atol=1e-4)
    assert parts[0].count + parts[1].count == whole.count and "autoencode" in whole.metrics


def test_a_memory_of_the_whole_prompt_would_cost_nothing() -> None:
    """The teacher is what a perfect memory gives: its own KL is zero."""
    backbone = tiny_llama()
    part = shots(4).batch(2, 4, generator(1))
    b = 1
    length, U = int(part.length_B[b]), part.after_BU.shape[1]
    ids = torch.cat([part.source_BT[b, :length], part.after_BU[b, :1]])
    expected = backbone.model(input_ids=ids[None]).logits[0, -1]
    first = type(part)(
        part.source_BT,
        part.length_B,
        part.slots,
        part.after_BU,
        part.offset_BU,
        part.seen_BUU,
        torch.arange(U),
        part.target_BW,
    )
    torch.testing.assert_close(teacher_logits(backbone, first)[b, 0], expected, rtol=2e-5, atol=2e-5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(artifact, folder) of a finished tiny run."""
    folder = tmp_path_factory.mktemp("run")
    return train(recipe(), Here(folder)), folder


def test_law_6_what_is_saved_writes_the_same_memory(trained: tuple[Path, Path]) -> None:
    from memtoken_cli.engine import models

    path, folder = trained
    backbone = models.load(str(folder / "backbone"), device="cpu", dtype="float32")
    writer, about = open_compressor(path, backbone)
    again, _ = open_compressor(path, backbone)
    fresh = compressor(backbone, Config(**about["config"]), 0)
    ids, length_B = torch.randint(3, 30, (1, 24)), torch.tensor([24])
    with torch.no_grad():
        one, two, untrained = (w.write(ids, length_B, 6).row(backbone) for w in (writer, again, fresh))
    assert same(one, two) and not same(one, untrained)


def same(a: Layers, b: Layers) -> bool:
    pairs = zip(a.layers, b.layers, strict=True)
    return all(torch.equal(x.k_XD, y.k_XD) and torch.equal(x.v_XD, y.v_XD) for x, y in pairs)


def test_same_seed_same_bytes_and_a_finished_run_is_left_alone(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    path, folder = trained
    other = train(recipe(), Here(tmp_path))
    assert other.read_bytes() == path.read_bytes()
    assert (tmp_path / "events.jsonl").read_bytes() == (folder / "events.jsonl").read_bytes()
    here = Here(folder)
    stamp = path.stat().st_mtime_ns
    assert train(recipe(), here) == path and path.stat().st_mtime_ns == stamp
    assert any("already done" in note for note in here.notes)
    with pytest.raises(UsageError, match=r"memcom\.layers"):
        train(recipe("memcom.layers=last"), Here(folder))
    with pytest.raises(UsageError, match=r"pretrain belongs to another recipe: .*width"):
        train(recipe("model.width=32"), Here(folder))
    assert train(recipe("data.exam.tasks=7", "expect.over_none=0.5"), here) == path


@pytest.mark.parametrize("ratio", [1.0, 2.5, 4.0])
def test_law_9_a_budget_is_kept_in_every_layer_and_head(trained: tuple[Path, Path], ratio: float) -> None:
    from memtoken_cli.data.icl import TEMPLATE
    from memtoken_cli.data.render import Template
    from memtoken_cli.engine import models

    path, folder = trained
    backbone = models.load(str(folder / "backbone"), device="cpu", dtype="float32")
    prompt, queries = course_of(DataConfig.model_validate(recipe().data)).stream.task(5, 4, generator(2))
    tokens = len(render(prompt, Template(TEMPLATE), backbone.tokenizer).ids)
    method = MemCom()
    config = Config(compressor=str(path))
    made = method.compress(backbone, prompt, Budget(ratio=ratio), config, 0)
    assert isinstance(made.memory, Layers)
    assert {kv.sizes for kv in made.memory.layers} == {(int(tokens / ratio),) * 2}
    assert made.about["template"] == TEMPLATE and made.about["labels"] == list(prompt.labels)
    options = GenerateOptions(labels=prompt.labels)
    answers = list(method.answer(backbone, made.memory, made.about, [q.input for q in queries], options))
    assert len(answers) == len(queries) and all(a.output in prompt.labels for a in answers)


def test_a_compressor_belongs_to_its_model(trained: tuple[Path, Path]) -> None:
    path, _ = trained
    with pytest.raises(UsageError, match="was trained for backbone"):
        open_compressor(path, tiny_llama())


def test_what_compress_asks_for(trained: tuple[Path, Path], tmp_path: Path) -> None:
    from memtoken_cli.engine import models

    path, folder = trained
    backbone = models.load(str(folder / "backbone"), device="cpu", dtype="float32")
    prompt, _ = intents(6, 0)
    method, budget = MemCom(), Budget(ratio=2)
    with pytest.raises(UsageError, match="with a trained compressor"):
        method.compress(backbone, prompt, budget, Config(), 0)
    with pytest.raises(UsageError, match="layers is decided by"):
        method.compress(backbone, prompt, budget, Config(compressor=str(path), layers="last"), 0)
    with pytest.raises(DataError, match="do not fit the 128"):
        method.compress(backbone, intents(60, 0)[0], budget, Config(compressor=str(path)), 0)
    whole = save_model(tiny_llama(), tmp_path / "other")
    with pytest.raises((UsageError, DataError)):
        method.compress(backbone, prompt, budget, Config(compressor=str(whole / "model.safetensors")), 0)


def test_phase_one_alone_keeps_only_the_new_parts(tmp_path: Path) -> None:
    from memtoken_cli.io.artifact import read_header

    path = train(recipe("train.whole_steps=0"), Here(tmp_path))
    names = read_header(path).shapes
    assert "tokens_ME" in names and not any(name.startswith(("source.", "memory.")) for name in names)


def test_a_new_model_is_a_plain_model_directory(trained: tuple[Path, Path]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, folder = trained
    model = AutoModelForCausalLM.from_pretrained(folder / "backbone")
    tokenizer = AutoTokenizer.from_pretrained(folder / "backbone")
    vocabulary = course_of(DataConfig.model_validate(recipe().data)).stream.vocabulary
    assert model.config.vocab_size == len(vocabulary) and tokenizer.decode([5]) == vocabulary[5]
    ids: Tensor = tokenizer("word3 filler1 label0", return_tensors="pt").input_ids
    assert tokenizer.decode(ids[0]) == "<s> word3 filler1 label0"


def test_pretraining_goes_into_the_directory(tmp_path: Path) -> None:
    train(recipe("model.pretrain.steps=6"), Here(tmp_path))
    from memtoken_cli.engine import models

    backbone = models.load(str(tmp_path / "backbone"), device="cpu", dtype="float32")
    untrained = new_backbone(recipe().model, course_of(recipe().data).stream.vocabulary, 0)  # type: ignore[arg-type]
    assert backbone.fingerprint != untrained.fingerprint


RECIPES = Path(__file__).parents[2] / "recipes" / "memcom"


@pytest.mark.slow
def test_law_11_the_tiny_recipe_beats_what_it_says_it_beats(tmp_path: Path) -> None:
    tiny = load(RECIPES / "tiny.yaml")
    assert {"over_fewer", "over_none"} <= tiny.expect.keys() and min(tiny.expect.values()) > 0
    found = MemCom().evaluate(tiny, Here(tmp_path))
    assert all(found[name] >= wanted for name, wanted in tiny.expect.items()), found


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_read_without_its_model(path: Path) -> None:
    checked = load(path)
    assert checked.method == "memcom" and max(checked.data.counts) > 0


def test_a_bench_trains_its_variants_once_and_compares_them(tmp_path: Path) -> None:
    said = recipe("data.exam.variants=[soft, gist]", "data.exam.ratios=[2]", "train.steps=1")
    here = Here(tmp_path)
    rows = MemCom().bench([said], here)
    names = [row["method"] for row in rows]
    assert names == ["full", "none", "fewer", "memcom", "memcom-soft", "memcom-gist"]
    assert {row["ratio"] for row in rows} == {None, 2.0}
    folder = tmp_path / "runs" / "memcom-tiny"
    stamps = [(folder / name / "memory.safetensors").stat().st_mtime_ns for name in (".", "soft", "gist")]
    again = MemCom().bench([said], here)
    assert stamps == [
        (folder / name / "memory.safetensors").stat().st_mtime_ns for name in (".", "soft", "gist")
    ]
    assert [row["accuracy"] for row in again] == [row["accuracy"] for row in rows]


@pytest.mark.parametrize("shape", [{}, {"layers": "last"}, {"writer": "gist"}, {"start": "copy"}])
def test_a_half_precision_target_trains_a_compressor_too(shape: dict[str, str]) -> None:
    backbone = tiny_llama()
    backbone.model.to(torch.bfloat16)
    writer = compressor(backbone, Config.model_validate({"slots": 200} | shape), 0)
    task = Compression(backbone, writer, shots(4), TrainConfig(batch=2, ratios=(4,), autoencode=0.1))
    phase = task.phases()[-1]
    for parameter in phase.parameters.values():
        parameter.requires_grad_(True)
    loss = task.loss(task.batch(At(1, phase.name, 0, 1), generator(0)))
    loss.total.backward()
    assert bool(torch.isfinite(loss.total)) and loss.total.dtype == torch.float32
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in phase.parameters.values())
