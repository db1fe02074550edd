"""`FactorRecorder`: hooks that catch the token factors of weight gradients in a backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from oneshot_lit.strategies.gradients import full_shape

# How a layer's input x and output gradient d make the factors (left, right) of its weight's
# gradient, left^T @ right; a left factor of token ids stands for its one-hot rows.
Pairing = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


_ADDING = tuple(f"peft.tuners.{kind}." for kind in ("lora", "loha", "lokr", "vera"))


class FactorRecorder:
    """Record inputs and output gradients of the layers that own some weights.

    Works for linear, embedding and Conv1D layers, under gradient accumulation and checkpointing.
    The base weight of a PEFT layer is read from the whole layer's output, so a frozen weight has
    the spectrum that its gradient would have.

    Args:
        weights: Name -> parameter whose gradient is asked for.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter]) -> None:
        self.weights = dict(weights)
        self._parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._handles: list[Any] = []

    def attach(self, root: nn.Module) -> None:
        """Listen to every layer below `root` that owns one of the weights."""
        for name, module, pair in layers_of(root, self.weights):
            parts = self._parts.setdefault(name, [])
            self._handles.append(module.register_forward_hook(_hook(parts, pair)))

    def detach(self) -> None:
        """Listen no longer; what was recorded stays."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return name -> (right, left), (tokens, features): the gradient is ``left^T @ right``.

        A left factor of token ids, (tokens,) int64, stands for its one-hot rows. Tokens without
        gradient, such as padding, are left out. Tokens with the same right factor, such as those
        of prompts that begin alike, count as one. Layers with the same input share one tensor.
        """
        shared: dict[Any, Tensor] = {}
        return {n: self._joined(n, parts, shared) for n, parts in self._parts.items() if parts}

    def _joined(
        self,
        name: str,
        parts: list[tuple[Tensor, Tensor]],
        shared: dict[Any, Tensor],
    ) -> tuple[Tensor, Tensor]:
        if all(left.dtype == torch.long for left, _ in parts):
            rows = torch.cat([right.reshape(-1, right.shape[-1]) for _, right in parts])
            return rows, torch.cat([left.reshape(-1) for left, _ in parts])
        size = full_shape(self.weights[name])[0]
        pieces = [_used(left, right, size, shared) for left, right in parts]
        if len(pieces) == 1:
            return pieces[0]
        rights, lefts = zip(*pieces, strict=True)
        return torch.cat(rights), torch.cat(lefts)


def layers_of(
    root: nn.Module, weights: Mapping[str, nn.Parameter]
) -> Iterator[tuple[str, nn.Module, Pairing]]:
    """Yield a weight's name, the layer to listen to, and how to make the factors from it.

    A weight that another kind of layer also uses is left out: its factors would be incomplete.
    """
    names = {id(weight): name for name, weight in weights.items()}
    for layer in root.modules():
        if base_of(layer) is None and pairing(layer) is None:
            names.pop(id(getattr(layer, "weight", None)), None)
    # A PEFT layer adds to its base layer's output, and the gradient of a sum is that of each
    # part; the base's own output may need no gradient at all.
    outer = {id(base): module for module in root.modules() if (base := base_of(module))}
    for layer in root.modules():
        name = names.get(id(getattr(layer, "weight", None)))
        if name is None or base_of(layer) is not None or (pair := pairing(layer)) is None:
            continue
        yield name, outer.get(id(layer), layer), pair


def base_of(module: nn.Module) -> nn.Module | None:
    """Return the layer that a PEFT layer adds to, or None; others scale or rotate its output."""
    base = getattr(module, "base_layer", None)
    adds = any(kind.__module__.startswith(_ADDING) for kind in type(module).__mro__)
    # DoRA and its like.
    varied = getattr(module, "lora_variant", None) or any(getattr(module, "use_dora", {}).values())
    return base if isinstance(base, nn.Module) and adds and not varied else None


def _used(
    left: Tensor, right: Tensor, size: int, shared: dict[Any, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return right and left factor, (tokens, features), of the tokens with a gradient."""
    if left.dtype == torch.long:
        left, right = left.reshape(-1), right.reshape(-1, right.shape[-1])
        used = right.ne(0).any(-1)
        return right[used], nn.functional.one_hot(left[used], size).to(right.dtype)
    # Layers with the same input share it, and what is known of its tokens.
    place = (right.data_ptr(), right.shape)
    if (place, "groups") not in shared:
        shared[place, "rows"], shared[place, "groups"] = _grouped(right)
    rows, groups = shared[place, "rows"], shared[place, "groups"]
    flat = left.reshape(-1, left.shape[-1])
    if len(rows) < len(flat):
        wide = flat.to(torch.promote_types(flat.dtype, torch.float32))
        flat = wide.new_zeros(len(rows), wide.shape[-1]).index_add_(0, groups, wide)
    used = flat.ne(0).any(-1)
    if used.all():
        return rows, flat
    key = (place, used.cpu().numpy().tobytes())
    if key not in shared:
        shared[key] = rows[used]
    return shared[key], flat[used]


def _grouped(right: Tensor) -> tuple[Tensor, Tensor]:
    """Return the different right factors, (groups, features), and the group of each token.

    Only tokens at the same place of their rows are compared. That finds what rows share: with the
    same tokens before them they have the same input, to the last bit.

    Args:
        right: (rows, tokens, features); of any other shape, each token is a group.
    """
    flat = right.reshape(-1, right.shape[-1])
    own = torch.arange(len(flat), device=right.device)
    if right.ndim != 3 or len(right) == 1:
        return flat, own
    # Few features tell which row may be equal, all of them whether it is.
    few = right[..., :8].transpose(0, 1)
    first = (few[:, :, None] == few[:, None]).all(-1).int().argmax(-1).T.flatten()
    first = first * right.shape[1] + own % right.shape[1]
    maybe = (first != own).nonzero().flatten()
    equal = maybe[(flat[maybe] == flat[first[maybe]]).all(-1)]
    if not len(equal):
        return flat, own
    alone = torch.ones_like(own, dtype=torch.bool)
    alone[equal] = False
    groups = alone.cumsum(0) - 1
    groups[equal] = groups[first[equal]]
    return flat[alone], groups


def pairing(module: nn.Module) -> Pairing | None:
    """Return how a layer's input and output gradient make the factors, or None if unknown."""
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, nn.Linear):
        return lambda x, d: (d, x)
    if isinstance(module, nn.Embedding):
        return _embedding_pairing(module)
    if isinstance(module, Conv1D):
        return lambda x, d: (x, d)
    return None


def _embedding_pairing(module: nn.Embedding) -> Pairing | None:
    kind = type(module)
    scaled = kind.__name__.endswith("ScaledWordEmbedding") and hasattr(module, "embed_scale")
    # Others may number their rows in another way, or do anything with them.
    if not scaled and kind.forward is not nn.Embedding.forward:
        return None

    def pair(x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        if scaled:
            # Gemma and its like multiply what they look up.
            d = d * torch.as_tensor(module.embed_scale, dtype=d.dtype, device=d.device)
        if module.padding_idx is not None:
            # A row that torch gives no gradient.
            d = d * x.ne(module.padding_idx).unsqueeze(-1)
        return x, d

    return pair


def _hook(parts: list[tuple[Tensor, Tensor]], pair: Pairing) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        if output.requires_grad:
            x = inputs[0].detach()
            # Pairing inside the closure stays right when checkpointing runs the forward twice.
            output.register_hook(lambda d: parts.append(pair(x, d.detach())))

    return hook
