"""Strategies that Lightning lacks, and what callbacks ask of any strategy."""

from oneshot_lit.strategies.deepspeed import DeepSpeedCPUStrategy, HFDeepSpeedStrategy

__all__ = ["DeepSpeedCPUStrategy", "HFDeepSpeedStrategy"]
