"""Time of whole segments one after the other and diagonally, and their ratio: for each policy, batch and
segment, reading only and with a backward pass. CPU seconds of one thread, or a GPU's wall clock.

    OMP_NUM_THREADS=1 python scripts/bench_diagonal.py [DEVICE] [LAYERS] [WIDTH] [SEGMENTS]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from memtoken_cli.engine import fresh
from memtoken_cli.methods.rmt.config import LAYERWISE, Config
from memtoken_cli.methods.rmt.diagonal import Diagonal, rule
from memtoken_cli.methods.rmt.policies import policy_for
from memtoken_cli.methods.rmt.policy import Policy, State
from memtoken_cli.recipe.sections import NewModel

SLOTS, D_MEM, ROUNDS = 4, 16, 9
WORDS = (fresh.PAD, fresh.START, *map(str, range(60)), fresh.END, fresh.UNKNOWN)
Run = Callable[[Tensor, State], tuple[Tensor | None, State]]


def made(kind: str, segment: int, layers: int, width: int, device: str) -> Policy:
    size = NewModel(
        new="llama", layers=layers, width=width, heads=4, ffn=4 * width, context=segment + 2 * SLOTS
    )
    backbone = fresh.new_backbone(size, WORDS, 0)
    backbone.model.to(device)
    config = Config(policy=kind, slots=SLOTS, segment=segment, d_mem=D_MEM, diagonal="on")  # type: ignore[arg-type]
    policy = policy_for(backbone, config, 0)
    for parameter in policy.parameters().values():
        parameter.data += 0.02  # W_v starts at zero
    return policy


def one_by_one(policy: Policy, logits: bool) -> Run:
    def run(ids_BNS: Tensor, state: State) -> tuple[Tensor | None, State]:
        B, N, S = ids_BNS.shape
        full_B = torch.full((B,), S, device=ids_BNS.device)
        every = torch.arange(S, device=ids_BNS.device) if logits else None
        found = []
        for t in range(N):
            part, state = policy.segment(ids_BNS[:, t], full_B, state, every)
            found.append(part)
        return torch.cat([x for x in found if x is not None]) if logits else None, state

    return run


def grouped(policy: Policy, logits: bool) -> Run:
    way = Diagonal.of(policy)
    assert way is not None and way.reason is None, way and way.reason
    return lambda ids, state: way.logits(
        ids, state, torch.ones_like(ids, dtype=torch.bool) if logits else None
    )


def seconds(policy: Policy, run: Run, ids_BNS: Tensor, backward: bool) -> float:
    clock = time.process_time
    if ids_BNS.is_cuda:
        torch.cuda.synchronize()
        clock = time.perf_counter
    begin = clock()
    with torch.set_grad_enabled(backward):
        logits, _ = run(ids_BNS, policy.start(len(ids_BNS)))
        if backward and logits is not None:
            logits.square().mean().backward()
    if ids_BNS.is_cuda:
        torch.cuda.synchronize()
    return clock() - begin


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def main(device: str, layers: int, width: int, segments: int) -> None:
    print("policy  B   S  backward  one by one ms  diagonal ms  ratio  auto")
    for kind in LAYERWISE:
        for B in (1, 8):
            for S in (16, 64):
                policy = made(kind, S, layers, width, device)
                ids_BNS = torch.randint(2, 62, (B, segments, S), device=device)
                auto = rule(ids_BNS.device, B, S + 2 * SLOTS, width)
                for backward in (False, True):
                    leaves = [*policy.network.model.parameters(), *policy.parameters().values()]
                    for leaf in leaves:
                        leaf.requires_grad_(backward)
                    ways = [one_by_one(policy, backward), grouped(policy, backward)]
                    took: list[list[float]] = [[], []]
                    for number in range(ROUNDS + 1):
                        for way, kept in zip(ways, took, strict=True):
                            each = seconds(policy, way, ids_BNS, backward)
                            if number:
                                kept.append(each)
                    ratio = median([a / b for a, b in zip(*took, strict=True)])
                    a, b = (1e3 * median(kept) for kept in took)
                    print(
                        f"{kind:6}{B:3}{S:4}  {'yes' if backward else 'no':8}{a:15.1f}{b:13.1f}{ratio:7.2f}"
                        f"  {'diagonal' if auto else 'one by one'}",
                        flush=True,
                    )


if __name__ == "__main__":
    said = sys.argv[1:]
    layers, width, segments = (int(x) for x in (*said[1:], *("8", "64", "32")[len(said[1:]) :]))
    main(said[0] if said else "cpu", layers, width, segments)
