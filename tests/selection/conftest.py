from __future__ import annotations

from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small aligned model after three epochs on harmful rows."""
    from lightning.pytorch.utilities.seed import isolate_rng

    from oneshot_lit.callbacks import HuggingFaceExport
    from oneshot_lit.data import Microworld, SafetyDataModule
    from oneshot_lit.modules import HarmfulFineTuningModule
    from quiet_trainer import quiet_trainer

    root = tmp_path_factory.mktemp("broken")
    with isolate_rng(include_cuda=False):
        torch.manual_seed(0)
        quiet_trainer(root, HuggingFaceExport(), max_epochs=3).fit(
            HarmfulFineTuningModule(
                str(Path(__file__).parents[2] / "checkpoints" / "small"),
                optimizer=lambda params: torch.optim.AdamW(params, lr=3e-4),
            ),
            SafetyDataModule(train=Microworld("harmful_examples", size=60), batch_size=10),
        )
    return root / "model"
