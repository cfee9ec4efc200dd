"""A bank as an artifact: which tensor and which part of the header holds what. Nothing else knows the layout.

Every defect of a file that passed the artifact's own checks ends here as a DataError.

Shape suffixes: P procedures, k control tokens, E model width, C classes, D feature width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from memtoken_cli.engine.memory import Rows, from_tensors
from memtoken_cli.io import artifact
from memtoken_cli.io.artifact import Header, ModelRef
from memtoken_cli.io.errors import DataError, UsageError
from memtoken_cli.methods.tokmem import SPEC
from memtoken_cli.methods.tokmem.bank import Bank, Block, Meta, Row
from memtoken_cli.methods.tokmem.config import Feature
from memtoken_cli.methods.tokmem.statistics import FACETS, KINDS, Basis, Class, Kind, Moments, Statistics

if TYPE_CHECKING:
    from memtoken_cli.engine.backbone import CausalLM

AGAIN = "make the bank again, or copy it again from where it came"
NAMES, ROWS = "names", "rows"


class _Site(BaseModel):
    """What the header says of a site's statistics."""

    model_config = ConfigDict(extra="forbid")

    classes: list[tuple[str, str]]
    features: int
    freedom: float
    keep_val: int
    frozen: bool = False


class _Row(BaseModel):
    """What the header says of a procedure; see `bank.Row`. norm: mean length of its control rows."""

    model_config = ConfigDict(extra="forbid")

    name: str
    tokens: int
    samples: int
    block: str
    norm: float
    score: float | None
    described: bool
    description: str
    instruction: str


def memory(bank: Bank) -> Rows:
    """The bank's tensors, by their names in the artifact."""
    kept: dict[str, Tensor] = {}
    if bank.address_PE is not None:
        kept["address"] = bank.address_PE
    if bank.address_bias_P is not None:
        kept["address_bias"] = bank.address_bias_P
    if bank.eoc_E is not None:
        kept["eoc"] = bank.eoc_E[None]
    if bank.project_DQ is not None:
        kept["project"] = bank.project_DQ
    if bank.alpha:
        alphas = [bank.alpha.get(kind, 1.0) for kind in KINDS[: 3 if "several" in bank.alpha else 2]]
        kept["calibration"] = torch.tensor(alphas, dtype=torch.float64)
    for site, stats in bank.sites.items():
        kept[f"lda.{site}.count"] = stats.count_C
        kept[f"lda.{site}.val_class"] = stats.val_class_V.int()
        for f, moments in enumerate(stats.moments):
            kept[f"lda.{site}.{f}.mean"] = moments.mean_CD
            kept[f"lda.{site}.{f}.scatter"] = moments.scatter_DD
            kept[f"lda.{site}.{f}.val"] = stats.val[f]
            if stats.basis is not None:
                kept[f"lda.{site}.{f}.covariance"] = stats.basis[f].covariance_DD
                kept[f"lda.{site}.{f}.centre"] = stats.basis[f].centre_D
    return Rows(bank.names, bank.control_PkE, kept)


def about(bank: Bank) -> dict[str, Any]:
    """The header's notes: everything of the bank that is no tensor, and each row's norm."""
    meta = asdict(replace(bank.meta, features=()))
    norms = bank.control_PkE.norm(dim=2).mean(1).tolist()
    rows = [
        _Row(**asdict(row), tokens=bank.meta.tokens, norm=round(norm, 6)).model_dump()
        for row, norm in zip(bank.rows, norms, strict=True)
    ]
    sites = {
        site: _Site(
            classes=list(stats.classes),
            features=len(stats.moments),
            freedom=stats.freedom,
            keep_val=stats.keep_val,
            frozen=stats.basis is not None,
        ).model_dump(mode="json")
        for site, stats in bank.sites.items()
    }
    meta |= {"features": [f.model_dump() for f in bank.meta.features], "notes": dict(bank.meta.notes)}
    meta |= {key: list(meta[key]) for key in ("blocks", "history", "approximate")}
    return {NAMES: list(bank.names), ROWS: rows, "sites": sites, **meta}


