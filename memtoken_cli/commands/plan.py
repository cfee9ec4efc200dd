"""One compression, checked as far as it can be without a model: budget, method, keys, output, shots."""

import hashlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memtoken_cli.commands.choose import method_for
from memtoken_cli.engine.method import Budget, Spec
from memtoken_cli.io.errors import DataError, UsageError

if TYPE_CHECKING:
    from memtoken_cli.data.shots import Shots

SUFFIX = ".memory.safetensors"
FROM_STDIN = "memory.safetensors"


@dataclass(frozen=True)
class Plan:
    """One compression, fully checked. `out` is a path or "-"."""

    spec: Spec
    config: Any
    shots: "Shots"
    budget: Budget
    model: str | None
    seed: int
    out: str

    @cached_property
    def request(self) -> dict[str, Any]:
        """What decides the bytes of the artifact; the same request on an existing file is a no-op.

        Raises DataError where a file that it names cannot be read."""
        config = self.config.model_dump(mode="json")
        named = config if self.model is None else {**config, "model": self.model}
        files = {key: sha256 for key, value in named.items() for sha256 in _contents(value)}
        return {
            "shots": self.shots.sha256,
            "model": self.model,
            "method": self.spec.name,
            "config": config,
            "ratio": self.budget.ratio,
            "slots": self.budget.slots,
            "seed": self.seed,
        } | ({"files": files} if files else {})


def resolve(
    source: str,
    overrides: list[str],
    ratio: float | None,
    slots: int | None,
    method: str | None,
    model: str | None,
    out: str | None,
    seed: int,
) -> Plan:
    """Check every part of the command line and read the shots. Raises UsageError or DataError."""
    budget = _budget(ratio, slots)
    spec = method_for("compress", method, "shots")
    from memtoken_cli.commands.keys import configure, model_name

    config = configure(spec.name, overrides)
    target = _target(source, out)
    from memtoken_cli.data.shots import read_shots

    named = model_name(model) if spec.needs_model else None
    return Plan(spec, config, read_shots(source), budget, named, seed, target)


def _contents(value: Any) -> Iterator[str]:
    """The sha256 of a file, or of a folder's own files, where the value of a key names one."""
    from memtoken_cli.io.artifact import sha256_of

    if not isinstance(value, str):
        return
    try:
        if os.path.isfile(value):  # a template is no path, and may be too long for one
            yield sha256_of(value)
        elif os.path.isdir(value):
            inside = sorted(file for file in Path(value).iterdir() if file.is_file())
            listed = "".join(f"{sha256_of(file)} {file.name}\n" for file in inside)
            yield hashlib.sha256(listed.encode()).hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {value}: {error.strerror or error}") from error


def _budget(ratio: float | None, slots: int | None) -> Budget:
    if ratio is None and slots is None:
        raise UsageError(
            "how much to keep is not said", hint="--ratio 4 keeps a quarter; --slots 256 keeps 256 tokens"
        )
    if ratio is not None and slots is not None:
        raise UsageError("--ratio and --slots exclude each other", hint="leave one of them out")
    if ratio is not None and not (math.isfinite(ratio) and ratio >= 1):
        raise UsageError(
            f"--ratio {ratio:g} is not a number from 1 up", hint="--ratio 4 keeps a quarter of the tokens"
        )
    if slots is not None and slots < 1:
        raise UsageError(f"--slots {slots} leaves no memory", hint="--slots takes 1 or more")
    return Budget(ratio, slots)


def _target(source: str, out: str | None) -> str:
    if out == "-":
        return out
    if out is not None:
        path = Path(out)
    else:
        path = Path(FROM_STDIN) if source == "-" else Path(source).with_name(Path(source).stem + SUFFIX)
    if path.is_dir():
        raise UsageError(f"--out {path} is a directory", hint=f"--out {path / FROM_STDIN}")
    if not path.parent.is_dir():
        raise UsageError(
            f"the directory of --out does not exist: {path.parent}", hint=f"mkdir -p {path.parent}"
        )
    if not os.access(path.parent, os.W_OK):
        raise UsageError(
            f"the directory of the artifact is not writable: {path.parent}", hint="--out FILE elsewhere"
        )
    if path.exists() and source != "-" and path.samefile(source):
        raise UsageError(f"--out {path} would overwrite the shots", hint="--out another file")
    return str(path)
