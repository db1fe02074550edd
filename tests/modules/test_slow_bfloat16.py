"""One line says when bfloat16 is slow on a CPU."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from oneshot_lit.methods import LanguageModelModule
from oneshot_lit.methods.optimizers import slow_bfloat16

WITHOUT = {"avx2": True, "avx512_bf16": False, "amx_bf16": False}


def trainer(precision: str, device: str = "cpu") -> Any:
    return SimpleNamespace(
        precision=precision,
        strategy=SimpleNamespace(root_device=torch.device(device)),
        state=SimpleNamespace(fn="test"),
    )


def with_capabilities(patch: pytest.MonkeyPatch, capabilities: dict[str, Any]) -> None:
    patch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("bf16-mixed", torch.float32), ("bf16-true", torch.float32), ("32-true", torch.bfloat16)],
)
def test_said_without_the_instructions(
    precision: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_capabilities(monkeypatch, WITHOUT)
    text = slow_bfloat16(trainer(precision), dtype)
    assert text is not None
    assert "avx512_bf16" in text
    assert "32-true" in text
    assert slow_bfloat16(trainer(precision, "meta"), dtype) is None
    for key in ("avx512_bf16", "amx_bf16"):
        with_capabilities(monkeypatch, WITHOUT | {key: True})
        assert slow_bfloat16(trainer(precision), dtype) is None
    # An architecture of which torch says nothing.
    with_capabilities(monkeypatch, {"neon": True})
    assert slow_bfloat16(trainer(precision), dtype) is None


def test_float32_is_not_mentioned(monkeypatch: pytest.MonkeyPatch) -> None:
    with_capabilities(monkeypatch, WITHOUT)
    assert slow_bfloat16(trainer("32-true"), torch.float32) is None
    assert slow_bfloat16(trainer("16-mixed"), torch.float32) is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_module_says_it_when_it_loads_its_model(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_capabilities(monkeypatch, WITHOUT)
    module = LanguageModelModule("checkpoints/small", dtype=dtype)
    module._trainer = trainer("32-true")
    monkeypatch.setattr(LanguageModelModule, "device_mesh", None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module.configure_model()
    said = [w for w in caught if "no bfloat16 instructions" in str(w.message)]
    assert len(said) == (dtype == "bfloat16")
