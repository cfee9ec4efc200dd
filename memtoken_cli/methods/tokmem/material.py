"""What a recipe's `data:` names, read and checked: procedures, training chains, queries for no procedure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from memtoken_cli.data import operations
from memtoken_cli.data.chains import Chain, join, made_chains, read_chains, read_negatives
from memtoken_cli.data.procedures import Caps, Procedure, Procedures, Sample, read_procedures
from memtoken_cli.methods.tokmem.config import DataConfig
from memtoken_cli.methods.tokmem.examples import blocks_of, fits
from memtoken_cli.methods.tokmem.prompt import Prompts
from memtoken_cli.recipe.schema import Recipe

CHAINS = 150  # to test with


@dataclass(frozen=True)
class Material:
    """procedures: in the order in which they are learned; blocks: runs of them. chains: to train on. skipped:
    records that were left out, each with its place."""

    procedures: tuple[Procedure, ...]
    blocks: tuple[range, ...]
    chains: tuple[Chain, ...] = ()
    negatives: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(p.name for p in self.procedures)


def material(
    data: DataConfig,
    prompts: Prompts | None,
    longest: int,
    seed: int,
    *,
    known: Sequence[str] = (),
    note: Callable[[str], None] = lambda text: None,
) -> Material:
    """What `data:` names. known: procedures of a bank, which chains may call too. Without `prompts` nothing
    is too long yet (see `fitting`). Raises DataError with every problem at its file:line, UsageError for
    unknown `tasks`."""
    if data.toy is not None:
        toy = operations.toy(data.toy.procedures, data.toy.samples, data.val, data.test, seed)
        blocks = tuple(blocks_of(data.blocks, len(toy)))
        chains = made_chains(toy, "train", data.toy.chains, seed, joined=operations.join)
        return Material(tuple(toy), blocks, tuple(chains))
    found = procedures_of(data, None if prompts is None else fits(prompts, longest))
    if found.dropped:
        note(f"{found.dropped} training samples left out: their input is a test's too")
    _count(found.skipped, note)
    return Material(
        found.items,
        tuple(blocks_of(data.blocks, len(found.items))),
        tuple(_chains(data, found.items, known, seed)),
        tuple(read_negatives(data.negatives)) if data.negatives else (),
        found.skipped,
    )


def fitting(found: Material, prompts: Prompts, longest: int, note: Callable[[str], None]) -> Material:
    """Without samples that are too long, which are counted."""
    check = fits(prompts, longest)
    skipped: list[str] = []

    def left(p: Procedure, samples: Sequence[Sample]) -> tuple[Sample, ...]:
        faults = [check(p.instruction, sample) for sample in samples]
        skipped.extend(f"{s.where}: {f}" for s, f in zip(samples, faults, strict=True) if f)
        return tuple(s for s, f in zip(samples, faults, strict=True) if f is None)

    kept = tuple(replace(p, train=left(p, p.train), val=left(p, p.val)) for p in found.procedures)
    _count(skipped, note)
    return replace(found, procedures=kept, skipped=(*found.skipped, *skipped))


def _count(skipped: Sequence[str], note: Callable[[str], None]) -> None:
    if skipped:
        note(f"{len(skipped)} bad records left out, first {skipped[0]}")


def procedures_of(data: DataConfig, check: Callable[[str, Sample], str | None] | None = None) -> Procedures:
    """What `data.path` holds; see `read_procedures`."""
    assert data.path is not None, "the section checks that there is a path or a toy"
    return read_procedures(
        data.path,
        tasks=data.tasks,
        caps=Caps(data.train, data.val, data.test),
        skip_bad=data.skip_bad,
        described=data.described,
        check=check,
    )


def exam_chains(recipe: Recipe, found: Material) -> list[Chain]:
    """Chains of test samples: as many as the recipe's bench asks with, or CHAINS where training has some."""
    data, count = recipe.data, recipe.data.bench.chains
    if count is None:
        count = CHAINS if found.chains else 0
    if not count:
        return []
    said = partial(join, case=data.case, wording=data.bench.wording)
    joined = said if data.toy is None else operations.join
    return made_chains(found.procedures, "test", count, recipe.seed, joined=joined)


def _chains(data: DataConfig, items: Sequence[Procedure], known: Sequence[str], seed: int) -> list[Chain]:
    if data.chains is None:
        return []
    if isinstance(data.chains, int):
        return made_chains(items, "train", data.chains, seed, joined=partial(join, case=data.case))
    return read_chains(data.chains, [*known, *(item.name for item in items)])
