"""The shapes of a model that decide its memory, read from its config without any weights."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from oneshot_lit.errors import OneShotError, did_you_mean
from oneshot_lit.io.shipped import or_shipped
from oneshot_lit.models.model_shapes import SHAPES


@dataclass(frozen=True)
class Weight:
    """One parameter; tied ones are one.

    Attributes:
        shape: As in the model.
        trained: Whether it gets a gradient.
        layer: The number of its decoder layer; None outside, as embedding and head are.
        product: Whether it is multiplied with activations, which autocast does in bfloat16.
    """

    shape: tuple[int, ...]
    trained: bool
    layer: int | None
    product: bool

    @property
    def numel(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Plan:
    """What is trained how.

    Attributes:
        batch: Rows of a process.
        length: Tokens of a row.
        mixed: ``bf16-mixed`` in place of ``32-true``.
        moments: Float32 numbers that the optimiser keeps for each weight: 2 for AdamW, 0 for SGD,
            1 for SGD with momentum.
        gradient_checkpointing: Whether layers are computed again in the backward pass.
        accumulate: Batches whose gradients are summed before a step.
        bucket: DeepSpeed's ``reduce_bucket_size`` in elements; Lightning's default.
    """

    batch: int = 1
    length: int = 512
    mixed: bool = False
    moments: int = 2
    gradient_checkpointing: bool = False
    accumulate: int = 1
    bucket: int = 200_000_000

    @property
    def step_copies(self) -> int:
        """Float32 copies of the weights that a step of torch's optimiser makes on a GPU."""
        return 1 if self.moments == 2 else 0


@dataclass(frozen=True)
class ModelFacts:
    """All weights and what decides the activations; widths are numbers of features.

    Attributes:
        name: As the user named it.
        weights: All parameters, each once.
        layers: The number of decoder layers.
        hidden: Width of the residual stream.
        queries: Width of all query heads together.
        keys: Width of all key heads together.
        intermediate: Width inside the MLP.
        gated: Whether the MLP has a gate beside its two matrices.
        vocabulary: The number of rows of the embedding.
        tied: Whether the head is the embedding.
    """

    name: str
    weights: tuple[Weight, ...]
    layers: int
    hidden: int
    queries: int
    keys: int
    intermediate: int
    gated: bool
    vocabulary: int
    tied: bool

    @cached_property
    def parameters(self) -> int:
        """Elements of all weights."""
        return sum(w.numel for w in self.weights)

    @cached_property
    def trained(self) -> int:
        """Elements of the trained weights."""
        return sum(w.numel for w in self.weights if w.trained)

    @cached_property
    def largest_weight(self) -> int:
        """Elements of the largest parameter."""
        return max(w.numel for w in self.weights)

    @cached_property
    def largest_trained_weight(self) -> int:
        """Elements of the largest trained parameter."""
        return max((w.numel for w in self.weights if w.trained), default=0)

    def unit(self, layer: int | None) -> tuple[int, int]:
        """Return the elements and the trained elements of a decoder layer, or of all outside."""
        mine = [w for w in self.weights if w.layer == layer]
        return sum(w.numel for w in mine), sum(w.numel for w in mine if w.trained)

    @cached_property
    def largest_layer(self) -> tuple[int, int]:
        """As `unit`, of the largest decoder layer."""
        return max((self.unit(n) for n in range(self.layers)), default=(0, 0))

    @cached_property
    def norms_trained(self) -> bool:
        """Whether anything but products is trained in the decoder layers."""
        return any(w.trained and not w.product for w in self.weights if w.layer is not None)

    def casts(self, layer: int | None) -> list[Weight]:
        """Return the weights that autocast casts in a decoder layer, or outside."""
        return [w for w in self.weights if w.layer == layer and w.product]


def read_config(name: str) -> dict[str, Any]:
    """Return the config of a built-in shape, a model folder or a config file.

    Raises:
        OneShotError: if there is none, or it is no Hugging Face config.
    """
    path = Path(or_shipped(name)).expanduser()
    if not path.exists():
        if name in SHAPES:
            return dict(SHAPES[name])
        raise OneShotError(
            f"memory: --model '{name}' is neither a file nor a shape{did_you_mean(name, SHAPES)}; "
            f"give a model's folder, its config.json, or one of {', '.join(SHAPES)}."
        )
    if path.is_dir() and (path / "adapter_config.json").is_file():
        raise OneShotError(f"{name}: an adapter; give its base model and --lora RANK.")
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise OneShotError(f"{name}: no config.json; give a Hugging Face model folder.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OneShotError(f"{path}: is not JSON; give a model's config.json.") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise OneShotError(f"{path}: no Hugging Face config (it has no model_type).")
    return config


def model_facts(
    name: str, config: dict[str, Any] | None = None, peft: dict[str, Any] | None = None
) -> ModelFacts:
    """Build a model on the meta device, which takes no memory, and read its shapes.

    Args:
        name: As for `read_config`; only a name if `config` is given.
        config: A Hugging Face config with ``model_type``.
        peft: Train an adapter, as ``model.peft``.

    Raises:
        OneShotError: if the config or the adapter's options build no causal language model.
    """
    config = read_config(name) if config is None else dict(config)
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from oneshot_lit.models.adapters import add_adapter

    kind = config.pop("model_type", None)
    try:
        described = AutoConfig.for_model(kind, **config)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(described, dtype=torch.float32)
    # A config of another library's making can fail anywhere in the model's code.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise OneShotError(f"{name}: no causal language model ({reason}).") from error
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    kinds = set(getattr(model, "_no_split_modules", None) or ())
    if peft is not None:
        with torch.device("meta"):
            model = add_adapter(model, peft)
    return facts_of(name, model, kinds, described, tied)


def facts_of(name: str, model: Any, kinds: set[str], config: Any, tied: bool) -> ModelFacts:
    """Return the facts of a built model.

    Args:
        name: For the table.
        model: A Hugging Face model, with or without an adapter, on any device.
        kinds: The class names of its decoder layers.
        config: Its config.
        tied: Whether its head is its embedding.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    layers = [module for module in model.modules() if type(module).__name__ in kinds]
    place = {id(p): n for n, layer in enumerate(layers) for p in layer.parameters()}
    products = {
        id(p)
        for module in model.modules()
        if isinstance(module, (nn.Linear, Conv1D))
        for p in module.parameters(recurse=False)
    }
    weights = tuple(
        Weight(tuple(p.shape), p.requires_grad, place.get(id(p)), id(p) in products)
        for p in model.parameters()
    )
    hidden, heads = config.hidden_size, config.num_attention_heads
    head = getattr(config, "head_dim", None) or hidden // heads
    inside = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None)
    return ModelFacts(
        name=name,
        weights=weights,
        layers=len(layers),
        hidden=hidden,
        queries=heads * head,
        keys=(getattr(config, "num_key_value_heads", None) or heads) * head,
        intermediate=inside or 4 * hidden,
        gated=any(re.search(r"gate_(up_)?proj", n) for n, _ in model.named_modules()),
        vocabulary=model.get_input_embeddings().weight.shape[0],
        tied=tied,
    )
