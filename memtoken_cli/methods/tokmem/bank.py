"""The bank: procedures' rows with the statistics that address them, and its algebra. Banks are values: every
operation gives a new one, and no operation changes a row that it does not name.

Two banks become one in `join.py`; how a bank becomes a file and back is `bank_file.py`'s; what commands do
with files is `operations.py`'s.

Shape suffixes: P procedures, k control tokens, E model width, D feature width, Q projected width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from memtoken_cli.engine.memory import Rows
from memtoken_cli.io.artifact import ModelRef
from memtoken_cli.io.errors import DataError, UsageError
from memtoken_cli.methods.tokmem import kinds
from memtoken_cli.methods.tokmem.meta import Block as Block
from memtoken_cli.methods.tokmem.meta import Meta as Meta
from memtoken_cli.methods.tokmem.meta import Row as Row
from memtoken_cli.methods.tokmem.names import check_names, unknown
from memtoken_cli.methods.tokmem.parts import Parts
from memtoken_cli.methods.tokmem.statistics import SPECIALS, Kind, Statistics

if TYPE_CHECKING:
    from memtoken_cli.engine.backbone import CausalLM

Site = Literal["first", "boundary"]
SITES: tuple[Site, ...] = ("first", "boundary")
OnClash = Literal["error", "keep", "rename", "update"]
SharedBlocks = Literal["refuse", "first"]


@dataclass(frozen=True)
class Bank:
    """control_PkE float32. address_PE, address_bias_P: trained addresses (decoupled), else None; coupled
    addresses are control_PkE[:, 0]. eoc_E: the end of a segment, or None. sites: statistics by kind: of the
    first site's queries (see `kinds.py`), and of boundaries. alpha: the scale of a kind's scores.
    project_DQ: applied to features, or None.
    """

    rows: tuple[Row, ...]
    control_PkE: Tensor
    meta: Meta
    model: ModelRef | None = None
    address_PE: Tensor | None = None
    address_bias_P: Tensor | None = None
    eoc_E: Tensor | None = None
    sites: Mapping[Kind, Statistics] = field(default_factory=dict)
    alpha: Mapping[Kind, float] = field(default_factory=dict)
    project_DQ: Tensor | None = None

    def __post_init__(self) -> None:
        """Raises DataError where names are bad, tensors do not fit each other or are not finite."""
        check_names(self.names)
        P, k, E = self.control_PkE.shape
        if len(self.rows) != P or k != self.meta.tokens:
            raise DataError(
                f"the bank names {len(self.rows)} procedures of {self.meta.tokens} tokens, "
                f"its control rows are {P} of {k}"
            )
        wanted = {"address": (P, E), "address_bias": (P,), "eoc": (E,)}
        found = {"address": self.address_PE, "address_bias": self.address_bias_P, "eoc": self.eoc_E}
        for name, x in found.items():
            if x is not None and tuple(x.shape) != wanted[name]:
                raise DataError(f"the bank's {name} has shape {list(x.shape)}, not {list(wanted[name])}")
        for name, x in {"control": self.control_PkE, **found}.items():
            if x is not None and not bool(x.isfinite().all()):
                raise DataError(f"the bank's {name} holds numbers that are not finite{self._where(x)}")
        if (self.meta.address == "decoupled") != (self.address_PE is not None):
            raise DataError(f"a {self.meta.address} bank with{'' if self.address_PE is not None else 'out'} "
                            "trained address rows")  # fmt: skip
        for site, stats in self.sites.items():
            strangers = stats.procedures - set(self.names) - set(SPECIALS)
            if strangers:
                raise DataError(f"statistics of {site} know {sorted(strangers)[0]!r}, the bank does not")

    def _where(self, x: Tensor) -> str:
        if x.shape[0] != len(self.rows) or not len(self.rows):
            return ""
        bad_P = ~x.isfinite().reshape(len(self.rows), -1).all(1)
        return f": {self.names[int(bad_P.nonzero()[0])]}" if bool(bad_P.any()) else ""

    @classmethod
    def empty(cls, meta: Meta, width: int, model: ModelRef | None = None) -> Bank:
        """No procedure yet, of a backbone `width` wide."""
        address = torch.zeros(0, width) if meta.address == "decoupled" else None
        bias = torch.zeros(0) if meta.address == "decoupled" else None
        return cls((), torch.zeros(0, meta.tokens, width), meta, model, address, bias)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(row.name for row in self.rows)

    @property
    def width(self) -> int:
        return self.control_PkE.shape[2]

    def __len__(self) -> int:
        return len(self.rows)

    def index(self, name: str) -> int:
        """The row of a procedure. Raises UsageError with the nearest name."""
        if name not in self.names:
            raise unknown(name, self.names)
        return self.names.index(name)

    def scorer(self, site: Site = "first", names: Sequence[str] | None = None) -> kinds.AnyScorer:
        """Scores of the procedures (all of them, in their order) at a site that has statistics."""
        wanted, shrinkage = self.names if names is None else names, self.meta.shrinkage
        if site == "first":
            return kinds.first_site(self.sites, wanted, self.meta.features, shrinkage, self.alpha)
        return kinds.boundary(self.sites[site], wanted, shrinkage, self.alpha.get(site, 1.0))

    @property
    def parted(self) -> bool:
        """Whether it reads queries in parts, and knows any."""
        return self.meta.by_parts and "first" in self.sites and bool(self.names)

    def parts(self) -> Parts | None:
        """What reads queries in parts, where the bank does."""
        if not self.parted:
            return None
        one = self.sites["first"].only(kinds.means_of(self.meta.features))
        return Parts.of(one, self.names, self.meta.shrinkage, self.alpha.get("boundary", 1.0))

    def projected(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Features as statistics keep them: [..., D] to [..., Q] where the bank has a map."""
        return through(self.project_DQ, features)

    def select(self, names: Collection[str]) -> Bank:
        """These procedures alone, in the bank's order; scores of the rest keep their differences.

        Raises UsageError for a name that is not there.
        """
        for name in names:
            self.index(name)
        kept = [i for i, name in enumerate(self.names) if name in set(names)]
        gone = [name for name in self.names if name not in set(names)]
        if not gone:
            return self
        exact = self.meta.keep_features
        return replace(self.take(kept), sites={s: stats.drop(gone, exact) for s, stats in self.sites.items()})

    def take(self, rows: Sequence[int]) -> Bank:
        """Rows by index, without their statistics."""
        index = torch.tensor(list(rows), dtype=torch.long)

        def pick(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[index]

        return replace(
            self,
            rows=tuple(self.rows[i] for i in rows),
            control_PkE=self.control_PkE[index],
            address_PE=pick(self.address_PE),
            address_bias_P=pick(self.address_bias_P),
            sites={},
        )

    def remove(self, names: Collection[str]) -> Bank:
        """Without these procedures: rows, counts and means go; their share of the pooled scatter stays
        unless all features are kept. Raises UsageError for a name that is not there."""
        for name in names:
            self.index(name)
        return self.select([name for name in self.names if name not in set(names)])

    def rename(self, old: str, new: str) -> Bank:
        """Raises UsageError where `old` is not there, `new` is, or no procedure may be called so."""
        at = self.index(old)
        if old == new:
            return self
        if new in self.names:
            raise UsageError(f"{new!r} is in the bank already", hint="choose another name")
        try:
            check_names([new])
        except DataError as error:
            raise UsageError(error.message, hint=error.hint) from error
        rows = tuple(replace(row, name=new) if i == at else row for i, row in enumerate(self.rows))
        return replace(
            self, rows=rows, sites={s: stats.rename({old: new}) for s, stats in self.sites.items()}
        )

    def append(self, new: Bank, on_clash: OnClash = "error") -> Bank:
        """This bank and then the rows of `new`, scales fitted again; see `join.append`."""
        return self.merge([new], on_clash)

    def merge(
        self, others: Sequence[Bank], on_clash: OnClash = "error", shared_blocks: SharedBlocks = "refuse"
    ) -> Bank:
        """All of them, one after the other, and then scales fitted again; see `join.append` and (for "first")
        `join.append_first`."""
        from memtoken_cli.methods.tokmem import join

        step = join.append if shared_blocks == "refuse" else join.append_first
        merged = self
        for other in others:
            merged = step(merged, other, on_clash)
        return merged.calibrated() if others else self

    @property
    def block_ids(self) -> frozenset[str]:
        return frozenset(block.id for block in self.meta.blocks)

    def same_row(self, other: Bank, name: str) -> bool:
        """Whether a procedure is the same in both, to the bit: its rows, counts and means."""
        a, b = self.index(name), other.index(name)
        pairs = [(self.control_PkE[a], other.control_PkE[b])]
        for x, y in ((self.address_PE, other.address_PE), (self.address_bias_P, other.address_bias_P)):
            if x is not None and y is not None:
                pairs.append((x[a], y[b]))
        same = all(torch.equal(x, y) for x, y in pairs)
        known = [{s for s, stats in bank.sites.items() if name in stats.procedures} for bank in (self, other)]
        return (
            same and known[0] == known[1] and all(self.sites[s].same(other.sites[s], name) for s in known[0])
        )

    def calibrated(self) -> Bank:
        """With the scale of every kind fitted to the features it keeps, where scores are what routes."""
        if self.meta.address != "lda":
            return self
        meta = self.meta
        return replace(self, alpha=kinds.scales(self.sites, meta.features, meta.shrinkage, meta.by_parts))

    def memory(self) -> Rows:
        """As the engine's memory of the `vocab` port."""
        from memtoken_cli.methods.tokmem import bank_file

        return bank_file.memory(self)

    def about(self) -> dict[str, Any]:
        """As the header's `about`, JSON."""
        from memtoken_cli.methods.tokmem import bank_file

        return bank_file.about(self)

    @classmethod
    def of(cls, rows: Rows, about: Mapping[str, Any], model: ModelRef | None = None) -> Bank:
        """What `memory` and `about` came from. Raises DataError where they do not fit each other."""
        from memtoken_cli.methods.tokmem import bank_file

        return bank_file.of(rows, about, model)

    def save(self, path: str | Path, made_for: CausalLM | ModelRef | None = None) -> str:
        """Write the artifact, for the bank's own model or the one given; returns its digest."""
        from memtoken_cli.methods.tokmem import bank_file

        return bank_file.save(self, path, made_for)

    @classmethod
    def load(cls, path: str | Path) -> Bank:
        """Read and check an artifact. Raises DataError where it is damaged or no bank."""
        from memtoken_cli.methods.tokmem import bank_file

        return bank_file.load(path)


def projection(width: int, onto: int, seed: int) -> Tensor:
    """A seeded map [D,Q] with orthonormal columns, float32."""
    generator = torch.Generator().manual_seed(seed)
    square = torch.randn(width, onto, generator=generator, dtype=torch.float64)
    columns_DQ: Tensor = torch.linalg.qr(square)[0]
    return columns_DQ.float().contiguous()


def through(project_DQ: Tensor | None, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Features [..., D] behind a map, [..., Q]; as they are where there is none."""
    if project_DQ is None:
        return tuple(features)
    return tuple((x.double() @ project_DQ.double()).float() for x in features)


def digest_of(*parts: str) -> str:
    """A short digest of texts, such as an instruction's or an operation's."""
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part.encode()).to_bytes(8, "little") + part.encode())
    return total.hexdigest()[:32]
