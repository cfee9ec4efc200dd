"""The artifact: one safetensors file whose single metadata key `memtok` holds a JSON header. Nothing is
unpickled.

The digest covers the header and every tensor, so that an altered byte is an error and never a wrong answer.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from memtoken_cli import __version__
from memtoken_cli.io import atomic
from memtoken_cli.io.brief import FORMAT as FORMAT
from memtoken_cli.io.brief import KEY as KEY
from memtoken_cli.io.errors import DataError
from memtoken_cli.io.layout import AGAIN, ALTERED, Layout, head, layout_of
from memtoken_cli.io.records import parse_object, source_name

if TYPE_CHECKING:
    import torch


class Identified(Protocol):
    """What a backbone is known by."""

    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def tokenizer_digest(self) -> str: ...


class ModelRef(BaseModel):
    """The backbone an artifact belongs to: `fingerprint` of its weights and config, `tokenizer` digest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    fingerprint: str
    tokenizer: str | None = None

    @classmethod
    def of(cls, backbone: Identified) -> ModelRef:
        """How an artifact names a backbone."""
        return cls(name=backbone.name, fingerprint=backbone.fingerprint, tokenizer=backbone.tokenizer_digest)

    def check(self, backbone: Identified, artifact: str, *, hint: str) -> None:
        """Raise DataError unless the backbone has the weights and tokenizer that the file `artifact` was made
        with."""
        for what, wanted, found in (
            ("weights", self.fingerprint, backbone.fingerprint),
            ("tokenizer", self.tokenizer, backbone.tokenizer_digest),
        ):
            if wanted is not None and wanted != found:
                raise DataError(
                    f"{artifact} was made with {self.name}, not with the {what} of {backbone.name} "
                    f"(expected {wanted[:12]}, found {found[:12]})",
                    hint=hint,
                )


class Parent(BaseModel):
    """Large weights that the artifact needs beside it: a file relative to its own, and that one's sha256."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    sha256: str


class Header(BaseModel):
    """What an artifact holds; `shapes` and `digest` are filled in by `write`.

    Attributes:
        kind: "memory" (a compressed prompt, a bank, a session) or "model" (trained parameters).
        port: how the memory enters a backbone (prefix, layers, cross, vocab), or None for a model.
        source: what was written into it: sha256, tokens, shots, ...
        about: the method's own JSON: template, next position, labels, calibration, config, report.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    method: str
    kind: Literal["memory", "model"]
    port: str | None = None
    made_by: str = f"memtok {__version__}"
    model: ModelRef | None = None
    source: dict[str, Any] = Field(default_factory=dict)
    ratio: float | None = None
    slots: int | None = None
    shapes: dict[str, list[int]] = Field(default_factory=dict)
    digest: str = ""
    parent: Parent | None = None
    about: dict[str, Any] = Field(default_factory=dict)


def write(path: str | Path | BinaryIO, tensors: Mapping[str, torch.Tensor], header: Header) -> Header:
    """Write an artifact (a path: atomically) and return the header as stored, with shapes and digest.

    The same tensors and header give the same bytes. Raises OSError.
    """
    data, stored = to_bytes(tensors, header)
    if isinstance(path, str | Path):
        atomic.write_bytes(path, data)
    else:
        path.write(data)
    return stored


def to_bytes(tensors: Mapping[str, torch.Tensor], header: Header) -> tuple[bytes, Header]:
    """An artifact's bytes, and its header with shapes and digest filled in."""
    from safetensors.torch import save

    # copies: safetensors refuses tensors that share memory, such as slices of one buffer
    owned = {name: x.detach().to("cpu", copy=True).contiguous() for name, x in tensors.items()}
    shapes = {name: list(owned[name].shape) for name in sorted(owned)}
    draft = header.model_copy(update={"shapes": shapes, "digest": ""})
    layout = layout_of(save(owned))
    digest = _digest(draft, layout)
    stored = draft.model_copy(update={"digest": digest})
    return save(owned, metadata={KEY: _json(stored)}), stored


