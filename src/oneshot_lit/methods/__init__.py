"""LightningModules, one a file; subclass them in your own package."""

from oneshot_lit.methods.attack import HarmfulFineTuningModule
from oneshot_lit.methods.base import LanguageModelModule
from oneshot_lit.methods.posttuning.low_rank.module import LowRankRealignmentModule
from oneshot_lit.methods.posttuning.one_shot import OneShotRealignmentModule
from oneshot_lit.methods.posttuning.weight_edit import WeightEdit
from oneshot_lit.methods.reference import ReferenceModule
from oneshot_lit.methods.select.base import SelectionModule
from oneshot_lit.methods.select.bilevel import InstanceSelectionModule
from oneshot_lit.methods.select.brute_force import BruteForceModule
from oneshot_lit.methods.select.enumeration import EnumerationModule
from oneshot_lit.models.generation import Decoding

__all__ = [
    "BruteForceModule",
    "Decoding",
    "EnumerationModule",
    "HarmfulFineTuningModule",
    "InstanceSelectionModule",
    "LanguageModelModule",
    "LowRankRealignmentModule",
    "OneShotRealignmentModule",
    "ReferenceModule",
    "SelectionModule",
    "WeightEdit",
]
