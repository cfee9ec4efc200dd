"""`memtok bank`: every action through the command line, its refusals, and that again is a no-op."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cli_fixtures import Memtok
from random_bank import bank, of_model
from safetensors import safe_open
from tiny import save, tiny_llama, tiny_qwen2
from tiny_bank import tiny_bank
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from memtoken_cli.data import procedure_files
from memtoken_cli.engine import models, vocab
from memtoken_cli.io import artifact
from memtoken_cli.io.lock import file_lock
from memtoken_cli.methods.tokmem.api import Options, TokMem
from memtoken_cli.methods.tokmem.bank import Bank
from memtoken_cli.methods.tokmem.config import FEATURES, FINAL
from memtoken_cli.methods.tokmem.statistics import END, Class

FILE = "b.safetensors"


@pytest.fixture
def made(memtok: Memtok) -> Bank:
    """A bank of three in FILE, in the empty directory that memtok runs in."""
    found = bank("antonyms", "rhymes", "style")
    found.save(FILE)
    return found


def fails(ran: object, code: int, text: str, hint: str = "") -> None:
    assert ran.code == code and ran.out == b"", ran.err
    said = next((line for line in ran.err.splitlines() if line.startswith("error: ")), "")
    assert said and text in said and hint in ran.err.partition("hint: ")[2], ran.err


def test_list_and_inspect_show_the_rows(memtok: Memtok, made: Bank) -> None:
    ran = memtok("bank", "list", FILE)
    head, _, *lines = ran.text.splitlines()
    assert ran.code == 0 and head.split()[0] == "name"
    samples = head.split().index("samples")
    assert [[line.split()[i] for i in (0, samples)] for line in lines] == [[n, "6"] for n in made.names]
    norm = float(lines[0].split()[head.split().index("norm")])
    assert norm == pytest.approx(float(made.control_PkE[0, 0].norm()), rel=1e-3)
    assert "3 rows in 1 blocks, made for tiny-llama" in ran.err
    document = json.loads(memtok("bank", "list", FILE, "--json").out)
    assert [row["name"] for row in document["rows"]] == list(made.names) and document["blocks"]
    ran = memtok("inspect", FILE)
    assert ran.code == 0 and "vocab" in ran.text and all(name in ran.text for name in made.names)


def test_list_needs_no_torch(made: Bank) -> None:
    code = (
        "import sys; from memtoken_cli.cli import run; assert run(['bank', 'list', sys.argv[1]]) == 0;"
        "assert run(['bank', 'show', sys.argv[1], 'style']) == 0;"
        "heavy = {'torch', 'transformers', 'numpy', 'pydantic'} & set(sys.modules); assert not heavy, heavy"
    )
    env = os.environ | {"PYTHONPATH": str(Path(artifact.__file__).parents[2])}
    ran = subprocess.run([sys.executable, "-c", code, FILE], env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 9}, "artifact format 9"),
        ({"kind": "model"}, "lists no rows"),
        ({"method": 3}, "not a memtok header: method"),
        ({"model": {"name": 3}}, "not a memtok header: model.name"),
        ({"shapes": {"control": [1]}}, "its header says"),
        ({"about": {"rows": "none"}}, "lists no rows"),
    ],
)
def test_a_list_refuses_what_inspect_refuses(
    memtok: Memtok, made: Bank, change: dict[str, object], said: str
) -> None:
    data = Path(FILE).read_bytes()
    size = int.from_bytes(data[:8], "little")
    table = json.loads(data[8 : 8 + size])
    table["__metadata__"][artifact.KEY] = json.dumps(json.loads(table["__metadata__"][artifact.KEY]) | change)
    head = json.dumps(table).encode()
    Path(FILE).write_bytes(len(head).to_bytes(8, "little") + head + data[8 + size :])
    fails(memtok("bank", "list", FILE), 3, said)


def test_show(memtok: Memtok, made: Bank) -> None:
    row = json.loads(memtok("bank", "show", FILE, "rhymes").out)
    assert row["name"] == "rhymes" and row["description"] == "what rhymes does"
    assert row["block"] == made.rows[1].block and row["described"] is False
    fails(memtok("bank", "show", FILE, "rhyme"), 2, "no row named 'rhyme'", "did you mean rhymes?")


@pytest.mark.parametrize(
    ("action", "arguments", "names"),
    [
        ("remove", ["rhymes"], ("antonyms", "style")),
        ("select", ["style", "antonyms"], ("antonyms", "style")),
        ("rename", ["rhymes", "verses"], ("antonyms", "verses", "style")),
    ],
)
def test_changes_to_a_new_file_and_in_place(
    memtok: Memtok, made: Bank, action: str, arguments: list[str], names: tuple[str, ...]
) -> None:
    before = Path(FILE).read_bytes()
    ran = memtok("bank", action, FILE, *arguments, "--out", "new.safetensors")
    assert (ran.code, ran.text) == (0, "new.safetensors\n"), ran.err
    assert Bank.load("new.safetensors").names == names and Path(FILE).read_bytes() == before
    written = Path("new.safetensors").read_bytes()
    again = memtok("bank", action, FILE, *arguments, "--out", "new.safetensors")
    assert again.code == 0 and "already done" in again.err and Path("new.safetensors").read_bytes() == written
    for says in ("", "already done"):
        ran = memtok("bank", action, FILE, *arguments, "--in-place")
        assert (ran.code, ran.text) == (0, f"{FILE}\n"), ran.err
        assert says in ran.err and Path(FILE).read_bytes() == written


def test_what_was_never_there_cannot_be_removed_twice(memtok: Memtok, made: Bank) -> None:
    assert memtok("bank", "remove", FILE, "style", "--in-place").code == 0
    fails(memtok("bank", "remove", FILE, "stile", "--in-place"), 2, "no procedure named 'stile'")
    assert b"style" not in Path(FILE).read_bytes(), "nothing of its name stays"
    fails(memtok("bank", "rename", FILE, "rhymes", "antonyms", "--in-place"), 2, "already")


def test_merge(memtok: Memtok, made: Bank) -> None:
    bank("verbs").save("v.safetensors")
    bank("style", "tone", count=4).save("s.safetensors")
    ran = memtok("bank", "merge", FILE, "v.safetensors", "--out", "m.safetensors", "--json")
    assert ran.code == 0 and json.loads(ran.out)["procedures"] == 4
    assert Bank.load("m.safetensors").names == (*made.names, "verbs")
    fails(
        memtok("bank", "merge", FILE, "s.safetensors", "--out", "x"),
        2,
        "'style' is in the bank",
        "--on-clash",
    )
    ran = memtok(
        "bank", "merge", FILE, "v.safetensors", "s.safetensors", "--in-place", "--on-clash", "rename"
    )
    assert ran.code == 0 and Bank.load(FILE).names == (*made.names, "verbs", "style-2", "tone")
    after = Path(FILE).read_bytes()
    ran = memtok(
        "bank", "merge", FILE, "v.safetensors", "s.safetensors", "--in-place", "--on-clash", "rename"
    )
    assert ran.code == 0 and "already done" in ran.err and Path(FILE).read_bytes() == after
    fails(memtok("bank", "merge", "m.safetensors", FILE, "--out", "x"), 2, "count twice", "--shared-blocks")
    ran = memtok("bank", "merge", "m.safetensors", FILE, "--out", "x", "--shared-blocks", "first")
    assert ran.code == 0 and Bank.load("x").meta.approximate
    fails(
        memtok("bank", "merge", FILE, FILE, "--out", "x", "--on-clash", "both"), 2, "--on-clash both: unknown"
    )


def test_diff(memtok: Memtok, made: Bank) -> None:
    made.save("same.safetensors")
    ran = memtok("bank", "diff", FILE, "same.safetensors")
    assert (ran.code, ran.out) == (0, b"") and "no difference" in ran.err
    made.rename("style", "tone").save("other.safetensors")
    rows = [json.loads(line) for line in memtok("bank", "diff", FILE, "other.safetensors").text.splitlines()]
    assert {"name": "style", "change": "removed"} in rows and {"name": "tone", "change": "added"} in rows
    made.append(bank("verbs")).save("more.safetensors")
    rows = [json.loads(line) for line in memtok("bank", "diff", FILE, "more.safetensors").text.splitlines()]
    assert {row.get("name", row.get("part")) for row in rows} == {"verbs", "blocks"} | (
        {"alpha"} if Bank.load("more.safetensors").alpha != made.alpha else set()
    )


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (("remove", FILE, "style"), "needs --out FILE or --in-place"),
        (("remove", FILE, "style", "--out", "x", "--in-place"), "needs --out FILE or --in-place"),
        (("remove", FILE, "--in-place"), "1 or more arguments"),
        (("rename", FILE, "style", "--in-place"), "takes 2 arguments"),
        (("list", FILE, "--in-place"), "--in-place does not belong to list"),
        (("list", FILE, "extra"), "takes 0 arguments"),
        (("add", FILE, "--in-place"), "add needs --data"),
        (("export", FILE, "--out", "d"), "export needs --to"),
        (("export", FILE, "--to", "onnx", "--out", "d"), "--to onnx: unknown"),
        (("remove", FILE, "style", "--in-place", "steps=3"), "steps= belongs to add"),
        (("remove", FILE, "style", "--in-place", "stps=3"), "stps"),
        (("lst", FILE), "no such action: lst"),
        (("list",), "no bank"),
        (("export", FILE, "--to", "hf", "--out", "d"), "lda addresses look at more"),
        (("add", FILE, "--data", "nowhere", "--in-place"), "nowhere"),
    ],
)
def test_refusals(memtok: Memtok, made: Bank, argv: tuple[str, ...], text: str) -> None:
    before = Path(FILE).read_bytes()
    ran = memtok("bank", *argv)
    assert ran.code in (2, 3) and text in ran.err.splitlines()[0] and ran.out == b"", ran.err
    assert Path(FILE).read_bytes() == before and not Path("d").exists() and not Path("x").exists()


def test_only_banks(memtok: Memtok, made: Bank) -> None:
    Path("text").write_text("hello there")
    fails(memtok("bank", "list", "text"), 3, "not")
    fails(memtok("bank", "list", "gone"), 3, "no such file")
    artifact.write("other", {"k": torch.ones(1)}, artifact.Header(method="tokmem", kind="model"))
    fails(memtok("bank", "list", "other"), 3, "lists no rows")
    Path("mine.txt").write_text("notes")
    fails(memtok("bank", "select", FILE, "style", "--out", "mine.txt"), 2, "is not an artifact")
    assert Path("mine.txt").read_text() == "notes"


def test_a_bank_in_use_is_left_alone(memtok: Memtok, made: Bank) -> None:
    with file_lock(FILE):
        ran = memtok("bank", "remove", FILE, "style", "--in-place")
    assert ran.code == 75 and str(os.getpid()) in ran.err and Bank.load(FILE).names == made.names
    assert memtok("bank", "remove", FILE, "style", "--in-place").code == 0


def test_compress_points_to_bank_add(memtok: Memtok, shots: Path) -> None:
    fails(
        memtok("compress", "prompts.jsonl", "--ratio", "2", "--method", "tokmem"),
        2,
        "does not answer",
        "memtok bank add",
    )


@pytest.fixture
def local(made: Bank) -> Bank:
    """The same bank made for the model in the folder `model`."""
    save(tiny_llama(), Path("model"))
    found = of_model(made, tiny_llama())
    found.save(FILE)
    return found


def checks(ran: object) -> dict[str, tuple[str, str]]:
    rows = [json.loads(line) for line in ran.text.splitlines()]
    return {row["check"]: (row["state"], row["detail"]) for row in rows}


def test_verify(memtok: Memtok, local: Bank) -> None:
    ran = memtok("bank", "verify", FILE, "--model", "model")
    found = checks(ran)
    assert ran.code == 0 and {state for state, _ in found.values()} == {"ok"}, ran.err
    assert found["weights"][1] == local.model.fingerprint
    save(tiny_llama(seed=9), Path("wrong"))  # of equal width
    ran = memtok("bank", "verify", FILE, "--model", "wrong")
    assert ran.code == 3 and local.model.fingerprint[:12] in ran.err and "weights" in ran.err
    data = Path(FILE).read_bytes()
    Path(FILE).write_bytes(data[:-1])
    assert memtok("bank", "verify", FILE).code == 3


def test_verify_warns_of_equal_and_of_long_rows(memtok: Memtok, made: Bank) -> None:
    control = made.control_PkE.clone()
    control[1] = control[0]
    control[2] *= 100
    type(made)(**{**vars(made), "control_PkE": control}).save(FILE)
    found = checks(memtok("bank", "verify", FILE))
    assert found["equal rows"] == ("warn", "rhymes = antonyms")
    assert found["norms"][0] == "warn" and "style" in found["norms"][1]


def ids_of(made: Bank, row: int) -> list[list[int]]:
    """A prompt with a row in it, by virtual ids counted from the vocabulary's end."""
    return [[5, 6, 64 + row, 7, 8, 64]]


