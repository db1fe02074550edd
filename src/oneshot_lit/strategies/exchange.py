"""Token factors of all processes, gathered where they are decomposed.

Each process knows the factors of its own rows only, and the gradient is the mean over processes of
``left^T @ right``: the factors of all tokens together, divided by the number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, distributed

# (right, left), (tokens, features) each, of a gradient left^T @ right; a left factor of int64
# token ids, (tokens,), stands for its one-hot rows.
Pair = tuple[Tensor, Tensor]


def everyones(trainer: Trainer, mine: Any) -> list[Any]:
    """Return the small object of each process, in the order of ranks; all must call it."""
    if trainer.world_size == 1:
        return [mine]
    objects: list[Any] = [None] * trainer.world_size
    distributed.all_gather_object(objects, mine)
    return objects


def full_factors(
    trainer: Trainer, factors: Mapping[str, Pair], names: Sequence[str], scale: float
) -> Iterator[tuple[str, Pair]]:
    """Yield the factors of the full gradients of the matrices that this process decomposes.

    Every process must exhaust the iterator. The matrices are dealt out in turns, and each process
    gets one in a round, so that all are busy and hold little.

    Args:
        trainer: The running trainer.
        factors: Name -> what this process recorded, not yet divided by the loss scale.
        names: All names there can be, in the same order on all processes.
        scale: The loss scale.

    Yields:
        Name, and (right, left), both (tokens, features), of the dtypes that were recorded or wider.
    """
    own = {name: _by_id(pair) for name, pair in factors.items()}
    world = trainer.world_size
    if world == 1:
        yield from ((name, _divided(pair, scale)) for name, pair in own.items())
        return
    shapes = everyones(trainer, {n: [(p.shape, p.dtype) for p in pair] for n, pair in own.items()})
    present = [name for name in names if any(name in each for each in shapes)]
    for start in range(0, len(present), world):
        mine = None
        for owner, name in enumerate(present[start : start + world]):
            right, left = (
                _gathered(
                    trainer,
                    own[name][side] if name in own else None,
                    [each[name][side] if name in each else None for each in shapes],
                    owner,
                )
                for side in (0, 1)
            )
            if right is not None and left is not None:
                mine = name, _by_id((right, left))
        if mine is not None:
            yield mine[0], _divided(mine[1], scale * world)


def _gathered(
    trainer: Trainer, tensor: Tensor | None, shapes: Sequence[Any], owner: int
) -> Tensor | None:
    """Return the rows of all processes on the owner, None on the others."""
    shape, dtype = next(each for each in shapes if each is not None)
    counts = [0 if each is None else each[0][0] for each in shapes]
    # All send equally many rows; the last ones may be padding.
    padded = torch.zeros(max(counts), *shape[1:], dtype=dtype, device=trainer.strategy.root_device)
    if tensor is not None:
        padded[: len(tensor)] = tensor
    owned = trainer.global_rank == owner
    parts = [torch.empty_like(padded) for _ in counts] if owned else None
    if padded.numel():
        distributed.gather(padded, parts, dst=owner)
    if parts is None:
        return None
    return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])


def _by_id(pair: Pair) -> Pair:
    """Sum the rows of each token id: rows of different ids are orthogonal."""
    right, ids = pair
    if ids.dtype != torch.long:
        return pair
    distinct, where = torch.unique(ids, return_inverse=True)
    rows = right.to(torch.promote_types(right.dtype, torch.float32))
    return rows.new_zeros(len(distinct), rows.shape[1]).index_add_(0, where, rows), distinct


def _divided(pair: Pair, divisor: float) -> Pair:
    right, left = pair
    if left.dtype == torch.long:
        right = right if divisor == 1.0 else right / divisor
        return right, torch.eye(len(left), dtype=right.dtype, device=right.device)
    if divisor != 1.0:
        # The right factor may be shared.
        left = left.to(torch.promote_types(left.dtype, torch.float32)) / divisor
    return right, left
