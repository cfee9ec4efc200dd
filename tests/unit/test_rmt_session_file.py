"""Session files against the live session: every policy, every n of the open segment, one row and several."""

import io
from pathlib import Path

import pytest
import tiny_rmt
import torch

from memtoken_cli.io import artifact
from memtoken_cli.methods.rmt import session_file
from memtoken_cli.methods.rmt.session import Session
from memtoken_cli.methods.rmt.session_tensors import MEMORY

POLICIES = ("rmt", "prmt", "armt", "xl", "none", "static", "window", "sink", "full")
S = 4
SMALL = (f"rmt.segment={S}", "rmt.d_mem=4", "model.context=256", "model.layers=3")


def ids(seed: int, rows: int, tokens: int) -> torch.Tensor:
    return torch.randint(2, 250, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def same(a: Session, b: Session) -> None:
    assert len(a.state) == len(b.state)
    assert all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a.state, b.state, strict=True))
    assert a.pending == b.pending
    for one, two in zip(a.read, b.read, strict=True):
        assert (one.tokens, one.segments, one.digest) == (two.tokens, two.segments, two.digest)
        assert torch.equal(one.newest_T, two.newest_T)
    assert torch.equal(a.draws.state(), b.draws.state())


@pytest.mark.parametrize("policy", POLICIES)
def test_the_loaded_session_goes_on_as_the_live_one(tmp_path: Path, policy: str) -> None:
    live = Session.new(tiny_rmt.model(tmp_path / "m", f"rmt.policy={policy}", *SMALL))
    path = tmp_path / "s.safetensors"
    for n in range(2 * S + 2):
        if n:
            live.feed(ids(n, 1, 1))
        session_file.save(live, path, "tail é", 77)
        found = session_file.opened(str(path), device="cpu")
        assert (found.tail, found.read) == ("tail é", 77)
        same(live, found.session)
        again = io.BytesIO()
        session_file.save(found.session, again, "tail é", 77)
        assert again.getvalue() == path.read_bytes(), n
        if n:
            assert torch.equal(found.session.logits(), live.logits()), n
    how = {"temperature": 1.5, "max_new_tokens": 2 * S + 1}
    assert list(live.generate(**how)) == list(found.session.generate(**how))


@pytest.mark.parametrize("policy", ["rmt", "prmt", "armt", "xl", "window"])
def test_rows_that_are_at_different_places(tmp_path: Path, policy: str) -> None:
    model = tiny_rmt.model(tmp_path / "m", f"rmt.policy={policy}", *SMALL)
    one, two = Session.new(model, batch=2), Session.new(model)
    one.absorb(ids(1, 2, 2 * S + 1))
    two.absorb(ids(2, 1, S))
    live = Session.stack([one, two])
    path = tmp_path / "s.safetensors"
    header = session_file.save(live, path)
    assert header.about["counts"] == {
        "tokens": [9, 9, 4], "segments": [2, 2, 1], "pending": [1, 1, 0], "bytes": [0, 0, 0],
    }  # fmt: skip
    found = session_file.opened(str(path), device="cpu").session
    same(live, found)
    more = ids(3, 3, S)
    assert torch.equal(found.feed(more), live.feed(more))


def test_names_and_shapes_are_those_of_the_format(tmp_path: Path) -> None:
    """L layers first, B rows, M slots, D width, K = 6 d_mem; float32."""
    shapes = {}
    for policy in ("rmt", "prmt", "armt"):
        live = Session.new(tiny_rmt.model(tmp_path / policy, f"rmt.policy={policy}", *SMALL), batch=2)
        live.absorb(ids(1, 2, S + 3))
        session_file.save(live, tmp_path / "s.safetensors")
        header, tensors = artifact.read(tmp_path / "s.safetensors")
        names = [name for name in tensors if name.startswith("state.")]
        assert all(tensors[name].dtype == torch.float32 for name in names)
        shapes[policy] = {name: tuple(tensors[name].shape) for name in names}
        assert header.shapes["pending_ids_BT"] == [2, 3] and header.shapes["history_ids_BT"] == [2, 7]
        if policy == "prmt":
            assert torch.equal(tensors["state.tokens_LBMD"][1, 0], live.state[0][0, 1])
    assert shapes == {
        "rmt": {"state.tokens_LBMD": (1, 2, 2, 16)},
        "prmt": {"state.tokens_LBMD": (3, 2, 2, 16)},
        "armt": {"state.assoc_LBKD": (3, 2, 24, 16), "state.z_LBK": (3, 2, 24), "state.started_B": (2,)},
    }
    assert set(MEMORY) | {"none", "window", "sink", "full"} == set(POLICIES)


def test_the_chain_is_the_hash_of_whole_segments(tmp_path: Path) -> None:
    import hashlib

    live = Session.new(tiny_rmt.model(tmp_path / "m", *SMALL))
    text = ids(5, 1, 2 * S + 3)
    live.absorb(text)
    h = bytes(32)
    for start in (0, S):
        h = hashlib.sha256(h + text[0, start : start + S].numpy().astype("<i4").tobytes()).digest()
    assert session_file.save(live, io.BytesIO()).about["chain"] == [h.hex()]


def test_a_session_without_a_file_behind_it_cannot_be_saved(tmp_path: Path) -> None:
    model = tiny_rmt.model(tmp_path / "m", *SMALL)
    session = Session.of(model.backbone, model.policy)
    with pytest.raises(session_file.UsageError, match="no trained model"):
        session_file.save(session, tmp_path / "s.safetensors")


def test_python_keeps_the_bytes_that_the_command_line_counted(tmp_path: Path) -> None:
    live = Session.new(tiny_rmt.model(tmp_path / "m", *SMALL))
    live.absorb(ids(1, 1, 7))
    one, two = str(tmp_path / "1.safetensors"), str(tmp_path / "2.safetensors")
    session_file.save(live, one, "tail", 77)
    opened = Session.open(one, device="cpu")
    opened.feed_text("more")
    opened.save(two)
    assert artifact.read_header(two).about["counts"]["bytes"] == 77
    rows = Session.stack([opened.fork(), Session.new(opened.model), opened])
    rows.save(two)
    assert artifact.read_header(two).about["counts"]["bytes"] == [77, 0, 77]
    again = Session.open(two, device="cpu").select([1, 0])
    assert [row.streamed for row in again.read] == [0, 77]
    header, tensors = artifact.read(two)
    for told, found in ((5, [5, 5, 5]), ([1, 2, 3], [1, 2, 3])):
        about = header.about | {"counts": header.about["counts"] | {"bytes": told}}
        artifact.write(two, tensors, header.model_copy(update={"about": about}))
        assert [row.streamed for row in session_file.opened(two, device="cpu").session.read] == found
    for told in ([1, 2], [1, 2, -3], -1, "1"):
        about = header.about | {"counts": header.about["counts"] | {"bytes": told}}
        artifact.write(two, tensors, header.model_copy(update={"about": about}))
        with pytest.raises(session_file.DataError, match="no session"):
            session_file.opened(two, device="cpu")


def test_a_file_that_is_older_than_a_key_is_read(tmp_path: Path) -> None:
    live = Session.new(tiny_rmt.model(tmp_path / "m", *SMALL))
    live.absorb(ids(1, 1, 7))
    path = tmp_path / "s.safetensors"
    session_file.save(live, path)
    header, tensors = artifact.read(path)
    older = {key: value for key, value in header.about["config"].items() if key != "gate_z"}
    artifact.write(path, tensors, header.model_copy(update={"about": header.about | {"config": older}}))
    same(live, session_file.opened(str(path), device="cpu").session)
