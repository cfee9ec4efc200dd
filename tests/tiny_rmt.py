"""Trained recurrent memories without a training: a byte-level model of random weights, as an artifact."""

from pathlib import Path

import torch

from memtoken_cli.methods.rmt import model_file
from memtoken_cli.methods.rmt.model_file import Model
from memtoken_cli.methods.rmt.run import built, trainable
from memtoken_cli.recipe.schema import load

RECIPE = """
method: rmt
model: MODEL
task: {name: text}
data: {path: PATH}
rmt: {slots: 2, segment: 16}
"""
NEW = "{new: llama, layers: 2, width: 16, heads: 2, ffn: 32, context: 128}"


def artifact(folder: Path, *overrides: str, model: str = NEW) -> Path:
    """The path of a model as `memtok train` would leave it. model: the recipe's."""
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / "some.txt"
    text.write_text("some text to train on, which nobody does\n" * 600)
    recipe = folder / "tiny.yaml"
    recipe.write_text(RECIPE.replace("PATH", str(text)).replace("MODEL", model))
    said = load(str(recipe), list(overrides))
    bench = built(said, "cpu")
    with torch.no_grad():
        for parameter in bench.policy.parameters().values():
            parameter.add_(0.1)  # what is zero before training would hide mistakes
    path = folder / "memory.safetensors"
    parameters = trainable(bench.backbone, bench.policy, bench.config)
    model_file.save(path, bench.backbone, bench.policy, parameters, said, {})
    return path


def of_folder(folder: Path, language_model: Path, *overrides: str) -> Path:
    """A memory for a language model that stays where it is: only the memory was trained."""
    return artifact(folder, "rmt.trained=memory", *overrides, model=f"{{name: {language_model}}}")


def model(folder: Path, *overrides: str) -> Model:
    """The same, opened."""
    return model_file.open_model(artifact(folder, *overrides), "cpu")
