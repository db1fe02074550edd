"""What each of two processes does for the tests of the exchange."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import distributed

from oneshot_lit.callbacks.shared_spectra import shared_spectra
from oneshot_lit.strategies import exchange

SCALE = 4.0
NAMES = ["q", "k", "v", "embed", "half", "expert", "empty", "unused"]


def stand_in(rank: int = 0, world_size: int = 1) -> Any:
    return SimpleNamespace(
        world_size=world_size,
        global_rank=rank,
        global_step=7,
        is_global_zero=rank == 0,
        precision="32-true",
        model=torch.nn.Linear(1, 1),
        precision_plugin=SimpleNamespace(),
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )


def recorded(rank: int, broken: bool = False) -> dict[str, exchange.Pair]:
    """Factors of one rank: ragged, shared inputs, token ids, half precision, some missing."""
    generator = torch.Generator().manual_seed(rank)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    tokens = (5, 2)[rank]
    shared, other = draw(tokens, 8), draw(tokens, 8)
    found = {
        "q": (shared, draw(tokens, 6)),
        "k": (shared, draw(tokens, 3)),
        # Shared with q and k on one rank only.
        "v": (shared if rank == 0 else other, draw(tokens, 3)),
        "embed": (draw(tokens, 4), torch.tensor([3, 1, 3, 0, 9][:tokens])),
        "half": (draw(tokens, 7).bfloat16(), draw(tokens, 5).bfloat16()),
    }
    if rank == 0:
        found["expert"] = (draw(3, 5), draw(3, 5))
    elif broken:
        found["q"][1][0, 0] = torch.nan
    return {**found, "empty": (draw(0, 7), draw(0, 5))}


def explicit(rank: int) -> dict[str, torch.Tensor]:
    """Gradients of one rank, (left features, right features), in float64; 10 token ids."""
    found = {}
    for name, (right, left) in recorded(rank).items():
        rows = torch.eye(10)[left] if left.dtype == torch.long else left
        found[name] = rows.double().mT @ right.double()
    return found


def collect(root: str) -> None:
    rank = int(os.environ["RANK"])
    _join()
    owned = exchange.full_factors(stand_in(rank, 2), recorded(rank), NAMES, SCALE)
    result = {name: left.double().mT @ right.double() for name, (right, left) in owned}
    Path(root).mkdir(exist_ok=True)
    torch.save(result, Path(root) / f"{rank}.pt")


def broken(root: str) -> None:
    """NaN on one rank must not leave the other one waiting."""
    rank = int(os.environ["RANK"])
    _join()
    weights = {name: torch.nn.Parameter(torch.zeros(0)) for name in NAMES}
    shared_spectra(stand_in(rank, 2), weights, recorded(rank, broken=True))


def run(what: str, **case: Any) -> None:
    {"collect": collect, "broken": broken}[what](**case)


def _join() -> None:
    if not distributed.is_initialized():
        distributed.init_process_group("gloo")
