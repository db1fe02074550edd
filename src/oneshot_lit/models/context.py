"""How many positions and tokens a model has, known from its config before it is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from oneshot_lit.errors import OneShotError
from oneshot_lit.models import loading
from oneshot_lit.models.adapters import base_of, is_adapter, read_adapter, takes_place
from oneshot_lit.models.weight_files import is_local


def context_length(config: Any) -> int | None:
    """Return the `max_position_embeddings` of a Hugging Face config; None if it names none.

    An encoder-decoder counts prompt and answer separately, so its number does not bound their sum.
    """
    if getattr(config, "is_encoder_decoder", False):
        return None
    text = config.get_text_config()
    length = getattr(text, "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None


def embedding_rows(config: Any) -> int | None:
    """Return how many tokens the model of a Hugging Face config embeds; None if it does not say."""
    rows = getattr(config.get_text_config(), "vocab_size", None)
    return rows if isinstance(rows, int) and rows > 0 else None


def read_config(
    name: str | None,
    model_config: dict[str, Any] | None,
    tokenizer: Any,
    trust_remote_code: bool,
    peft: dict[str, Any] | None = None,
) -> tuple[Any, int]:
    """Return the Hugging Face config of a model that is not built yet, and what adapters take.

    What cannot be read is None; building the model says what is wrong with it.

    Returns:
        The config, and how many of the model's positions its adapters use for themselves.
    """
    from transformers import AutoConfig

    try:
        if model_config is not None:
            return loading.architecture(model_config, tokenizer), 0
        assert name is not None
        taken = takes_place(peft or {})
        while is_adapter(name):
            folder = Path(name).expanduser()
            taken += takes_place(read_adapter(folder))
            name = base_of(folder)
        path = str(Path(name).expanduser()) if is_local(name) else name
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code), taken
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OneShotError):
        return None, 0


def read_context_length(
    name: str | None,
    model_config: dict[str, Any] | None,
    tokenizer: Any,
    trust_remote_code: bool,
    peft: dict[str, Any] | None = None,
) -> int | None:
    """Return the `context_length` of a model that is not built yet, without its adapters' own part.

    None if it cannot be read.
    """
    config, taken = read_config(name, model_config, tokenizer, trust_remote_code, peft)
    length = None if config is None else context_length(config)
    return None if length is None else length - taken
