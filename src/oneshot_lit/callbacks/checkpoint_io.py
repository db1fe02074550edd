"""Checkpoints that are whole or absent, and that load without running code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from oneshot_lit.errors import OneShotError
from oneshot_lit.io.files import file_written_whole
from oneshot_lit.strategies.folders import require_resumable


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write each checkpoint beside its final place, then rename it.

    Lightning's own transaction goes through the system's temporary folder, where a rename across
    file systems is a copy, which a killed process leaves incomplete.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Save to a local path atomically; one with model ``outputs`` is for its owner only.

        Raises:
            OneShotError: if the disk is full; an earlier checkpoint stays as it is.
        """
        # A sharded run of the same name may have left a folder, which it replaces.
        with file_written_whole(Path(path), private="outputs" in checkpoint) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint; an incomplete one, or no checkpoint, is named in a one-line error."""
        if Path(path).is_dir():
            require_resumable(Path(path), {"kind": "file"}, fitting=True)
        try:
            return super().load_checkpoint(path, *args, **kwargs)
        except (pickle.UnpicklingError, EOFError, RuntimeError, OSError) as error:
            raise OneShotError(
                f"{path}: not a whole checkpoint of plain tensors; start without --ckpt_path."
            ) from error
