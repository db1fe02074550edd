"""Training of 16-bit weights is refused; buffers keep their precision."""

from __future__ import annotations

from pathlib import Path

import torch

from oneshot_lit.methods import LanguageModelModule


def test_half_precision_is_refused(command, fit_words: list[str]) -> None:
    words = [*fit_words, "--trainer.precision", "bf16-true", "--trainer.max_epochs", "1"]
    refused = command(*words, "--model.optimizer.lr", "2e-5")
    assert refused.code == 2
    assert "bfloat16 weights would lose most steps to rounding" in refused.error
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