def read(path: str | Path | bytes, *, name: str = "<bytes>") -> tuple[Header, dict[str, torch.Tensor]]:
    """Read and check an artifact; "-" is standard input. Tensors come on the CPU.

    `name` is how errors call bytes that come without a path.
    Raises DataError naming what was expected and found: not an artifact, truncated, altered, a newer format.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    data, where = (path, name) if isinstance(path, bytes) else (content(path), source_name(path))
    header = read_header(data, verify=True, name=where)
    try:
        return header, load(data)
    except SafetensorError as error:
        raise DataError(f"not a safetensors file: {error}", hint=AGAIN, where=where) from None


def read_header(path: str | Path | bytes, *, verify: bool = False, name: str = "<bytes>") -> Header:
    """The header alone, without torch; with `verify` the tensors' digest is checked too (reads the whole
    file).

    `name` is how errors call bytes that come without a path. Raises DataError.
    """
    if isinstance(path, bytes):
        layout, where = layout_of(path, name), name
    else:
        where = source_name(path)
        start, size = (None, None) if verify else head(path)
        layout = layout_of(content(path) if start is None else start, where, size)
    if KEY not in layout.metadata:
        raise DataError(f"a safetensors file, but not a memtok artifact (no {KEY!r} header)", where=where)
    header = _header(layout.metadata[KEY], where)
    shapes = {tensor.name: list(tensor.shape) for tensor in layout.tensors}
    if shapes != header.shapes:
        raise DataError(
            f"{ALTERED}: it holds tensors {shapes}, its header says {header.shapes}",
            hint=AGAIN,
            where=where,
        )
    if verify and (found := _digest(header, layout)) != header.digest:
        raise DataError(
            f"{ALTERED}: its digest is {found[:12]}, its header says {header.digest[:12]}",
            hint=AGAIN,
            where=where,
        )
    return header


def sha256_of(path: str | Path) -> str:
    """The sha256 (hex) of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def parent_path(header: Header, artifact: str | Path) -> Path | None:
    """Where the header's parent lies, its sha256 checked; None where it has none. Raises DataError."""
    if header.parent is None:
        return None
    path = Path(artifact).parent / header.parent.path
    if not path.is_file():
        raise DataError(
            f"the weights that {artifact} needs are not at {path}", hint="keep the two files together"
        )
    found = sha256_of(path)
    if found != header.parent.sha256:
        expected = header.parent.sha256
        text = f"{path} is not what {artifact} was made with: sha256 {found[:12]}, expected {expected[:12]}"
        raise DataError(text, hint="keep the two files together")
    return path


def _header(text: object, where: str) -> Header:
    if not isinstance(text, str):
        raise DataError(f"{ALTERED}: its header is not text", hint=AGAIN, where=where)
    table = parse_object(text, where)
    found = table.get("format")
    if isinstance(found, int) and found > FORMAT:
        hint = f"this is memtok {__version__}; it was made by {table.get('made_by')}: upgrade memtok"
        raise DataError(f"artifact format {found}, at most {FORMAT} can be read", hint=hint, where=where)
    try:
        return Header.model_validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise DataError(f"not a memtok header: {key}: {first['msg']}", hint=AGAIN, where=where) from None


def _digest(header: Header, layout: Layout) -> str:
    """sha256 over the header (its digest empty) and every tensor's name, dtype, shape and bytes, by name."""
    total = hashlib.sha256(_json(header.model_copy(update={"digest": ""})).encode())
    for tensor in layout.tensors:
        total.update(json.dumps([tensor.name, tensor.dtype, tensor.shape, len(tensor.data)]).encode())
        total.update(tensor.data)
    return total.hexdigest()


def _json(header: Header) -> str:
    return json.dumps(header.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False)


def content(path: str | Path) -> bytes:
    """A file's bytes, or standard input's for "-". Raises DataError."""
    if str(path) == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise DataError(
            f"no such file: {path}", hint="make one: memtok compress --shots FILE --ratio 4"
        ) from None
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise DataError(f"cannot read {path}: {reason}") from error
