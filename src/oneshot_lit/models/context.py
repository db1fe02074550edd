"""How many positions and tokens a model has, known from its config before it is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from oneshot_lit.errors import OneShotError
from oneshot_lit.models import loading
from oneshot_lit.models.adapters import base_of, is_adapter
from oneshot_lit.models.gguf import model_folder
from oneshot_lit.models.weight_files import is_local


def read_config(
    name: str | None, model_config: dict[str, Any] | None, tokenizer: Any, trust_remote_code: bool
) -> Any:
    """Return the Hugging Face config of a model that is not built yet.

    None if it cannot be read: building the model says what is wrong with it.
    """
    from transformers import AutoConfig

    try:
        if model_config is not None:
            return loading.architecture(model_config, tokenizer)
        assert name is not None
        while is_adapter(name):
            name = base_of(Path(name).expanduser())
        name = model_folder(name)
        path = str(Path(name).expanduser()) if is_local(name) else name
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OneShotError):
        return None


def context_length(config: Any) -> int | None:
    """Return the `max_position_embeddings` of a Hugging Face config; None if it names none.

    An encoder-decoder counts prompt and answer separately, so its number does not bound their sum.
    """
    if config is None or getattr(config, "is_encoder_decoder", False):
        return None
    return _count(config, "max_position_embeddings")


def embedding_rows(config: Any) -> int | None:
    """Return how many tokens the model of a Hugging Face config embeds; None if it does not say."""
    return None if config is None else _count(config, "vocab_size")


def _count(config: Any, key: str) -> int | None:
    number = getattr(config.get_text_config(), key, None)
    return number if isinstance(number, int) and number > 0 else None
