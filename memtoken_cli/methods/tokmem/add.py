"""`memtok bank add`: more procedures for a bank, made as its own were, by `maker.py`.

With steps=0 nothing is trained: a new control row is the mean embedding of its text, its address is in closed
form, and all of it takes seconds.
"""

from __future__ import annotations

import json
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from memtoken_cli.engine.checkpoint import RunDir, run_dir
from memtoken_cli.engine.method import BankCall, Run
from memtoken_cli.io.errors import UsageError
from memtoken_cli.methods.tokmem.bank import Bank, digest_of
from memtoken_cli.methods.tokmem.config import BankKeys, Config, DataConfig, LdaSection, TrainConfig
from memtoken_cli.methods.tokmem.material import Material, fitting, material
from memtoken_cli.recipe.canonical import dump

ENTRY = "add"


def add(bank: Bank, call: BankCall, keys: BankKeys, run: Run) -> Bank:
    """The bank with the procedures of `--data` behind its own; itself where the same were added before.

    Raises UsageError for names that it has, DataError for bad data.
    """
    if keys.steps == 0 and bank.meta.address != "lda":
        raise UsageError(
            f"{bank.meta.address} addresses are trained, which takes steps",
            hint="memtok bank add ... steps=200",
        )
    assert call.data is not None, "the command checks that there is --data"
    data = DataConfig(
        path=call.data,
        tasks=keys.tasks,
        train=keys.train,
        val=0,
        test=0,
        chains=keys.chains,
        described=keys.described,
        skip_bad=keys.skip_bad,
    )
    # before a model is loaded: what is wrong with the data, and whether there is anything to do
    found = material(data, None, 0, 0, known=bank.names, note=run.note)
    entry = f"{ENTRY}:{_digest(found, keys)}"
    if entry in bank.meta.history:
        return bank
    clash = [name for name in found.names if name in bank.names]
    if clash and keys.on_clash == "error":
        raise UsageError(f"{clash[0]!r} is in the bank already", hint="on_clash=update or on_clash=rename")
    grown = _made(bank, found, call, keys, run)
    return replace(grown, meta=replace(grown.meta, history=(*grown.meta.history, entry)))


def config_of(bank: Bank, keys: BankKeys) -> Config:
    """The configuration that the bank's own procedures were made with."""
    meta = bank.meta
    project = None if bank.project_DQ is None else bank.project_DQ.shape[1]
    lda = {"keep_val": meta.keep_val} if not meta.keep_features else {"keep_features": True}
    return Config(
        on_clash=keys.on_clash,
        address=meta.address,
        tokens=meta.tokens,
        init="text",
        segment_end=meta.segment_end,
        max_procedures=None if keys.chains and meta.max_procedures == 1 else meta.max_procedures,
        route_softmax=meta.softmax,
        lda=LdaSection(
            features=meta.features,
            shrinkage=meta.shrinkage,
            scatter=meta.scatter,
            project=project,
            following=meta.following,
            **lda,
        ),
    )


def _made(bank: Bank, found: Material, call: BankCall, keys: BankKeys, run: Run) -> Bank:
    from memtoken_cli.methods.tokmem.maker import Maker
    from memtoken_cli.methods.tokmem.operations import backbone_of
    from memtoken_cli.methods.tokmem.prompt import Prompts

    backbone = backbone_of(bank, call, keys, run)
    config = config_of(bank, keys)
    # what is read once needs no keeping
    kept = {} if keys.steps else {"cache_gib": 0.0}
    train = TrainConfig(steps=max(1, keys.steps), lr=keys.lr, batch=keys.batch, **kept)
    if keys.skip_bad:
        longest = train.longest(backbone.dims.context)
        found = fitting(found, Prompts(backbone.tokenizer), longest, run.note)
    with ExitStack() as stack:
        rundir: RunDir | None = None
        if keys.steps:
            # short enough to do again after an interruption: the bank itself changes by one rename
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="memtok-")))
            rundir = stack.enter_context(run_dir(folder / "run", dump(config.model_dump(mode="json"))))
        return Maker(backbone, config, train, 0, rundir, note=run.note).bank(found, bank)


def _digest(found: Material, keys: BankKeys) -> str:
    """Of all that decides what is added."""
    texts = [keys.model_dump_json()]
    for p in found.procedures:
        texts.append(json.dumps([p.name, p.description, p.instruction]))
        texts += [json.dumps([s.input, s.outputs]) for s in p.train]
    for chain in found.chains:
        texts.append(json.dumps([chain.query, *([call.procedure, call.output] for call in chain.calls)]))
    return digest_of(*texts)
