"""What callbacks ask of a strategy, where one process is enough to tell."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from exchanges import stand_in
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from oneshot_lit.callbacks.shared_spectra import shared_spectra
from oneshot_lit.spectral.recorder import FactorRecorder
from oneshot_lit.strategies import gradients


def with_gradient(scale: float) -> nn.Parameter:
    parameter = nn.Parameter(torch.zeros(2, 3))
    parameter.grad = scale * torch.arange(6.0).reshape(2, 3)
    return parameter


def engine(**attributes: Any) -> Any:
    return SimpleNamespace(
        optimizer=SimpleNamespace(loss_scale=8.0),
        is_gradient_accumulation_boundary=lambda: False,
        **attributes,
    )


def test_loss_scale_of_deepspeed_is_in_its_gradients() -> None:
    pytest.importorskip("deepspeed")
    trainer = stand_in()
    trainer.model = engine()
    parameter = with_gradient(8.0)
    found = gradients.full_gradient(trainer, parameter)
    assert found is not None
    assert torch.equal(found, torch.arange(6.0).reshape(2, 3))
    assert gradients.gradient_norms(trainer, [parameter]).tolist() == [pytest.approx(55**0.5)]
    assert gradients.loss_scale(trainer) == 8.0
    assert not gradients.is_boundary(trainer)


def test_without_deepspeed() -> None:
    trainer = stand_in()
    parameter = with_gradient(1.0)
    assert gradients.full_gradient(trainer, parameter) is parameter.grad
    assert gradients.loss_scale(trainer) == 1.0
    assert gradients.is_boundary(trainer)
    unused = nn.Parameter(torch.zeros(2, 3))
    norms = gradients.gradient_norms(trainer, [unused, parameter])
    assert norms.isnan().tolist() == [True, False]
    assert gradients.full_gradient(trainer, unused) is None


class Regression(LightningModule):
    """One linear layer; the callback's reading runs where the callback would run it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 3)
        self.recorder = FactorRecorder({"layer.weight": self.layer.weight})
        self.scale = 0.0

    def on_fit_start(self) -> None:
        self.recorder.attach(self)

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.randn(4, 4), batch_size=4)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch).square().mean()

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.scale = gradients.loss_scale(self.trainer)
        self.found = shared_spectra(
            self.trainer, {"layer.weight": self.layer.weight}, self.recorder.factors()
        )
        self.expected = torch.linalg.svdvals(self.layer.weight.grad)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_loss_scale_of_16_bit_precision_is_taken_out(tmp_path: Any) -> None:
    module = Regression()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    Trainer(
        accelerator="cpu",
        plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)],
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    ).fit(module)
    assert module.scale == 1024.0
    assert torch.allclose(module.found["layer.weight"].values, module.expected, rtol=2e-2)