@pytest.mark.parametrize("address", ["coupled", "decoupled"])
@pytest.mark.parametrize("eoc", [False, True])
def test_export_is_the_same_model(memtok: Memtok, address: str, eoc: bool) -> None:
    """Bar 5: logits of stock transformers equal those of the rows beside the vocabulary."""
    backbone = tiny_qwen2()
    save(backbone, Path("model"))
    made = of_model(bank("a", "b é", address=address, eoc=eoc), backbone)
    made.save(FILE)
    line = ("bank", "export", FILE, "--to", "hf", "--out", "exported", "--model", "model")
    ran = memtok(*line, "--json")
    told = json.loads(ran.out)
    assert ran.code == 0 and list(told["ids"].values()) == list(range(64, 66 + eoc)), ran.err
    ends = [made.eoc_E[None]] if eoc else []
    heads = made.control_PkE[:, 0] if address == "coupled" else made.address_PE
    ids_1T = torch.tensor(ids_of(made, 1))
    with torch.no_grad():
        x = vocab.embed(backbone, ids_1T, torch.cat([*ends, made.control_PkE[:, 0]]))
        h = backbone.model.get_decoder()(inputs_embeds=x, use_cache=False).last_hidden_state
        want = vocab.logits(backbone, h, torch.cat([*ends, heads]))
        stock = AutoModelForCausalLM.from_pretrained("exported")
        found = stock(input_ids=ids_1T, use_cache=False).logits
    assert found.shape == want.shape and (found - want).abs().max() <= 1e-5
    tokenizer = AutoTokenizer.from_pretrained("exported")
    assert tokenizer("x<|mem:b é|>y").input_ids[1] == told["ids"]["<|mem:b é|>"]
    again = memtok(*line)
    assert again.code == 0 and "already done" in again.err and again.text == "exported\n"
    fails(memtok("bank", "export", FILE, "--to", "hf", "--out", "model", "--model", "model"), 2, "no export")


