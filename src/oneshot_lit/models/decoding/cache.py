"""A key-value cache whose rows can be thrown out, joined by others and cut to the longest one.

Rows are right-aligned: what a row is shorter than the longest stands as padding on its left, and
the attention mask leaves it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

# Columns to spare: so many steps write one column each, where a plain layer copies all of them.
_SPARE = 16


class PackedLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of a layer, (rows, heads, tokens, width), in memory with spare columns."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add tokens behind all rows and return everything."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
            self._memory = (key_states, value_states)
            return self.keys, self.values
        width = self.keys.shape[-2]
        end = width + key_states.shape[-2]
        if end > self._memory[0].shape[-2]:
            self._memory = (_room([self.keys], width, end), _room([self.values], width, end))
        for memory, new in zip(self._memory, (key_states, value_states), strict=True):
            memory[:, :, width:end] = new
        self.keys, self.values = (memory[:, :, :end] for memory in self._memory)
        return self.keys, self.values

    def join(self, rows: Tensor | None, width: int, more: PackedLayer | None) -> None:
        """Keep some rows (None: all), cut or padded on the left to `width`, and others' below."""
        keys, values = [self.keys], [self.values]
        if rows is not None:
            keys, values = [self.keys[rows]], [self.values[rows]]
        if more is not None:
            keys.append(more.keys)
            values.append(more.values)
        self._memory = (_room(keys, width, width), _room(values, width, width))
        self.keys, self.values = (memory[:, :, :width] for memory in self._memory)


def _room(parts: Sequence[Tensor], width: int, end: int) -> Tensor:
    """Return the last `width` columns of each part, right-aligned there, and room behind `end`."""
    rows = sum(len(part) for part in parts)
    # Zeros: even what the mask leaves out is multiplied, and must be finite.
    memory = parts[0].new_zeros(rows, parts[0].shape[1], end + _SPARE, parts[0].shape[-1])
    first = 0
    for part in parts:
        taken = part[:, :, max(0, part.shape[-2] - width) :]
        memory[first : first + len(part), :, width - taken.shape[-2] : width] = taken
        first += len(part)
    return memory


class PackedCache(DynamicCache):  # type: ignore[misc]
    """The cache of a model whose layers all attend to every token, or to a sliding window of them.

    A window is in the mask that the model makes; so its layers, too, keep all tokens here.
    """

    def __init__(self) -> None:
        Cache.__init__(self, layer_class_to_replicate=PackedLayer)

    def join(self, rows: Sequence[int] | None, width: int, more: PackedCache | None = None) -> None:
        """Keep some rows and put those of another cache below them.

        Args:
            rows: Numbers of the rows to keep; all if None.
            width: Tokens of the longest row that is left.
            more: Rows that join.
        """
        index = None
        for number, layer in enumerate(self.layers):
            if rows is not None and index is None:
                index = torch.tensor(rows, device=layer.keys.device)
            layer.join(index, width, None if more is None else more.layers[number])
