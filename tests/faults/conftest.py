"""What tests of this folder leave behind is cleared away."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
from torch import distributed

_GROUP = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK", "NODE_RANK")


@pytest.fixture(scope="module", autouse=True)
def no_group_is_left() -> Iterator[None]:
    """End the process group of a fit in this process, or later tests would join it."""
    before = {name: os.environ.get(name) for name in _GROUP}
    yield
    if distributed.is_initialized():
        distributed.destroy_process_group()
        if "deepspeed.comm.comm" in sys.modules:
            sys.modules["deepspeed.comm.comm"].cdb = None
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
