"""`AnchorDataset`: harmless rows beside the instance, with their answers or the model's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from oneshot_lit.conversation import Conversation, Message
from oneshot_lit.data.chat import Encoded, encode_conversation
from oneshot_lit.data.datasets import EncodedRows, TrainingDataset, rows_digest
from oneshot_lit.errors import OneShotError, RowError
from oneshot_lit.models.chat_format import answer_form

# A text of the model, and whether it ended at the largest number of tokens.
OwnAnswer = tuple[str, bool]
# Returns the training rows of conversations; there may be none.
Encode = Callable[[list[Conversation]], TrainingDataset]


def answered(row: Conversation, answer: str) -> Conversation:
    """Return a row that ends with a model's answer to its last question.

    Only this answer is learned: the ones before it are context.

    Raises:
        RowError: if the answer is empty.
    """
    if not answer.strip():
        advice = "; leave the row out or add an answer."
        raise RowError(row.origin, "the model's own answer is empty", advice)
    prompt = row.prompt
    context = [replace(m, weight=0) if m.role == "assistant" else m for m in prompt.messages]
    return replace(prompt, messages=(*context, Message("assistant", answer)))


def without_end(row: Encoded, stop: int | None) -> Encoded:
    """Return a row whose last end of turn is not learned, because the model did not write it."""
    learned = [place for place, each in enumerate(row.loss_mask) if each]
    if len(learned) < 2 or row.input_ids[learned[-1]] != stop:
        return row
    mask = list(row.loss_mask)
    mask[learned[-1]] = False
    return replace(row, loss_mask=mask)


class AnchorDataset(EncodedRows):
    """Anchor rows: first those with an answer, then those that get the model's own.

    Until `answer` has been called, the latter hold their prompt only and cannot be learned.

    Args:
        rows: The conversations.
        own: Drop the answers that are given.
        tokenizer: Encodes the prompts.
        longest: Longest prompt in tokens that leaves space for an answer.
        encode: Returns the training rows of conversations.
        skip_bad_rows: Leave out rows that cannot be used.

    Attributes:
        unanswered: The rows that get the model's own answer.
        answers: These answers; empty until they are known.

    Raises:
        OneShotError: for a row that cannot be used, or if none is left.
    """

    def __init__(
        self,
        rows: Sequence[Conversation],
        own: bool,
        tokenizer: Any,
        longest: int,
        encode: Encode,
        skip_bad_rows: bool = False,
    ) -> None:
        super().__init__()
        self._stop, self._skip_bad_rows = answer_form(tokenizer).stop, skip_bad_rows
        self.unanswered: list[Conversation] = []
        self.answers: list[OwnAnswer] = []
        prompts: list[Encoded] = []
        for row in rows:
            if row.response_text is not None and not own:
                continue
            try:
                prompts.append(self._prompt(row, tokenizer, longest))
                self.unanswered.append(row)
            except RowError as error:
                self._leave_out(error)
        self._add([row for row in rows if row.response_text is not None and not own], encode)
        self._given = len(self.encoded)
        self.conversations += self.unanswered
        self.encoded += prompts
        self._require_rows()
        self._digest = rows_digest(
            [*self.conversations[: self._given], *(row.prompt for row in self.unanswered)]
        )

    def answer(self, answers: Sequence[OwnAnswer], encode: Encode) -> None:
        """Complete the rows of `unanswered` with a model's answers, one each.

        Raises:
            OneShotError: for an empty answer, unless faulty rows are left out, or if no row is
                left.
        """
        self.answers = [(text, cut) for text, cut in answers]
        whole: list[Conversation] = []
        shortened: list[Conversation] = []
        for row, (text, cut) in zip(self.unanswered, self.answers, strict=True):
            try:
                (shortened if cut else whole).append(answered(row, text))
            except RowError as error:
                self._leave_out(error)
        del self.conversations[self._given :], self.encoded[self._given :]
        self._add(whole, encode)
        first = len(self.encoded)
        self._add(shortened, encode)
        self.encoded[first:] = [without_end(row, self._stop) for row in self.encoded[first:]]
        self._require_rows()

    def _prompt(self, row: Conversation, tokenizer: Any, longest: int) -> Encoded:
        prompt = encode_conversation(tokenizer, row, for_generation=True)
        if (size := len(prompt.input_ids)) > longest:
            reason = f"the prompt has {size} tokens, more than the {longest} that leave space for "
            raise RowError(
                row.origin,
                reason + "the model's own answer",
                "; leave the row out (bad_rows: skip) or raise data.max_length.",
            )
        return prompt

    def _leave_out(self, error: RowError) -> None:
        if not self._skip_bad_rows:
            raise error
        self.left_out.count(error.origin, error.reason)

    def _require_rows(self) -> None:
        if not self.encoded:
            raise OneShotError(f"data.anchors: no row can be used ({self.left_out}).")

    def _add(self, rows: list[Conversation], encode: Encode) -> None:
        dataset = encode(rows)
        self.conversations += dataset.conversations
        self.encoded += dataset.encoded
        self.left_out.add(dataset.left_out)

    def facts(self) -> dict[str, Any]:
        """Return the counts; the digest is that of the rows without the model's own answers."""
        return {**super().facts(), "digest": self._digest, "own_answers": len(self.unanswered)}

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self.unanswered and not self.answers:
            raise OneShotError("data.anchors: rows wait for the model's own answers.")
        return {"encoded": self.encoded[index], "index": index}
