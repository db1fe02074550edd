"""Checks that two copies of a model can share a base with this adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oneshot_lit.errors import OneShotError

# Options that train or change weights of the base.
_BASE_KEYS = ("modules_to_save", "trainable_token_indices", "layer_replication")


def require_plain_lora(options: Mapping[str, Any]) -> None:
    """Refuse an adapter that does not start at the base model, or that changes the base.

    Both copies start from the broken model, which is their shared base.

    Args:
        options: ``model.peft``.

    Raises:
        OneShotError: naming the option.
    """
    kind = str(options.get("peft_type") or "LORA")
    if kind != "LORA":
        raise OneShotError(
            f"model.peft.peft_type: {kind} is not for this selection; give LORA, or model.peft "
            "null."
        )
    start = options.get("init_lora_weights", True)
    if start is not True and str(start).lower() not in ("true", "gaussian"):
        raise OneShotError(
            f"model.peft.init_lora_weights: with {start} the adapter does not begin at the broken "
            "model; give true or gaussian."
        )
    changed = [key for key in _BASE_KEYS if options.get(key)]
    if options.get("bias", "none") != "none":
        changed.append("bias")
    if changed:
        raise OneShotError(
            f"model.peft.{changed[0]}: two copies share the base, which must stay as it is; drop "
            "it."
        )
