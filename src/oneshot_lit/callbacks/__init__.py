"""Callbacks: spectra, the trained model, scores, answers, checkpoints; usable with any Trainer."""

from oneshot_lit.callbacks.checkpoint_io import AtomicCheckpointIO
from oneshot_lit.callbacks.data_report import DataReport
from oneshot_lit.callbacks.ema import ExponentialMovingAverage
from oneshot_lit.callbacks.freeze_safety_units import FreezeSafetyUnits
from oneshot_lit.callbacks.general_ability import GeneralAbility
from oneshot_lit.callbacks.gradient_rank import GradientRank
from oneshot_lit.callbacks.hf_export import HuggingFaceExport
from oneshot_lit.callbacks.metrics_writer import MetricsWriter
from oneshot_lit.callbacks.predictions import PredictionWriter
from oneshot_lit.callbacks.progress_lines import ProgressLines
from oneshot_lit.callbacks.realignment_curve import RealignmentCurve
from oneshot_lit.callbacks.run_checkpoint import RunCheckpoint

__all__ = [
    "AtomicCheckpointIO",
    "DataReport",
    "ExponentialMovingAverage",
    "FreezeSafetyUnits",
    "GeneralAbility",
    "GradientRank",
    "HuggingFaceExport",
    "MetricsWriter",
    "PredictionWriter",
    "ProgressLines",
    "RealignmentCurve",
    "RunCheckpoint",
]
