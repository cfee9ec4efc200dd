"""Weights that a session's own file does not hold: those of the trained model's file, known by its sha256.

That is taken while other things are done: it takes as long as checking the model itself.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from torch import Tensor

from memtoken_cli.io import artifact
from memtoken_cli.io.artifact import Parent
from memtoken_cli.io.errors import DataError
from memtoken_cli.methods.rmt import model_file
from memtoken_cli.methods.rmt.model_file import WEIGHTS, Model

INLINE = 32 * 2**20  # bytes
APART = "keep the two files together"


def apart(model: Model) -> bool:
    """Whether a session leaves what was trained in its own file: where all that it needs, the language model
    among it, is more than INLINE; what came without a file and is little goes along nevertheless."""
    own = _size(model.own.values())
    if own > INLINE:
        return True
    rest = [p for name, p in model.backbone.model.named_parameters() if WEIGHTS + name not in model.own]
    return bool(model.path) and own + _size(rest) > INLINE


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def hashing(path: str | Path) -> Future[str]:
    """The sha256 of a file as it is now. Raises OSError where there is none."""
    there = os.path.realpath(path)
    found = os.stat(there)
    return _hashing(there, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=4)
def _hashing(path: str, size: int, changed: int) -> Future[str]:
    future: Future[str] = Future()

    def work() -> None:
        try:
            future.set_result(artifact.sha256_of(path))
        except OSError as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


def parent_of(model: Model, beside: Path) -> Parent:
    """The trained model's file, as files in the folder `beside` name it. Raises DataError where it is gone or
    another one."""
    path = Path(os.path.realpath(model.path))
    if not model.path or not path.is_file() or artifact.read_header(path).digest != model.digest:
        raise DataError(
            f"{model.path or 'a file'} is not there with the weights that were loaded (digest "
            f"{model.digest[:12]}), which are too large for the session's own file",
            hint="keep the trained model where it is",
        )
    return Parent(path=os.path.relpath(path, beside), sha256=model.sha256 or hashing(path).result())


def model_of(
    name: str,
    beside: Path,
    parent: Parent,
    device: str | None = None,
    model: str | None = None,
    trust_remote_code: bool = False,
) -> Model:
    """The trained model of a session's parent. name: the session's file. beside: the folder it lies in.

    Raises DataError where there is no such file, or another one."""
    there, expected = beside / parent.path, parent.sha256[:12]
    try:
        data = there.read_bytes()
    except FileNotFoundError:
        text = f"{name} needs {there}: expected sha256 {expected}, found no such file"
        raise DataError(text, hint=APART) from None
    except OSError as error:
        raise DataError(
            f"{name} needs {there}, which cannot be read: {error.strerror}", hint=APART
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if found != parent.sha256:
        text = f"{name} was made with another {there}: expected sha256 {expected}, found {found[:12]}"
        raise DataError(text, hint=APART)
    made = model_file.open_model(there, device, model, trust_remote_code, data)
    return replace(made, sha256=parent.sha256)
