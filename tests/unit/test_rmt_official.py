"""Checkpoints with the official key names: what they compute and hold, what is refused, and back again."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rmt_policies import gentle, rows
from safetensors.torch import load_file, save_file
from tiny import save as save_model
from tiny import tiny_gpt2
from torch import nn

from memtoken_cli.io.errors import DataError, UsageError
from memtoken_cli.methods.rmt import official
from memtoken_cli.methods.rmt.model_file import open_model
from memtoken_cli.methods.rmt.policies import policy_for
from memtoken_cli.methods.rmt.run import built, train
from memtoken_cli.recipe.schema import Recipe, parse

S, M, D_MEM = 5, 3, 8
MODEL = "memory_cell.model."


class Layer(nn.Module):
    """A decoder layer and its associative memory, named as in the ARMT authors' code."""

    def __init__(self, layer, width):
        super().__init__()
        self.layer = layer
        self.W_mq = nn.Linear(width, D_MEM, bias=False)
        self.W_mk = nn.Linear(width, D_MEM, bias=False)
        self.W_mv = nn.Linear(width, width, bias=False)
        self.W_mb = nn.Linear(width, 1)
        self.A = self.z = None

    def phi(self, x):
        y = torch.cat([x.relu(), (-x).relu()], -1)
        return nn.functional.normalize(torch.cat([y * y.roll(j, -1) for j in (1, 2, 3)], -1), dim=-1)

    def forward(self, h, *args, **named):
        if self.A is not None:
            q = self.phi(self.W_mq(h))
            h = h + (q @ self.A) / ((q * self.z[:, None]).sum(-1, keepdim=True) + 1e-5)
        out = self.layer(h, *args, **named)
        w = out[:, -M:]
        k, v, b = self.phi(self.W_mk(w)), self.W_mv(w), self.W_mb(w).sigmoid()
        g = torch.ones_like(b)
        if self.A is None:
            self.A, self.z = torch.zeros(len(w), k.shape[2], w.shape[2]), torch.zeros(len(w), k.shape[2])
        else:
            below = (k * self.z[:, None]).sum(-1, keepdim=True)
            v = v - (k @ self.A) / (below + 1e-5)
            g = (1 - below / (k.square().sum(-1, keepdim=True) + 1e-5)).clamp(0, 1)
        self.A, self.z = self.A + (b * k).transpose(1, 2) @ v, self.z + (g * k).sum(1)
        return out


class Cell(nn.Module):
    """The wrapper `memory_cell`: memory tokens around, or for armt behind, a model's input."""

    def __init__(self, kind, wrapped=False):
        super().__init__()
        self.model = gentle(tiny_gpt2(seed=7, context=24)).model
        self.memory = nn.Parameter(torch.randn(M, 32))
        self.armt, self.wrapped = kind == "armt", wrapped
        if self.armt:
            for i, layer in enumerate(self.model.transformer.h):
                self.model.transformer.h[i] = Layer(layer, 32)
        if wrapped:
            old, new = self.model.transformer.wpe, nn.Embedding(24 + M, 32)
            new.weight.data[:24] = old.weight.data
            self.model.transformer.wpe = new

    def forward(self, ids, memory):
        n, text = ids.shape[1], self.model.get_input_embeddings()(ids)
        x = torch.cat([text, memory] if self.armt else [memory, text, memory], 1)
        position, T = torch.arange(x.shape[1]), x.shape[1]
        if self.wrapped:
            position[n:] = torch.arange(24, 24 + M)
        mask = torch.full((1, 1, T, T), torch.finfo(torch.float32).min).triu(1)
        out = self.model.transformer(inputs_embeds=x, position_ids=position[None], attention_mask=mask)
        h = out.last_hidden_state
        start = 0 if self.armt else M
        return self.model.lm_head(h[:, start : start + n]), memory if self.armt else h[:, -M:]


