"""Steps that rounding takes back are refused; buffers keep their precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from oneshot_lit.methods import LanguageModelModule
from oneshot_lit.models.rounding import share_rounded_away


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("step", [1e-6, 2e-5, 1e-3, 1e-1])
def test_share_is_that_of_weights_which_an_addition_leaves(dtype: torch.dtype, step: float) -> None:
    torch.manual_seed(0)
    # All are looked at, and none is so small that its spacing is no longer relative.
    weights = (torch.randn(64, 64) * 0.1).clamp(-8, 8).to(dtype)
    weights[weights.abs() < 1e-3] = 0.01
    # A step away from zero: towards it, powers of two have half the spacing.
    moved = (weights.double() + step * weights.sign().double()).to(dtype)
    expected = float((moved == weights).double().mean())
    # Ties are rounded to even, and then not all of them stay.
    assert share_rounded_away(weights, step) == pytest.approx(expected, abs=0.01)


def test_half_precision_at_a_small_rate_is_refused(command, fit_words: list[str]) -> None:
    words = [*fit_words, "--trainer.precision", "bf16-true", "--trainer.max_epochs", "1"]
    refused = command(*words, "--model.optimizer.lr", "2e-5")
    assert refused.code == 2
    assert "of the bfloat16 weights are too large for a step of the learning rate" in refused.error
    assert "model.allow_rounding true" in refused.error
    insisted = command(*words, "--model.optimizer.lr", "2e-5", "--model.allow_rounding", "true")
    assert insisted.code == 0, insisted.err
    assert "trained weights: bfloat16; trainer.precision bf16-true" in insisted.err


def test_what_is_trained_is_said(command, fit_words: list[str]) -> None:
    done = command(*fit_words, "--trainer.precision", "bf16-mixed", "--trainer.max_epochs", "1")
    assert done.code == 0, done.err
    assert "trained weights: float32; trainer.precision bf16-mixed" in done.err


def test_buffers_keep_float32(tiny_folder: Path) -> None:
    module = LanguageModelModule(str(tiny_folder))
    module.configure_model()
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    assert any("inv_freq" in name for name in before)
    module.to(torch.bfloat16)
    assert next(module.parameters()).dtype == torch.bfloat16
    for name, buffer in module.named_buffers():
        assert torch.equal(buffer, before[name]), name
    # Wider ones are wanted by references.
    assert {b.dtype for b in module.double().buffers()} == {torch.float64}