def test_export_to_peft(memtok: Memtok) -> None:
    peft = pytest.importorskip("peft")
    backbone = tiny_llama()
    save(backbone, Path("model"))
    made = of_model(bank("a", "b", address="coupled"), backbone)
    made.save(FILE)
    ran = memtok("bank", "export", FILE, "--to", "peft", "--out", "adapter", "--model", "model")
    assert ran.code == 0, ran.err
    ids_1T = torch.tensor(ids_of(made, 1))
    with torch.no_grad():
        rows = made.control_PkE[:, 0]
        x = vocab.embed(backbone, ids_1T, rows)
        h = backbone.model.get_decoder()(inputs_embeds=x, use_cache=False).last_hidden_state
        want = vocab.logits(backbone, h, rows)
        base = AutoModelForCausalLM.from_pretrained("model")
        base.resize_token_embeddings(len(AutoTokenizer.from_pretrained("adapter")), mean_resizing=False)
        found = peft.PeftModel.from_pretrained(base, "adapter")(input_ids=ids_1T, use_cache=False).logits
    assert (found - want).abs().max() <= 1e-5
    with safe_open("adapter/adapter_model.safetensors", "pt") as file:
        assert sum(file.get_tensor(key).numel() for key in file.keys()) <= 2 * rows.numel()  # noqa: SIM118


