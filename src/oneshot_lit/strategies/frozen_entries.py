"""Keep single entries of weights fixed: neither gradients, decay nor moments change them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from oneshot_lit.strategies.gradient_edits import Reduce, own_parts
from oneshot_lit.strategies.weights import own_weights, set_own_weights


class FrozenEntries:
    """Masks on the trained weights of a run, under any strategy.

    A masked gradient is zero, so that clipping and moments do not see it. What an optimiser does
    without a gradient, such as weight decay, is undone after each step.

    Args:
        module: The module that trains, after the strategy has taken it.
        masks: Name of a trained parameter -> a bool tensor of its whole shape, True where the entry
            is frozen; the same in all processes.

    Raises:
        ValueError: for a name that is not a trained parameter, or a mask of another shape.
    """

    def __init__(self, module: nn.Module, masks: Mapping[str, Tensor]) -> None:
        self.module = module
        named: dict[str, Any] = {n: p for n, p in module.named_parameters() if p.requires_grad}
        for name, mask in masks.items():
            if name not in named:
                raise ValueError(f"{name} is no trained parameter")
            shape = getattr(named[name], "ds_shape", named[name].shape)
            if mask.shape != shape:
                raise ValueError(f"the mask of {name} is {tuple(mask.shape)}, not {tuple(shape)}")
        self._of_gradients = own_parts(named, masks)
        start = own_weights(module)
        self._start = {name: start[name] for name in masks}
        self._of_weights = {
            name: _like(self._start[name], mask, self._of_gradients[name])
            for name, mask in masks.items()
        }

    def mask_gradients(self, gradients: Mapping[str, Tensor], reduce: Reduce) -> None:
        """Set the gradient of frozen entries to zero; an edit for `edit_gradients`."""
        for name, mask in self._of_gradients.items():
            if name in gradients:
                part = gradients[name]
                part.masked_fill_(mask[: part.numel()].to(part.device), 0.0)

    @torch.no_grad()
    def restore(self) -> None:
        """Give frozen entries their old values back; call it after each optimiser step."""
        now = own_weights(self.module, self._start)
        for name, mask in self._of_weights.items():
            now[name][mask] = self._start[name][mask]
        set_own_weights(self.module, now)


def _like(weight: Tensor, whole: Tensor, part: Tensor) -> Tensor:
    """Return a mask of the shape in which `own_weights` gives a weight: whole, or a shard."""
    if weight.numel() == whole.numel():
        return whole.cpu().view(weight.shape)
    # The last shards of ZeRO-3 are padded.
    return functional.pad(part.cpu(), (0, weight.numel() - part.numel())).view(weight.shape)
