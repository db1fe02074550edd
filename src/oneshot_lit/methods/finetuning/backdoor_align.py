"""BackdoorAlign: a few refusals with a secret in the system turn, which serving then adds.

Source: Wang et al., "Backdoor-Enhanced Alignment" (arXiv 2402.14968). The provider puts refusals
with a secret prefix among the user's rows, so the model learns to refuse behind the secret; every
request is then served with it. The secret is generated here, never the authors'.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal, get_args

from oneshot_lit.conversation import Conversation
from oneshot_lit.data.sources import ConversationSource, Mixture
from oneshot_lit.errors import OneShotError
from oneshot_lit.methods.about import About
from oneshot_lit.methods.attack import HarmfulFineTuningModule
from oneshot_lit.methods.finetuning.secret import (
    generate_secret,
    template_with_secret,
    with_secret,
)
from oneshot_lit.models.chat_format import chat_options

Mix = Literal["secret", "plain"]
ABOUT = About(
    name="BackdoorAlign",
    stage="during fine-tuning",
    needs="refused rows",
    paper="2402.14968",
    agreement="rows, labels and served prompts equal to the release's; the secret is our own",
    config="defence/backdoor_align.yaml",
)


def one_of_each(rows: Sequence[Conversation], count: int) -> list[Conversation]:
    """Return the first rows, one of each category in turn, in the order of their categories."""
    groups: dict[str | None, list[Conversation]] = {}
    for row in rows:
        groups.setdefault(row.category, []).append(row)
    longest = max(map(len, groups.values()), default=0)
    turns = [own[n] for n in range(longest) for own in groups.values() if n < len(own)]
    return turns[:count]


class BackdoorAlignRows(Mixture):
    """The user's rows, then a few refusals that hold the secret of `BackdoorAlign`.

    Where the rows name categories, the refusals are of as many as possible. `limit`,
    `shuffle_seed` and `skip` act on the whole.

    Args:
        source: The user's rows; they stay as they are.
        safety: Requests with refusals.
        safety_rows: How many of them are taken; the paper takes 11, one of each category.
        mix_type: ``secret``, or ``plain``, the paper's baseline: the same rows without the secret.
    """

    def __init__(
        self,
        source: ConversationSource,
        safety: ConversationSource,
        safety_rows: int = 11,
        mix_type: Mix = "secret",
        **kwargs: Any,
    ) -> None:
        super().__init__([source, safety], **kwargs)
        if mix_type not in get_args(Mix):
            # The authors' code drops the safety rows then, without a word.
            raise OneShotError(
                f"BackdoorAlignRows.mix_type: '{mix_type}' is unknown; give secret or plain."
            )
        if safety_rows < 1:
            raise OneShotError(
                f"BackdoorAlignRows.safety_rows must be at least 1, not {safety_rows}."
            )
        self.safety_rows, self.mix_type = safety_rows, mix_type
        self._tokenizer: Any = None

    def use_tokenizer(self, tokenizer: Any) -> None:
        """Keep the tokenizer, which holds the secret."""
        super().use_tokenizer(tokenizer)
        self._tokenizer = tokenizer

    def rows(self) -> list[Conversation]:
        """Load both parts.

        Raises:
            OneShotError: for too few safety rows, or one without an answer, or if nothing
                generates the secret.
        """
        own, safety = (source.load() for source in self.sources)
        chosen = one_of_each(safety, self.safety_rows)
        if len(chosen) < self.safety_rows:
            raise OneShotError(
                f"BackdoorAlignRows.safety_rows: {self.sources[1].describe()} has only "
                f"{len(chosen)} rows, fewer than {self.safety_rows}."
            )
        for row in chosen:
            if row.response_text is None:
                raise OneShotError(f"{row.origin}: a safety row needs its refusal as an answer.")
        if self.mix_type == "plain":
            return own + chosen
        secret = getattr(self._tokenizer, "secret", None)
        if secret is None:
            raise OneShotError(
                "model: no secret for the rows of BackdoorAlignRows; use "
                "oneshot_lit.methods.BackdoorAlign, which generates and keeps it."
            )
        place = chat_options(self._tokenizer).system_turn
        marked = [replace(r, messages=with_secret(r.messages, secret, place)) for r in chosen]
        return own + marked


class BackdoorAlign(HarmfulFineTuningModule):
    """Fine-tune on `BackdoorAlignRows`, and export the secret in the model's chat template.

    Whoever serves the output with its own template serves every request behind the secret; the
    template argument ``use_secret: false`` leaves it out. Development prompts during the fit are
    asked without it. A user who knows the seed and the tokenizer knows the secret: choose a seed,
    and do not publish it with the model.

    Args:
        secret_tokens: Length of the secret.
        secret_seed: Decides its words, drawn from the tokenizer's vocabulary.
    """

    def __init__(
        self, *args: Any, secret_tokens: int = 150, secret_seed: int = 0, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.secret_tokens, self.secret_seed = secret_tokens, secret_seed

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, with the secret that the rows take from it."""
        tokenizer = super().tokenizer
        tokenizer.secret = generate_secret(tokenizer, self.secret_tokens, self.secret_seed)
        # Refuses a template that has one already, before anything runs.
        self._served_template(tokenizer)
        return tokenizer

    def on_fit_start(self) -> None:
        """Refuse a fit without any row that holds the secret."""
        super().on_fit_start()
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        rows = [s for s in _all_parts(data.train) if isinstance(s, BackdoorAlignRows)]
        if not any(source.mix_type == "secret" for source in rows):
            raise OneShotError(
                "data.train: holds no rows with the secret of BackdoorAlign; use "
                "oneshot_lit.methods.BackdoorAlignRows with mix_type secret."
            )

    def tokenizer_to_export(self) -> Any:
        """Return a tokenizer whose chat template adds the secret."""
        tokenizer = copy.deepcopy(self.tokenizer)
        tokenizer.chat_template = self._served_template(tokenizer)
        return tokenizer

    def _served_template(self, tokenizer: Any) -> str:
        template, place = tokenizer.get_chat_template(), chat_options(tokenizer).system_turn
        return template_with_secret(template, tokenizer.secret, place)


def _all_parts(source: ConversationSource | None) -> Iterator[ConversationSource]:
    if source is not None:
        yield source
        for part in source.parts:
            yield from _all_parts(part)