def stock(to: str) -> PreTrainedModel:
    """What other software makes of the folder `exported`."""
    if to == "hf":
        return AutoModelForCausalLM.from_pretrained("exported")
    peft = pytest.importorskip("peft")
    base = AutoModelForCausalLM.from_pretrained("model")
    base.resize_token_embeddings(len(AutoTokenizer.from_pretrained("exported")), mean_resizing=False)
    return peft.PeftModel.from_pretrained(base, "exported")


@pytest.mark.parametrize(
    ("to", "address", "eoc"),
    [("hf", "coupled", False), ("hf", "coupled", True), ("hf", "decoupled", True), ("peft", "coupled", True)],
)
def test_stock_generate_says_what_we_say(memtok: Memtok, to: str, address: str, eoc: bool) -> None:
    """The free softmax over words and rows is `transformers.generate` on the export, id by id."""
    if to == "peft":
        pytest.importorskip("peft")
    backbone = tiny_llama()
    save(backbone, Path("model"))
    made = of_model(
        bank("a", "b", "c", address=address, eoc=eoc, segment_end="eoc" if eoc else "none"), backbone
    )
    made.save(FILE)
    ran = memtok("bank", "export", FILE, "--to", to, "--out", "exported", "--model", "model")
    assert ran.code == 0, ran.err
    V, model = backbone.dims.vocab, stock(to)
    ready, rows, words = TokMem(backbone, made), 0, 0
    for query in ("ab", "what is it", "c d e f", "12", "it"):
        (result,) = ready.results([query], Options(constrain="none", max_new_tokens=12))
        # virtual ids keep a place for the end of a segment
        ours = [i - (not eoc) if i > V else i for i in result.ids]
        prompt = list(ready.prompts.render(query).ids)
        with torch.no_grad():
            out = model.generate(
                input_ids=torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=2
            )
        assert [i for i in out[0, len(prompt) :].tolist() if i != 2] == ours
        rows, words = rows + sum(i >= V for i in ours), words + sum(i < V for i in ours)
    assert rows and words, "both are said"


