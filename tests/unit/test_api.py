"""The Python front door: compress, load, attached, to_cache, answer, save; and another model's memory."""

import json
import shutil

import pytest
import torch
from cli_fixtures import memtok  # noqa: F401
from tiny import save, tiny_llama, tiny_qwen2
from tiny_prompt import LABELS, family, ids, records
from transformers import GenerationConfig

import memtoken_cli
from memtoken_cli.engine.method import GenerateOptions
from memtoken_cli.io.artifact import read_header
from memtoken_cli.io.errors import DataError, UsageError

EVEN = {"budget": "uniform", "bias": "none", "dtype": "float32"}
GREEDY = GenerationConfig(max_new_tokens=8, do_sample=False, eos_token_id=2, pad_token_id=0)


@pytest.fixture(scope="module")
def memory():
    return memtoken_cli.compress(records(), model=family("gqa"), ratio=4, options=EVEN)


def test_compress_takes_records_a_file_and_a_model_folder(tmp_path, memory):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records()))
    folder = str(save(tiny_llama(), tmp_path / "model"))
    found = memtoken_cli.compress(path, model=folder, ratio=4, options=EVEN | {"calibrate": "off"})
    assert found.memory.slots == memory.memory.slots == 382 // 4 == found.header.slots
    assert found.next_position == 382 and found.header.ratio == 4 and found.header.method == "compact"
    assert found.header.model is not None and found.header.model.name == folder
    if found.backbone.dtype == torch.float32:
        for a, b in zip(found.memory.layers, memory.memory.layers, strict=True):
            torch.testing.assert_close(a.v_XD, b.v_XD, atol=1e-4, rtol=1e-4)
    assert memtoken_cli.compress(records(), model=family("gqa"), slots=9).memory.slots == 9


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"ratio": 4, "slots": 3}, "not both|ratio or a number"),
        ({}, "ratio or a number"),
        ({"ratio": 0.5}, "below 1"),
        ({"ratio": 4, "method": "compcat"}, "compcat"),
    ],
)
def test_wrong_calls_are_usage_errors(given, error):
    with pytest.raises(UsageError, match=error):
        memtoken_cli.compress(records(), model=family("gqa"), **given)


def test_wrong_shots_are_data_errors():
    for bad in ([], records()[:1], [{"input": "a"}, {"input": "b", "output": "x"}]):
        with pytest.raises(DataError):
            memtoken_cli.compress(bad, model=family("gqa"), ratio=2)


def test_saved_and_loaded(tmp_path, memory):
    path = memory.save(tmp_path / "m.safetensors")
    back = memtoken_cli.load(path, model=family("gqa"))
    assert back.header.digest and back.next_position == memory.next_position
    for key, x in memory.memory.tensors().items():
        assert torch.equal(back.memory.tensors()[key], x)
    asked = ["where is it", "x"]
    for options in (None, GenerateOptions(labels=LABELS)):
        assert back.answer(asked, options) == memory.answer(asked, options)
    assert read_header(path).about["labels"] == sorted(LABELS)
    with pytest.raises(DataError):
        (tmp_path / "bad").write_bytes(path.read_bytes()[:-1])
        memtoken_cli.load(tmp_path / "bad", model=family("gqa"))


def test_attached_and_to_cache_say_the_same_in_stock_generate(memory):
    """As the documentation shows it, to the letter."""
    backbone, model = family("gqa"), family("gqa").model
    query = torch.tensor([ids(backbone, "Input: where is it\nOutput:")])
    with memory.attached(model):
        attached = model.generate(query, generation_config=GREEDY)
    cache = memory.to_cache(model)
    T, start = query.shape[1], memory.next_position
    cached = model.generate(
        query,
        cache=cache,
        position_ids=torch.arange(start, start + T)[None],
        attention_mask=torch.ones(1, cache.get_seq_length() + T, dtype=torch.long),
        generation_config=GREEDY,
    )
    assert torch.equal(attached, cached)
    plain = model.generate(query, attention_mask=torch.ones_like(query), generation_config=GREEDY)
    assert not torch.equal(plain, attached)
    with memory.attached() as same:
        assert same is model


def test_an_uneven_memory_names_the_option():
    uneven = memtoken_cli.compress(records(), model=family("gqa"), ratio=4)
    with pytest.raises(UsageError) as caught:
        uneven.to_cache()
    assert "budget=uniform bias=none" in (caught.value.hint or "")


def test_another_models_memory_is_refused(tmp_path, memory):
    path = memory.save(tmp_path / "m.safetensors")
    for other in (tiny_llama(seed=1), tiny_qwen2()):
        with pytest.raises(DataError, match="was made with tiny-llama, not with the weights"):
            memtoken_cli.load(path, model=other)
        with pytest.raises(DataError), memory.attached(other.model):
            pass
        with pytest.raises(DataError):
            memory.to_cache(other.model)
    other = tiny_llama()
    other.tokenizer.add_tokens(["memtok"])
    with pytest.raises(DataError, match="tokenizer"):
        memtoken_cli.load(path, model=other)
    assert memtoken_cli.load(path, model=tiny_llama()).next_position == memory.next_position


def test_the_command_refuses_another_models_memory(memtok, tmp_path, memory):  # noqa: F811
    path = str(memory.save(tmp_path / "m.safetensors"))
    other = str(save(tiny_llama(seed=1), tmp_path / "other"))
    ran = memtok("generate", "x", "--memory", path, "--model", other, "--device", "cpu")
    assert (ran.code, ran.out) == (3, b"") and "was made with tiny-llama" in ran.err
    right = str(save(tiny_llama(), tmp_path / "right"))
    ran = memtok("generate", "where is it", "--memory", path, "--model", right, "labels=memory", "--json")
    assert ran.code == 0 and json.loads(ran.out)["output"] in LABELS
    shutil.rmtree(tmp_path / "right")
    ran = memtok("generate", "x", "--memory", path, "--model", "./right")
    assert (ran.code, ran.out) == (2, b"") and "Traceback" not in ran.err
