"""A LoRA adapter that a backbone wears: a folder that `peft` wrote, merged into the weights.

The backbone's fingerprint stays that of the model by itself; what it wears is told by the adapter's own
digest. A bank that was made under an adapter is worthless without it: the two are checked together.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from weakref import WeakKeyDictionary

from transformers import PreTrainedModel

from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.io.errors import DataError, UsageError
from memtoken_cli.methods.tokmem.extras import need_peft
from memtoken_cli.methods.tokmem.meta import Meta

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ELSEWHERE = frozenset({"base_model_name_or_path", "revision", "inference_mode"})  # no part of what it does
NOTE = "adapter"  # where a bank's notes keep the folder

_WORN: WeakKeyDictionary[PreTrainedModel, str] = WeakKeyDictionary()


def digest(folder: str | Path) -> str:
    """Of an adapter's weights and of what its configuration makes of them. Raises UsageError where the folder
    holds no LoRA adapter in safetensors."""
    place = Path(folder)
    try:
        told = json.loads((place / CONFIG).read_text(encoding="utf-8"))
        weights = (place / WEIGHTS).read_bytes()
        said = {key: value for key, value in told.items() if key not in ELSEWHERE}
    except (OSError, ValueError, AttributeError):
        raise UsageError(
            f"{folder} holds no adapter", hint=f"a folder of peft's, with {CONFIG} and {WEIGHTS}"
        ) from None
    if said.get("peft_type") != "LORA":
        raise UsageError(f"{folder} is an adapter of {said.get('peft_type')}", hint="only LoRA can be merged")
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode() + weights).hexdigest()


def wear(backbone: CausalLM, folder: str | Path) -> None:
    """Put an adapter on, for as long as the backbone lives. Raises UsageError where the folder holds none, it
    does not fit the model, `peft` is missing, or another is on already."""
    found = digest(folder)
    if (before := _WORN.get(backbone.model)) is not None:
        if before != found:
            raise UsageError(f"{backbone.name} wears the adapter {before[:12]} already", hint="load it again")
        return
    need_peft("an adapter")
    from peft import PeftModel

    _ = backbone.fingerprint  # of the model as it is: kept from here on
    try:
        merged = PeftModel.from_pretrained(backbone.model, folder).merge_and_unload()
    except (ValueError, RuntimeError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"the adapter {folder} does not fit {backbone.name}: {reason}") from error
    assert merged is backbone.model, "a merged adapter leaves the model where it was"
    merged.requires_grad_(False)
    merged.eval()
    _WORN[merged] = found


def worn(backbone: CausalLM) -> str | None:
    """The digest of the adapter that a backbone wears, or None."""
    return _WORN.get(backbone.model)


def wear_as(meta: Meta, backbone: CausalLM, folder: str | None, what: str) -> None:
    """Put on what the bank `what` was made under: from `folder`, or from where it was then.

    Raises DataError where that is another adapter, or gone.
    """
    place = folder or meta.notes.get(NOTE)
    if folder is not None or (meta.adapter is not None and place and Path(place).is_dir()):
        _compare(meta, digest(place), what)
        wear(backbone, place)
    check(meta, backbone, what)


def check(meta: Meta, backbone: CausalLM, what: str = "the bank") -> None:
    """Raises DataError unless the backbone wears what the bank was made under."""
    _compare(meta, worn(backbone), what)


def _compare(meta: Meta, found: str | None, what: str) -> None:
    if meta.adapter == found:
        return
    wanted, has = (f"the adapter {one[:12]}" if one else "no adapter" for one in (meta.adapter, found))
    hint = "adapter=DIR, the folder that it was made with" if meta.adapter else "leave adapter= out"
    raise DataError(f"{what} was made under {wanted}, not under {has}", hint=hint)
