"""Where the rows of new procedures start.

Shape suffixes: P new procedures, k control tokens, E model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from memtoken_cli.data.procedures import Procedure
from memtoken_cli.engine import seeds, vocab
from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.methods.tokmem.bank import Bank
from memtoken_cli.methods.tokmem.features import Frozen
from memtoken_cli.methods.tokmem.prompt import Prompts

NOISE = 0.1  # of the embeddings' own spread
CHUNK = 8192
FROM = "from:"


def control_rows(
    backbone: CausalLM,
    procedures: Sequence[Procedure],
    tokens: int,
    init: str,
    seed: int,
    bank: Bank,
    first: int = 0,
) -> Tensor:
    """float32 [P,k,E] by the recipe's `init`; every procedure's noise is seeded by its name.

    mean: the mean embedding and a tenth of the spread in noise. text: means of the instruction's (or
    description's) tokens, in k runs. orthogonal: directions at right angles, as long as embeddings are.
    hidden: the last state of the description as a prompt. from:NAME: a row of `bank`. Raises UsageError for a
    NAME that is not there. first: how many rows there are before these.
    """
    if init.startswith(FROM):
        row_kE = bank.control_PkE[bank.index(init.removeprefix(FROM))]
        return row_kE.expand(len(procedures), tokens, -1).clone()
    mean_E, spread, length = embeddings(backbone)
    E = len(mean_E)
    if init == "text":
        rows = [text_row(backbone, p, tokens, mean_E) for p in procedures]
        return torch.stack(rows) if rows else torch.zeros(0, tokens, E)
    if init == "orthogonal":
        square = torch.randn(E, E, generator=seeds.generator(seed, "orthogonal"), dtype=torch.float64)
        q_EE: Tensor = torch.linalg.qr(square)[0].float() * length
        at = (first * tokens + torch.arange(len(procedures) * tokens)) % E
        return q_EE[at].view(len(procedures), tokens, E)
    if init == "hidden":
        prompts = Prompts(backbone.tokenizer)
        read = Frozen(backbone, ()).read([prompts.render(described(p)) for p in procedures])
        h_PE = torch.stack([prefix.h_E.cpu() for prefix in read])
        return h_PE[:, None].expand(-1, tokens, -1).clone()
    noise = [torch.randn(tokens, E, generator=seeds.generator(seed, "control", p.name)) for p in procedures]
    start = mean_E.expand(len(procedures), tokens, E)
    return start + NOISE * spread * torch.stack(noise) if noise else start.clone()


def address_rows(backbone: CausalLM, names: Sequence[str], seed: int) -> Tensor:
    """float32 [P,E]: the mean row of the LM head, and noise."""
    weight_VE = vocab.head(backbone).weight_VE
    mean_E = weight_VE.float().mean(0).cpu()
    spread = float(weight_VE.float().std(0).mean())
    noise = [torch.randn(len(mean_E), generator=seeds.generator(seed, "address", name)) for name in names]
    return torch.stack([mean_E + NOISE * spread * x for x in noise]) if noise else torch.zeros(0, len(mean_E))


def eoc_row(backbone: CausalLM, seed: int) -> Tensor:
    """float32 [1,E]: the end of a segment, as new rows start."""
    mean_E, spread, _ = embeddings(backbone)
    return (mean_E + NOISE * spread * torch.randn(len(mean_E), generator=seeds.generator(seed, "eoc")))[None]


def embeddings(backbone: CausalLM) -> tuple[Tensor, float, float]:
    """(mean embedding, mean spread of its parts, mean norm), as vectors enter the first layer."""
    V = backbone.dims.vocab
    total, square, norm = torch.zeros(0), torch.zeros(0), 0.0
    for start in range(0, V, CHUNK):
        ids = torch.arange(start, min(V, start + CHUNK), device=backbone.device)
        x = vocab.embed(backbone, ids).double().cpu()
        total = x.sum(0) + (total if len(total) else 0)
        square = x.square().sum(0) + (square if len(square) else 0)
        norm += float(x.norm(dim=1).sum())
    mean_E = total / V
    spread = (square / V - mean_E.square()).clamp(min=0).sqrt().mean()
    return mean_E.float(), float(spread), norm / V


def text_row(backbone: CausalLM, procedure: Procedure, tokens: int, mean_E: Tensor) -> Tensor:
    """[k,E]: mean embeddings of the text's tokens, in k runs; the mean embedding where there is none."""
    ids = Prompts(backbone.tokenizer).response(described(procedure))
    if not ids:
        return mean_E.expand(tokens, -1).clone()
    x_TE = vocab.embed(backbone, torch.tensor(ids, device=backbone.device)).cpu()
    starts = [min(j * len(ids) // tokens, len(ids) - 1) for j in range(tokens)]
    ends = [*starts[1:], len(ids)]
    return torch.stack([x_TE[a : max(b, a + 1)].mean(0) for a, b in zip(starts, ends, strict=True)])


def described(procedure: Procedure) -> str:
    """The text that stands for a procedure."""
    return procedure.instruction or procedure.description or procedure.name
