"""LightningModules, one a file; subclass them in your own package."""

from oneshot_lit.modules.brute_force import BruteForceModule
from oneshot_lit.modules.enumeration import EnumerationModule
from oneshot_lit.modules.generation import Decoding
from oneshot_lit.modules.harmful_finetuning import HarmfulFineTuningModule
from oneshot_lit.modules.instance_selection import InstanceSelectionModule
from oneshot_lit.modules.language_model import LanguageModelModule
from oneshot_lit.modules.low_rank_realignment import LowRankRealignmentModule
from oneshot_lit.modules.realignment import OneShotRealignmentModule
from oneshot_lit.modules.rule_selection import RuleSelectionModule
from oneshot_lit.modules.selection_base import SelectionModule

__all__ = [
    "BruteForceModule",
    "Decoding",
    "EnumerationModule",
    "HarmfulFineTuningModule",
    "InstanceSelectionModule",
    "LanguageModelModule",
    "LowRankRealignmentModule",
    "OneShotRealignmentModule",
    "RuleSelectionModule",
    "SelectionModule",
]
