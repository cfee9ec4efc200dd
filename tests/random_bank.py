"""Banks of random procedures that need no model: features around a mean of each class, the same for the same
names.
"""

from dataclasses import replace

import torch

from memtoken_cli.io.artifact import ModelRef
from memtoken_cli.methods.tokmem.bank import Bank, Block, Meta, Row, digest_of
from memtoken_cli.methods.tokmem.config import FEATURES
from memtoken_cli.methods.tokmem.prompt import Prompts
from memtoken_cli.methods.tokmem.statistics import FACETS, Class, Statistics, collect

WIDTH = 32  # that of tests/tiny.py
MODEL = ModelRef(name="tiny-llama", fingerprint="f" * 64, tokenizer="t" * 64)


def seeded(*parts):
    return torch.Generator().manual_seed(int(digest_of(*parts)[:8], 16))


def samples(name, count=6, width=WIDTH, features=3, spread=1.0):
    """([class], [[N,D] a feature]) of one procedure, both facets."""
    generator = seeded(name)
    classes = [Class(name, facet) for facet in FACETS for _ in range(count)]
    means = {facet: torch.randn(features, width, generator=generator) for facet in FACETS}
    rows = torch.stack(
        [means[c.facet] + spread * torch.randn(features, width, generator=generator) for c in classes]
    )
    return classes, [rows[:, f].contiguous() for f in range(features)]


def statistics(names, count=6, keep_val=3, width=WIDTH, features=3, spread=1.0) -> Statistics:
    """Of many procedures, at once."""
    parts = [samples(name, count, width, features, spread) for name in names]
    classes = [c for found, _ in parts for c in found]
    return collect(classes, [torch.cat([x[f] for _, x in parts]) for f in range(features)], keep_val)


def bank(*names, address="lda", tokens=1, eoc=False, count=6, features=FEATURES, **meta) -> Bank:
    """A bank of one block. A procedure's row depends on its name alone."""
    block = Block(digest_of("block", *names), len(names), count * len(names))
    rows = tuple(Row(name, f"what {name} does", digest_of(name), count, block.id) for name in names)
    control = [torch.randn(tokens, WIDTH, generator=seeded("row", name)) for name in names]
    trained = [torch.randn(WIDTH, generator=seeded("address", name)) for name in names]
    decoupled = address == "decoupled"
    empty = Statistics.empty([WIDTH] * len(features), 3)
    made = Bank(
        rows,
        torch.stack(control) if names else torch.zeros(0, tokens, WIDTH),
        Meta(address=address, tokens=tokens, features=features, keep_val=3, blocks=(block,), **meta),
        MODEL,
        torch.stack(trained) if decoupled else None,
        torch.zeros(len(names)) if decoupled else None,
        torch.full((WIDTH,), 0.25) if eoc else None,
        {"first": statistics(names, count, features=len(features)) if names else empty},
    )
    return made.calibrated()


def of_model(made: Bank, backbone) -> Bank:
    """The same bank, as if made for the backbone."""
    meta = replace(made.meta, prompt=Prompts(backbone.tokenizer).digest)
    return replace(made, model=ModelRef.of(backbone), meta=meta)