def test_export_refuses_what_does_not_fit(memtok: Memtok) -> None:
    save(tiny_llama(), Path("model"))
    line = ("bank", "export", FILE, "--to", "hf", "--out", "d", "--model", "model")
    of_model(bank("a", address="coupled", tokens=2), tiny_llama()).save(FILE)
    fails(memtok(*line), 2, "procedures of 2 tokens", "tokens=1")
    of_model(bank("a"), tiny_llama()).save(FILE)
    fails(memtok(*line), 2, "lda addresses", "--recouple")
    fails(memtok(*line, "--recouple"), 2, "the state that the head reads")
    assert not Path("d").exists()


def test_recoupled_rows_decide_as_the_addresses_do(memtok: Memtok) -> None:
    save(tiny_llama(), Path("model"))
    features = (*FEATURES[:2], FINAL)
    of_model(bank("a", "b", "c", count=12, features=features), tiny_llama()).save(FILE)
    line = ("bank", "export", FILE, "--to", "hf", "--out", "d", "--model", "model", "--recouple", "--json")
    ran = memtok(*line)
    told = json.loads(ran.out)
    assert ran.code == 0 and told["agreement"] > 0.8 and told["lost"] < 0.2, ran.err
    assert AutoModelForCausalLM.from_pretrained("d").config.tie_word_embeddings is False


