"""The pairs of a LoRA adapter on disk: read, and written with other values or another rank."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from oneshot_lit.errors import OneShotError
from oneshot_lit.io.files import write_json_atomically
from oneshot_lit.models.weight_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, weight_files

_PREFIX = "base_model.model."
_ENDS = {"a": ".lora_A.weight", "b": ".lora_B.weight"}


@dataclass(frozen=True)
class LoraPair:
    """What an adapter adds to one module: ``scaling B A``.

    Attributes:
        a: (r, in).
        b: (out, r).
        scaling: ``lora_alpha / r``, or over its square root with rsLoRA.
    """

    a: Tensor
    b: Tensor
    scaling: float

    @property
    def rank(self) -> int:
        """The rank r."""
        return len(self.a)

    @property
    def change(self) -> Tensor:
        """What the pair adds to the weight: (out, in)."""
        return self.scaling * (self.b @ self.a)


def read_pairs(folder: Path) -> dict[str, LoraPair]:
    """Return the pair of each module, by the module's name in the base model.

    Args:
        folder: A PEFT adapter.

    Raises:
        OneShotError: if it is no plain LoRA: another kind, DoRA, biases, embeddings, whole modules.
    """
    config = _config(folder)
    kind = str(config.get("peft_type"))
    if kind != "LORA" or config.get("use_dora"):
        raise OneShotError(
            f"{folder}: is {'DoRA' if kind == 'LORA' else kind}, not plain LoRA; merge it and give "
            "the merged model (--export.merge_adapter true writes it)."
        )
    tensors: dict[str, dict[str, Tensor]] = {}
    (file,) = weight_files(folder)
    with safe_open(file, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118
            for part, end in _ENDS.items():
                if name.startswith(_PREFIX) and name.endswith(end):
                    module = name.removeprefix(_PREFIX).removesuffix(end)
                    tensors.setdefault(module, {})[part] = opened.get_tensor(name)
                    break
            else:
                raise OneShotError(
                    f"{folder}: holds {name}, which is no part of a LoRA pair; merge the adapter "
                    "and give the merged model (--export.merge_adapter true writes it)."
                )
    for module, own in tensors.items():
        if len(own) != len(_ENDS) or len(own["a"]) != own["b"].shape[1]:
            raise OneShotError(f"{folder}: {module} has no whole LoRA pair; write it again.")
    return {
        module: LoraPair(own["a"], own["b"], _scaling(config, module, len(own["a"])))
        for module, own in tensors.items()
    }


def write_pairs(
    source: Path, target: Path, pairs: Mapping[str, tuple[Tensor, Tensor]], plain: bool = False
) -> None:
    """Write an adapter with other values; its other files come along.

    Args:
        source: The adapter whose config, tokenizer and dtypes are taken.
        target: An empty folder.
        pairs: A and B of each module. Without `plain`, their ranks are those of the source.
        plain: The scaling is 1 and all ranks are the same, whatever the source's config says.
    """
    old = read_pairs(source)
    for path in sorted(source.iterdir()):
        weights = path.suffix in (".safetensors", ".bin", ".pt", ".ckpt")
        if path.is_file() and not weights and not path.name.startswith("."):
            shutil.copyfile(path, target / path.name)
    tensors = {}
    for module, (a, b) in pairs.items():
        dtype = old[module].a.dtype
        for end, own in zip(_ENDS.values(), (a, b), strict=True):
            tensors[f"{_PREFIX}{module}{end}"] = own.detach().to("cpu", dtype).contiguous()
    save_file(tensors, target / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    if plain:
        rank = len(next(iter(pairs.values()))[0])
        changed: dict[str, Any] = {"r": rank, "lora_alpha": rank, "use_rslora": False}
        changed |= {"rank_pattern": {}, "alpha_pattern": {}}
        write_json_atomically(target / ADAPTER_CONFIG, _config(source) | changed)


def padded(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return a pair of a larger rank with the same product: zeros are added."""
    more = rank - len(a)
    return torch.cat([a, a.new_zeros(more, a.shape[1])]), torch.cat(
        [b, b.new_zeros(len(b), more)], dim=1
    )


def _config(folder: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OneShotError(f"{folder}: {ADAPTER_CONFIG} is not JSON; fix it.") from error
    return content


def _scaling(config: Mapping[str, Any], module: str, rank: int) -> float:
    """Return the scaling of a module's pair, as PEFT computes it."""
    from peft.utils.other import get_pattern_key

    patterns = config.get("alpha_pattern") or {}
    key = get_pattern_key(patterns.keys(), module)
    alpha = float(patterns.get(key, config.get("lora_alpha") or rank))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
