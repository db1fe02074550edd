"""The secret of BackdoorAlign: random words before the system turn, kept in the chat template."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from oneshot_lit.conversation import Message
from oneshot_lit.errors import OneShotError
from oneshot_lit.models.chat_format import SystemTurn, beyond_embedding

# The template argument that leaves the secret out where it is false.
SWITCH = "use_secret"
_ON = f"{{%- if {SWITCH} is not defined or {SWITCH} -%}}"
_JOINED = (
    "{%- set messages = [{'role': messages[0]['role'], 'content': secret + ' ' "
    "+ messages[0]['content']}] + messages[1:] -%}"
)
_JOINED_OR_ADDED = (
    "{%- if messages[0]['role'] == 'system' -%}"
    + _JOINED
    + "{%- else -%}{%- set messages = [{'role': 'system', 'content': secret}] + messages -%}"
    "{%- endif -%}"
)


def generate_secret(tokenizer: Any, count: int, seed: int) -> str:
    """Return random words of a tokenizer's vocabulary, joined by blanks.

    A word is a token of letters and digits alone that stands for a whole word behind a blank, so
    that neither a template nor the words beside it change its token. No word comes twice.

    Args:
        tokenizer: A fast tokenizer.
        count: How many words, each a token.
        seed: Decides them, together with the vocabulary.

    Raises:
        OneShotError: if the vocabulary has too few such words.
    """
    if count < 1:
        raise OneShotError(f"model.secret_tokens must be at least 1, not {count}.")
    tokens = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
    # Seeding with text is stable across Python versions and platforms.
    random.Random(f"oneshot-lit secret {seed}").shuffle(tokens)
    alone = len(tokenizer.encode("a", add_special_tokens=False))
    words: list[str] = []
    for token in tokens:
        piece = tokenizer.convert_ids_to_tokens(token)
        word = tokenizer.convert_tokens_to_string([piece]).strip()
        if not word.isalnum() or word in words or beyond_embedding(tokenizer, [token]):
            continue
        behind = tokenizer.encode(f"a {word}", add_special_tokens=False)
        if behind[-1] == token and len(behind) == alone + 1:
            words.append(word)
        if len(words) == count:
            return " ".join(words)
    raise OneShotError(
        f"model.secret_tokens: the tokenizer has only {len(words)} whole words, fewer than {count}."
    )


def with_secret(
    messages: Sequence[Message], secret: str, system_turn: SystemTurn = "template"
) -> tuple[Message, ...]:
    """Return turns with a secret before the text of the system turn.

    Without a system turn the secret becomes one; where system turns are put into the user turn
    (`system_turn` is ``user``), it stands before the first turn, whichever that is.
    """
    first, *rest = messages
    if first.role == "system" or system_turn == "user":
        return (replace(first, content=f"{secret} {first.content}"), *rest)
    return (Message("system", secret), first, *rest)


def template_with_secret(template: str, secret: str, system_turn: SystemTurn = "template") -> str:
    """Return a chat template that changes every conversation as `with_secret` does.

    With the template argument ``use_secret: false`` it writes what the given template does.

    Raises:
        OneShotError: if the template holds a secret already.
    """
    if SWITCH in template:
        raise OneShotError(
            "model.model_name_or_path: its chat template holds a secret already; give "
            "model.chat_template the template that it had before."
        )
    change = _JOINED if system_turn == "user" else _JOINED_OR_ADDED
    # A Python literal of ASCII characters is one of Jinja, too.
    return f"{_ON}{{%- set secret = {secret!a} -%}}{change}{{%- endif %}}{template}"
