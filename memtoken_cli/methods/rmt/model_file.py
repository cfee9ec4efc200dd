"""A trained policy as one artifact: its own tensors, and the weights that training moved or made.

memory.*, armt.*, lora.*     the policy's and the low-rank parts
weights.*                    the backbone's, where it was new or trained whole
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import Parameter
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from memtoken_cli.engine import models
from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.io import artifact
from memtoken_cli.io.artifact import Header, ModelRef
from memtoken_cli.io.errors import DataError
from memtoken_cli.methods.rmt.config import Config
from memtoken_cli.methods.rmt.lora import PREFIX, injected
from memtoken_cli.methods.rmt.policies import policy_for
from memtoken_cli.methods.rmt.policy import Policy
from memtoken_cli.recipe.schema import Recipe
from memtoken_cli.recipe.sections import NewModel

NAME = "rmt"
WEIGHTS = "weights."
SPECIAL = ("pad_token", "bos_token", "eos_token", "unk_token")


@dataclass(frozen=True)
class Model:
    """A trained policy around its backbone.

    digest: of the artifact it came from. own: what that holds, by its names. path: where it lies, "" where
    that is not known. sha256: of the file, where it was taken."""

    backbone: CausalLM
    policy: Policy
    config: Config
    about: Mapping[str, Any]
    digest: str
    own: Mapping[str, Tensor] = field(default_factory=dict)
    path: str = ""
    sha256: str = ""


def save(
    path: Path,
    backbone: CausalLM,
    policy: Policy,
    parameters: Mapping[str, Parameter],
    recipe: Recipe,
    report: Mapping[str, Any],
) -> None:
    """Write the artifact of a finished training."""
    # an imported checkpoint is another model than the one that is named
    new = isinstance(recipe.model, NewModel) or recipe.config.init is not None
    tensors = {name: x.detach() for name, x in {**policy.parameters(), **parameters}.items()}
    if new:
        tensors |= {f"{WEIGHTS}{name}": x.detach() for name, x in backbone.model.named_parameters()}
    about = {
        "policy": recipe.config.policy,
        "segment": recipe.config.segment,
        "width": backbone.dims.width,
        "config": recipe.config.model_dump(mode="json"),
        "task": recipe.own["task"].model_dump(mode="json", exclude_none=True),
        "data": recipe.data.model_dump(mode="json"),
        "seed": recipe.seed,
        "new": described(backbone) if new else None,
        "report": dict(report),
    }
    header = Header(
        method=NAME, kind="model", port="prefix", model=ModelRef.of(backbone), slots=recipe.config.slots,
        about=about,
    )  # fmt: skip
    artifact.write(path, tensors, header)


def described(backbone: CausalLM) -> dict[str, Any]:
    """What it takes to build a small model and its tokenizer again, as JSON."""
    tokenizer = backbone.tokenizer
    said = {name: getattr(tokenizer, name) for name in SPECIAL}
    return {
        "model": backbone.model.config.to_diff_dict() | {"model_type": backbone.model.config.model_type},
        "tokenizer": tokenizer.backend_tokenizer.to_str(),
        "special": said,
    }


def open_model(
    path: str | Path,
    device: str | None = None,
    model: str | None = None,
    trust_remote_code: bool = False,
    checked: bytes | None = None,
) -> Model:
    """The policy and backbone of an artifact; model: the language model, where it is not the header's.
    checked: its bytes, where they are known to be whole.

    Raises DataError where the file is not one, is damaged, or belongs to another model.
    """
    if checked is None:
        header, tensors = artifact.read(path)
    else:
        header, tensors = artifact.read_header(checked, name=str(path)), load(checked)
    if header.method != NAME or header.kind != "model":
        raise DataError(
            f"{path} holds a {header.kind} of {header.method}, not a trained recurrent memory",
            hint="the path that `memtok train recipes/rmt/tiny.yaml` printed",
        )
    found = rebuilt(str(path), header, tensors, device, model, trust_remote_code)
    return replace(found, path=str(path))


def rebuilt(
    path: str,
    header: Header,
    tensors: Mapping[str, Tensor],
    device: str | None,
    model: str | None = None,
    trust_remote_code: bool = False,
) -> Model:
    """`open_model` of what has been read already."""
    about = header.about
    config = Config.model_validate(about["config"])
    if about["new"] is not None:
        backbone = _made_again(about["new"], header.model.name if header.model else "new")
        backbone.model.to(models.pick_device(device))
    else:
        assert header.model is not None
        name = model or header.model.name
        backbone = models.load(name, device=device, trust_remote_code=trust_remote_code)
    own: dict[str, Parameter] = {}
    if any(name.startswith(PREFIX) for name in tensors):
        own |= injected(backbone, config.rank)
    own |= {
        f"{WEIGHTS}{name}": p
        for name, p in backbone.model.named_parameters()
        if f"{WEIGHTS}{name}" in tensors
    }
    rest = {name: x for name, x in tensors.items() if name not in own}
    _fill(path, header, backbone, own, {name: x for name, x in tensors.items() if name in own})
    policy = policy_for(backbone, config, int(about["seed"]))  # behind the weights: policies look at them
    _fill(path, header, backbone, policy.parameters(), rest)
    _check(path, header, backbone)
    return Model(backbone, policy, config, about, header.digest, own | dict(policy.parameters()))


@torch.no_grad()
def _fill(
    path: str,
    header: Header,
    backbone: CausalLM,
    own: Mapping[str, Parameter],
    tensors: Mapping[str, Tensor],
) -> None:
    """Put the tensors in their places. Raises DataError where they are others."""
    if own.keys() != tensors.keys() or any(own[n].shape != x.shape for n, x in tensors.items()):
        _check(path, header, backbone)  # the likelier reason
        raise DataError(f"{path}: the tensors are not those of its configuration", hint="train it again")
    for name, x in tensors.items():
        own[name].copy_(x)
        own[name].requires_grad_(False)


def _check(path: str, header: Header, backbone: CausalLM) -> None:
    """Raises DataError unless the model, its trained weights in place, is the one that was saved."""
    if header.model is not None:
        header.model.check(backbone, path, hint=f"--model {header.model.name}")


def _made_again(said: Mapping[str, Any], name: str) -> CausalLM:
    config = AutoConfig.for_model(**said["model"])
    network = AutoModelForCausalLM.from_config(config)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(said["tokenizer"]),
        clean_up_tokenization_spaces=False,
        **said["special"],
    )
    return CausalLM(network, tokenizer, name)
