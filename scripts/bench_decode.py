"""Milliseconds a generated token: in segments 2 and 100 with the cache of the open segment, and when the open
segment is read again for every token. Medians over a whole segment, on the CPU or DEVICE.

    OMP_NUM_THREADS=1 python scripts/bench_decode.py [SEGMENT] [DEVICE]
"""

from __future__ import annotations

import sys
import time
from statistics import median

import torch
from bench_diagonal import made
from torch import Tensor

from memtoken_cli.methods.rmt.policy import Policy, State

NEAR, FAR = 2, 100


def cached(policy: Policy, ids_1S: Tensor, state: State) -> list[float]:
    at, seconds = policy.open(state, 1), []
    for i in range(ids_1S.shape[1]):
        begin = time.perf_counter()
        policy.feed(at, ids_1S[:, i : i + 1])
        seconds.append(time.perf_counter() - begin)
    return seconds


def again(policy: Policy, ids_1S: Tensor, state: State) -> list[float]:
    seconds = []
    for n in range(1, ids_1S.shape[1] + 1):
        begin = time.perf_counter()
        policy.feed(policy.open(state, 1), ids_1S[:, :n])
        seconds.append(time.perf_counter() - begin)
    return seconds


@torch.no_grad()
def main() -> None:
    S = int(sys.argv[1]) if len(sys.argv) > 1 else 256
    device = sys.argv[2] if len(sys.argv) > 2 else "cpu"
    policy = made("rmt", S, 8, 64, device)
    ids_1S = torch.arange(S, device=device)[None] % 60
    full_1 = torch.full((1,), S, device=device)
    state, found = policy.start(1), {}
    for t in range(1, FAR + 1):
        if t in (NEAR, FAR):
            found[t] = 1e3 * median(cached(policy, ids_1S, state))
        _, state = policy.segment(ids_1S, full_1, state, None)
    read = 1e3 * median(again(policy, ids_1S, state))
    for t, ms in found.items():
        print(f"segment {t:3}, cached       {ms:.2f} ms a token")
    print(f"open segment read again   {read:.2f} ms a token, {read / found[FAR]:.1f} times as long")


if __name__ == "__main__":
    main()
