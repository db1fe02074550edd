"""Strategies that Lightning lacks, and what modules and callbacks ask of any strategy."""

from oneshot_lit.strategies.deepspeed import HFDeepSpeedStrategy
from oneshot_lit.strategies.fsdp2 import FSDP2Strategy

__all__ = ["FSDP2Strategy", "HFDeepSpeedStrategy"]
