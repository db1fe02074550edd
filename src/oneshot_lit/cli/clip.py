"""The command ``oneshot-lit clip``: fit a CLIP model, with modules and data of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from lightning.pytorch import Trainer

from oneshot_lit.cli.fit import OneShotCLI, run_lightning_command
from oneshot_lit.errors import OneShotError
from oneshot_lit.methods.safer_clip import ClipModule, QuadrupleData


class ClipCLI(OneShotCLI):
    """The fit of a CLIP model."""

    module_class, data_class = ClipModule, QuadrupleData
    command = "clip"
    descriptions: ClassVar[dict[str, str]] = {
        "fit": "Redirect the unsafe images and texts of a CLIP model to safe ones (SafeR-CLIP). "
        "Writes a Hugging Face folder to <trainer.default_root_dir>/model and scores to "
        "safer_clip.json. Example: oneshot-lit clip --config configs/safer_clip/microworld.yaml. "
        "See docs/safer_clip.md."
    }

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Refuse several processes before they are started."""
        trainer = super().instantiate_trainer(**kwargs)
        if trainer.world_size > 1:
            raise OneShotError("trainer.devices: a CLIP model is trained in one process; give 1.")
        return trainer


def run_clip_command(arguments: Sequence[str]) -> int:
    """Run ``oneshot-lit clip`` and return its exit code.

    Args:
        arguments: The command line after the verb.

    Raises:
        OneShotError: for every mistake that the user can correct.
    """
    return run_lightning_command(["fit", *arguments], ClipCLI)
