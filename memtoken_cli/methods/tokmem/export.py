"""A bank for other software: rows appended to a resized checkpoint and tokenizer, or a PEFT adapter.

Stock `transformers` then routes by itself, without the grammar. Ids of rows begin at V, as those of virtual
rows do: the end of a segment (where there is one), then the procedures.

Shape suffixes: P procedures, R rows, E model width, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from torch import Tensor, nn

from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.engine.method import BankCall, Run
from memtoken_cli.io import atomic
from memtoken_cli.io.errors import DataError, UsageError
from memtoken_cli.methods.tokmem import bank_file
from memtoken_cli.methods.tokmem.bank import Bank, digest_of
from memtoken_cli.methods.tokmem.config import BankKeys
from memtoken_cli.methods.tokmem.extras import need_peft

FORMATS = ("hf", "peft")
STAMP = "memtok.json"
EOC = "<|mem_end|>"
PROBE_ID = 1


@dataclass(frozen=True)
class Sides:
    """What stands at the embedding (as its table holds it) and at the head, row by row, and their tokens."""

    tokens: tuple[str, ...]
    input_RE: Tensor
    output_RE: Tensor

    @property
    def coupled(self) -> bool:
        return torch.equal(self.input_RE, self.output_RE)


def export(bank: Bank, call: BankCall, keys: BankKeys, run: Run) -> Mapping[str, Any]:
    """Write `--out DIR`; returns its path, size and ids. A no-op where the same bank was exported there.

    Raises UsageError for a bank or model that the format cannot hold.
    """
    from memtoken_cli.methods.tokmem.operations import backbone_of

    if call.to not in FORMATS:
        raise UsageError(f"--to {call.to}: unknown", hint=f"--to {' or '.join(FORMATS)}")
    if call.to == "peft":
        need_peft("this export")
    check(bank, call.recouple)
    if call.to == "peft" and bank.meta.adapter is not None:
        raise UsageError("the bank's model wears an adapter, which this format cannot hold", hint="--to hf")
    out = Path(call.target)
    stamp = {
        "format": call.to,
        "bank": digest_of(json.dumps(bank_file.about(bank), sort_keys=True), *_hashes(bank)),
        "model": call.model,
        "recouple": call.recouple,
    }
    if (before := _stamp(out)) is not None and before.get("made") == stamp:
        run.note(f"{out}: already done")
        return {key: value for key, value in before.items() if key != "made"}
    backbone = backbone_of(bank, call, keys, run, "float32")
    fitted: dict[str, Any] = {}
    address_PE = bank.address_PE
    if call.recouple:
        from memtoken_cli.methods.tokmem.recouple import recouple

        address_PE, fitted = recouple(bank, backbone)
        run.note(f"recoupled: {fitted['agreement']:.1%} of pseudo-states go where they went before")
    sides = sides_of(bank, address_PE, scale_of(backbone))
    with atomic.directory(out) as folder:
        ids = (to_hf if call.to == "hf" else to_peft)(backbone, sides, folder)
        size = sum(path.stat().st_size for path in folder.iterdir())
        told = {"path": str(out), "bytes": size, "ids": ids, **fitted}
        (folder / STAMP).write_text(json.dumps({"made": stamp, **told}), encoding="utf-8")
    return told


def check(bank: Bank, recoupled: bool) -> None:
    """Raises UsageError for what no row beside a head can express."""
    if bank.meta.tokens > 1:
        raise UsageError(
            f"procedures of {bank.meta.tokens} tokens cannot be exported: each must be one",
            hint="train with tokens=1",
        )
    if recoupled:
        from memtoken_cli.methods.tokmem import recouple

        recouple.check(bank)
        return
    if bank.meta.address == "lda":
        raise UsageError(
            "lda addresses look at more than the head does",
            hint="--recouple fits rows to their decisions, or train with address=coupled",
        )
    if bank.address_bias_P is not None and bool(bank.address_bias_P.any()):
        raise UsageError("a head has no biases for addresses", hint="--recouple fits rows without")


def scale_of(backbone: CausalLM) -> float:
    """What the model multiplies its embeddings by (Gemma: the square root of the width)."""
    table = backbone.model.get_input_embeddings()
    with torch.no_grad():
        entry_E = table.weight[PROBE_ID].double()
        entered_E = table(torch.tensor(PROBE_ID, device=backbone.device)).double()
    scale = float(entered_E @ entry_E / (entry_E @ entry_E))
    if not torch.allclose(entered_E, scale * entry_E, rtol=1e-2, atol=1e-4):
        raise UsageError(f"the embedding of {backbone.name} is not a table and a scale")
    return 1.0 if abs(scale - 1) < 1e-6 else scale


def sides_of(bank: Bank, address_PE: Tensor | None, scale: float) -> Sides:
    """The bank's rows on both sides; coupled rows are the same on both, but for the embedding's scale."""
    control_PE = bank.control_PkE[:, 0]
    head_PE = control_PE if address_PE is None else address_PE
    ends = torch.zeros(0, bank.width) if bank.eoc_E is None else bank.eoc_E[None]
    tokens = ((EOC,) if bank.eoc_E is not None else ()) + tuple(f"<|mem:{name}|>" for name in bank.names)
    input_RE, output_RE = torch.cat([ends, control_PE]), torch.cat([ends, head_PE])
    return Sides(tokens, input_RE / scale if scale != 1.0 else input_RE, output_RE)


def grow(backbone: CausalLM, sides: Sides) -> dict[str, int]:
    """Add the tokens to the backbone's tokenizer and as many rows to its model; returns their ids.

    Ids that the vocabulary has but the tokenizer does not are named too, so that new ones begin at V.
    """
    V, tokenizer = backbone.dims.vocab, backbone.tokenizer
    known = tokenizer.get_vocab()
    if clash := [token for token in sides.tokens if token in known]:
        raise UsageError(f"the tokenizer has a token {clash[0]} already", hint="memtok bank rename")
    fill = [f"<|unused:{i}|>" for i in range(len(tokenizer), V)]
    tokenizer.add_tokens(
        [AddedToken(token, special=True, normalized=False) for token in (*fill, *sides.tokens)],
        special_tokens=True,
    )
    ids = {token: int(tokenizer.convert_tokens_to_ids(token)) for token in sides.tokens}
    if list(ids.values()) != list(range(V, V + len(ids))):
        raise DataError(f"the tokenizer of {backbone.name} does not number new tokens from {V} on")
    backbone.model.resize_token_embeddings(V + len(ids), mean_resizing=False)
    return ids


def to_hf(backbone: CausalLM, sides: Sides, folder: Path) -> dict[str, int]:
    """A checkpoint and a tokenizer; where the two sides differ, a tied head is untied."""
    V, model = backbone.dims.vocab, backbone.model
    ids = grow(backbone, sides)
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    if table.weight is head.weight and not sides.coupled:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False
    with torch.no_grad():
        table.weight[V:] = sides.input_RE.to(table.weight)
        head.weight[V:] = sides.output_RE.to(head.weight)
        if head.bias is not None:
            head.bias[V:] = 0
    model.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)
    return ids


def to_peft(backbone: CausalLM, sides: Sides, folder: Path) -> dict[str, int]:
    """A `TrainableTokens` adapter for the model after resize_token_embeddings(len(tokenizer)), and that.

    Raises UsageError where a tied head would need rows of its own.
    """
    from peft import TrainableTokensConfig, get_peft_model
    from peft.tuners.trainable_tokens import TrainableTokensLayer

    model = backbone.model
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = table.weight is head.weight
    if tied and not sides.coupled:
        raise UsageError("the model's head is tied: an adapter cannot untie it", hint="--to hf")
    where = {id(module): name for name, module in model.named_modules()}
    names = [where[id(table)]] if tied else [where[id(table)], where[id(head)]]
    ids = grow(backbone, sides)
    config = TrainableTokensConfig(
        token_indices=list(ids.values()), target_modules=names, init_weights=True, task_type="CAUSAL_LM"
    )
    wrapped = get_peft_model(model, config)
    layers = {n: m for n, m in wrapped.named_modules() if isinstance(m, TrainableTokensLayer)}
    for name, layer in layers.items():
        rows_RE = sides.input_RE if name.endswith(names[0]) else sides.output_RE
        for delta in layer.trainable_tokens_delta.values():
            delta.data.copy_(rows_RE)
    wrapped.save_pretrained(folder, save_embedding_layers=False)
    backbone.tokenizer.save_pretrained(folder)
    return ids


def _hashes(bank: Bank) -> list[str]:
    """Digests of what an export holds of the tensors."""
    return [
        digest_of(name, str(list(x.shape)), x.contiguous().numpy().tobytes().hex())
        for name, x in sorted(bank_file.memory(bank).tensors().items())
    ]


def _stamp(out: Path) -> dict[str, Any] | None:
    """What was exported to the folder before. Raises UsageError where it holds something else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        found = json.loads((out / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise UsageError(f"{out} exists and is no export: it is left alone", hint="--out another folder")
    return found
