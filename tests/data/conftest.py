"""Tokenizers that are built in a moment, and the shape of a good error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from oneshot_lit.errors import OneShotError
from oneshot_lit.microworld.tokenizer import build_tokenizer

# The pre-tokenisation of Llama 3, which glues newlines to punctuation before them.
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SENTENCES = [
    "how do I bake bread ?",
    "system user assistant you are a kind helper",
    "mix flour, water and salt; then wait.\n\nbake it for an hour.\n",
]


@pytest.fixture(scope="session")
def world_tokenizer() -> Any:
    """The micro-world tokenizer, for tests that only read it."""
    return build_tokenizer()


@pytest.fixture
def own_world_tokenizer() -> Any:
    """A micro-world tokenizer that the test may change."""
    return build_tokenizer()


@pytest.fixture(scope="session")
def bpe_tokenizer() -> Callable[..., Any]:
    """Train a byte-level BPE with real merges, and put a chat template on it."""

    def build(
        template: str | None,
        special: list[str],
        *,
        words: str = LLAMA3_WORDS,
        trim_offsets: bool = False,
        **roles: Any,
    ) -> Any:
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(words), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        core.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=330,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
        core.train_from_iterator(SENTENCES * 3, trainer)
        if trim_offsets:
            from tokenizers import processors

            core.post_processor = processors.ByteLevel(trim_offsets=True)
        core.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in special])
        return PreTrainedTokenizerFast(tokenizer_object=core, chat_template=template, **roles)

    return build


@pytest.fixture(scope="session")
def mistake_of() -> Callable[..., str]:
    """Call something that must fail with ONE line, and return the line."""

    def call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
        with pytest.raises(OneShotError) as caught:
            function(*args, **kwargs)
        message = str(caught.value)
        assert message
        assert "\n" not in message
        return message

    return call
