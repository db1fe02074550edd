"""Finds the units to freeze in a model: scores of all units on two sets of rows, and masks.

Source: "Superficial Safety Alignment Hypothesis" (arXiv 2410.10862); see `safety_units`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from oneshot_lit.conversation import Conversation
from oneshot_lit.data.chat import encode_conversation
from oneshot_lit.data.padding import pad_training
from oneshot_lit.errors import OneShotError
from oneshot_lit.methods.finetuning.safety_units import (
    GROUPS,
    REDUNDANT,
    SAFETY,
    UTILITY,
    InputVariance,
    Over,
    frozen_units,
    label_units,
    unit_scores,
)

# Where units go in -> the matrices whose rows make them.
UNITS = {
    "mlp.down_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "self_attn.o_proj": ("self_attn.v_proj",),
}
# From the paper, for Llama-2.
SHARES = {REDUNDANT: 0.148, SAFETY: 0.013, UTILITY: 0.133}
_ROWS = 8


@dataclass(frozen=True)
class UnitOptions:
    """How units are scored and chosen.

    Attributes:
        shares: Group -> share of all units.
        complex_share: How many complex units are frozen, as a share of all units.
        scope: Rank the units of one kind over all layers together, or layer by layer.
        over: What the variance is taken over.
        scaled: Divide each vector of scores by its sum, so that both sets of rows weigh the same.
    """

    shares: dict[str, float]
    complex_share: float = 0.06
    scope: Literal["global", "layer"] = "global"
    over: Over = "tokens"
    scaled: bool = True


@torch.no_grad()
def scores_on(module: Any, rows: Sequence[Conversation], over: Over) -> dict[str, Tensor]:
    """Return, for each module that units go into, the score of each unit on rows.

    Args:
        module: A `LanguageModelModule` with its model.
        rows: Conversations with answers; all their tokens count.
        over: What the variance is taken over.

    Raises:
        OneShotError: if the model has no such modules.
    """
    model = module.model
    layers = {n: m for n, m in model.named_modules() if n.endswith(tuple(UNITS))}
    if not layers:
        raise OneShotError(
            f"{type(model).__name__} has no down_proj and o_proj, whose inputs are the units."
        )
    sums = {name: InputVariance(layer.in_features, over) for name, layer in layers.items()}
    mask: Any = None

    def watch(name: str) -> Any:
        return lambda layer, args: sums[name].add(args[0], mask)

    hooks = [layer.register_forward_pre_hook(watch(n)) for n, layer in layers.items()]
    try:
        for start in range(0, len(rows), _ROWS):
            part = [encode_conversation(module.tokenizer, r) for r in rows[start : start + _ROWS]]
            batch = pad_training(part, module.tokenizer.pad_token_id)
            ids = batch["input_ids"].to(module.device)
            mask = batch["attention_mask"].to(module.device)
            model(input_ids=ids, attention_mask=mask, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return {n: unit_scores(sums[n].variance, layer.weight) for n, layer in layers.items()}


def choose_units(
    safety: dict[str, Tensor], utility: dict[str, Tensor], options: UnitOptions
) -> tuple[dict[str, list[int]], dict[str, int]]:
    """Return the units to freeze of each module, and how many units each group has.

    Args:
        safety: From `scores_on`, on rows that refuse.
        utility: The same on other rows.
        options: How to rank and how many.
    """
    frozen: dict[str, list[int]] = {}
    counts = dict.fromkeys(GROUPS, 0)
    for names in _ranked_together(list(safety), options.scope):
        own = [torch.cat([scores[n] for n in names]) for scores in (safety, utility)]
        if options.scaled:
            own = [each / each.sum().clamp(min=torch.finfo(each.dtype).tiny) for each in own]
        total = len(own[0])
        wanted = {group: round(share * total) for group, share in options.shares.items()}
        labels = label_units(own[0], own[1], wanted)
        for label in labels:
            counts[label] += 1
        chosen = frozen_units(labels, own[0], options.complex_share)
        start = 0
        for name in names:
            size = len(safety[name])
            frozen[name] = [unit - start for unit in chosen if start <= unit < start + size]
            start += size
    return frozen, counts


def _ranked_together(names: list[str], scope: str) -> list[list[str]]:
    if scope == "layer":
        return [[name] for name in names]
    return [own for kind in UNITS if (own := [n for n in names if n.endswith(kind)])]


def masks_of(
    frozen: dict[str, list[int]],
    shapes: dict[str, torch.Size],
    head_dim: int,
    layers: int | None = None,
) -> dict[str, Tensor]:
    """Return the masks of frozen units: True where an entry must not move.

    Unit j is column j of the module it goes into, and row j of those that make it. With fewer value
    than query heads, a row of ``v_proj`` makes several units, and is frozen if all of them are.

    Args:
        frozen: Module -> units.
        shapes: Name of a weight -> its shape.
        head_dim: Units of an attention head.
        layers: Freeze in the first layers only.
    """
    masks: dict[str, Tensor] = {}
    for name, units in frozen.items():
        number = next((int(part) for part in name.split(".") if part.isdigit()), 0)
        if not units or (layers is not None and number >= layers):
            continue
        into = torch.zeros(shapes[f"{name}.weight"], dtype=torch.bool)
        into[:, units] = True
        masks[f"{name}.weight"] = into
        kind = next(kind for kind in UNITS if name.endswith(kind))
        stem = name.removesuffix(kind)
        for source in UNITS[kind]:
            shape = shapes[f"{stem}{source}.weight"]
            rows = into[0]
            if len(rows) != shape[0]:
                # A value head serves several query heads, which follow one another.
                rows = rows.view(shape[0] // head_dim, -1, head_dim).all(1).flatten()
            masks[f"{stem}{source}.weight"] = rows.view(-1, 1).expand(shape).clone()
    return masks