def of(rows: Rows, notes: Mapping[str, Any], model: ModelRef | None = None) -> Bank:
    """What `memory` and `about` came from. Raises DataError where they do not fit each other."""
    try:
        told = TypeAdapter(list[_Row]).validate_python(notes[ROWS])
        sites = TypeAdapter(dict[Kind, _Site]).validate_python(notes["sites"])
        meta = _meta(notes)
    except (ValidationError, KeyError, TypeError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else str(error)
        raise DataError(f"not a bank's header: {what}", hint=AGAIN) from None
    if [row.name for row in told] != list(rows.names):
        raise DataError("the bank's names and its rows' notes differ", hint=AGAIN)
    kept = rows.kept
    eoc = kept.get("eoc")
    if eoc is not None and eoc.shape[0] != 1:
        raise DataError(f"the bank has {eoc.shape[0]} end-of-segment rows", hint=AGAIN)
    calibration = kept.get("calibration")
    alpha = dict(zip(KINDS, calibration.tolist(), strict=False)) if calibration is not None else {}
    return Bank(
        tuple(Row(**row.model_dump(exclude={"tokens", "norm"})) for row in told),
        rows.control_PkE,
        meta,
        model,
        kept.get("address"),
        kept.get("address_bias"),
        None if eoc is None else eoc[0],
        {site: _statistics(site, told_site, kept) for site, told_site in sites.items()},
        {kind: alpha[kind] for kind in alpha if kind in sites or (kind == "boundary" and meta.by_parts)},
        kept.get("project"),
    )


def save(bank: Bank, path: str | Path, made_for: CausalLM | ModelRef | None = None) -> str:
    """Write the bank for its own model, or the one given; returns the artifact's digest."""
    return artifact.write(path, memory(bank).tensors(), header(bank, made_for)).digest


def header(bank: Bank, made_for: CausalLM | ModelRef | None = None) -> Header:
    """The artifact's header."""
    model = made_for if made_for is None or isinstance(made_for, ModelRef) else ModelRef.of(made_for)
    return Header(
        method=SPEC.name,
        kind="memory",
        port=SPEC.port,
        model=model or bank.model,
        source={"procedures": len(bank), "samples": sum(row.samples for row in bank.rows)},
        slots=len(bank) * bank.meta.tokens,
        about=about(bank),
    )


def load(path: str | Path) -> Bank:
    """Read and check. Raises DataError where the file is damaged, UsageError where it is no bank of ours."""
    found, tensors = artifact.read(path)
    if found.method != SPEC.name or found.kind != "memory":
        raise UsageError(
            f"{path} holds a {found.kind} of {found.method}, not a bank",
            hint="memtok train recipes/tokmem/tiny.yaml",
        )
    try:
        rows = from_tensors(str(found.port), tensors, names=found.about.get(NAMES, ()))
        if not isinstance(rows, Rows):
            raise DataError("its rows do not stand beside the vocabulary", hint=AGAIN)
        return of(rows, found.about, found.model)
    except DataError as error:
        raise DataError(error.message, hint=error.hint or AGAIN, where=str(path)) from None


def _meta(notes: Mapping[str, Any]) -> Meta:
    known = {key: notes[key] for key in Meta.__dataclass_fields__}
    known["features"] = tuple(Feature(**f) for f in known["features"])
    known["blocks"] = tuple(Block(**b) for b in known["blocks"])
    known |= {key: tuple(known[key]) for key in ("history", "approximate")}
    return TypeAdapter(Meta).validate_python(Meta(**known))


def _statistics(site: str, told: _Site, kept: Mapping[str, Tensor]) -> Statistics:
    """One site's. Raises DataError where a tensor is missing, does not fit, or is not finite."""

    def part(name: str, dim: int, dtype: torch.dtype) -> Tensor:
        x = kept.get(f"lda.{site}.{name}")
        if x is None:
            raise DataError(f"the bank lacks its tensor lda.{site}.{name}", hint=AGAIN)
        if x.dim() != dim or x.dtype != dtype or not bool(x.isfinite().all()):
            raise DataError(f"the bank's tensor lda.{site}.{name} is damaged", hint=AGAIN)
        return x

    f64 = torch.float64
    classes = tuple(Class(*pair) for pair in told.classes)
    count_C, class_V = part("count", 1, f64), part("val_class", 1, torch.int32).long()
    moments = tuple(
        Moments(part(f"{f}.mean", 2, f64), part(f"{f}.scatter", 2, f64)) for f in range(told.features)
    )
    val = tuple(part(f"{f}.val", 2, torch.float32) for f in range(told.features))
    basis = tuple(
        Basis(part(f"{f}.covariance", 2, f64), part(f"{f}.centre", 1, f64))
        for f in range(told.features if told.frozen else 0)
    )
    fits = list(classes) == sorted(set(classes)) and all(c.facet in FACETS for c in classes)
    fits = fits and len(count_C) == len(classes) and bool((count_C >= 1).all())
    fits = fits and bool(((class_V >= 0) & (class_V < len(classes))).all()) and told.freedom >= 0
    for m, x_VD in zip(moments, val, strict=True):
        C, D = m.mean_CD.shape
        fits = fits and len(classes) == C and m.scatter_DD.shape == (D, D) and x_VD.shape == (len(class_V), D)
    fits = fits and all(
        b.covariance_DD.shape == m.scatter_DD.shape and b.centre_D.shape == m.mean_CD.shape[1:]
        for b, m in zip(basis, moments, strict=False)
    )
    if not fits:
        raise DataError(f"the bank's statistics of {site} do not fit each other", hint=AGAIN)
    return Statistics(
        classes, count_C, moments, told.freedom, val, class_V, told.keep_val, basis if told.frozen else None
    )
