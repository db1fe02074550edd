"""Checkpoints of FSDP2 are read without running what may be pickled in them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import save

from oneshot_lit.callbacks import AtomicCheckpointIO
from oneshot_lit.errors import OneShotError
from oneshot_lit.strategies.distributed_checkpoint import SafeReader, read_tensors


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def dotted(module: str, name: str, argument: str) -> bytes:
    """A pickle that calls a function of a module which another module has imported."""
    first, second, third = (
        b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name, argument)
    )
    return b"\x80\x04" + first + second + b"\x93" + third + b"\x85R."


def test_tensors_and_numbers_come_back(tmp_path: Path) -> None:
    saved = {"state_dict": {"w": torch.arange(6.0).reshape(2, 3)}, "lr": 0.5, "name": "adamw"}
    save(saved, checkpoint_id=tmp_path / "c")
    state: dict[str, Any] = {"state_dict": {"w": torch.zeros(2, 3)}, "lr": 0.0, "name": ""}
    read_tensors(state, tmp_path / "c")
    assert torch.equal(state["state_dict"]["w"], saved["state_dict"]["w"])  # type: ignore[index]
    assert (state["lr"], state["name"]) == (0.5, "adamw")
    with pytest.raises(OneShotError, match="does not fit this model"):
        read_tensors({"state_dict": {"v": torch.zeros(2)}}, tmp_path / "c")


def test_a_table_runs_nothing(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    tables = [
        pickle.dumps(Trap(touched)),
        dotted("torch.serialization", "os.system", f"touch {touched}"),
        dotted("torch.distributed.checkpoint.filesystem", "os.system", f"touch {touched}"),
        dotted("torch", "load", str(touched)),
        pickle.dumps(3),
        b"",
        b"no pickle",
    ]
    for table in tables:
        (tmp_path / ".metadata").write_bytes(table)
        with pytest.raises(OneShotError, match="not a whole checkpoint"):
            SafeReader(tmp_path).read_metadata()
        assert not touched.exists()


def test_a_shard_runs_nothing(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    save({"state_dict": {"w": Trap(touched)}, "lr": Trap(touched)}, checkpoint_id=tmp_path / "c")
    assert not touched.exists()
    for state in ({"state_dict": {"w": torch.zeros(2)}}, {"lr": 0.0}):
        with pytest.raises(OneShotError):
            read_tensors(state, tmp_path / "c")
        assert not touched.exists()


def test_a_file_takes_the_place_of_a_folder(tmp_path: Path) -> None:
    target = tmp_path / "last.ckpt"
    (target / "shards").mkdir(parents=True)
    AtomicCheckpointIO().save_checkpoint({"a": torch.ones(2)}, target)
    assert torch.equal(torch.load(target, weights_only=True)["a"], torch.ones(2))
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
