"""`CountingOptimizer`: counts the steps of a module that moves its weights by itself."""

from __future__ import annotations

from typing import Any

import torch


class CountingOptimizer(torch.optim.Optimizer):
    """Changes nothing: whoever uses it sets the weights in another way."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 1.0})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Count a step."""
        if closure is not None:
            closure()
