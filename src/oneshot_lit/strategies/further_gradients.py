"""The gradient of a further loss beside the step's own, under any strategy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from oneshot_lit.strategies.gradient_edits import own_parts
from oneshot_lit.strategies.gradients import loss_scale

# (name, whole gradient) -> what is used instead, of the same shape.
Change = Callable[[str, Tensor], Tensor]


def further_gradients(
    trainer: Trainer,
    named: Mapping[str, nn.Parameter],
    loss: Callable[[], Tensor],
    change: Change | None = None,
) -> dict[str, Tensor]:
    """Return this process's part of the gradient of a loss, entry by entry as an edit gets its own.

    The gradients of the step stay as they are. Call it in all processes, in the first training step
    of an optimiser step, before the forward pass that gets the step's own gradient.

    Args:
        trainer: The running trainer.
        named: Trained parameters; the same ones in all processes.
        loss: Runs the forward pass and returns a scalar. It must be the same in all processes, so
            the same rows and no dropout: nothing is averaged over them.
        change: Changes each whole gradient; all processes call it with the same ones.

    Returns:
        Name -> part, flat; parameters that the loss does not depend on are missing.
    """
    scale = loss_scale(trainer)
    with torch.enable_grad():
        scaled = loss() * scale
    if any(isinstance(p, DTensor) for p in named.values()):
        gradients = _by_backward(named, scaled)
    else:
        # Unlike a backward pass this tells no strategy of a gradient.
        each = torch.autograd.grad(scaled, list(named.values()), allow_unused=True)
        gradients = {n: g for n, g in zip(named, each, strict=True) if g is not None}
    parts: dict[str, Tensor] = {}
    for name in list(gradients):
        gradient: Any = gradients.pop(name).detach() / scale
        if isinstance(gradient, DTensor) and change is None:
            parts[name] = gradient.to_local().flatten()
            continue
        whole = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
        whole = whole if change is None else change(name, whole)
        # Not a view, which would keep the whole tensor.
        parts[name] = own_parts(named, {name: whole})[name].clone()
    return parts


def _by_backward(named: Mapping[str, nn.Parameter], loss: Tensor) -> dict[str, Tensor]:
    """Return gradients by a backward pass, the only way in which FSDP2 gathers and sums.

    Lightning lets it sum after each batch, also of those that are accumulated.
    """
    own = {name: p.grad for name, p in named.items()}
    for parameter in named.values():
        parameter.grad = None
    try:
        loss.backward()  # type: ignore[no-untyped-call]
        return {name: p.grad for name, p in named.items() if p.grad is not None}
    finally:
        for name, parameter in named.items():
            parameter.grad = own[name]
