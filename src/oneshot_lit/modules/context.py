"""How many positions and tokens a model has, known from its config before it is built."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from oneshot_lit.errors import OneShotError
from oneshot_lit.modules import loading


def context_length(config: Any) -> int | None:
    """Return the `max_position_embeddings` of a Hugging Face config; None if it names none.

    An encoder-decoder counts the prompt and the answer apart, so its number bounds neither sum.
    """
    if getattr(config, "is_encoder_decoder", False):
        return None
    text = config.get_text_config()
    found = getattr(text, "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


def embedding_rows(config: Any) -> int | None:
    """Return how many tokens the model of a Hugging Face config embeds; None if it does not say."""
    found = getattr(config.get_text_config(), "vocab_size", None)
    return found if isinstance(found, int) and found > 0 else None


def read_config(
    name: str | None, model_config: dict[str, Any] | None, tokenizer: Any, trust_remote_code: bool
) -> Any:
    """Return the Hugging Face config of a model that is not built yet.

    What cannot be read is None; building the model says what is wrong with it.
    """
    from transformers import AutoConfig

    try:
        if model_config is not None:
            return loading.architecture(model_config, tokenizer)
        assert name is not None
        if loading.is_adapter(name):
            adapter = Path(name).expanduser() / "adapter_config.json"
            name = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]
        path = str(Path(name).expanduser()) if loading.is_local(name) else name
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OneShotError):
        return None


def read_context_length(
    name: str | None, model_config: dict[str, Any] | None, tokenizer: Any, trust_remote_code: bool
) -> int | None:
    """Return the `context_length` of a model that is not built yet; None if it cannot be read."""
    config = read_config(name, model_config, tokenizer, trust_remote_code)
    return None if config is None else context_length(config)
