"""Rounding to a few bits and back, and one decoder layer with learned ranges and scales.

Source: OmniQuant (arXiv 2308.13137), which Q-realign (2601.08089) is built on: learnable weight
clipping (LWC) shrinks the range of each row, and a learnable equivalent transformation (LET) moves
scales between a layer's norms and matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

LINEARS = (
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)
_SCALES = (1e-5, 1e4)
# A learned scale is kept away from zero.
_SMALLEST = 1e-2
# The sigmoid of it is .98: at first a range is nearly whole.
_WIDE_OPEN = 4.0


def fake_quant(
    x: Tensor, bits: int, upper: Tensor | None = None, lower: Tensor | None = None
) -> Tensor:
    """Round each row (last dimension) to `bits` bits, with a zero point, and back.

    Gradients pass straight through the rounding of `x`, not through that of the zero point. A row
    that is constant and not zero comes out wrong, as in the release: its range is empty.

    Args:
        x: (..., n).
        bits: 2 to 16.
        upper: (..., 1); the row's maximum is multiplied by its sigmoid.
        lower: (..., 1); the same for the minimum.
    """
    high, low = x.amax(-1, keepdim=True), x.amin(-1, keepdim=True)
    if upper is not None and lower is not None:
        high, low = upper.sigmoid() * high, lower.sigmoid() * low
    top = 2**bits - 1
    scale = ((high - low) / top).clamp(*_SCALES)
    zero = (-low / scale).clamp(-_SCALES[1], _SCALES[1]).round()
    exact = x / scale
    rounded = exact + (exact.round() - exact).detach()
    return ((rounded + zero).clamp(0, top) - zero) * scale


class QuantisedLayer:
    """A decoder layer of Llama's kind whose seven matrices and their inputs are rounded.

    Args:
        layer: The layer; it stays as it is until `fold`.
        peaks: Name of a matrix in `LINEARS` -> (in,), the largest absolute value of each input.
            Those of ``q_proj``, ``o_proj`` and ``up_proj`` are needed.
        weight_bits: Of the matrices.
        input_bits: Of their inputs, token by token.
        alpha: How much of an input's range moves to the weights at first.
    """

    def __init__(
        self,
        layer: nn.Module,
        peaks: Mapping[str, Tensor],
        weight_bits: int = 8,
        input_bits: int = 8,
        alpha: float = 0.5,
    ) -> None:
        self.layer, self.weight_bits, self.input_bits = layer, weight_bits, input_bits
        self.weights = {n: p.detach() for n, p in layer.named_parameters()}
        wide = {name: self._weight(name).float() for name in LINEARS}
        # With fewer key than query heads the two scales within attention have no common shape.
        grouped = len(wide["self_attn.k_proj"]) != len(wide["self_attn.q_proj"])
        starts = {"qkv": "self_attn.q_proj", "out": "self_attn.o_proj", "fc1": "mlp.up_proj"}
        self.scales: dict[str, Tensor] = {}
        for key, name in starts.items():
            if key == "out" and grouped:
                continue
            columns = wide[name].abs().amax(0).clamp(min=1e-5)
            own = peaks[name].to(columns) ** alpha / columns ** (1 - alpha)
            self.scales[key] = own.clamp(min=1e-5).requires_grad_()
        if not grouped:
            self.scales["qkt"] = torch.ones_like(wide["self_attn.q_proj"][:, 0]).requires_grad_()
        self.ranges = {
            (name, end): torch.full((len(w), 1), _WIDE_OPEN, device=w.device).requires_grad_()
            for name, w in wide.items()
            for end in ("upper", "lower")
        }

    def _weight(self, name: str) -> Tensor:
        return self.weights[f"{name}.weight"]

    @torch.no_grad()
    def limit_scales(self) -> None:
        """Keep the learned scales away from zero."""
        for scale in self.scales.values():
            near = scale.abs() < _SMALLEST
            scale[near] = scale[near].sign() * _SMALLEST

    def rounded(self) -> dict[str, Tensor]:
        """Return the layer's parameters with all scales moved and the matrices rounded."""
        moved = {n: w.float() for n, w in self.weights.items()}
        s = {key: scale.view(1, -1) for key, scale in self.scales.items()}

        def scale(name: str, change: Callable[[Tensor], Tensor]) -> None:
            moved[f"{name}.weight"] = change(moved[f"{name}.weight"])

        for name in ("q_proj", "k_proj", "v_proj"):
            scale(f"self_attn.{name}", lambda w: w * s["qkv"])
        scale("input_layernorm", lambda w: w / s["qkv"][0])
        for name in ("gate_proj", "up_proj"):
            scale(f"mlp.{name}", lambda w: w * s["fc1"])
        scale("post_attention_layernorm", lambda w: w / s["fc1"][0])
        if "out" in s:
            self._scale_rows(moved, "self_attn.v_proj", 1 / s["out"][0])
            scale("self_attn.o_proj", lambda w: w * s["out"])
            self._scale_rows(moved, "self_attn.q_proj", 1 / s["qkt"][0])
            self._scale_rows(moved, "self_attn.k_proj", s["qkt"][0])
        for name in LINEARS:
            upper, lower = self.ranges[name, "upper"], self.ranges[name, "lower"]
            scale(name, lambda w, u=upper, d=lower: fake_quant(w, self.weight_bits, u, d))  # type: ignore[misc]
        return moved

    @staticmethod
    def _scale_rows(moved: dict[str, Tensor], name: str, factor: Tensor) -> None:
        """Scale what a matrix gives: its rows, and its bias if it has one."""
        for leaf in ("weight", "bias"):
            if (key := f"{name}.{leaf}") in moved:
                own = factor.view(-1, 1) if leaf == "weight" else factor
                moved[key] = moved[key] * own

    def __call__(self, hidden: Tensor, call: Mapping[str, Any], weights: Any = None) -> Tensor:
        """Return what the rounded layer makes of hidden states: (rows, tokens, hidden).

        Args:
            hidden: (rows, tokens, hidden).
            call: The other arguments that the model gives its layers.
            weights: From `rounded`; made anew by default.
        """
        own = self.rounded() if weights is None else weights

        def round_inputs(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (fake_quant(args[0], self.input_bits), *args[1:])

        linears = [self.layer.get_submodule(name) for name in LINEARS]
        hooks = [each.register_forward_pre_hook(round_inputs) for each in linears]
        try:
            output = torch.func.functional_call(self.layer, own, (hidden,), dict(call))
        finally:
            for hook in hooks:
                hook.remove()
        return output[0] if isinstance(output, tuple) else output

    @torch.no_grad()
    def fold(self) -> None:
        """Write the rounded parameters into the layer."""
        self.limit_scales()
        for name, value in self.rounded().items():
            self.layer.get_parameter(name).copy_(value)
