"""A training run's directory: who holds it, which recipe it belongs to, its events and its checkpoints.

    OUT/  recipe.lock.yaml · events.jsonl · checkpoints/step-000120/{state.safetensors,state.json} · .lock

What the tensors mean is `fit.py`'s. A checkpoint appears whole, by one rename; events are cut back to the
checkpoint that a run resumes from, so an interrupted run leaves the same bytes as an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import yaml
from safetensors import SafetensorError
from torch import Tensor

from memtoken_cli.engine.dist import World
from memtoken_cli.io import atomic
from memtoken_cli.io.errors import DataError, MemtokError, UsageError
from memtoken_cli.io.lock import run_lock

FORMAT = 1
KEEP = 2  # regular checkpoints kept: the newest may be lost to a bad disk
RECIPE, EVENTS, CHECKPOINTS, ARTIFACT = (
    "recipe.lock.yaml",
    "events.jsonl",
    "checkpoints",
    "memory.safetensors",
)
TENSORS, VALUES = "state.safetensors", "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """The state after `step` steps. regular: on the run's own schedule, not forced by a signal."""

    step: int
    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]
    regular: bool = True


@dataclass
class RunDir:
    """An open run directory; only the leading rank writes in it."""

    path: Path
    writes: bool = True
    warn: Callable[[str], None] = field(default=lambda text: None)

    @property
    def artifact(self) -> Path:
        """Where the run's result goes; written last, so a run that has it is finished."""
        return self.path / ARTIFACT

    def steps(self) -> list[int]:
        """The steps of the checkpoints that lie here, ascending."""
        return sorted(
            int(p.name[5:]) for p in (self.path / CHECKPOINTS).glob("step-*") if p.name[5:].isdecimal()
        )

    def log(self, event: Mapping[str, Any]) -> None:
        """Append one line to events.jsonl; no times in it, so that the same run gives the same bytes."""
        if self.writes:
            line = json.dumps(event, ensure_ascii=False, allow_nan=False) + "\n"
            atomic.append_bytes(self.path / EVENTS, line.encode())

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, then drop the ones that are no longer kept.

        Raises OSError (a full disk) with every earlier checkpoint intact.
        """
        if not self.writes:
            return
        events = self.path / EVENTS
        data = safetensors.torch.save({name: x.contiguous().cpu() for name, x in checkpoint.tensors.items()})
        record = {
            "format": FORMAT,
            "step": checkpoint.step,
            "regular": checkpoint.regular,
            "events": events.stat().st_size if events.exists() else 0,
            "sha256": hashlib.sha256(data).hexdigest(),
            "values": checkpoint.values,
        }
        record["digest"] = _digest(record)
        final = self._folder(checkpoint.step)
        final.parent.mkdir(exist_ok=True)
        with atomic.directory(final) as folder:
            atomic.write_bytes(folder / TENSORS, data)
            atomic.write_text(folder / VALUES, json.dumps(record, indent=1, sort_keys=True) + "\n")
        self._prune()

    def load(self, step: int | None = None) -> Checkpoint | None:
        """The newest sound checkpoint (or the one of `step`), or None where there is none.

        The writing rank drops damaged ones with a warning, and cuts events back to what it returns. Raises
        DataError where all are damaged.
        """
        steps = self.steps() if step is None else [step]
        for at in reversed(steps):
            try:
                found, size = _read(self._folder(at))
            except (OSError, ValueError, KeyError, SafetensorError) as error:
                self.warn(f"checkpoint {self._folder(at)} is damaged ({error}): going back to the one before")
                continue
            self._rewind(size, [s for s in steps if s > at])
            return found
        if steps:
            where = self.path / CHECKPOINTS
            raise DataError(f"every checkpoint in {where} is damaged", hint="start over with --fresh")
        self._rewind(0, [])
        return None

    def _folder(self, step: int) -> Path:
        return self.path / CHECKPOINTS / f"step-{step:06d}"

    def _rewind(self, size: int, damaged: list[int]) -> None:
        if not self.writes:
            return
        for step in damaged:
            _drop(self._folder(step))
        for leftover in (self.path / CHECKPOINTS).glob(".step-*"):
            shutil.rmtree(leftover)
        self._prune()
        events = self.path / EVENTS
        if events.exists() and events.stat().st_size != size:
            atomic.write_bytes(events, events.read_bytes()[:size])

    def _prune(self) -> None:
        """Keep the newest KEEP regular ones, and the newest: a forced one goes when a regular one follows."""
        steps = self.steps()
        regular = [s for s in steps if _regular(self._folder(s))]
        for step in set(steps[:-1]) - set(regular[-KEEP:]):
            _drop(self._folder(step))


def _drop(folder: Path) -> None:
    """Remove a folder so that a kill on the way leaves either all of it or nothing under its name."""
    hidden = folder.with_name(f".{folder.name}.dropped")
    shutil.rmtree(hidden, ignore_errors=True)
    if folder.exists():
        folder.rename(hidden)
        shutil.rmtree(hidden)


def _read(folder: Path) -> tuple[Checkpoint, int]:
    record = json.loads((folder / VALUES).read_bytes())
    if record.pop("digest") != _digest(record):
        raise ValueError(f"{VALUES} has been altered")
    if record["format"] != FORMAT:
        raise ValueError(f"format {record['format']}, this version reads {FORMAT}")
    data = (folder / TENSORS).read_bytes()
    if hashlib.sha256(data).hexdigest() != record["sha256"]:
        raise ValueError(f"{TENSORS} has been altered or cut off")
    tensors = safetensors.torch.load(data)
    return Checkpoint(record["step"], tensors, record["values"], record["regular"]), record["events"]


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _regular(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / VALUES).read_bytes())["regular"])
    except (OSError, ValueError, KeyError):
        return False


@contextmanager
def run_dir(
    path: Path,
    recipe: str,
    *,
    fresh: bool = False,
    world: World | None = None,
    warn: Callable[[str], None] = lambda text: None,
) -> Iterator[RunDir]:
    """Open (or make) a run directory for the resolved recipe (YAML text) and hold it.

    `fresh` starts over: what memtok made here is deleted, other files stay. Raises Locked where another live
    process holds it, UsageError with the differences where it belongs to another recipe.
    """
    world = world or World()
    if not world.leader:
        if code := world.gather(0)[0]:
            raise SystemExit(code)
        yield RunDir(path, writes=False, warn=warn)
        return
    with ExitStack() as stack:
        try:
            stack.enter_context(run_lock(path))
            if fresh:
                _clear(path)
            _claim(path, recipe)
        except MemtokError as error:
            world.gather(error.exit_code)
            raise
        world.gather(0)
        yield RunDir(path, warn=warn)


def _claim(path: Path, recipe: str) -> None:
    lock = path / RECIPE
    if not lock.exists():
        mine = [name for name in (EVENTS, CHECKPOINTS, ARTIFACT) if (path / name).exists()]
        if mine:
            raise UsageError(
                f"{path} has {', '.join(mine)} but no {RECIPE}: not a run that can go on",
                hint="choose another --out, or start over with --fresh",
            )
        atomic.write_text(lock, recipe)
        return
    before = lock.read_text(encoding="utf-8")
    if before == recipe:
        return
    changes = differences(yaml.safe_load(before), yaml.safe_load(recipe))
    if changes:
        raise UsageError(
            f"{path} belongs to another recipe: " + "; ".join(changes),
            hint="choose another --out, or start over with --fresh",
        )


def _clear(path: Path) -> None:
    # the result first and the recipe last: killed in between, this is an unfinished run that is known as ours
    (path / ARTIFACT).unlink(missing_ok=True)
    _drop(path / CHECKPOINTS)
    for name in (EVENTS, RECIPE):
        (path / name).unlink(missing_ok=True)


def differences(before: Any, now: Any, key: str = "") -> list[str]:
    """What changed between two plain documents, as `a.b: 1 -> 2`, in key order."""
    if isinstance(before, dict) and isinstance(now, dict):
        found = []
        for name in sorted({*before, *now}, key=str):
            dotted = f"{key}.{name}" if key else str(name)
            found += differences(before.get(name), now.get(name), dotted)
        return found
    return [] if before == now else [f"{key or 'recipe'}: {before!r} -> {now!r}"]
