"""The linear layers of a model: which ones, their gradient's factors, their guarded inputs."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from oneshot_lit.errors import OneShotError, did_you_mean
from oneshot_lit.spectral import guarded_inputs
from oneshot_lit.spectral.recorder import FactorRecorder


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer, as GPT-2's Conv1D also is."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, (nn.Linear, Conv1D))


def chosen_layers(model: Any, patterns: Sequence[str]) -> dict[str, Any]:
    """Return name -> linear layer for the names that match a pattern; never the output layer.

    Raises:
        OneShotError: if there is none, or a pattern matches none.
    """
    output = model.get_output_embeddings()
    linear = {n: m for n, m in model.named_modules() if is_linear(m) and m is not output}
    if not linear:
        raise OneShotError(
            f"{type(model).__name__} has no linear layer but its output; this repair needs some."
        )
    for pattern in patterns:
        if not any(_matches(name, pattern) for name in linear):
            kinds = list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in linear))
            hint = did_you_mean(pattern.strip("*"), kinds) or f"; their kinds: {', '.join(kinds)}"
            raise OneShotError(f"model.matrices: no linear layer matches '{pattern}'{hint}.")
    return {n: m for n, m in linear.items() if any(_matches(n, p) for p in patterns)}


def _matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatch(name, f"*{pattern}")


def batch_factors(
    module: Any, weights: Mapping[str, nn.Parameter], batch: dict[str, Tensor]
) -> tuple[dict[str, tuple[Tensor, Tensor]], Tensor]:
    """Return the factors of the gradients of a batch's loss, without making those gradients.

    The backward pass goes down to the embeddings' output and makes the gradient of no weight,
    whether or not the weights are trained.

    Args:
        module: A `LanguageModelModule`.
        weights: Name -> weight of a linear or embedding layer.
        batch: What `compute_loss` takes.

    Returns:
        Name -> (right, left) as `FactorRecorder.factors` has them, for the layers that were used;
        and the loss, detached.
    """
    ends: list[Tensor] = []

    def end(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        # Under a frozen model nothing else needs a gradient, and there would be no graph.
        ends.append(output if output.requires_grad else output.requires_grad_())

    recorder = FactorRecorder(weights)
    handle = module.model.get_input_embeddings().register_forward_hook(end)
    recorder.attach(module.model)
    try:
        with torch.enable_grad():
            loss = module.compute_loss(batch)
            torch.autograd.grad(loss, ends, allow_unused=True)
    finally:
        handle.remove()
        recorder.detach()
    return recorder.factors(), loss.detach()


def instance_factors(
    module: Any, layers: Mapping[str, nn.Module], batch: dict[str, Tensor]
) -> tuple[dict[str, tuple[Tensor, Tensor]], Tensor]:
    """Return name -> (inputs, output gradients) of the loss of a batch, and the loss.

    Args:
        module: A `LanguageModelModule`.
        layers: The layers, PEFT-wrapped or plain.
        batch: What `compute_loss` takes.

    Returns:
        For each layer X, (tokens, in_features), and D, (tokens, out_features), of the tokens with a
        gradient; layers with the same input share one tensor X.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    plain: dict[str, Any] = {n: getattr(m, "base_layer", m) for n, m in layers.items()}
    module.model.eval()
    # Activations are recomputed in training mode only, but dropout must stay off.
    recomputing = [m for m in module.model.modules() if isinstance(m, GradientCheckpointingLayer)]
    for part in recomputing if module.gradient_checkpointing else ():
        part.training = True
    try:
        factors, loss = batch_factors(module, {n: m.weight for n, m in plain.items()}, batch)
    finally:
        module.model.eval()
    # The recorder pairs them so that the product has the weight's shape, which Conv1D transposes.
    ordered = {
        name: factors[name] if isinstance(layer, nn.Linear) else factors[name][::-1]
        for name, layer in plain.items()
        if name in factors
    }
    return ordered, loss


@torch.no_grad()
def projected_inputs(
    module: Any,
    layers: Mapping[str, nn.Module],
    guard: dict[str, Tensor],
    inputs: Mapping[str, Tensor],
    guard_lambda: float,
) -> dict[str, Tensor]:
    """Return name -> the instance's inputs, projected away from what the guard rows use.

    One forward sweep; the guard's inputs are used layer by layer and never kept.

    Args:
        module: A `LanguageModelModule` with a PEFT model.
        layers: The layers.
        guard: One right-padded batch of all guard rows.
        inputs: Name -> X, (tokens, in_features), of the instance.
        guard_lambda: See `guarded_inputs`.
    """
    mask = guard["attention_mask"].bool()
    # An expert that no guard row visits has nothing to keep away from.
    projected: dict[str, Tensor] = dict(inputs)
    # Layers with the same input share its projection.
    shared: dict[int, Tensor] = {}

    def hook(name: str) -> Any:
        def project(layer: nn.Module, given: Any) -> None:
            x = inputs[name]
            if id(x) not in shared:
                rows = given[0][mask] if given[0].shape[:-1] == mask.shape else given[0]
                shared[id(x)] = guarded_inputs(x, rows.reshape(-1, rows.shape[-1]), guard_lambda)
            projected[name] = shared[id(x)]

        return project

    handles = [
        layer.register_forward_pre_hook(hook(name))
        for name, layer in layers.items()
        if name in inputs
    ]
    try:
        # The decoder alone: logits of all guard rows would be the largest tensor of all.
        module.model.get_base_model().base_model(
            input_ids=guard["input_ids"], attention_mask=guard["attention_mask"], use_cache=False
        )
    finally:
        for handle in handles:
            handle.remove()
    return projected
