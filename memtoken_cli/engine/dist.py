"""Several processes as one: what `torchrun` started, gradient sums, sharding. With one process it is free.

Gradients travel as sums with a global denominator, so that W ranks equal one. The sum of a batch is a
balanced binary tree over its parts, of which two ranks compute the two halves: their result has the same bits
as one process's, if both cut the batch into the same parts. With more ranks the order of the all-reduce is
the backend's, and equality holds to rounding.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar, cast

import torch
import torch.distributed as td
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from memtoken_cli.io.errors import UsageError

T = TypeVar("T")
BUCKET = 2**24  # elements an all-reduce carries at most: bounds the copy


@dataclass(frozen=True)
class World:
    """The processes that train together, seen from one of them; the default is one process on the CPU."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def leader(self) -> bool:
        """Whether this rank writes files and reports."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """This rank's contiguous part of `count` items, ragged where they do not divide; a subtree of `tree`
        where the number of ranks is a power of two."""
        low, high, first, ranks = 0, count, 0, self.size
        while ranks > 1:
            left = (ranks + 1) // 2
            middle = low + -(-(high - low) * left // ranks)
            if self.rank < first + left:
                high, ranks = middle, left
            else:
                low, first, ranks = middle, first + left, ranks - left
        return range(low, high)

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Add the tensors of all ranks up, in place; sharded ones have been, by their own backward."""
        if self.size == 1:
            return
        bucket: list[Tensor] = []
        for tensor in [x for x in tensors if not isinstance(x, DTensor)]:
            if bucket and (
                bucket[0].dtype != tensor.dtype or sum(x.numel() for x in bucket) + tensor.numel() > BUCKET
            ):
                _reduce(bucket)
                bucket = []
            bucket.append(tensor)
        if bucket:
            _reduce(bucket)

    def gather(self, value: T) -> list[T]:
        """Every rank's JSON-ready value, in rank order (as JSON: nothing is unpickled)."""
        if self.size == 1:
            return [value]
        data = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8, device=self.device)
        longest = torch.tensor([len(data)], device=self.device)
        td.all_reduce(longest, op=td.ReduceOp.MAX)
        padded = torch.full((int(longest),), ord(" "), dtype=torch.uint8, device=self.device)
        padded[: len(data)] = data
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        td.all_gather(parts, padded)
        return [cast(T, json.loads(bytes(part.tolist()))) for part in parts]


def _reduce(bucket: Sequence[Tensor]) -> None:
    flat = torch.cat([x.reshape(-1) for x in bucket])
    td.all_reduce(flat)
    for x, part in zip(bucket, torch.split(flat, [x.numel() for x in bucket]), strict=True):
        x.copy_(part.view_as(x))


def tree(low: int, high: int, leaf: Callable[[int], T], add: Callable[[T, T], T]) -> T:
    """The sum of leaf(low) ... leaf(high - 1) as a balanced binary tree, the left half the larger.

    Leaves are evaluated in order; log2(high - low) partial sums are alive at a time.
    """
    if high - low == 1:
        return leaf(low)
    middle = low + (high - low + 1) // 2
    return add(tree(low, middle, leaf, add), tree(middle, high, leaf, add))


@contextmanager
def join(device: str | None = None) -> Iterator[World]:
    """Join the process group that `torchrun` describes in the environment (gloo on CPU, NCCL on CUDA).

    Without it the world is this process. Raises UsageError for more ranks on a machine than it has GPUs.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if size == 1:
        yield World(device=torch.device(kind))
        return
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    if kind.startswith("cuda"):
        if local >= torch.cuda.device_count():
            raise UsageError(
                f"rank {rank} finds no GPU of its own: this machine has {torch.cuda.device_count()}",
                hint=f"torchrun --nproc-per-node {max(1, torch.cuda.device_count())}, or --device cpu",
            )
        torch.cuda.set_device(local)
        kind = f"cuda:{local}"
    td.init_process_group("nccl" if kind.startswith("cuda") else "gloo")
    try:
        yield World(rank, size, torch.device(kind))
    finally:
        td.destroy_process_group()


def shard(model: nn.Module, blocks: Iterable[nn.Module], world: World) -> None:
    """Spread a big backbone's parameters over all ranks (FSDP2), a unit per block; gradients are sums.

    Every rank must then run the same number of forwards: cut batches into a multiple of `world.size` parts.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = init_device_mesh(world.device.type, (world.size,))
    for module in [*blocks, model]:
        fully_shard(module, mesh=mesh)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def whole(tensor: Tensor) -> Tensor:
    """A detached tensor in full, gathered from all ranks where it is sharded (every rank must call it)."""
    detached = tensor.detach()
    return detached.full_tensor() if isinstance(detached, DTensor) else detached


def fill_(tensor: Tensor, value: Tensor) -> None:
    """Set a tensor, sharded or not, to a full value that every rank holds."""
    with torch.no_grad():
        if isinstance(tensor, DTensor):
            value = distribute_tensor(value.to(tensor.device), tensor.device_mesh, tensor.placements)
        tensor.copy_(value)
