"""LookAhead tuning: prompts that already tell how the answer begins.

Source: "LookAhead Tuning" (arXiv 2503.19041). The first tokens of an answer decide whether it is a
refusal. A row whose prompt announces them gives them a small loss, so fine-tuning moves them less.
Only training rows change; prompts at inference stay as they are. Texts equal those of the authors'
program for any tokenizer.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, get_args

from oneshot_lit.conversation import Conversation
from oneshot_lit.data.transforms import RowTransform
from oneshot_lit.errors import OneShotError
from oneshot_lit.methods.about import About

Mode = Literal["real", "virtual"]
# The authors' own, blanks included.
CONNECTOR = " The answer begins with: "
PREFIX = "Let's solve this problem. "
ABOUT = About(
    name="LookAhead",
    stage="during fine-tuning",
    needs="-",
    paper="2503.19041",
    agreement="texts equal to the release's, for both modes",
    config="defence/lookahead.yaml",
)


def first_tokens(tokenizer: Any, answer: str, m: int) -> str:
    """Return the text of the first `m` tokens of an answer, or all of it if it has fewer.

    What the tokenizer does to text shows: an unknown word comes back as the unknown token, and
    some tokenizers strip a leading blank.
    """
    return str(tokenizer.convert_tokens_to_string(tokenizer.tokenize(answer)[:m]))


def look_ahead(
    prompt: str, answer: str, preview: str, mode: Mode, connector: str = CONNECTOR
) -> tuple[str, str]:
    """Return the prompt and the answer of a training row.

    Args:
        prompt: What the user says.
        answer: What is learned.
        preview: For ``real`` the beginning of the answer, from `first_tokens`; for ``virtual`` a
            phrase that the answer then begins with, too.
        mode: ``real`` leaves the answer as it is, ``virtual`` puts the preview before it.
        connector: Stands between the prompt and the preview.
    """
    return f"{prompt}{connector}{preview}", answer if mode == "real" else f"{preview}{answer}"


class LookAhead(RowTransform):
    """Announce in every training prompt how its answer begins (arXiv 2503.19041).

    Each answer that is learned counts, also in a conversation of several turns. Rows grow by about
    ``m`` tokens and the connector; `data.max_length` cuts, and reports, the rows as they are then.

    Args:
        mode: ``real`` announces the first tokens of the answer. ``virtual`` announces `prefix` and
            puts it before the answer, so the model learns to begin with it where it is announced.
        m: How many tokens of the answer are announced (``real``).
        prefix: The phrase of ``virtual``, with its blank.
        connector: Stands between the prompt and what is announced, with its blanks.
    """

    def __init__(
        self, mode: Mode = "real", m: int = 6, prefix: str = PREFIX, connector: str = CONNECTOR
    ) -> None:
        if mode not in get_args(Mode):
            raise OneShotError(f"LookAhead.mode: '{mode}' is unknown; give real or virtual.")
        if m < 0:
            raise OneShotError(f"LookAhead.m must be at least 0, not {m}.")
        self.mode: Mode = mode
        self.m, self.prefix, self.connector = m, prefix, connector
        self._tokenizer: Any = None

    def use_tokenizer(self, tokenizer: Any) -> None:
        """Keep the tokenizer, which says what the first tokens of an answer are."""
        self._tokenizer = tokenizer

    def text(self, row: Conversation) -> Conversation:
        """Return the row with other prompts; one without an answer stays, to be refused."""
        turns = list(row.messages)
        for place in range(1, len(turns)):
            asked, answer = turns[place - 1], turns[place]
            if not answer.learned or asked.role != "user" or not answer.content.strip():
                continue
            preview = self.prefix
            if self.mode == "real":
                preview = first_tokens(self._tokenizer, answer.content, self.m)
            texts = look_ahead(asked.content, answer.content, preview, self.mode, self.connector)
            turns[place - 1] = replace(asked, content=texts[0])
            turns[place] = replace(answer, content=texts[1])
        return replace(row, messages=tuple(turns))
