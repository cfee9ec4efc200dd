"""`memtok bank export MODEL --to official --out FILE`: a trained memory for the papers' own code.

What that code would compute otherwise is refused; what its files do not hold is told as the keys that read
the file back (`rmt.init`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memtoken_cli.engine.method import BankCall, Run
from memtoken_cli.io import atomic
from memtoken_cli.io.errors import DataError, UsageError
from memtoken_cli.methods.rmt import official
from memtoken_cli.methods.rmt.config import Config
from memtoken_cli.methods.rmt.model_file import open_model

FORMAT = "official"
USE = f"memtok bank export MODEL --to {FORMAT} --out FILE.safetensors"


def export(call: BankCall, run: Run) -> Mapping[str, Any]:
    """Write `--out`; returns its path, its size and the keys to import it with. A no-op where it is there.

    Raises UsageError for other actions, and for what the official code has no place for; DataError where the
    file is no trained memory."""
    if call.action != "export":
        raise UsageError(f"a recurrent memory has no rows to {call.action}", hint=USE)
    if call.to != FORMAT:
        raise UsageError(f"--to {call.to}: unknown", hint=f"--to {FORMAT}")
    if call.recouple:
        raise UsageError("--recouple is about the addresses of a bank", hint=USE)
    model = open_model(call.file, run.device, call.model, call.trust_remote_code)
    check(model.config)
    data, out = official.export(model.backbone, model.policy), Path(call.target)
    if _is_there(out, data):
        run.note(f"{out}: already done")
    else:
        atomic.write_bytes(out, data)
    keys = keys_of(model.config)
    said = " ".join(f"rmt.{key}={value}" for key, value in keys.items())
    run.note(f"to read it back: rmt.init={out} {said}")
    return {"path": str(out), "bytes": len(data), **keys}


def check(config: Config) -> None:
    """Raises UsageError where the official code would compute something else from the same weights."""
    strange = {
        "state_norm=none": config.state_norm == "none" and config.policy == "rmt",
        "sink=bos": config.sink == "bos",
        f"positions={config.positions}": config.positions.startswith(("zero", "offset")),
        "gate_z=true": config.gate_z and config.policy == "armt",
    }
    if key := next((key for key, found in strange.items() if found), None):
        raise UsageError(f"the official code has no place for rmt.{key}", hint="train without it")


def keys_of(config: Config) -> dict[str, Any]:
    """What an import must be told, as the file does not hold it."""
    keys = {"policy": config.policy, "segment": config.segment, "mask": config.mask}
    if config.positions == "pinned":  # the official code's are contiguous: equal in full segments only
        keys["positions"] = config.positions
    return keys


def _is_there(out: Path, data: bytes) -> bool:
    """Raises UsageError where the file holds something else than such a checkpoint."""
    if not out.is_file():
        return False
    try:
        official.read(out)
    except DataError as error:
        raise UsageError(f"{out} exists and is no such checkpoint: it is left alone", hint=USE) from error
    return out.read_bytes() == data
