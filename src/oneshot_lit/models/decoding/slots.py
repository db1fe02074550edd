"""`Slots`: greedy decoding in a batch that rows leave when they end and waiting prompts refill."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from oneshot_lit.errors import OneShotError
from oneshot_lit.models.decoding.cache import PackedCache

# A refill costs about so many steps, whatever the number of rows that join (measured on CPUs). It
# waits until the free slots have wasted as much: with answers that all end together, it comes when
# all slots are free, and otherwise at the share of free slots where both costs together are least.
_REFILL_STEPS = 1.5


@dataclass
class _Row:
    """A prompt on its way: its tokens, and those of its answer so far."""

    key: Hashable
    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    ended: bool = False

    @property
    def cached(self) -> int:
        """Tokens in the cache: all but the last, which the next step reads."""
        return len(self.prompt) + len(self.tokens) - 1


class Slots:
    """Answer prompts greedily, at most so many at once.

    A row that ends frees its slot; when free slots have wasted what a refill costs, waiting prompts
    are read together and take them over. So few steps are spent on rows that have ended, and the
    padding is never wider than the longest living row by more than one answer.

    Args:
        forward: The model's forward; takes ``input_ids``, ``attention_mask``, ``position_ids``,
            ``past_key_values`` and `options`, and returns ``logits``.
        slots: Prompts that are answered together.
        stop_ids: Tokens that end an answer, and are not part of it.
        max_new_tokens: Longest answer.
        pad_id: Any token id; stands where the mask is 0.
        device: The model's.
        ended: Whether an answer's tokens so far end it, if more than single tokens can.
        options: More arguments for `forward`.
    """

    def __init__(
        self,
        forward: Any,
        slots: int,
        stop_ids: Sequence[int],
        max_new_tokens: int,
        pad_id: int,
        device: torch.device,
        ended: Callable[[list[int]], bool] | None = None,
        **options: Any,
    ) -> None:
        self.ended = ended
        self.forward, self.slots, self.options = forward, slots, options
        self.stops, self.max_new_tokens = frozenset(stop_ids), max_new_tokens
        self.pad_id, self.device = pad_id, device
        self._waiting: deque[_Row] = deque()
        self._forget()

    def _forget(self) -> None:
        self._rows: list[_Row] = []
        self._cache: PackedCache | None = None
        # Steps of single slots that no living row has used since rows joined last.
        self._wasted = 0
        self._last = self._padding = torch.empty(0, dtype=torch.long)

    def add(self, key: Hashable, prompt: list[int]) -> None:
        """Let a prompt wait for a free slot."""
        self._waiting.append(_Row(key, prompt))

    @torch.no_grad()
    def run(self, to_the_end: bool = False) -> list[tuple[Hashable, list[int]]]:
        """Decode while all slots can be kept busy, or until every prompt has its answer.

        Returns:
            The key and the answer's tokens of each prompt that is done, in no certain order.
        """
        done: list[_Row] = []
        try:
            while True:
                if self._may_join(to_the_end):
                    done += self._join()
                elif self._living() == 0 or not (to_the_end or self._can_be_filled()):
                    break
                else:
                    self._shrink(to_the_end)
                    done += self._step()
        except BaseException:
            # Nothing is held on the accelerator by a run that is over.
            self._waiting.clear()
            self._forget()
            raise
        if self._living() == 0:
            self._forget()
        return [(row.key, row.tokens) for row in done]

    def _living(self) -> int:
        return sum(not row.ended for row in self._rows)

    def _can_be_filled(self) -> bool:
        return self._living() + len(self._waiting) >= self.slots

    def _may_join(self, to_the_end: bool) -> bool:
        free, waiting = self.slots - self._living(), len(self._waiting)
        # More may come that fill the slots.
        if min(free, waiting) == 0 or (waiting < free and not to_the_end):
            return False
        return free == self.slots or self._wasted >= _REFILL_STEPS * self.slots

    def _join(self) -> list[_Row]:
        """Read waiting prompts into all free slots; returns those answered by one token."""
        kept = [n for n, row in enumerate(self._rows) if not row.ended]
        free = self.slots - len(kept)
        new = [self._waiting.popleft() for _ in range(min(free, len(self._waiting)))]
        cache, tokens = self._read([row.prompt for row in new])
        done = self._take(new, tokens)
        if self._cache is None or not kept:
            self._rows, self._cache, self._last = new, cache, tokens
        else:
            rows = [self._rows[n] for n in kept] + new
            last = torch.cat([self._last[kept], tokens])
            self._cache.join(kept, max(row.cached for row in rows), cache)
            self._rows, self._last = rows, last
        self._wasted = 0
        self._measure_padding()
        return done

    def _read(self, prompts: list[list[int]]) -> tuple[PackedCache, Tensor]:
        """Return the cache of left-padded prompts and the first token of each answer."""
        width = max(len(prompt) for prompt in prompts)
        ids = torch.full((len(prompts), width), self.pad_id)
        mask = torch.zeros_like(ids)
        for n, prompt in enumerate(prompts):
            ids[n, width - len(prompt) :] = torch.tensor(prompt)
            mask[n, width - len(prompt) :] = 1
        cache = PackedCache()
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        tokens = self._next(ids, mask, positions, cache)
        if cache.get_seq_length() != width:
            raise OneShotError(
                "model.decoding.backend: the model keeps no cache (does it train with gradient "
                "checkpointing?); set it to static."
            )
        return cache, tokens

    def _step(self) -> list[_Row]:
        """Add a token to every row; returns those that end with it."""
        assert self._cache is not None
        width = self._cache.get_seq_length()
        mask = torch.arange(width + 1, device=self.device) >= self._padding[:, None]
        # Ended rows run on until they are thrown out, but not beyond what the model has room for.
        longest = max(row.cached for row in self._rows if not row.ended)
        positions = (width - self._padding[:, None]).clamp_max(longest)
        self._last = self._next(self._last[:, None], mask.long(), positions, self._cache)
        self._wasted += self.slots - self._living()
        return self._take(self._rows, self._last)

    def _next(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: PackedCache) -> Tensor:
        """Return the likeliest next token of each row, (rows,)."""
        output = self.forward(
            input_ids=ids.to(self.device),
            attention_mask=mask.to(self.device),
            position_ids=positions.to(self.device),
            past_key_values=cache,
            use_cache=True,
            **self.options,
        )
        return output.logits[:, -1].float().argmax(-1)

    def _take(self, rows: list[_Row], tokens: Tensor) -> list[_Row]:
        """Give each living row its token; returns those that end here."""
        ended = []
        for row, token in zip(rows, tokens.tolist(), strict=True):
            if row.ended:
                continue
            if token in self.stops:
                row.ended = True
            else:
                row.tokens.append(token)
                row.ended = len(row.tokens) == self.max_new_tokens
                row.ended = row.ended or (self.ended is not None and self.ended(row.tokens))
            if row.ended:
                ended.append(row)
        return ended

    def _shrink(self, to_the_end: bool) -> None:
        """Throw ended rows out where none will join; and columns that no living row needs."""
        assert self._cache is not None
        kept = [n for n, row in enumerate(self._rows) if not row.ended]
        width = max(self._rows[n].cached for n in kept)
        alone = to_the_end and not self._waiting
        few = alone and 4 * len(kept) <= 3 * len(self._rows)
        if few or 4 * width <= 3 * self._cache.get_seq_length():
            self._rows, self._last = [self._rows[n] for n in kept], self._last[kept]
            self._cache.join(kept, width)
            self._measure_padding()

    def _measure_padding(self) -> None:
        assert self._cache is not None
        width = self._cache.get_seq_length()
        padding = [width - row.cached for row in self._rows]
        self._padding = torch.tensor(padding, device=self.device)


def open_slots(
    model: Any,
    slots: int,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    pad_id: int,
    ended: Callable[[list[int]], bool] | None = None,
) -> Slots:
    """Return empty slots of a model for which `backends.obstacle` is None."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    # Of a prompt only the last token's logits are needed: a large vocabulary makes them huge.
    takes = inspect.signature(base.forward).parameters
    options = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
    return Slots(model, slots, stop_ids, max_new_tokens, pad_id, base.device, ended, **options)
