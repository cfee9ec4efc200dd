"""Two banks into one: what they must agree on, names and blocks that both have, and the sum of the rest.

Shape suffixes: P procedures, k control tokens, E model width.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from memtoken_cli.io.errors import UsageError
from memtoken_cli.methods.tokmem.bank import Bank, OnClash
from memtoken_cli.methods.tokmem.meta import ALIKE, Row
from memtoken_cli.methods.tokmem.names import unclashed
from memtoken_cli.methods.tokmem.statistics import SPECIALS


def append(bank: Bank, new: Bank, on_clash: OnClash = "error") -> Bank:
    """`bank` and then the rows of `new`: statistics added; the scales are left for `Bank.calibrated`.

    on_clash: what a name in both means: an error, the row of `bank` alone (keep), `new`'s as NAME-2 (rename),
    or `new`'s row in the place of the other with the samples of both (update).
    Raises UsageError: a clash, banks that do not fit, a block that both hold.
    """
    check_fit(bank, new)
    shared = bank.block_ids & new.block_ids
    if shared:
        raise UsageError(
            f"both banks hold block {sorted(shared)[0][:12]}: its scatter would count twice",
            hint="memtok bank add BANK --data DIR, or merge with --shared-blocks first",
        )
    settled, replaced = _settle(bank, new, on_clash)
    return _joined(bank, settled, replaced)


def append_first(bank: Bank, new: Bank, on_clash: OnClash = "error") -> Bank:
    """`append` of a bank that shares blocks with this one: rows of those blocks must be the same to the bit
    and are taken once; the scatter is the first bank's alone, which makes scores approximate.

    Raises UsageError where a shared row differs.
    """
    check_fit(bank, new)
    shared = bank.block_ids & new.block_ids
    if not shared:
        return append(bank, new, on_clash)
    mine = set(bank.names)
    common = [row.name for row in new.rows if row.name in mine and row.block in shared]
    for name in common:
        if not bank.same_row(new, name):
            raise UsageError(
                f"{name!r} stands in a shared block of both banks, but differs",
                hint="rename one of the two first",
            )
    rest, replaced = _settle(bank, new.select([n for n in new.names if n not in common]), on_clash)
    bare = {site: stats.drop(SPECIALS).unpooled() for site, stats in rest.sites.items()}
    joined = _joined(bank, replace(rest, sites=bare), replaced)
    why = f"{len(common)} shared rows: the scatter is the first bank's alone"
    meta = replace(joined.meta, approximate=(*joined.meta.approximate, why))
    return replace(joined, meta=meta)


def check_fit(bank: Bank, new: Bank) -> None:
    """Raises UsageError unless both are of one model and made alike."""
    for what, a, b in (
        ("weights", bank.model and bank.model.fingerprint, new.model and new.model.fingerprint),
        ("width", bank.width, new.width),
        *((key, vars(bank.meta)[key], vars(new.meta)[key]) for key in ALIKE),
    ):
        if a != b:
            raise UsageError(
                f"the banks differ in {what}: {_short(a)} and {_short(b)}",
                hint="both must be made for one model, and alike",
            )
    if len(bank) and len(new) and not _same(bank.project_DQ, new.project_DQ):
        raise UsageError("the banks project their features differently", hint="train both with one seed")
    if new.eoc_E is not None and bank.eoc_E is None and len(bank):
        raise UsageError(
            "the bank has no end-of-segment row: its first block had no chain",
            hint="train a bank whose first block has chains, or add procedures without chains",
        )


def _settle(bank: Bank, new: Bank, on_clash: OnClash) -> tuple[Bank, frozenset[str]]:
    """`new` without its clashes, and the names whose rows it replaces."""
    clash = [name for name in new.names if name in set(bank.names)]
    if not clash or on_clash == "update":
        return new, frozenset(clash)
    if on_clash == "error":
        more = f", and {len(clash) - 1} more" if len(clash) > 1 else ""
        raise UsageError(
            f"{clash[0]!r} is in the bank already{more}",
            hint="merge: --on-clash keep or rename; add: on_clash=update or rename",
        )
    if on_clash == "keep":
        return new.select([name for name in new.names if name not in clash]), frozenset()
    taken = {*bank.names, *new.names}
    for name in clash:
        free = unclashed(name, taken)
        taken.add(free)
        new = new.rename(name, free)
    return new, frozenset()


def _joined(bank: Bank, new: Bank, replaced: frozenset[str]) -> Bank:
    place = {name: i for i, name in enumerate(new.names)}
    fresh = [i for i, name in enumerate(new.names) if name not in replaced]
    first = not len(bank)

    def lay(x: Tensor, y: Tensor) -> Tensor:
        x = x.clone()
        for i, name in enumerate(bank.names):
            if name in replaced:
                x[i] = y[place[name]]
        return torch.cat([x, y[fresh]])

    def perhaps(x: Tensor | None, y: Tensor | None) -> Tensor | None:
        return None if x is None or y is None else lay(x, y)

    old = [_updated(row, new.rows[place[row.name]]) if row.name in replaced else row for row in bank.rows]
    sites = dict(bank.sites)
    for site, stats in new.sites.items():
        base = sites.get(site, stats)
        if bank.meta.scatter == "frozen" and base.basis is None:
            base = base.frozen(bank.meta.shrinkage)
        sites[site] = base.merge(stats) if site in sites else base
    blocks = (*bank.meta.blocks, *(b for b in new.meta.blocks if b.id not in bank.block_ids))
    meta = replace(
        bank.meta,
        blocks=blocks,
        max_procedures=max(bank.meta.max_procedures, new.meta.max_procedures),
        keep_features=bank.meta.keep_features and new.meta.keep_features,
        keep_val=min(bank.meta.keep_val, new.meta.keep_val),
        approximate=(*bank.meta.approximate, *new.meta.approximate),
        notes=new.meta.notes if first else bank.meta.notes,
    )
    return replace(
        bank,
        rows=(*old, *(new.rows[i] for i in fresh)),
        control_PkE=lay(bank.control_PkE, new.control_PkE),
        meta=meta,
        address_PE=perhaps(bank.address_PE, new.address_PE),
        address_bias_P=perhaps(bank.address_bias_P, new.address_bias_P),
        eoc_E=new.eoc_E if first else bank.eoc_E,
        sites=sites,
        project_DQ=new.project_DQ if first else bank.project_DQ,
    )


def _updated(old: Row, new: Row) -> Row:
    return replace(
        new,
        samples=old.samples + new.samples,
        description=new.description or old.description,
        described=old.described and new.described,
    )


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return (a is None) == (b is None) and (a is None or b is None or torch.equal(a, b))


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."
