"""Q-realign: round a fine-tuned model layer by layer so that harmful prompts look harmful again.

Source: Q-realign (arXiv 2601.08089). Each layer in turn learns its ranges and scales: on ordinary
prompts it has to do what the unrounded layer does, on harmful ones its output for the last token
has to lie on the harmful side of a probe of the aligned model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from oneshot_lit.methods.posttuning.fake_quant import LINEARS, QuantisedLayer


@dataclass(frozen=True)
class QuantOptions:
    """Settings of the run; the defaults are those of the paper's runs.

    Attributes:
        weight_bits: Of the matrices.
        input_bits: Of their inputs.
        epochs: Over the prompts; five fewer in the first half of the layers, five more after it.
        scale_lr: Rate of the scales (LET).
        range_lr: Rate of the ranges (LWC).
        alpha: How much of an input's range moves to the weights at first.
    """

    weight_bits: int = 8
    input_bits: int = 8
    epochs: int = 10
    scale_lr: float = 1e-3
    range_lr: float = 1e-2
    alpha: float = 0.5


@dataclass(frozen=True)
class Prompt:
    """A calibration prompt.

    Attributes:
        ids: (1, tokens), padded on the right.
        mask: (1, tokens), 0 for padding.
        harmful: Whether it is one.
    """

    ids: Tensor
    mask: Tensor
    harmful: bool

    @property
    def last(self) -> int:
        """The position of the last real token."""
        return int(self.mask.sum()) - 1


# The weights of a layer's probe, (hidden,), and its offset.
Probe = tuple[Tensor, float]


@torch.no_grad()
def first_inputs(model: Any, prompts: Sequence[Prompt]) -> list[tuple[Tensor, dict[str, Any]]]:
    """Return what the first layer gets for each prompt: hidden states, and its other arguments."""
    seen: list[tuple[Tensor, dict[str, Any]]] = []

    class Stop(Exception):  # noqa: N818
        pass

    def catch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append((args[0], kwargs))
        raise Stop

    hook = model.get_decoder().layers[0].register_forward_pre_hook(catch, with_kwargs=True)
    try:
        for prompt in prompts:
            try:
                model(input_ids=prompt.ids, attention_mask=prompt.mask, use_cache=False)
            except Stop:
                continue
    finally:
        hook.remove()
    return seen


def learn_layer(
    student: QuantisedLayer,
    inputs: Sequence[Tensor],
    targets: Sequence[Tensor],
    calls: Sequence[Mapping[str, Any]],
    prompts: Sequence[Prompt],
    probe: Probe,
    epochs: int,
    options: QuantOptions,
) -> list[float]:
    """Learn a layer's scales and ranges; return the mean loss of each epoch.

    Args:
        student: The layer.
        inputs: Of each prompt, (1, tokens, hidden), from the rounded layers before it.
        targets: What the unrounded layer gives on unrounded inputs.
        calls: Further arguments of the layer.
        prompts: In the order of the steps, one a step.
        probe: Of this layer.
        epochs: How often all prompts are gone through.
        options: The rates.
    """
    optimizer = torch.optim.AdamW(
        [
            {"params": list(student.scales.values()), "lr": options.scale_lr},
            {"params": list(student.ranges.values()), "lr": options.range_lr},
        ],
        weight_decay=0.0,
    )
    direction, offset = probe
    means = []
    for _ in range(epochs):
        losses = []
        for prompt, x, target, call in zip(prompts, inputs, targets, calls, strict=True):
            student.limit_scales()
            output = student(x, call)
            if prompt.harmful:
                margin = output[0, prompt.last] @ direction.to(output) + offset
                loss = nn.functional.softplus(-margin)
            else:
                loss = nn.functional.mse_loss(output, target)
            if not math.isfinite(value := float(loss.detach())):
                raise FloatingPointError("the loss of a layer is not a number")
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            losses.append(value)
        means.append(math.fsum(losses) / len(losses))
    return means


def epochs_of(layer: int, layers: int, epochs: int) -> int:
    """Return the epochs of a layer: five fewer up to the middle, five more after it."""
    return max(0, epochs - 5 if layer <= layers // 2 else epochs + 5)


def realign(
    model: Any,
    prompts: Sequence[Prompt],
    probes: Sequence[Probe],
    peaks: Sequence[Mapping[str, Tensor]],
    options: QuantOptions,
    tell: Callable[[int, list[float]], None] = lambda layer, losses: None,
    begin: Callable[[int, QuantisedLayer], None] = lambda layer, student: None,
) -> None:
    """Round all layers of a model in place.

    Args:
        model: In eval mode, float32; its decoder has ``layers`` of Llama's kind.
        prompts: The calibration prompts, in the order of the steps.
        probes: One for each layer.
        peaks: For each layer, name of a matrix -> the largest absolute value of each input.
        options: Bits, epochs and rates.
        tell: Told the losses of each layer.
        begin: Given each layer before it is folded.
    """
    starts = first_inputs(model, prompts)
    exact, calls = [x for x, _ in starts], [call for _, call in starts]
    rounded = list(exact)
    for number, probe in enumerate(probes):
        exact, rounded, losses = realign_layer(
            model, number, exact, rounded, calls, prompts, probe, peaks[number], options, begin
        )
        tell(number, losses)


def realign_layer(
    model: Any,
    number: int,
    exact: Sequence[Tensor],
    rounded: Sequence[Tensor],
    calls: Sequence[Mapping[str, Any]],
    prompts: Sequence[Prompt],
    probe: Probe,
    peaks: Mapping[str, Tensor],
    options: QuantOptions,
    begin: Callable[[int, QuantisedLayer], None] = lambda layer, student: None,
) -> tuple[list[Tensor], list[Tensor], list[float]]:
    """Round one layer in place; return its outputs, unrounded and rounded, and its losses.

    Args:
        model: As for `realign`; the layers before this one are rounded.
        number: Of the layer, from 0.
        exact: Its input for each prompt, (1, tokens, hidden), from unrounded layers.
        rounded: The same from the rounded ones.
        calls: Further arguments of the layer.
        prompts: In the order of the steps.
        probe: Of this layer.
        peaks: Name of a matrix -> the largest absolute value of each input.
        options: Bits, epochs and rates.
        begin: Given the layer before it is folded.
    """
    layers = model.get_decoder().layers
    layer = layers[number]
    with torch.no_grad():
        targets = [_plain(layer, x, call) for x, call in zip(exact, calls, strict=True)]
    student = QuantisedLayer(layer, peaks, options.weight_bits, options.input_bits, options.alpha)
    epochs = epochs_of(number, len(layers), options.epochs)
    losses = learn_layer(student, rounded, targets, calls, prompts, probe, epochs, options)
    begin(number, student)
    student.fold()
    with torch.no_grad():
        own = {n: p.detach() for n, p in layer.named_parameters()}
        outputs = [student(x, call, own) for x, call in zip(rounded, calls, strict=True)]
    return targets, outputs, losses


def _plain(layer: nn.Module, hidden: Tensor, call: Mapping[str, Any]) -> Tensor:
    output = layer(hidden, **call)
    return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def input_peaks(model: Any, prompts: Sequence[Prompt]) -> list[dict[str, Tensor]]:
    """Return, for each layer, the largest absolute value of each input of its matrices.

    Padding does not count.
    """
    peaks: list[dict[str, Tensor]] = []
    hooks = []
    real: Any = None

    def watch(own: dict[str, Tensor], name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            most = args[0][real].abs().amax(0)
            own[name] = torch.maximum(own[name], most) if name in own else most

        return hook

    for layer in model.get_decoder().layers:
        peaks.append({})
        for name in LINEARS:
            module = layer.get_submodule(name)
            hooks.append(module.register_forward_pre_hook(watch(peaks[-1], name)))
    try:
        for prompt in prompts:
            real = prompt.mask.bool()
            model(input_ids=prompt.ids, attention_mask=prompt.mask, use_cache=False)
    finally:
        for each in hooks:
            each.remove()
    return peaks
