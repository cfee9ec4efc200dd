"""Checkpoints of the papers' own code by their key names, in (`rmt.init`) and out (`export.py`).

    memory_cell.memory [m,d]                    the wrapper's memory: memory.init_MD
    memory_cell.model.NAME                      its backbone
    memory_cell.model.LAYERS.i.layer.NAME       the same below an associative layer (ARMT)
    memory_cell.model.LAYERS.i.W_mq.weight ..   armt.i.q and so on
    mem_tokens [m,1,d]                          the NeurIPS code's memory; nothing else is read of such a file

m and d_mem come from the shapes. An ARMT whose `wpe` has m rows more than its model's was trained with its
memory tokens at those last positions (`positions: wrapped`). The segment's length and the mask are in no
file. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.io.errors import DataError, UsageError
from memtoken_cli.methods.rmt.config import Config
from memtoken_cli.methods.rmt.lora import LOW_RANK
from memtoken_cli.methods.rmt.policy import Policy

MEMORY, MODEL, NEURIPS = "memory_cell.memory", "memory_cell.model.", "mem_tokens"
PARTS = {"q": "W_mq.weight", "k": "W_mk.weight", "v": "W_mv.weight", "b": "W_mb.weight", "bias": "W_mb.bias"}
POSITIONS = "transformer.wpe"
# what old versions of transformers kept beside the weights
BUFFERS = re.compile(r"\.attn\.(masked_)?bias$|\.rotary_emb\.inv_freq$")
PICKLE = (b"PK\x03\x04", b"\x80")  # torch.save's, of today and of old


@dataclass(frozen=True)
class Official:
    """A checkpoint's tensors by their official names."""

    path: str
    tensors: Mapping[str, Tensor]

    @property
    def memory_MD(self) -> Tensor:
        return self.tensors[MEMORY] if MEMORY in self.tensors else self.tensors[NEURIPS].squeeze(1)

    @property
    def slots(self) -> int:
        return self.memory_MD.shape[0]

    @property
    def d_mem(self) -> int | None:
        """The associative width; None where there is no associative memory."""
        found = [x.shape[0] for name, x in self.tensors.items() if name.endswith("." + PARTS["q"])]
        return found[0] if found else None

    def fitted(self, backbone: CausalLM, config: Config) -> tuple[CausalLM, Config]:
        """The backbone with as many positions as the file has, and the configuration with what the file and
        the code behind it say; what the recipe says itself must agree. Raises UsageError, DataError."""
        policy = "rmt" if self.d_mem is None else "armt"
        if config.policy != policy:
            raise UsageError(
                f"{self.path} holds a memory of {policy}, not of {config.policy}", hint=f"rmt.policy={policy}"
            )
        missing = [key for key in ("segment", "mask") if key not in config.model_fields_set]
        if missing:
            raise UsageError(
                f"{self.path} does not say its {' and '.join(missing)}",
                hint="rmt.segment=S rmt.mask=causal or blocks; of the authors' input size S is what 2m leave",
            )
        extra = self._extra(backbone)
        if extra:
            backbone = _widened(backbone, extra)
        fixed: dict[str, object] = {"slots": self.slots}
        if self.d_mem is not None:
            fixed["d_mem"] = self.d_mem
        if extra:
            fixed["positions"] = "wrapped"
        for key, value in fixed.items():
            if key in config.model_fields_set and getattr(config, key) != value:
                raise UsageError(
                    f"rmt.{key}={getattr(config, key)}, but {self.path} has {value}",
                    hint=f"leave rmt.{key} out",
                )
        usual = {"state_norm": "final", "positions": "contiguous"}  # of the authors' code
        unsaid = {key: value for key, value in usual.items() if key not in config.model_fields_set}
        return backbone, Config.model_validate(config.model_dump() | unsaid | fixed)

    def _extra(self, backbone: CausalLM) -> int:
        """Positions that the file has and the model has not: none or m."""
        places = self.tensors.get(f"{MODEL}{POSITIONS}.weight")
        own = dict(backbone.model.named_parameters()).get(f"{POSITIONS}.weight")
        if places is None or own is None or places.shape == own.shape:
            return 0
        extra = places.shape[0] - own.shape[0]
        if self.d_mem is None or extra != self.slots:
            raise DataError(
                f"the file has {places.shape[0]} positions, {backbone.name} has {own.shape[0]}",
                where=self.path,
            )
        return extra

    def put(self, backbone: CausalLM, policy: Policy) -> None:
        """Copy everything into its place. Raises DataError where names or shapes differ."""
        targets = named(backbone, policy)
        found = {name: x for name, x in self.tensors.items() if not BUFFERS.search(name)}
        if MEMORY not in found:
            found = {MEMORY: self.memory_MD}
        if not any(name.startswith(MODEL) for name in found):
            targets = {MEMORY: targets[MEMORY]}
        for name, tied in _tied(backbone).items():
            if name in found and tied in found and torch.equal(found[name], found[tied]):
                del found[name]
        for name in [*(targets.keys() - found.keys()), *(found.keys() - targets.keys())]:
            there = "misses" if name in targets else "has"
            raise DataError(f"the checkpoint {there} {name}, {backbone.name} does not", where=self.path)
        with torch.no_grad():
            for name, x in found.items():
                if targets[name].shape != x.shape:
                    raise DataError(
                        f"{name} is {list(x.shape)}, not {list(targets[name].shape)} as in {backbone.name}",
                        where=self.path,
                    )
                targets[name].copy_(x)


