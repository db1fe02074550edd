"""Token factors of all processes, gathered where they are decomposed.

Each process knows the factors of its own rows only, and the gradient is the mean over processes of
``left^T @ right``: the factors of all tokens together, divided by the number of processes. Each
matrix has one owner that gets its factors from all; a message holds many matrices, and bounds the
memory that the exchange takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, distributed

# (right, left), (tokens, features) each, of a gradient left^T @ right; a left factor of int64
# token ids, (tokens,), stands for its one-hot rows.
Pair = tuple[Tensor, Tensor]
_Kind = tuple[torch.Size, torch.dtype]

# About how many bytes a process sends at once; factors of a single input may be larger.
CHUNK_BYTES = 2**28


def everyones(trainer: Trainer, mine: Any) -> list[Any]:
    """Return the small object of each process, in the order of ranks; all must call it."""
    if trainer.world_size == 1:
        return [mine]
    objects: list[Any] = [None] * trainer.world_size
    distributed.all_gather_object(objects, mine)
    return objects


def global_factors(
    trainer: Trainer, factors: Mapping[str, Pair], scale: float, order: Sequence[str] = ()
) -> Iterator[dict[str, Pair]]:
    """Yield the factors of the full gradients of the matrices that this process decomposes.

    Every process must exhaust the iterator. Each name comes on one process only; names that share
    one right factor on all processes do so here, too.

    Args:
        trainer: The running trainer.
        factors: Name -> what this process recorded, not yet divided by the loss scale.
        scale: The loss scale.
        order: The names that there can be, the same on all processes; it decides who owns a matrix,
            so that one has the same owner at every step.

    Yields:
        Name -> (right, left), both (tokens, features), of the dtypes that were recorded or wider;
        some of the names at a time.
    """
    own = {name: _by_id(pair) for name, pair in factors.items()}
    if trainer.world_size == 1:
        yield {name: _finished(pair, scale) for name, pair in own.items()}
        return
    kinds = everyones(trainer, _kinds(own))
    for shares in _plan(kinds, order):
        received = _exchange(trainer, shares, own, kinds)
        yield {name: _finished(p, scale * trainer.world_size) for name, p in received.items()}


def _by_id(pair: Pair) -> Pair:
    """Sum the rows of each token id: rows of different ids are orthogonal."""
    right, ids = pair
    if ids.dtype != torch.long:
        return pair
    distinct, where = torch.unique(ids, return_inverse=True)
    rows = right.to(torch.promote_types(right.dtype, torch.float32))
    return rows.new_zeros(len(distinct), rows.shape[1]).index_add_(0, where, rows), distinct


def _finished(pair: Pair, divisor: float) -> Pair:
    right, left = _by_id(pair)
    if left.dtype == torch.long:
        right = right if divisor == 1.0 else right / divisor
        return right, torch.eye(len(left), dtype=right.dtype, device=right.device)
    if divisor != 1.0:
        # The right factor may be shared.
        left = left.to(torch.promote_types(left.dtype, torch.float32)) / divisor
    return right, left


@dataclass(frozen=True)
class _Kinds:
    """What a process has of a matrix; `group` is equal where the right factor is one tensor."""

    group: int
    right: _Kind
    left: _Kind


def _kinds(factors: Mapping[str, Pair]) -> dict[str, _Kinds]:
    groups: dict[int, int] = {}
    return {
        name: _Kinds(
            groups.setdefault(id(right), len(groups)),
            (right.shape, right.dtype),
            (left.shape, left.dtype),
        )
        for name, (right, left) in factors.items()
    }


def _plan(
    kinds: Sequence[Mapping[str, _Kinds]], order: Sequence[str] = ()
) -> Iterator[list[list[list[str]]]]:
    """Yield rounds: for each owner its bundles, lists of names with one right factor.

    All processes make the same plan, as each knows what the others have.
    """
    bundles: dict[tuple[int | None, ...], list[str]] = {}
    present = dict.fromkeys(name for own in kinds for name in own)
    # Which layers share an input depends on the tokens that have a gradient, but such layers are
    # always in one module. The shift keeps a kind of module from having one owner in every layer.
    modules = dict.fromkeys(_module(name) for name in [*order, *present])
    owner = {m: (n + n // len(kinds)) % len(kinds) for n, m in enumerate(modules)}
    for name in present:
        groups = tuple(own[name].group if name in own else None for own in kinds)
        bundles.setdefault(groups, []).append(name)
    shares: list[list[list[str]]] = [[] for _ in kinds]
    pending = 0
    for bundle in bundles.values():
        size = sum(sum(map(_size, _tensors(bundle, own))) for own in kinds)
        if pending and pending + size > CHUNK_BYTES * len(kinds):
            yield shares
            shares, pending = [[] for _ in kinds], 0
        shares[owner[_module(bundle[0])]].append(bundle)
        pending += size
    if any(shares):
        yield shares


def _module(name: str) -> str:
    """Return the name of what a layer is part of, such as an attention block."""
    return name.rsplit(".", 2)[0]


def _tensors(bundle: Sequence[str], own: Mapping[str, _Kinds]) -> list[_Kind]:
    """Return what a process sends of a bundle: the right factor once, then the left ones."""
    if bundle[0] not in own:
        return []
    return [own[bundle[0]].right, *(own[name].left for name in bundle)]


def _size(kind: _Kind) -> int:
    """Return the bytes in a message, rounded up so that the next tensor is aligned."""
    shape, dtype = kind
    return -(-shape.numel() * dtype.itemsize // 8) * 8


def _exchange(
    trainer: Trainer,
    shares: Sequence[Sequence[Sequence[str]]],
    own: Mapping[str, Pair],
    kinds: Sequence[Mapping[str, _Kinds]],
) -> dict[str, Pair]:
    """Send each owner its bundles in one message, and join what this process gets."""
    rank = trainer.global_rank
    device = trainer.strategy.root_device
    out_sizes = [_total(share, kinds[rank]) for share in shares]
    in_sizes = [_total(shares[rank], theirs) for theirs in kinds]
    message = torch.zeros(sum(out_sizes), dtype=torch.uint8, device=device)
    start = 0
    for bundle in (bundle for share in shares for bundle in share if bundle[0] in own):
        for tensor in (own[bundle[0]][0], *(own[name][1] for name in bundle)):
            size = tensor.numel() * tensor.element_size()
            message[start : start + size] = tensor.contiguous().reshape(-1).view(torch.uint8)
            start += _size((tensor.shape, tensor.dtype))
    arrived = torch.empty(sum(in_sizes), dtype=torch.uint8, device=device)
    distributed.all_to_all_single(arrived, message, in_sizes, out_sizes)
    del message
    return _joined(shares[rank], kinds, arrived)


def _total(share: Sequence[Sequence[str]], kinds: Mapping[str, _Kinds]) -> int:
    return sum(_size(kind) for bundle in share for kind in _tensors(bundle, kinds))


def _joined(
    share: Sequence[Sequence[str]], kinds: Sequence[Mapping[str, _Kinds]], arrived: Tensor
) -> dict[str, Pair]:
    """Split a message into tensors and join the tokens of all processes."""
    parts: dict[str, list[list[Tensor]]] = {bundle[0]: [] for bundle in share}
    start = 0
    for theirs in kinds:
        for bundle in share:
            tensors = []
            for kind in _tensors(bundle, theirs):
                shape, dtype = kind
                flat = arrived[start : start + shape.numel() * dtype.itemsize]
                tensors.append(flat.view(dtype).view(shape))
                start += _size(kind)
            if tensors:
                parts[bundle[0]].append(tensors)
    joined: dict[str, Pair] = {}
    for bundle in share:
        right, *lefts = (torch.cat(each) for each in zip(*parts[bundle[0]], strict=True))
        joined |= {name: (right, left) for name, left in zip(bundle, lefts, strict=True)}
    return joined
