"""A model under an adapter: what it is known by, banks that are made under it, and none is read without."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from cli_fixtures import Memtok
from tiny import save, tiny_llama
from tiny_bank import Run

from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.engine.models import load as load_model
from memtoken_cli.io.errors import DataError, UsageError
from memtoken_cli.methods.tokmem import adapter
from memtoken_cli.methods.tokmem import train as training
from memtoken_cli.methods.tokmem.api import TokMem
from memtoken_cli.methods.tokmem.bank import Bank
from memtoken_cli.recipe.schema import load

peft = pytest.importorskip("peft")


def make(folder: Path, seed: int = 0) -> Path:
    """A LoRA of tiny-llama that does something, as `peft` writes it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"])
        model = peft.get_peft_model(tiny_llama().model, config)
        for name, p in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p, std=0.5)
        model.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models in float32 on any machine: a merge is rounded otherwise."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    return make(tmp_path / "lora")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("first", "last", "more"):
        lines = [json.dumps({"input": f"{name} {i} of it", "output": f"{name[0]}{i}"}) for i in range(12)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def bank(memtok: Memtok, data: Path, lora: Path, tmp_path: Path) -> str:
    """Of two procedures under the adapter, in the empty directory that memtok runs in."""
    save(tiny_llama(), tmp_path / "model")
    Path("small.yaml").write_text(
        "method: tokmem\nmodel: {name: model}\ndata: {path: data, tasks: [first, last]}\n"
        "tokmem: {prompt: query}\ntrain: {epochs: 1}\n"
    )
    ran = memtok("train", "small.yaml", "tokmem.adapter=lora", "--out", "run")
    assert ran.code == 0, ran.err
    return ran.text.strip()


def logits(backbone: CausalLM) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = backbone.model(torch.arange(1, 9)[None]).logits
    return found


def test_a_worn_adapter_is_pefts_own_and_the_model_keeps_its_name(lora: Path) -> None:
    backbone = tiny_llama()
    before = {name: x.clone() for name, x in backbone.model.state_dict().items()}
    adapter.wear(backbone, lora)
    after = backbone.model.state_dict()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert before.keys() == after.keys() and len(changed) == 4
    assert all("q_proj" in name or "v_proj" in name for name in changed)
    assert not any(p.requires_grad for p in backbone.model.parameters())
    with torch.no_grad():
        stock = peft.PeftModel.from_pretrained(tiny_llama().model, lora)
        wanted = stock(torch.arange(1, 9)[None]).logits
    assert torch.allclose(logits(backbone), wanted, atol=1e-4)
    assert backbone.fingerprint == tiny_llama().fingerprint
    assert adapter.worn(backbone) == adapter.digest(lora) and adapter.worn(tiny_llama()) is None
    adapter.wear(backbone, lora)
    assert torch.allclose(logits(backbone), wanted, atol=1e-4), "it is put on once"


def test_digests_tell_adapters_apart(lora: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "other", seed=1)
    again = Path(shutil.copytree(lora, tmp_path / "again"))
    told = json.loads((again / adapter.CONFIG).read_text())
    (again / adapter.CONFIG).write_text(json.dumps(told | {"base_model_name_or_path": "elsewhere"}))
    assert adapter.digest(again) == adapter.digest(lora) != adapter.digest(other)
    (again / adapter.CONFIG).write_text(json.dumps(told | {"lora_alpha": 8}))
    assert adapter.digest(again) != adapter.digest(lora)


def test_what_is_no_adapter(lora: Path, tmp_path: Path) -> None:
    backbone = tiny_llama()
    adapter.wear(backbone, lora)
    with pytest.raises(UsageError, match="wears the adapter"):
        adapter.wear(backbone, make(tmp_path / "other", seed=1))
    with pytest.raises(UsageError, match="holds no adapter"):
        adapter.wear(tiny_llama(), tmp_path)
    with pytest.raises(UsageError, match="does not fit"):
        adapter.wear(tiny_llama(kv_heads=4), lora)
    told = json.loads((lora / adapter.CONFIG).read_text())
    (lora / adapter.CONFIG).write_text(json.dumps(told | {"peft_type": "PROMPT_TUNING"}))
    with pytest.raises(UsageError, match="is an adapter of PROMPT_TUNING"):
        adapter.digest(lora)


def test_a_bank_under_an_adapter_is_that_of_the_merged_model(bank: str, lora: Path, tmp_path: Path) -> None:
    merged = peft.PeftModel.from_pretrained(tiny_llama().model, lora).merge_and_unload()
    save(CausalLM(merged, tiny_llama().tokenizer, "merged"), tmp_path / "merged")
    wanted = Bank.load(training.train(load("small.yaml", ["model.name=merged"]), Run(tmp_path / "of-merged")))
    found = Bank.load(bank)
    assert torch.equal(found.control_PkE, wanted.control_PkE)
    for a, b in zip(found.sites["first"].moments, wanted.sites["first"].moments, strict=True):
        assert torch.equal(a.mean_CD, b.mean_CD)
    assert found.meta.adapter == adapter.digest(lora) and wanted.meta.adapter is None
    assert found.model is not None and found.model.fingerprint == tiny_llama().fingerprint
    assert found.block_ids != wanted.block_ids
    with pytest.raises(UsageError, match="differ in"):
        found.merge([wanted])


def test_it_is_read_under_the_same_adapter_alone(memtok: Memtok, bank: str, lora: Path) -> None:
    line = ("generate", "first 3 of it", "--memory", bank, "max_new_tokens=3")
    wanted = memtok(*line)
    assert wanted.code == 0, wanted.err
    lora.rename("moved")
    ran = memtok(*line)
    assert ran.code == 3 and "under the adapter" in ran.err and "adapter=DIR" in ran.err
    assert memtok(*line, "adapter=moved").out == wanted.out
    make(Path("other"), seed=1)
    ran = memtok(*line, "adapter=other")
    digests = [adapter.digest(folder)[:12] for folder in ("moved", "other")]
    assert (ran.code, ran.out) == (3, b"") and all(digest in ran.err for digest in digests)
    assert memtok(*line, "adapter=nowhere").code == 2
    with pytest.raises(DataError, match="not under no adapter"):
        TokMem(load_model("model", "cpu"), Bank.load(bank))


def test_a_bank_without_one_wants_none(memtok: Memtok, bank: str) -> None:
    ran = memtok("train", "small.yaml", "--out", "bare")
    line = ("generate", "first 3 of it", "--memory", ran.text.strip(), "max_new_tokens=3")
    assert memtok(*line).code == 0
    ran = memtok(*line, "adapter=lora")
    assert ran.code == 3 and "made under no adapter" in ran.err


def test_verbs_of_banks_and_measures_wear_it_too(memtok: Memtok, bank: str, lora: Path) -> None:
    assert memtok("bank", "verify", bank, "--model", "model").code == 0
    line = ("bank", "add", bank, "--data", "data", "tasks=1", "--out", "grown")
    Path("data/first.jsonl").unlink()
    Path("data/last.jsonl").unlink()
    ran = memtok(*line)
    assert ran.code == 0, ran.err
    grown = Bank.load("grown")
    assert grown.names == ("first", "last", "more") and grown.meta.adapter == adapter.digest(lora)
    lora.rename("moved")
    for argv in (
        ("bank", "verify", bank, "--model", "model"),
        ("bank", "add", bank, "--data", "data", "--out", "again"),
        ("evaluate", "grown", "--data", "data", "max_new_tokens=2"),
    ):
        ran = memtok(*argv)
        assert ran.code == 3 and "under the adapter" in ran.err, ran.err
        ran = memtok(*argv, "adapter=moved")
        assert ran.code == 0, ran.err
    ran = memtok("bank", "remove", bank, "first", "--out", "x", "adapter=moved")
    assert ran.code == 2 and "adapter= belongs to add" in ran.err


def test_a_bench_compares_under_the_adapter(memtok: Memtok, bank: str) -> None:
    keys = ("data.bench.rows=[base,lora-r1,tokmem-lda]", "data.bench.seeds=1", "data.bench.epochs=1")
    more = ("data.bench.tests=2", "data.bench.max_new_tokens=2", "data.bench.rates=[1e-3]", "--json")
    said = []
    for worn in (("tokmem.adapter=lora",), ()):
        ran = memtok("bench", "small.yaml", *worn, *keys, *more)
        assert ran.code == 0, ran.err
        said.append({row["method"]: row for row in json.loads(ran.text)["rows"]})
    assert said[0].keys() == said[1].keys() == {"base", "lora-r1", "tokmem-lda"}
    assert len(list(Path("runs/tokmem-small").glob("bench-*"))) == 2, "each has sheets of its own"