def checkpoint(folder: Path, kind: str, wrapped: bool = False, seed: int = 0) -> tuple[Cell, Path]:
    """A random one, and its file."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        cell = Cell(kind, wrapped).requires_grad_(False).eval()
    tensors = {f"memory_cell.{name}": x.clone() for name, x in cell.state_dict().items()}
    save_file(tensors, folder / "official.safetensors")
    return cell, folder / "official.safetensors"


NEW = "{new: gpt2, layers: 2, width: 32, heads: 4, vocab: 64, context: 24}"


def recipe(path: Path, kind: str, *overrides: str, leave: str = "", model: str = NEW) -> Recipe:
    """A recipe over another model of the same size."""
    said = {"policy": kind, "segment": S, "mask": "causal", "init": path}
    section = ", ".join(f"{key}: {value}" for key, value in said.items() if key != leave)
    text = f"method: rmt\nmodel: {model}\ntask: {{name: copy, length: 4}}\nrmt: {{{section}}}\n"
    return parse(text + "train: {steps: 1, batch: 2, lr: 1e-9}\n", "official.yaml", overrides)


@torch.no_grad()
def reads(policy, ids):
    """(logits, the last state) of full segments and a short tail."""
    state, logits = policy.start(len(ids)), []
    for part in ids.split(S, 1):
        n = part.shape[1]
        out, state = policy.segment(part, torch.full((len(ids),), n), state, torch.arange(n))
        logits.append(out)
    return torch.cat(logits, 1), state


KINDS = [("rmt", False), ("armt", False), ("armt", True)]
kinds = pytest.mark.parametrize(("kind", "wrapped"), KINDS, ids=["rmt", "armt", "armt-wrapped"])


@kinds
def test_a_checkpoint_computes_what_it_did(kind, wrapped, tmp_path):
    cell, path = checkpoint(tmp_path, kind, wrapped)
    bench = built(recipe(path, kind), "cpu")
    assert bench.config.slots == M
    assert bench.config.positions == ("wrapped" if wrapped else "contiguous")
    assert bench.config.state_norm == "final"
    ids = torch.tensor(rows((13, 13)))
    logits, state = reads(bench.policy, ids)
    memory, expected = cell.memory.expand(2, -1, -1), []
    for part in ids.split(S, 1):
        out, memory = cell(part, memory)
        expected.append(out)
    torch.testing.assert_close(logits, torch.cat(expected, 1), atol=1e-5, rtol=1e-5)
    if kind == "rmt":
        torch.testing.assert_close(state[0], memory, atol=1e-5, rtol=1e-5)
        return
    for layer, wrapper in enumerate(cell.model.transformer.h):
        torch.testing.assert_close(state[0][:, layer], wrapper.A, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(state[1][:, layer], wrapper.z, atol=1e-5, rtol=1e-5)


@kinds
def test_export_and_back_is_the_same_bytes(kind, wrapped, tmp_path):
    cell, path = checkpoint(tmp_path, kind, wrapped)
    bench = built(recipe(path, kind), "cpu")
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    first.write_bytes(official.export(bench.backbone, bench.policy))
    again = built(recipe(first, kind), "cpu")
    second.write_bytes(official.export(again.backbone, again.policy))
    assert first.read_bytes() == second.read_bytes()
    given, written = load_file(path), load_file(first)
    assert given.keys() - written.keys() == {MODEL + "lm_head.weight"}, "it is wte"
    assert all(torch.equal(x, given[name]) for name, x in written.items())
    assert all(torch.equal(x, cell.state_dict()[n.removeprefix("memory_cell.")]) for n, x in written.items())


def test_the_neurips_memory_alone(tmp_path):
    memory = torch.randn(M, 1, 32)
    save_file({"mem_tokens": memory, "layers.0.whatever": torch.ones(2)}, tmp_path / "old.safetensors")
    said = recipe(tmp_path / "old.safetensors", "rmt", "rmt.mask=blocks")
    bench = built(said, "cpu")
    assert torch.equal(bench.policy.parameters()["memory.init_MD"], memory[:, 0])
    assert bench.config.slots == M and bench.config.mask == "blocks"
    untouched = built(replace(said, config=said.config.model_copy(update={"init": None, "slots": M})), "cpu")
    for name, x in untouched.backbone.model.state_dict().items():
        assert torch.equal(bench.backbone.model.state_dict()[name], x), name


@pytest.mark.parametrize("named", [False, True])
@kinds
def test_a_trained_artifact_needs_the_checkpoint_no_more(kind, wrapped, named, tmp_path):
    class Here:
        out, fresh, device = tmp_path / "run", False, "cpu"

        def note(self, text):
            pass

    _, path = checkpoint(tmp_path, kind, wrapped)
    folder = save_model(tiny_gpt2(seed=1, context=24), tmp_path / "base") if named else None
    said = recipe(path, kind, model=f"{{name: {folder}}}" if named else NEW)
    made = train(said, Here())
    expected = reads(built(said, "cpu").policy, torch.tensor(rows((13, 13))))
    path.unlink()
    opened = open_model(made, "cpu")
    assert (opened.config.slots, opened.config.positions == "wrapped") == (M, wrapped)
    logits, state = reads(opened.policy, torch.tensor(rows((13, 13))))
    torch.testing.assert_close(logits, expected[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state[0], expected[1][0], atol=1e-5, rtol=1e-5)


def changed(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_what_old_versions_wrote_beside_the_weights_is_passed_over(tmp_path):
    _, path = checkpoint(tmp_path, "armt")
    name = MODEL + "transformer.h.0.layer.attn."
    changed(
        path,
        lambda t: t.update({name + "bias": torch.ones(1, 1, 24, 24), name + "masked_bias": torch.ones(1)}),
    )
    built(recipe(path, "armt"), "cpu")


def without(name):
    return lambda tensors: tensors.pop(name)


def plus(name, *shape):
    return lambda tensors: tensors.update({name: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (without("memory_cell.memory"), "no memory in it"),
        (plus("memory_cell.memory", M, 1, 2, 32), r"\[m,d\]"),
        (without(MODEL + "transformer.ln_f.bias"), r"misses memory_cell.model.transformer.ln_f.bias"),
        (plus("memory_cell.sink", 1, 32), r"has memory_cell.sink"),
        (plus(MODEL + "transformer.ln_f.bias", 31), r"ln_f.bias is \[31\], not \[32\]"),
        (plus("memory_cell.memory", M, 16), r"memory_cell.memory is \[3, 16\], not \[3, 32\]"),
        (plus(MODEL + "lm_head.weight", 64, 32), "has memory_cell.model.lm_head.weight"),
        (plus(MODEL + "transformer.wpe.weight", 26, 32), "26 positions, .* has 24"),
    ],
)
def test_other_files_are_refused(change, told, tmp_path):
    _, path = checkpoint(tmp_path, "rmt")
    changed(path, change)
    with pytest.raises(DataError, match=told) as error:
        built(recipe(path, "rmt"), "cpu")
    assert error.value.exit_code == 3


HARMLESS = ("text", "missing")


@pytest.mark.parametrize("kind", ["zip", "legacy", "plain", *HARMLESS])
def test_pickles_are_never_opened(kind, tmp_path):
    path = tmp_path / "model.bin"

    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "exploded",)

    if kind in ("zip", "legacy"):
        torch.save({"memory_cell.memory": Bomb()}, path, _use_new_zipfile_serialization=kind == "zip")
    elif kind == "plain":
        path.write_bytes(pickle.dumps(Bomb()))
    elif kind == "text":
        path.write_text("no tensors")
    with pytest.raises(DataError) as error:
        built(recipe(path, "rmt"), "cpu")
    assert error.value.exit_code == 3
    assert ("a pickle" in str(error.value)) == ("save_file" in str(error.value)) == (kind not in HARMLESS)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("kind", "overrides", "leave", "told"),
    [
        ("rmt", ["rmt.policy=armt"], "", "memory of rmt, not of armt"),
        ("armt", ["rmt.policy=rmt"], "", "memory of armt, not of rmt"),
        ("rmt", ["rmt.slots=4"], "", "rmt.slots=4, but .* has 3"),
        ("armt", ["rmt.d_mem=9"], "", "rmt.d_mem=9, but .* has 8"),
        ("rmt", [], "segment", "does not say its segment"),
        ("rmt", [], "mask", "does not say its mask"),
        ("rmt", ["rmt.segment=19"], "", "positions up to 24 do not fit the model's 24"),
    ],
)
def test_what_does_not_fit_is_told(kind, overrides, leave, told, tmp_path):
    _, path = checkpoint(tmp_path, kind)
    with pytest.raises(UsageError, match=told):
        built(recipe(path, kind, *overrides, leave=leave), "cpu")


def test_a_recipe_that_says_more_is_followed(tmp_path):
    _, path = checkpoint(tmp_path, "rmt")
    said = recipe(path, "rmt", "rmt.positions=pinned", "rmt.state_norm=matched", f"rmt.slots={M}")
    config = built(said, "cpu").config
    assert (config.positions, config.state_norm) == ("pinned", "matched")


def test_wrapped_text_leaves_the_write_positions_alone(tmp_path):
    _, path = checkpoint(tmp_path, "armt", wrapped=True)
    built(recipe(path, "armt", "rmt.segment=24"), "cpu")
    with pytest.raises(UsageError, match="positions"):
        built(recipe(path, "armt", "rmt.segment=25"), "cpu")
    with pytest.raises(UsageError, match=r"rmt.positions=pinned, but .* has wrapped"):
        built(recipe(path, "armt", "rmt.positions=pinned"), "cpu")


@pytest.mark.parametrize(
    ("options", "told"),
    [(["rmt.state_norm=matched"], "memory.gain_D"), (["rmt.policy=prmt"], "memory.init_LMD")],
)
def test_what_the_official_code_has_not_is_not_exported(options, told, tmp_path):
    _, path = checkpoint(tmp_path, "rmt")
    bench = built(recipe(path, "rmt"), "cpu")
    config = parse(
        "method: rmt\nmodel: {name: x}\ntask: {name: copy}\nrmt: {slots: 3, segment: 5}\n", "x", options
    )
    with pytest.raises(UsageError, match=told):
        official.export(bench.backbone, policy_for(bench.backbone, config.config, 0))
