"""The artifact file: what goes in comes out, and nothing else is accepted."""

import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from memtoken_cli.io import artifact
from memtoken_cli.io.artifact import Header, ModelRef, Parent
from memtoken_cli.io.errors import DataError

HEADER = Header(
    method="compact",
    kind="memory",
    port="layers",
    model=ModelRef(name="m", fingerprint="f", tokenizer="t"),
    source={"tokens": 12, "sha256": "s"},
    ratio=4.0,
    about={"template": "Q: {input}\nA: {output}\n", "next_position": 12, "labels": ["é", "\u2028"]},
)


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "layers.1.k": torch.randn(3, 4, generator=generator).bfloat16(),
        "layers.0.k": torch.randn(5, 4, generator=generator),
        "offsets": torch.tensor([0, 3, 5]),
        "none": torch.zeros(0, 4),
        "flags": torch.tensor([True, False, True]),
        "scalar": torch.tensor(1.5, dtype=torch.float64),
    }


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    stored = artifact.write(path, tensors(), HEADER)
    header, read = artifact.read(path)
    assert header == stored
    assert header.about == HEADER.about
    assert header.shapes["layers.0.k"] == [5, 4]
    assert header.model_copy(update={"shapes": {}, "digest": ""}) == HEADER
    assert read.keys() == tensors().keys()
    for name, x in tensors().items():
        assert read[name].dtype == x.dtype
        assert torch.equal(read[name], x)


def test_the_same_contents_are_the_same_bytes(tmp_path: Path) -> None:
    one, _ = artifact.to_bytes(tensors(), HEADER)
    backwards = dict(reversed(tensors().items()))
    two, _ = artifact.to_bytes(
        backwards, HEADER.model_copy(update={"about": dict(reversed(HEADER.about.items()))})
    )
    assert one == two
    artifact.write(tmp_path / "m", tensors(), HEADER)
    assert (tmp_path / "m").read_bytes() == one


def test_slices_of_one_buffer_and_strides_are_fine(tmp_path: Path) -> None:
    buffer = torch.arange(12.0).view(3, 4)
    parts = {"top": buffer[:2], "again": buffer[1:], "turned": buffer.T}
    artifact.write(tmp_path / "m", parts, HEADER)
    _, read = artifact.read(tmp_path / "m")
    assert all(torch.equal(read[name], x) for name, x in parts.items())


def test_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO()
    stored = artifact.write(stream, tensors(), HEADER)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(stream.getvalue())))
    header, read = artifact.read("-")
    assert header == stored
    assert torch.equal(read["offsets"], tensors()["offsets"])


def test_the_header_is_read_and_verified_without_torch(tmp_path: Path) -> None:
    artifact.write(tmp_path / "m", tensors(), HEADER)
    code = (
        "import sys; from memtoken_cli.io import artifact;"
        "header = artifact.read_header(sys.argv[1], verify=True);"
        "print(header.method, 'torch' in sys.modules, 'numpy' in sys.modules)"
    )
    env = {"PYTHONPATH": str(Path(artifact.__file__).parents[2])}
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m")], env=env, check=True, capture_output=True, text=True
    )
    assert ran.stdout.split() == ["compact", "False", "False"]


def test_every_altered_byte_is_noticed() -> None:
    data, _ = artifact.to_bytes({"k": torch.arange(6.0)}, HEADER)
    for place in range(len(data)):
        altered = data[:place] + bytes([data[place] ^ 0x01]) + data[place + 1 :]
        with pytest.raises(DataError):
            artifact.read_header(altered, verify=True)


def test_every_truncation_is_noticed_in_the_header_alone() -> None:
    data, _ = artifact.to_bytes({"k": torch.arange(6.0)}, HEADER)
    for length in range(len(data)):
        with pytest.raises(DataError):
            artifact.read_header(data[:length])


def test_a_file_tells_its_header_as_its_bytes_do(tmp_path: Path) -> None:
    """The header alone is read from a file, but every truncation is noticed all the same."""
    data, stored = artifact.to_bytes({"k": torch.arange(6.0)}, HEADER)
    path = tmp_path / "m"
    path.write_bytes(data)
    assert artifact.read_header(path) == stored == artifact.read_header(data)
    for bad in (*(data[:length] for length in range(len(data))), data + b"0", b"\xff" * 64):
        path.write_bytes(bad)
        with pytest.raises(DataError) as of_file:
            artifact.read_header(path)
        with pytest.raises(DataError) as of_bytes:
            artifact.read_header(bad, name=str(path))
        assert str(of_file.value) == str(of_bytes.value)


def test_a_plain_safetensors_file_is_told_apart(tmp_path: Path) -> None:
    save_file({"k": torch.ones(2)}, tmp_path / "weights.safetensors")
    with pytest.raises(DataError, match="not a memtok artifact") as caught:
        artifact.read(tmp_path / "weights.safetensors")
    assert caught.value.where == str(tmp_path / "weights.safetensors")


def forged(change: dict[str, Any]) -> bytes:
    from safetensors.torch import save

    _, stored = artifact.to_bytes({"k": torch.ones(2)}, HEADER)
    return save(
        {"k": torch.ones(2)}, metadata={artifact.KEY: json.dumps(stored.model_dump(mode="json") | change)}
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2, "made_by": "memtok 9"}, "format 2, at most 1"),
        ({"kind": "soup"}, "kind"),
        ({"surprise": 1}, "surprise"),
        ({"method": None}, "method"),
        ({"shapes": {"k": [3]}}, "its header says"),
        ({"shapes": {}}, "its header says"),
        ({"digest": "0" * 64}, "its digest is"),
        ({"ratio": 8.0}, "its digest is"),
    ],
)
def test_a_wrong_header_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        artifact.read_header(forged(change), verify=True)


def test_the_parent_is_found_beside_the_artifact_and_checked(tmp_path: Path) -> None:
    (tmp_path / "base.bin").write_bytes(b"weights")
    parent = Parent(path="base.bin", sha256=artifact.sha256_of(tmp_path / "base.bin"))
    header = HEADER.model_copy(update={"parent": parent})
    assert artifact.parent_path(HEADER, tmp_path / "m") is None
    assert artifact.parent_path(header, tmp_path / "m") == tmp_path / "base.bin"
    (tmp_path / "base.bin").write_bytes(b"Weights")
    with pytest.raises(DataError, match="is not what"):
        artifact.parent_path(header, tmp_path / "m")
    (tmp_path / "base.bin").unlink()
    with pytest.raises(DataError, match="are not at"):
        artifact.parent_path(header, tmp_path / "m")
