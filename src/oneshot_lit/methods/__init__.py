"""LightningModules, one a file; subclass them in your own package."""

from oneshot_lit.methods.alignment.vaccine import Vaccine
from oneshot_lit.methods.attack import HarmfulFineTuningModule
from oneshot_lit.methods.base import LanguageModelModule
from oneshot_lit.methods.finetuning.lisa import Lisa
from oneshot_lit.methods.finetuning.spf import SPF, SPFReleased
from oneshot_lit.methods.posttuning.antidote import Antidote
from oneshot_lit.methods.posttuning.controls import RandomMask, Shrink
from oneshot_lit.methods.posttuning.direction_align import DirectionAlign
from oneshot_lit.methods.posttuning.low_rank.module import LowRankRealignmentModule
from oneshot_lit.methods.posttuning.merge import Merge
from oneshot_lit.methods.posttuning.one_shot import OneShotRealignmentModule
from oneshot_lit.methods.posttuning.pair_edit import PairEdit
from oneshot_lit.methods.posttuning.q_realign import QRealign
from oneshot_lit.methods.posttuning.resta import Resta
from oneshot_lit.methods.posttuning.safe_lora import SafeLoRA
from oneshot_lit.methods.posttuning.safe_merge import SafeMerge
from oneshot_lit.methods.posttuning.weight_edit import WeightEdit
from oneshot_lit.methods.reference import ReferenceModule
from oneshot_lit.methods.select.base import SelectionModule
from oneshot_lit.methods.select.bilevel import InstanceSelectionModule
from oneshot_lit.methods.select.brute_force import BruteForceModule
from oneshot_lit.methods.select.enumeration import EnumerationModule
from oneshot_lit.models.generation import Decoding

__all__ = [
    "SPF",
    "Antidote",
    "BruteForceModule",
    "Decoding",
    "DirectionAlign",
    "EnumerationModule",
    "HarmfulFineTuningModule",
    "InstanceSelectionModule",
    "LanguageModelModule",
    "Lisa",
    "LowRankRealignmentModule",
    "Merge",
    "OneShotRealignmentModule",
    "PairEdit",
    "QRealign",
    "RandomMask",
    "ReferenceModule",
    "Resta",
    "SPFReleased",
    "SafeLoRA",
    "SafeMerge",
    "SelectionModule",
    "Shrink",
    "Vaccine",
    "WeightEdit",
]
