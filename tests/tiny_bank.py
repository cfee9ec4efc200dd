"""Random banks for the tiny models: any address, any segment end, statistics of its own states."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.io.artifact import ModelRef
from memtoken_cli.methods.tokmem.bank import Bank, Meta, Row
from memtoken_cli.methods.tokmem.config import FEATURES, FINAL, AddressMode, Feature, Following, SegmentEnd
from memtoken_cli.methods.tokmem.features import Frozen
from memtoken_cli.methods.tokmem.prompt import Prompts
from memtoken_cli.methods.tokmem.statistics import END, TEXT, Class, Statistics, collect

NAMES = ("alpha", "beta", "gamma", "delta", "epsilon")
QUERIES = {name: [f"{name[0] * n} {name[:2]}{n}" for n in range(2, 8)] for name in NAMES}
LEADS = (*FEATURES, FINAL, Feature(depth=0.5, pool="lead"), Feature(pool="lead"))
STRANGERS = tuple(f"{n} - {n}{n}" for n in range(12))


def tiny_bank(
    backbone: CausalLM,
    address: AddressMode = "coupled",
    *,
    names: tuple[str, ...] = NAMES,
    tokens: int = 1,
    segment_end: SegmentEnd = "none",
    max_procedures: int = 1,
    seed: int = 0,
    scale: float = 1.0,
    kinds: bool = False,
    following: Following = "parts",
) -> Bank:
    """Rows of length `scale` times the mean embedding's; addresses likewise. kinds: an `lda` bank knows
    queries for several and for none too."""
    random = torch.Generator().manual_seed(seed)
    E, P = backbone.dims.width, len(names)
    norm = backbone.model.get_input_embeddings().weight.norm(dim=1).mean() * scale

    def rows(*shape: int) -> torch.Tensor:
        x = torch.randn(*shape, E, generator=random)
        return x / x.norm(dim=-1, keepdim=True) * norm

    features = (FINAL,) if address != "lda" else LEADS if kinds else FEATURES
    meta = Meta(
        address=address,
        tokens=tokens,
        features=features,
        segment_end=segment_end,
        max_procedures=max_procedures,
        prompt=Prompts(backbone.tokenizer).digest,
        following=following,
    )
    sites = {}
    if address == "lda":
        asked = {name: QUERIES.get(name, [f"{name} {n}" for n in NAMES]) for name in names}
        single = [(name, text) for name, texts in asked.items() for text in texts]
        sites["first"] = of_queries(backbone, features, single)
        if following == "states" and (max_procedures > 1 or segment_end == "eoc"):
            sites["boundary"] = boundary(E, names, random, len(features) + 1)
        if kinds:
            joined = [(name, f"{text}; {other}") for name, text in single for _, other in single[::7]]
            sites["several"] = of_queries(backbone, features, joined)
            sites["text"] = of_queries(backbone, features, [(TEXT, text) for text in STRANGERS])
    return Bank(
        tuple(Row(name, samples=6) for name in names),
        rows(P, tokens),
        meta,
        ModelRef.of(backbone),
        rows(P) if address == "decoupled" else None,
        torch.randn(P, generator=random) if address == "decoupled" else None,
        rows() if segment_end == "eoc" else None,
        sites,
        dict.fromkeys((*sites, "boundary"), 0.05),
    )


def of_queries(
    backbone: CausalLM, features: tuple[Feature, ...], queries: list[tuple[str, str]]
) -> Statistics:
    """Of (class, query) pairs."""
    prompts, frozen = Prompts(backbone.tokenizer), Frozen(backbone, features)
    read = [frozen.read([prompts.render(text)])[0] for _, text in queries]
    rows = [torch.stack(x) for x in zip(*(p.features for p in read), strict=True)]
    return collect([Class(name) for name, _ in queries], rows, 2)


def boundary(width: int, names: tuple[str, ...], random: torch.Generator, features: int) -> Statistics:
    """Noise: which procedure follows is anybody's guess, so that all of them and the end do."""
    classes = [Class(name) for name in (*names, END) for _ in range(6)]
    return collect(classes, [torch.randn(len(classes), width, generator=random) for _ in range(features)], 2)


@dataclass
class Run:
    """A training command's `Run`, silent."""

    out: Path
    fresh: bool = False
    device: str | None = "cpu"

    def note(self, text: str) -> None:
        pass
