"""The rows that give the gradient of a low-rank repair."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from oneshot_lit.data.chat import encode_conversation
from oneshot_lit.data.padding import pad_training
from oneshot_lit.errors import OneShotError


class Instance:
    """The one safety example, or the few rows that are taken together.

    Args:
        data: The data module, after `setup`; rows that come twice count once.

    Raises:
        OneShotError: for more rows than a batch holds, which no pass would read.
    """

    def __init__(self, data: Any) -> None:
        self.data = data
        self.rows = list({row.messages: row for row in data.training.conversations}.values())
        processes = 1 if data.share_batch else data.trainer.world_size
        most = data.batch_size * processes
        if len(self.rows) > most:
            raise OneShotError(
                f"data.train has {len(self.rows)} rows, and a pass reads {most} of them; raise "
                "data.batch_size, or give fewer rows."
            )

    def __str__(self) -> str:
        """Return where the first rows come from."""
        more = f" and {len(self.rows) - 3} more" if len(self.rows) > 3 else ""
        return ", ".join(row.origin for row in self.rows[:3]) + more

    def encoded(self, module: Any, k: int) -> dict[str, Tensor]:
        """Return the rows as one batch on the module's device.

        Raises:
            OneShotError: if fewer than `k` tokens carry a gradient.
        """
        rows = [
            encode_conversation(module.tokenizer, row, max_length=self.data.max_length)
            for row in self.rows
        ]
        # The last token predicts nothing, so it carries no gradient.
        tokens = sum(len(row.input_ids) - 1 for row in rows)
        if k > tokens:
            raise OneShotError(
                f"model.k={k} is more than the instance allows, which has gradient on {tokens} "
                "tokens; lower it or give a longer instance."
            )
        batch = pad_training(rows, module.tokenizer.pad_token_id)
        return {key: value.to(module.device) for key, value in batch.items()}

    def prompts(self) -> list[Any]:
        """Return the different prompts of the rows."""
        return list({row.prompt.messages: row.prompt for row in self.rows}.values())