def digest(path: str | Path) -> str:
    """sha256 of the file. Raises DataError where it is not there."""
    return hashlib.sha256(_bytes(path)).hexdigest()


def read(path: str | Path) -> Official:
    """Raises DataError: not there, a pickle, or not such a checkpoint."""
    data = _bytes(path)
    if data.startswith(PICKLE):
        raise DataError(
            "a pickle, which can run any code when it is opened",
            hint="where you trust it: torch.load(FILE, weights_only=True), then safetensors.torch.save_file",
            where=str(path),
        )
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise DataError(f"not a safetensors file: {error}", where=str(path)) from None
    found = Official(str(path), tensors)
    memory = tensors.get(MEMORY, tensors.get(NEURIPS))
    if memory is None:
        raise DataError(f"no memory in it: neither {MEMORY} nor {NEURIPS}", where=str(path))
    if found.memory_MD.dim() != 2:
        raise DataError(f"its memory is {list(memory.shape)}, not [m,d] or [m,1,d]", where=str(path))
    return found


def _bytes(path: str | Path) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", hint="rmt.init=FILE.safetensors") from None


def export(backbone: CausalLM, policy: Policy) -> bytes:
    """A file of rmt or armt under the official names; the same weights give the same bytes.

    Raises UsageError for what the official code has not: another policy, a learned gain, low-rank parts."""
    own = policy.parameters()
    known = {"memory.init_MD"} | {name for name in own if name.startswith("armt.")}
    if "memory.init_MD" not in own or own.keys() != known:
        other = ", ".join(sorted(own.keys() - known)) or "no memory"
        raise UsageError(
            f"the official code has no place for {other}", hint="rmt or armt with rmt.state_norm=final"
        )
    if any(LOW_RANK in name for name, _ in backbone.model.named_parameters()):
        raise UsageError(
            "the official code has no place for low-rank parts", hint="rmt.trained=all or memory"
        )
    tensors = {name: x.detach().cpu().contiguous() for name, x in named(backbone, policy).items()}
    return save(tensors, metadata={"format": "pt"})


def named(backbone: CausalLM, policy: Policy) -> dict[str, nn.Parameter]:
    """Every parameter by its official name."""
    own = policy.parameters()
    associative = any(name.startswith("armt.") for name in own)
    layers = next(name for name, x in backbone.model.named_modules() if x is backbone.layers) + "."
    found = {MEMORY: own["memory.init_MD"]}
    for name, parameter in backbone.model.named_parameters():
        if associative and name.startswith(layers):
            number, _, rest = name.removeprefix(layers).partition(".")
            name = f"{layers}{number}.layer.{rest}"
        found[MODEL + name] = parameter
    if associative:
        for number in range(len(backbone.layers)):
            for short, long in PARTS.items():
                found[f"{MODEL}{layers}{number}.{long}"] = own[f"armt.{number}.{short}"]
    return found


def _tied(backbone: CausalLM) -> dict[str, str]:
    """Official names that a file may have besides: of weights that are another's."""
    names = {x.data_ptr(): name for name, x in backbone.model.named_parameters()}
    return {
        MODEL + name: MODEL + names[x.data_ptr()]
        for name, x in backbone.model.state_dict().items()
        if names.get(x.data_ptr(), name) != name
    }


def _widened(backbone: CausalLM, extra: int) -> CausalLM:
    """The same model with room for `extra` positions more behind its own."""
    model = backbone.model
    old = model.get_submodule(POSITIONS).weight
    parent, _, leaf = POSITIONS.rpartition(".")
    new = nn.Embedding(old.shape[0] + extra, old.shape[1], device=old.device, dtype=old.dtype)
    with torch.no_grad():
        new.weight[: old.shape[0]] = old
        new.weight[old.shape[0] :] = 0
    setattr(model.get_submodule(parent), leaf, new)
    model.config.n_positions = new.num_embeddings
    return CausalLM(model, backbone.tokenizer, backbone.name)
