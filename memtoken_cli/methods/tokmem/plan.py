"""What a bank is made of, laid out before anything is read or trained: names, rows, examples by block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from memtoken_cli.data.chains import Chain
from memtoken_cli.data.procedures import Procedure
from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.io.errors import UsageError
from memtoken_cli.methods.tokmem import adapter, initial
from memtoken_cli.methods.tokmem.bank import Bank
from memtoken_cli.methods.tokmem.config import Config
from memtoken_cli.methods.tokmem.examples import Example, of_chains, of_description, of_samples
from memtoken_cli.methods.tokmem.material import Material
from memtoken_cli.methods.tokmem.names import unclashed
from memtoken_cli.methods.tokmem.prompt import Prompts


@dataclass(frozen=True)
class Part:
    """A block: its procedures, their rows, what it learns from, what it is chosen by, and those of its
    procedures that are described alone."""

    procedures: tuple[Procedure, ...]
    rows: tuple[int, ...]
    learned: list[Example]
    val: list[Example]
    told: list[Example]

    @property
    def own(self) -> Mapping[int, str]:
        """Names by row."""
        return dict(zip(self.rows, (p.name for p in self.procedures), strict=True))


@dataclass(frozen=True)
class Plan:
    """names: of all rows, those of an old bank first."""

    names: tuple[str, ...]
    parts: tuple[Part, ...]
    chained: bool
    negatives: tuple[str, ...] = ()

    @property
    def rows(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.names)}

    @property
    def first(self) -> Plan:
        """The first block alone."""
        return replace(self, parts=self.parts[:1])


def plan(found: Material, old: Bank | None, config: Config, prompts: Prompts, longest: int) -> Plan:
    """Raises DataError for samples beyond `longest` tokens."""
    found = _settled(found, old, config)
    known = old.names if old is not None else ()
    names = (*known, *(name for name in found.names if name not in known))
    rows = {name: i for i, name in enumerate(names)}
    parts = tuple(_part(found, block, rows, prompts, longest) for block in found.blocks)
    # a bank that knows what follows a segment is told so of new procedures too, chained or not
    chained = bool(found.chains) or (old is not None and "boundary" in old.sites)
    return Plan(names, parts, chained, found.negatives)


def check(found: Material, old: Bank | None, config: Config, backbone: CausalLM) -> None:
    """Raises UsageError, DataError where the material or the configuration does not go with the old bank."""
    if old is None:
        if config.init.startswith(initial.FROM):
            raise UsageError(f"init: {config.init} without a bank", hint="tokmem.bank=FILE")
        return
    if old.model is not None:
        old.model.check(backbone, config.bank or "the bank", hint=f"model.name={old.model.name}")
    adapter.check(old.meta, backbone, config.bank or "the bank")
    wanted: dict[str, object] = {"address": config.address, "segment_end": config.segment_end}
    if config.tokens != "auto":
        wanted["tokens"] = config.tokens
    for key, value in wanted.items():
        if (has := vars(old.meta)[key]) != value:
            raise UsageError(f"the bank has {key}: {has}, the recipe {value}", hint=f"tokmem.{key}={has}")
    if found.chains and "boundary" not in old.sites and config.by_states and len(old):
        raise UsageError(
            "the bank's first block had no chain, so that none can be added",
            hint="train a new bank whose first block has chains",
        )
    clash = [name for name in found.names if name in old.names]
    if clash and config.on_clash == "error":
        more = f", and {len(clash) - 1} more" if len(clash) > 1 else ""
        hint = "tokmem.on_clash=update or rename"
        raise UsageError(f"{clash[0]!r} is in the bank already{more}", hint=hint)


def _settled(found: Material, old: Bank | None, config: Config) -> Material:
    if old is None or config.on_clash != "rename":
        return found
    taken = {*old.names, *found.names}
    renamed = []
    for p in found.procedures:
        name = unclashed(p.name, taken) if p.name in old.names else p.name
        taken.add(name)
        renamed.append(replace(p, name=name))
    return replace(found, procedures=tuple(renamed))


def _part(found: Material, block: range, rows: Mapping[str, int], prompts: Prompts, longest: int) -> Part:
    members = tuple(found.procedures[i] for i in block)
    learned, val = [], []
    for p in members:
        learned += of_samples(prompts, p, p.train, rows[p.name], longest)
        checked = of_samples(prompts, p, p.val, rows[p.name], longest)
        val += [replace(e, key=f"val/{e.key}", group=f"val/{e.group}") for e in checked]
    chains = [chain for chain in found.chains if _completes(found, block, chain)]
    learned += [replace(e, key=f"{block.start}/{e.key}") for e in of_chains(prompts, chains, rows, longest)]
    told = [of_description(prompts, p, rows[p.name]) for p in members if p.described]
    return Part(members, tuple(rows[p.name] for p in members), learned, val, told)


def _completes(found: Material, block: range, chain: Chain) -> bool:
    """Whether this is the block that a chain waits for: none of its procedures comes later, one is here."""
    called = {call.procedure for call in chain.calls}
    later = {p.name for i, p in enumerate(found.procedures) if i >= block.stop}
    return not called & later and bool(called & {found.procedures[i].name for i in block})
