"""Hidden states of a model: their gradients, and a forward pass with them perturbed.

For methods of two passes in a step, such as Vaccine (arXiv 2402.01109): the first pass gives the
gradient of the loss at chosen hidden states, the second runs with a step along it added to them.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from oneshot_lit.errors import OneShotError


def chosen_modules(model: nn.Module, pattern: str) -> dict[str, nn.Module]:
    """Return name -> module for the names that match a pattern, such as ``*.layers.*.self_attn``.

    Raises:
        OneShotError: if none does.
    """
    chosen = {n: m for n, m in model.named_modules() if n and fnmatch.fnmatch(n, pattern)}
    if not chosen:
        raise OneShotError(f"no part of {type(model).__name__} matches '{pattern}'; give another.")
    return chosen


def hidden_gradients(
    modules: Mapping[str, nn.Module], loss: Callable[[], Tensor]
) -> dict[str, Tensor]:
    """Return name -> gradient of a loss at what each module puts out, of the output's shape.

    No gradient of a weight is made, and nothing is left behind.

    Args:
        modules: Parts of the model that give a tensor, or a tuple that begins with one.
        loss: Runs the forward pass, each module once, and returns a scalar; called once. So
            nothing may be read once for all rows (`shared_prefix`).
    """
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            hidden = _first(output)
            if not hidden.requires_grad:
                # Under a frozen part nothing else needs a gradient, and there would be no graph.
                hidden = hidden.detach().requires_grad_()
            outputs[name] = hidden
            return _with_first(output, hidden)

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        with torch.enable_grad():
            gradients = torch.autograd.grad(loss(), list(outputs.values()), allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    pairs = zip(outputs.items(), gradients, strict=True)
    return {n: torch.zeros_like(h) if g is None else g.detach() for (n, h), g in pairs}


@contextmanager
def perturbed(modules: Mapping[str, nn.Module], deltas: Mapping[str, Tensor]) -> Iterator[None]:
    """Add a delta to what each module puts out for as long as the block lasts.

    With gradient checkpointing it must last until after the backward pass, which runs the modules
    again: without the deltas it would give wrong gradients, and no error.

    Args:
        modules: The modules, by name.
        deltas: Name -> what is added, of the output's shape; modules without one stay as they are.
    """

    def add(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            hidden = _first(output)
            return _with_first(output, hidden + deltas[name].to(hidden))

        return hook

    handles = [m.register_forward_hook(add(n)) for n, m in modules.items() if n in deltas]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output  # type: ignore[no-any-return]


def _with_first(output: Any, hidden: Tensor) -> Any:
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
