"""Strategies that Lightning lacks, and functions for modules and callbacks under any strategy."""

from lightning.pytorch.strategies import StrategyRegistry

from oneshot_lit.strategies.deepspeed import HFDeepSpeedStrategy, quieten_import
from oneshot_lit.strategies.fsdp2 import FSDP2Strategy

__all__ = ["FSDP2Strategy", "HFDeepSpeedStrategy", "register_strategies"]


def register_strategies() -> None:
    """Let names such as fsdp2 and deepspeed_stage_3 mean the strategies of this package."""
    StrategyRegistry.register(
        "fsdp2", FSDP2Strategy, description="PyTorch's FSDP2 over all processes", override=True
    )
    for name in [name for name in StrategyRegistry if name.startswith("deepspeed")]:
        StrategyRegistry.remove(name)
    HFDeepSpeedStrategy.register_strategies(StrategyRegistry)
    quieten_import()
