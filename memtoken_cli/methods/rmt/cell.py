"""One cell of a bench, in a process of its own: a policy reads so many tokens, then generates a few.

    python -m memtoken_cli.methods.rmt.cell < {"recipe": YAML, "length": T, ...}     one line of JSON

The peak is the process's (of a GPU: its allocator's) above what it holds once the model is there, whatever
loading took. Weights are untrained: they cost the same.

Shape suffixes: B = 1 row, N segments, S tokens of a segment, U tokens fed at once.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from memtoken_cli.engine import resident, seeds
from memtoken_cli.io.errors import MemtokError
from memtoken_cli.methods.rmt.diagonal import Diagonal
from memtoken_cli.methods.rmt.policy import Policy, State
from memtoken_cli.methods.rmt.run import Bench, built
from memtoken_cli.recipe.schema import parse

MIB = 2**20


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """The figures of one cell; `why` alone where the policy cannot do it.

    Args:
        request: recipe (its YAML), length, generate, repeats, device.
    """
    try:
        bench = built(parse(request["recipe"]), request["device"])
        return _figures(bench, request["length"], request["generate"], request["repeats"])
    except MemtokError as error:
        return {"why": error.message}
    except (MemoryError, torch.OutOfMemoryError):
        return {"why": "out of memory"}


@torch.no_grad()
def _figures(bench: Bench, length: int, generate: int, repeats: int) -> dict[str, Any]:
    policy, device = bench.policy, bench.backbone.device
    vocabulary = bench.backbone.dims.vocab
    ids_1T = torch.randint(vocabulary, (1, length), generator=seeds.generator(0, "bench")).to(device)
    read = _reader(policy, length)
    # what the first call of a kernel brings in is none of the memory's
    policy.feed(policy.open(policy.start(1), 1), ids_1T[:, :1])
    policy.segment(ids_1T[:, :1], torch.ones(1, dtype=torch.int64, device=device), policy.start(1), None)
    peak = _peak(device)
    whole = length - length % policy.size
    seconds: list[float] = []
    state: State = policy.start(1)
    for _ in range(repeats):
        _wait(device)
        begin = time.perf_counter()
        state = read(ids_1T[:, :whole], policy.start(1))
        _wait(device)
        seconds.append(time.perf_counter() - begin)
    state_bytes = sum(x.numel() * x.element_size() for x in state)
    tokens = _generate(policy, ids_1T[:, whole:], state, generate, device)
    most = peak()
    return {
        "segments": -(-length // policy.size),
        "tokens_per_second": whole / min(seconds) if whole else None,
        "ms_per_token": 1e3 * sorted(tokens)[len(tokens) // 2],
        "peak_mib": None if most is None else most / MIB,
        "state_bytes": state_bytes,
    }


def _reader(policy: Policy, length: int) -> Callable[[Tensor, State], State]:
    """What reads whole segments: grouped over layers where the policy's configuration says so."""
    if (grouped := Diagonal.of(policy)) is not None:
        if grouped.wanted(1, length // policy.size):
            return lambda ids_1T, state: grouped.read(ids_1T.unflatten(1, (-1, policy.size)), state)
        if grouped.policy.config.diagonal == "on" and grouped.reason:
            raise MemtokError(grouped.reason)

    def read(ids_1T: Tensor, state: State) -> State:
        count_B = torch.full((1,), policy.size, device=ids_1T.device)
        for start in range(0, ids_1T.shape[1], policy.size):  # a list of all segments would be counted
            _, state = policy.segment(ids_1T[:, start : start + policy.size], count_B, state, None)
        return state

    return read


def _generate(policy: Policy, rest_1U: Tensor, state: State, count: int, device: torch.device) -> list[float]:
    """Seconds of each greedy token behind the open segment's rest_1U."""
    at = policy.open(state, 1)
    next_1U = rest_1U if rest_1U.shape[1] else torch.zeros(1, 1, dtype=torch.int64, device=device)
    seconds = []
    for i in range(count + 1):
        _wait(device)
        begin = time.perf_counter()
        logits_1UV = policy.feed(at, next_1U)
        assert logits_1UV is not None
        next_1U = logits_1UV[:, -1:].argmax(-1)
        if at.count == policy.size:
            at = policy.open(policy.close(at), 1)
        _wait(device)
        if i:  # the first reads the rest
            seconds.append(time.perf_counter() - begin)
    return seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak(device: torch.device) -> Callable[[], int | None]:
    """Gives the most bytes held since now above those held now; None where the system cannot tell."""
    if device.type != "cuda":
        return resident.above()
    torch.cuda.reset_peak_memory_stats(device)
    start = torch.cuda.memory_allocated(device)
    return lambda: torch.cuda.max_memory_allocated(device) - start


if __name__ == "__main__":
    print(json.dumps(measure(json.load(sys.stdin))))
