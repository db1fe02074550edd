"""The linear layers of a model: which ones, their gradient's factors, their guarded inputs."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from oneshot_lit.errors import OneShotError, did_you_mean
from oneshot_lit.models.shared_prefix import prefix_cache
from oneshot_lit.spectral import guarded_inputs
from oneshot_lit.spectral.recorder import FactorRecorder

# The matrices of a layer of Llama's kind, by the last part of their names.
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def is_one_of(name: str, kinds: Sequence[str]) -> bool:
    """Whether the last part of a module's name is one of these, such as ``q_proj``."""
    return name.rpartition(".")[2] in kinds


def require_kinds(names: Sequence[str], kinds: Sequence[str]) -> None:
    """Refuse kinds of which a model has none.

    Args:
        names: The names of its modules.
        kinds: The last parts of names.

    Raises:
        OneShotError: naming the first kind that is missing.
    """
    known = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
    for kind in kinds:
        if kind not in known:
            hint = did_you_mean(kind, known) or f"; its kinds: {', '.join(known)}"
            raise OneShotError(f"model.matrices: the model has no '{kind}'{hint}.")


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
    guard: Mapping[str, Tensor],
    inputs: Mapping[str, Tensor],
    lambdas: Sequence[float],
) -> dict[str, Tensor]:
    """Return name -> the instance's inputs, projected away from what the guard rows use.

    One forward sweep. What all guard rows begin with is read once and counts as often as there are
    rows; the other inputs of a layer are used at once and never kept.

    Args:
        module: A `LanguageModelModule` with a PEFT model.
        layers: The layers.
        guard: One right-padded batch of all guard rows.
        inputs: Name -> X, (tokens, in_features), of the instance.
        lambdas: See `guarded_inputs`.

    Returns:
        Name -> (lambdas, tokens, in_features).
    """
    ids, mask = guard["input_ids"], guard["attention_mask"]
    begun: dict[str, Tensor] = {}

    def keep(name: str, rows: Tensor) -> None:
        begun[name] = rows

    with _inputs_of(layers, inputs, keep):
        cache = prefix_cache(module.model, ids, mask)
    length = 0 if cache is None else cache.get_seq_length()
    used = mask[:, length:].bool()
    projected: dict[str, Tensor] = {}
    # Layers with the same input share its projection.
    shared: dict[int, Tensor] = {}

    def project(name: str, rows: Tensor) -> None:
        rows = rows[used] if rows.shape[:-1] == used.shape else rows
        rows = rows.reshape(-1, rows.shape[-1])
        x, first = inputs[name], begun.pop(name, rows[:0]).reshape(-1, rows.shape[-1])
        if id(x) not in shared:
            counts = torch.ones(len(first) + len(rows), device=rows.device)
            counts[: len(first)] = len(ids)
            shared[id(x)] = guarded_inputs(x, torch.cat([first, rows]), lambdas, counts)
        projected[name] = shared[id(x)]

    with _inputs_of(layers, inputs, project):
        # The decoder alone: logits of all guard rows would be the largest tensor of all.
        module.model.get_base_model().base_model(
            input_ids=ids[:, length:],
            attention_mask=mask,
            past_key_values=cache,
            use_cache=cache is not None,
        )
    for name, rows in list(begun.items()):
        project(name, rows[..., :0, :])
    # An expert that no guard row visits has nothing to keep away from.
    return {n: projected.get(n, x.expand(len(lambdas), *x.shape)) for n, x in inputs.items()}


@contextmanager
def _inputs_of(
    layers: Mapping[str, nn.Module], names: Container[str], use: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Hand the input of each named layer to `use` when the layer is called."""

    def hook(name: str) -> Any:
        return lambda layer, given: use(name, given[0])

    handles = [
        layer.register_forward_pre_hook(hook(name))
        for name, layer in layers.items()
        if name in names
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
