"""The bank's algebra and its file: nothing that is not named moves by a bit, and no damaged file is read."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_bank import MODEL, WIDTH, bank, samples, statistics
from safetensors.torch import save as to_safetensors

from memtoken_cli.engine.memory import Rows
from memtoken_cli.io import artifact
from memtoken_cli.io.errors import DataError, UsageError
from memtoken_cli.methods.tokmem import bank_file
from memtoken_cli.methods.tokmem.bank import Bank, Block, Meta, Row, digest_of, projection
from memtoken_cli.methods.tokmem.config import FEATURES
from memtoken_cli.methods.tokmem.statistics import KEEP_ALL, TEXT, Class, collect


def queries(seed=0, count=7):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, WIDTH, generator=generator) for _ in FEATURES]


def by_name(made: Bank, names):
    return made.scorer(names=sorted(names)).raw(queries())


def test_a_bank_knows_its_rows():
    made = bank("b", "a", tokens=2)
    assert made.names == ("b", "a") and len(made) == 2 and made.width == WIDTH and made.index("a") == 1
    with pytest.raises(UsageError, match="no procedure named 'antonyns'") as caught:
        bank("antonyms", "b").index("antonyns")
    assert caught.value.hint == "did you mean antonyms?"
    empty = Bank.empty(Meta(features=FEATURES), WIDTH, MODEL)
    assert len(empty) == 0 and empty.append(bank("a")).names == ("a",)


@given(st.permutations(["a", "b", "c", "d"]), st.integers(1, 3))
def test_any_order_of_additions_is_the_joint_bank(order, cut):
    grown = Bank.empty(Meta(features=FEATURES, keep_val=3), WIDTH, MODEL)
    for part in (order[:cut], order[cut:]):
        grown = grown.append(bank(*part))
    joint = bank("a", "b", "c", "d")
    want = by_name(joint, joint.names)
    assert (by_name(grown, joint.names) - want).abs().max() <= 1e-9 * want.abs().max()
    assert grown.alpha["first"] == pytest.approx(joint.alpha["first"], rel=1e-9)
    for name in joint.names:
        assert torch.equal(grown.control_PkE[grown.index(name)], joint.control_PkE[joint.index(name)])


def test_merging_commutes_and_equals_the_joint_bank():
    a, b, c = bank("a", "d"), bank("b"), bank("c")
    joint = by_name(bank("a", "b", "c", "d"), "abcd")
    for merged in (a.merge([b, c]), c.merge([a, b]), b.merge([c]).merge([a])):
        assert (by_name(merged, "abcd") - joint).abs().max() <= 1e-9 * joint.abs().max()


@pytest.mark.parametrize("address", ["lda", "decoupled", "coupled"])
def test_adding_moves_nothing_old_by_a_bit(address):
    """Bar 2: control rows, trained addresses, counts and means."""
    old, new = bank("a", "b", address=address, eoc=True), bank("c", address=address, eoc=True)
    both = old.append(new)
    assert torch.equal(both.control_PkE[:2], old.control_PkE) and both.rows[:2] == old.rows
    assert torch.equal(both.eoc_E, old.eoc_E)
    if address == "decoupled":
        assert torch.equal(both.address_PE[:2], old.address_PE) and torch.equal(
            both.address_PE[2:], new.address_PE
        )
    for name in old.names:
        assert both.same_row(old, name)
    assert both.block_ids == old.block_ids | new.block_ids


@given(st.sets(st.sampled_from("abcd"), min_size=1, max_size=3))
def test_removing_changes_no_difference_among_the_rest(gone):
    made = bank(*"abcd")
    left = made.remove(gone)
    rest = [name for name in "abcd" if name not in gone]
    assert list(left.names) == rest and left.alpha == made.alpha
    before, after = by_name(made, rest), by_name(left, rest)
    moved = (before - before[:, :1]) - (after - after[:, :1])
    assert moved.abs().max() <= 1e-9 * before.abs().max()
    assert all(left.same_row(made, name) for name in rest)


def test_removal_is_exact_where_all_features_are_kept():
    made = replace(
        bank("a", "b", "c"),
        sites={"first": statistics("abc", keep_val=KEEP_ALL)},
        meta=replace(bank("a", "b", "c").meta, keep_features=True, keep_val=KEEP_ALL),
    )
    joint = by_name(bank("a", "c"), "ac")
    assert (by_name(made.remove(["b"]), "ac") - joint).abs().max() <= 1e-9 * joint.abs().max()


def test_renaming_changes_no_score():
    made = bank("a", "b", "c")
    renamed = made.rename("b", "z")
    assert renamed.names == ("a", "z", "c")
    # classes are kept in another order, so that sums round differently
    torch.testing.assert_close(
        renamed.scorer().raw(queries()), made.scorer().raw(queries()), rtol=1e-11, atol=0
    )
    assert made.rename("a", "a") is made
    for new, message in (
        ("c", "already"),
        ("<|x", "begins with"),
        ("a\nb", "cannot be printed"),
        ("", "1 to 128"),
    ):
        with pytest.raises(UsageError, match=message):
            made.rename("a", new)
    with pytest.raises(UsageError, match="no procedure named 'q'"):
        made.rename("q", "r")


def test_selecting_all_is_the_identity_and_order_is_the_banks():
    made = bank("a", "b", "c")
    assert made.select(["c", "a", "b"]) is made
    assert made.select(["c", "a"]).names == ("a", "c")
    assert len(made.remove("abc")) == 0 and made.remove("abc").sites["first"].classes == ()


def test_names_that_clash():
    a, b = bank("x", "y"), bank("y", "z", count=4)
    with pytest.raises(UsageError, match="'y' is in the bank already"):
        a.append(b)
    kept = a.append(b, "keep")
    assert kept.names == ("x", "y", "z") and kept.same_row(a, "y") and kept.same_row(b, "z")
    both = a.append(b, "rename")
    assert both.names == ("x", "y", "y-2", "z") and both.same_row(a, "y")
    assert torch.equal(both.control_PkE[2], b.control_PkE[0])
    other = replace(b, control_PkE=b.control_PkE + 1)
    updated = a.append(other, "update")
    assert updated.names == ("x", "y", "z") and torch.equal(updated.control_PkE[1], other.control_PkE[0])
    assert updated.rows[1].samples == 10 and updated.same_row(a, "x")
    stats = updated.sites["first"]
    assert stats.count_C[stats.index(Class("y"))] == 10


def test_a_block_never_counts_twice():
    a = bank("x", "y")
    with pytest.raises(UsageError, match="would count twice") as caught:
        a.append(bank("x", "y").rename("x", "q").rename("y", "r"))
    assert "--shared-blocks first" in str(caught.value.hint)
    b = a.append(bank("z"))
    merged = a.merge([b], shared_blocks="first")
    assert merged.names == ("x", "y", "z") and merged.meta.approximate and not b.meta.approximate
    stats = merged.sites["first"]
    for m, o in zip(stats.moments, a.sites["first"].moments, strict=True):
        assert torch.equal(m.scatter_DD, o.scatter_DD)
    assert stats.freedom == a.sites["first"].freedom and stats.same(b.sites["first"], "z")
    changed = replace(b, control_PkE=b.control_PkE + 1)
    with pytest.raises(UsageError, match="differs"):
        a.merge([changed], shared_blocks="first")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (replace(bank("b"), model=MODEL.model_copy(update={"fingerprint": "0" * 64})), "weights"),
        (bank("b", tokens=2), "tokens"),
        (bank("b", address="coupled"), "address"),
        (bank("b", prompt="other"), "prompt"),
        (bank("b", adapter="x"), "adapter"),
        (bank("b", shrinkage=0.5), "shrinkage"),
        (bank("b", eoc=True), "no end-of-segment row"),
        (replace(bank("b"), project_DQ=projection(64, WIDTH, 0)), "project"),
    ],
)
def test_banks_that_do_not_fit_do_not_join(other, message):
    """Also one of another model of equal width."""
    with pytest.raises(UsageError, match=message):
        bank("a").append(other)


def test_frozen_scatter_keeps_old_addresses_to_the_bit():
    grown = Bank.empty(Meta(features=FEATURES, keep_val=3, scatter="frozen"), WIDTH, MODEL)
    first = grown.append(bank("a", "b", scatter="frozen"))
    second = first.append(bank("c", "d", scatter="frozen"))
    before, after = (made.scorer(names=("a", "b")) for made in (first, second))
    assert all(torch.equal(x, y) for x, y in zip(before.weight, after.weight, strict=True))
    assert torch.equal(before.bias_C, after.bias_C)
    direct = bank("a", "b", scatter="frozen").append(bank("c", "d", scatter="frozen"))
    assert torch.equal(direct.scorer(names=("a", "b")).weight[0], before.weight[0])


def test_a_map_of_features():
    map_DQ = projection(48, 16, 3)
    torch.testing.assert_close(map_DQ.T @ map_DQ, torch.eye(16), rtol=0, atol=1e-5)
    assert torch.equal(map_DQ, projection(48, 16, 3)) and not torch.equal(map_DQ, projection(48, 16, 4))
    made = replace(bank("a"), project_DQ=map_DQ)
    x_BD = torch.randn(2, 48)
    torch.testing.assert_close(made.projected([x_BD])[0], x_BD @ map_DQ)
    assert torch.equal(bank("a").projected([x_BD])[0], x_BD)


def full() -> Bank:
    """Everything that a bank may hold."""
    text = collect([Class(TEXT)] * 4, [torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(f))
                                       for f in range(3)], 3)  # fmt: skip
    boundary = statistics(("a é", "b"), features=4)
    meta = Meta(
        address="lda", tokens=3, features=FEATURES, segment_end="eoc", max_procedures=4, prompt="p",
        dtype="bfloat16", adapter="d", keep_val=3, scatter="frozen", blocks=(Block("id", 2, 12),),
        history=("remove:x",), approximate=("why",), notes={"lr": 0.1, "nested": [1, {"x": None}]},
    )  # fmt: skip
    return Bank(
        (Row("a é", "d", "i", 6, "id", True, 0.5), Row('b "quoted" \U0001f642')),
        torch.randn(2, 3, WIDTH),
        meta,
        MODEL,
        eoc_E=torch.randn(WIDTH),
        sites={
            "first": statistics(("a é", "b")).rename({"b": 'b "quoted" \U0001f642'}).merge(text).frozen(0.1),
            "boundary": boundary.rename({"b": 'b "quoted" \U0001f642'}),
        },
        alpha={"first": 0.03, "boundary": 0.2},
        project_DQ=projection(64, WIDTH, 0),
    )


def same(a: Bank, b: Bank) -> None:
    assert (a.rows, a.meta, a.model, dict(a.alpha)) == (b.rows, b.meta, b.model, dict(b.alpha))
    x, y = a.memory().tensors(), b.memory().tensors()
    assert x.keys() == y.keys() and all(x[k].dtype == y[k].dtype and torch.equal(x[k], y[k]) for k in x)
    assert {s: (t.classes, t.freedom, t.keep_val) for s, t in a.sites.items()} == {
        s: (t.classes, t.freedom, t.keep_val) for s, t in b.sites.items()
    }


@pytest.mark.parametrize("make", [full, lambda: bank("a", address="decoupled"), lambda: bank()])
def test_save_then_load_is_the_identity(tmp_path, make):
    made = make()
    digest = made.save(tmp_path / "b.safetensors")
    loaded = Bank.load(tmp_path / "b.safetensors")
    same(made, loaded)
    assert loaded.save(tmp_path / "c.safetensors") == digest
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "c.safetensors").read_bytes()
    rows = made.memory()
    assert isinstance(rows, Rows) and rows.port == "vocab" and rows.names == made.names
    same(Bank.of(rows, json.loads(json.dumps(made.about())), made.model), made)


def test_the_sizes_are_those_of_the_rows():
    """1,000 control rows of width 576 take 2.3 MB."""
    rows = tuple(Row(f"p{i}") for i in range(1000))
    made = Bank(rows, torch.zeros(1000, 1, 576), Meta(address="coupled", features=FEATURES))
    size = len(artifact.to_bytes(made.memory().tensors(), bank_file.header(made))[0])
    assert 2_304_000 < size < 2_304_000 + 400 * 1000


def altered(change, tensors=lambda x: x) -> bytes:
    """A file whose own digest is right, but whose header or tensors are not."""
    made = bank("a", "b", "c", address="decoupled")
    header = bank_file.header(made)
    about = json.loads(json.dumps(header.about))
    change(about)
    data, _ = artifact.to_bytes(tensors(made.memory().tensors()), header.model_copy(update={"about": about}))
    return data


def without(key):
    return lambda x: {k: v for k, v in x.items() if k != key}


def put(key, value):
    def change(x):
        x = dict(x)
        x[key] = value(x[key])
        return x

    return change


def spoiled(x):
    x = x.clone()
    x.view(-1)[40] = float("nan")
    return x


def renamed(name):
    def change(about):
        about["names"][1] = about["rows"][1]["name"] = name

    return change


def classes(change):
    return lambda about: change(about["sites"]["first"]["classes"])


def nothing(about):
    pass


FORGED = {
    "four names for three rows": (lambda a: a["names"].append("d"), None, "4 names for control rows"),
    "three rows told, two named": (lambda a: a["rows"].pop(), None, "names and its rows' notes differ"),
    "a name twice": (renamed("a"), None, "names two"),
    "a bad name": (renamed("<|b"), None, "begins with"),
    "another number of tokens": (lambda a: a.update(tokens=2), None, "3 procedures of 2 tokens"),
    "no such address": (lambda a: a.update(address="guess"), None, "address"),
    "addresses of another mode": (lambda a: a.update(address="lda"), None, "lda bank with"),
    "classes of strangers": (classes(lambda c: [x.__setitem__(0, "q") for x in c[-2:]]), None, "'q'"),
    "a class twice": (classes(lambda c: c.__setitem__(1, c[0])), None, "do not fit"),
    "no such site": (lambda a: a["sites"].update(last=a["sites"]["first"]), None, "last"),
    "a site without tensors": (
        lambda a: a["sites"].update(boundary=a["sites"]["first"]),
        None,
        "lda.boundary",
    ),
    "no rows": (lambda a: a.pop("rows"), None, "rows"),
    "no meta": (lambda a: a.pop("prompt"), None, "prompt"),
    "a row that is no number": (nothing, put("control", spoiled), "not finite: b"),
    "a mean that is no number": (nothing, put("lda.first.0.mean", spoiled), "lda.first.0.mean is damaged"),
    "statistics in another type": (nothing, put("lda.first.1.scatter", torch.Tensor.float), "scatter"),
    "a short mean": (nothing, put("lda.first.2.mean", lambda x: x[:-1]), "do not fit"),
    "a count of none": (nothing, put("lda.first.count", lambda x: x * 0), "do not fit"),
    "a sample of no class": (nothing, put("lda.first.val_class", lambda x: x + 9), "do not fit"),
    "short addresses": (nothing, put("address", lambda x: x[:-1]), "address has shape"),
    "no control": (nothing, without("control"), "control"),
    "no scatter": (nothing, without("lda.first.0.scatter"), "lda.first.0.scatter"),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_file_that_contradicts_itself_is_refused(tmp_path, case):
    change, tensors, message = FORGED[case]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(altered(change, tensors or (lambda x: x)))
    with pytest.raises(DataError, match=message) as caught:
        Bank.load(path)
    assert caught.value.where == str(path) and caught.value.hint


def test_a_damaged_file_is_refused(tmp_path):
    made, path = bank("a", "b"), tmp_path / "b.safetensors"
    made.save(path)
    data = path.read_bytes()
    at = data.index(made.control_PkE[1, 0].numpy().tobytes()[:16])
    for bad in (data[:-1], data[: len(data) // 2], data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]):
        path.write_bytes(bad)
        with pytest.raises(DataError, match=r"truncated|altered"):
            Bank.load(path)


def test_other_artifacts_are_no_banks(tmp_path):
    path = tmp_path / "m.safetensors"
    artifact.write(
        path, {"k": torch.ones(1)}, artifact.Header(method="compact", kind="memory", port="layers")
    )
    with pytest.raises(UsageError, match="holds a memory of compact, not a bank"):
        Bank.load(path)
    path.write_bytes(to_safetensors({"control": torch.ones(1)}))
    with pytest.raises(DataError, match="not a memtok artifact"):
        Bank.load(path)


def test_digests_tell_where_texts_end():
    assert digest_of("ab", "c") != digest_of("a", "bc") and digest_of("ab") == digest_of("ab")
    assert samples("a")[1][0].shape == (12, WIDTH)
