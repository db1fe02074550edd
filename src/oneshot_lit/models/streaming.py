"""Build a model in shards: no process ever holds more than its rows and one whole tensor.

The model is made on the meta device, sharded, and filled: from a folder each process reads only its
own rows of the safetensors files; a new model's random weights are drawn module by module, in the
order in which a whole model draws them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

# A tensor's name in the model's files -> the module that holds it, and as what.
Places = dict[str, tuple[nn.Module, str]]


def places(model: nn.Module) -> Places:
    """Return where each tensor of a model's files belongs; of tied ones only the first.

    Modules stay what they are when an adapter wraps them or FSDP2 replaces their parameters.
    """
    owners: Places = {}
    kept = set(model.state_dict(keep_vars=True))
    for name, _ in [*model.named_parameters(), *model.named_buffers()]:
        if name in kept:
            owner, _, leaf = name.rpartition(".")
            owners[name] = (model.get_submodule(owner), leaf)
    return owners


def can_stream(model: Any, files: dict[str, Path]) -> bool:
    """Whether files hold each tensor of a model under the model's own name and in its shape.

    Others, such as files of an old layout that `transformers` converts, must be loaded whole; so
    must quantised weights, whose scales `transformers` applies, and those that some models keep in
    float32 whatever their dtype.

    Args:
        model: A Hugging Face model without weights.
        files: The file of each tensor.
    """
    if getattr(model.config, "quantization_config", None) is not None or doubles(model, files):
        return False
    if model.dtype != torch.float32 and (
        model._keep_in_fp32_modules or model._keep_in_fp32_modules_strict
    ):
        return False
    with _opened(files) as slices:
        for name, (module, leaf) in places(model).items():
            if name not in files:
                return False
            if list(slices(name).get_shape()) != list(getattr(module, leaf).shape):
                return False
    return True


def doubles(model: Any, files: dict[str, Path]) -> bool:
    """Whether two tensors that a model's config ties are both in its files, and not the same.

    `transformers` does not tie them then.
    """
    pairs = [p for p in model.all_tied_weights_keys.items() if p[0] in files and p[1] in files]
    if not pairs:
        return False
    with _opened(files) as slices:
        return not all(torch.equal(slices(a)[...], slices(b)[...]) for a, b in pairs)


@contextmanager
def adapters_stay_real() -> Iterator[None]:
    """Keep new adapters on the current device though the base model is on the meta device."""
    move = nn.Module.to

    def stay(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        # `peft` moves an adapter to its base, where its first values would be lost.
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if device is None or device.type != "meta":
            return move(module, *args, **kwargs)
        return module if dtype is None else move(module, dtype=dtype)

    with patch.object(nn.Module, "to", stay):
        yield


def only_base_is_empty(model: nn.Module, where: Places) -> bool:
    """Whether only base weights are on the meta device: an adapter has its initial values."""
    filled = {id(getattr(module, leaf)) for module, leaf in where.values()}
    return all(id(p) in filled for p in model.parameters() if p.is_meta)


def needs_base_weights(options: dict[str, Any] | None) -> bool:
    """Whether a new adapter's first values depend on those of the base model."""
    if options is None:
        return False
    plain = options.get("init_lora_weights", True) in (True, False, "gaussian", "orthogonal")
    lora = str(options.get("peft_type", "LORA")) == "LORA"
    return not (
        lora and plain and not options.get("use_dora") and not options.get("modules_to_save")
    )


def materialise(model: nn.Module, device: torch.device) -> None:
    """Give all meta tensors of a sharded model memory on the device; their values are arbitrary."""

    def fill(tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor, device=device) if tensor.is_meta else tensor

    model._apply(fill)  # type: ignore[no-untyped-call]


@torch.no_grad()
def read_weights(model: Any, where: Places, files: dict[str, Path]) -> None:
    """Fill a sharded model from files that `can_stream`; each process reads its own rows.

    Args:
        model: The base model, without adapter; its other buffers are computed.
        where: Its `places`, taken before it was sharded.
        files: The file of each tensor.
    """
    with _opened(files) as slices:
        for name, (module, leaf) in where.items():
            tensor = getattr(module, leaf)
            if isinstance(tensor, DTensor):
                start, stop = _rows(tensor)
                tensor.to_local().copy_(slices(name)[start:stop])
            else:
                tensor.copy_(slices(name)[...])
            tensor._is_hf_initialized = True
    # Only what no file holds is left: buffers such as the frequencies of RoPE. An adapter has been
    # drawn by `peft`.
    for parameter in model.parameters():
        parameter._is_hf_initialized = True
    model.initialize_weights()


@torch.no_grad()
def draw_weights(model: Any) -> None:
    """Draw the random weights of a new, sharded model: the same ones as for a whole model.

    Args:
        model: A Hugging Face model; all processes have the same random state.
    """
    from transformers import PreTrainedModel
    from transformers.initialization import guard_torch_init_functions

    # A tied weight is drawn for each of its places, and the first draw counts.
    owners: dict[int, tuple[nn.Module, str]] = {}
    for each in model.modules():
        for leaf, parameter in each.named_parameters(recurse=False):
            owners.setdefault(id(parameter), (each, leaf))

    def visit(module: Any, draw: Any) -> None:
        for child in module.children():
            visit(child, child._initialize_weights if isinstance(child, PreTrainedModel) else draw)
        # A module may draw the weights of its children, too.
        parts = [module, *(c for c in module.children() if not isinstance(c, PreTrainedModel))]
        with _whole(parts, owners):
            draw(module, model.is_custom_code())

    with guard_torch_init_functions():
        visit(model, model._initialize_weights)


@contextmanager
def _whole(modules: list[nn.Module], owners: dict[int, tuple[nn.Module, str]]) -> Iterator[None]:
    """Put whole parameters in place of sharded ones, and copy the new rows back afterwards."""
    replaced = []
    for module in modules:
        for leaf, parameter in list(module.named_parameters(recurse=False)):
            if isinstance(parameter, DTensor):
                whole = nn.Parameter(parameter.full_tensor().detach(), requires_grad=False)
                if getattr(parameter, "_is_hf_initialized", False):
                    whole._is_hf_initialized = True  # type: ignore[attr-defined]
                module._parameters[leaf] = whole
                replaced.append((module, leaf, parameter, whole))
    try:
        yield
    finally:
        for module, leaf, parameter, whole in replaced:
            if owners[id(parameter)] == (module, leaf):
                start, stop = _rows(parameter)
                parameter.to_local().copy_(whole[start:stop])
            module._parameters[leaf] = parameter


def _rows(parameter: DTensor) -> tuple[int, int]:
    """Return which rows of a parameter this process holds."""
    mesh = parameter.device_mesh
    size = parameter.shape[0]
    start = min(size, mesh.get_local_rank() * -(-size // mesh.size()))
    return start, start + parameter.to_local().shape[0]


@contextmanager
def _opened(files: dict[str, Path]) -> Iterator[Any]:
    """Yield a function from a tensor's name to a slice that reads from disk what is asked for."""
    with ExitStack() as stack:
        pointers = {
            file: stack.enter_context(safe_open(file, framework="pt"))
            for file in sorted(set(files.values()))
        }
        yield lambda name: pointers[files[name]].get_slice(name)