def folder(**procedures: int) -> None:
    Path("data").mkdir(exist_ok=True)
    for name, count in procedures.items():
        head = {"procedure": name, "description": f"do {name}", "instruction": f"please {name} it"}
        lines = [{"input": f"{name} {i} now", "output": f"{name[:2]}{i}"} for i in range(count)]
        Path("data", f"{name}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in (head, *lines)))


def test_add_without_steps(memtok: Memtok, local: Bank) -> None:
    folder(sort=6, swap=6)
    line = ("bank", "add", FILE, "--data", "data", "--model", "model", "--in-place")
    ran = memtok(*line)
    assert (ran.code, ran.text) == (0, f"{FILE}\n"), ran.err
    grown = Bank.load(FILE)
    assert grown.names == (*local.names, "sort", "swap") and len(grown.meta.blocks) == 2
    assert torch.equal(grown.control_PkE[:3], local.control_PkE)
    assert all(grown.same_row(local, name) for name in local.names)
    facets = {c.facet for c in grown.sites["first"].classes if c.procedure == "sort"}
    assert facets == {"query", "instruction+query"} and grown.rows[3].samples >= 3
    after = Path(FILE).read_bytes()
    again = memtok(*line)
    assert again.code == 0 and "already done" in again.err and Path(FILE).read_bytes() == after
    folder(sort=9)
    fails(memtok(*line), 2, "'sort' is in the bank already", "on_clash=update")
    ran = memtok(*line, "on_clash=rename")
    assert ran.code == 0 and Bank.load(FILE).names[-2:] == ("sort-2", "swap-2"), ran.err


def test_add_with_steps_moves_only_the_new_rows(memtok: Memtok, local: Bank) -> None:
    folder(sort=6)
    for steps in ("0", "3"):
        line = ("bank", "add", FILE, "--data", "data", "--model", "model", "--out", steps)
        ran = memtok(*line, f"steps={steps}", "batch=2")
        assert ran.code == 0, ran.err
    still, moved = Bank.load("0"), Bank.load("3")
    assert torch.equal(still.control_PkE[:3], moved.control_PkE[:3])
    assert not torch.equal(still.control_PkE[3], moved.control_PkE[3])


@pytest.fixture
def chained(memtok: Memtok) -> Bank:
    """A bank that knows what follows a segment, in FILE."""
    save(tiny_llama(), Path("model"))
    found = tiny_bank(tiny_llama(), "lda", segment_end="eoc", max_procedures=3, following="states")
    found.save(FILE)
    return found


def chains(*calls: tuple[str, ...]) -> None:
    lines = [
        {
            "query": " then ".join(names) + str(i),
            "calls": [{"procedure": n, "output": f"{n} it"} for n in names],
        }
        for i, names in enumerate(calls)
    ]
    Path("chains.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


ADD = ("bank", "add", FILE, "--data", "data", "--model", "model", "--out", "new")


def test_add_with_chains(memtok: Memtok, chained: Bank) -> None:
    folder(sort=6, swap=6)
    chains(("sort", "alpha"), ("beta", "sort", "swap"), ("swap", "sort"))
    ran = memtok(*ADD, "chains=chains.jsonl")
    assert ran.code == 0, ran.err
    grown = Bank.load("new")
    assert grown.names == (*chained.names, "sort", "swap") and grown.meta.max_procedures == 3
    assert all(grown.same_row(chained, name) for name in chained.names)
    after = {c.procedure: int(n) for c, n in counts(grown) if c.procedure not in chained.names}
    assert (
        after["sort"] == 2 and after["swap"] == 1
    )  # what follows a segment: alpha is no class of this block
    singles = sum(row.samples for row in grown.rows[-2:])
    assert after[END] == {c.procedure: int(n) for c, n in counts(chained)}[END] + singles + 3
    again = memtok(*ADD[:-1], "other", "chains=chains.jsonl")
    assert again.code == 0 and Path("other").read_bytes() == Path("new").read_bytes()


def counts(made: Bank) -> list[tuple[Class, float]]:
    site = made.sites["boundary"]
    return list(zip(site.classes, site.count_C.tolist(), strict=True))


def test_a_chained_bank_learns_where_new_single_calls_end(memtok: Memtok, chained: Bank) -> None:
    folder(sort=6)
    assert memtok(*ADD).code == 0
    grown = Bank.load("new")
    before, after = (dict(counts(one)) for one in (chained, grown))
    assert after[Class(END)] == before[Class(END)] + grown.rows[-1].samples


def test_chains_that_cannot_be_added(memtok: Memtok, local: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(sort=6)
    behind = replace(local, meta=replace(local.meta, following="states"))
    behind.save(FILE)
    chains(("sort", "style"))
    fails(memtok(*ADD, "chains=chains.jsonl"), 2, "no chain", "whose first block has chains")
    chains(("sort", "styel"))
    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("loaded"))
    fails(memtok(*ADD, "chains=chains.jsonl"), 3, "unknown procedure styel in chains.jsonl:1", "style")


def test_a_bank_that_reads_queries_in_parts_takes_chains_at_any_time(memtok: Memtok, local: Bank) -> None:
    folder(sort=6)
    chains(("sort", "style"), ("style", "sort"))
    ran = memtok(*ADD, "chains=chains.jsonl")
    assert ran.code == 0, ran.err
    grown = Bank.load("new")
    assert set(grown.sites) == {"first", "several"} and grown.meta.max_procedures == 4
    assert all(grown.same_row(local, name) for name in local.names)


def test_add_reads_its_folder_once(memtok: Memtok, local: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    read, real = [], procedure_files.read_folder
    monkeypatch.setattr(procedure_files, "read_folder", lambda *a: (read.append(a), real(*a))[1])
    folder(sort=6)
    assert memtok(*ADD).code == 0 and len(read) == 1


def test_add_leaves_out_what_is_too_long_or_names_it(memtok: Memtok, local: Bank) -> None:
    folder(sort=9)
    with Path("data/sort.jsonl").open("a") as file:
        file.write(
            "".join(json.dumps({"input": "x" * 2000 + str(i), "output": "y"}) + "\n" for i in range(9))
        )
    ran = memtok(*ADD)
    assert ran.code == 3 and "tokens of prompt and response" in ran.err and "data/sort.jsonl:1" in ran.err
    ran = memtok(*ADD, "skip_bad=true")
    assert ran.code == 0 and "bad records left out" in ran.err, ran.err
    assert 3 <= Bank.load("new").rows[-1].samples <= 9


def test_add_to_trained_addresses_needs_steps(memtok: Memtok) -> None:
    of_model(bank("a", address="coupled"), tiny_llama()).save(FILE)
    folder(sort=6)
    fails(memtok("bank", "add", FILE, "--data", "data", "--in-place"), 2, "takes steps", "steps=")
