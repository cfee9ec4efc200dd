"""The statistics of a block: of its prompts, and of the states behind its segments under the final rows.

Chains may call procedures of earlier blocks; what those are known by does not change, so that only classes
of the block itself (and TEXT, END) are counted. What is computed from them is `lda.py`'s.

Shape suffixes: N samples, D width of a feature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from memtoken_cli.methods.tokmem.bank import projection, through
from memtoken_cli.methods.tokmem.config import LdaSection
from memtoken_cli.methods.tokmem.examples import QUERY, Example
from memtoken_cli.methods.tokmem.features import Prefix, behind, columns
from memtoken_cli.methods.tokmem.learn import Learning
from memtoken_cli.methods.tokmem.loss import states_behind
from memtoken_cli.methods.tokmem.pool import Pool
from memtoken_cli.methods.tokmem.statistics import END, KEEP_ALL, TEXT, Class, Kind, Statistics, collect

ROWS = 8  # of a forward behind the prompts


def map_of(lda: LdaSection, width: int, seed: int) -> Tensor | None:
    """The orthonormal map that features go through, or None."""
    return projection(width, lda.project, seed) if lda.project is not None and lda.project < width else None


def kept_of(lda: LdaSection) -> int:
    return KEEP_ALL if lda.keep_features else lda.keep_val


def prompt_kinds(
    pool: Pool,
    examples: Sequence[Example],
    own: Mapping[int, str],
    negatives: Sequence[Prefix] = (),
    project_DQ: Tensor | None = None,
) -> dict[Kind, Statistics]:
    """Of the examples' prompts: queries for one procedure, and, where there are such, for several and for
    none. own: the block's procedures by their rows."""
    kinds: dict[Kind, list[Example]] = {
        "first": [e for e in examples if len(e.segments) == 1],
        "several": [e for e in examples if len(e.segments) > 1],
    }
    found = {kind: first_site(pool, chosen, own, project_DQ) for kind, chosen in kinds.items()}
    if not found["several"].classes:
        del found["several"]
    if negatives:
        features = through(project_DQ, columns(prefix.features for prefix in negatives))
        found["text"] = collect([Class(TEXT)] * len(negatives), features, kept_of(pool.config.lda))
    return found


def first_site(
    pool: Pool, examples: Sequence[Example], own: Mapping[int, str], project_DQ: Tensor | None = None
) -> Statistics:
    """Of every form of the examples' prompts, by the procedure that comes first."""
    classes: list[Class] = []
    prefixes: list[Prefix] = []
    for example in examples:
        name = own.get(example.segments[0].row)
        for form, prefix in pool.forms(example).items() if name is not None else ():
            classes.append(Class(str(name), form))
            prefixes.append(prefix)
    keep = kept_of(pool.config.lda)
    if not prefixes:
        E = pool.frozen.backbone.dims.width
        width = E if project_DQ is None else project_DQ.shape[1]
        return Statistics.empty([width] * len(pool.config.features), keep)
    features = through(project_DQ, columns(prefix.features for prefix in prefixes))
    return collect(classes, features, keep)


@torch.no_grad()
def boundary_site(
    task: Learning,
    b: int,
    examples: Sequence[Example],
    own: Mapping[int, str],
    project_DQ: Tensor | None = None,
) -> Statistics:
    """Of the states behind each segment of the examples, query alone: what comes next (see `first_site`), or
    END."""
    classes: list[Class] = []
    found: list[tuple[Tensor, ...]] = []
    table_RE = task.table(b).table_RE
    # rows of about the same length, so that little is padding
    order = sorted(examples, key=lambda e: (sum(len(s.ids) for s in e.segments), e.key))
    for start in range(0, len(order), ROWS):
        part = order[start : start + ROWS]
        prefixes = [task.pool.get(example, QUERY) for example in part]
        laid = [task.layout(example, b) for example in part]
        states = states_behind(task.backbone, table_RE, task.pool.frozen.kept(prefixes), laid, every=True)
        for i, (example, one, prefix) in enumerate(zip(part, laid, prefixes, strict=True)):
            after = [*(own.get(s.row) for s in example.segments[1:]), END]
            for (said, at), following in zip(one.ends, after, strict=True):
                if following is None:
                    continue
                found.append(behind([x[i] for x in states], prefix, task.config.features, said, at))
                classes.append(Class(following, QUERY))
    return collect(classes, through(project_DQ, columns(found)), kept_of(task.config.lda))
