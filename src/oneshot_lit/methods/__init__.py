"""LightningModules, one a file; subclass them in your own package."""

from oneshot_lit.methods.alignment.vaccine import Vaccine
from oneshot_lit.methods.annotate.base import Annotation
from oneshot_lit.methods.annotate.guards import (
    ClassifierGuard,
    Guard,
    KeywordGuard,
    RefusalGuard,
)
from oneshot_lit.methods.annotate.log_probabilities import LogProbabilities
from oneshot_lit.methods.annotate.star import StarScores
from oneshot_lit.methods.annotate.token_scores import TokenScores
from oneshot_lit.methods.attack import HarmfulFineTuningModule
from oneshot_lit.methods.base import LanguageModelModule
from oneshot_lit.methods.finetuning.backdoor_align import BackdoorAlign, BackdoorAlignRows
from oneshot_lit.methods.finetuning.constrained_sft import ConstrainedSFT
from oneshot_lit.methods.finetuning.lisa import Lisa
from oneshot_lit.methods.finetuning.lookahead import LookAhead
from oneshot_lit.methods.finetuning.spf import SPF, SPFReleased
from oneshot_lit.methods.finetuning.star_dss import StarDSS
from oneshot_lit.methods.finetuning.toss import Toss, TossTokens
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
from oneshot_lit.methods.select.seal import Seal
from oneshot_lit.models.generation import Decoding

__all__ = [
    "SPF",
    "Annotation",
    "Antidote",
    "BackdoorAlign",
    "BackdoorAlignRows",
    "BruteForceModule",
    "ClassifierGuard",
    "ConstrainedSFT",
    "Decoding",
    "DirectionAlign",
    "EnumerationModule",
    "Guard",
    "HarmfulFineTuningModule",
    "InstanceSelectionModule",
    "KeywordGuard",
    "LanguageModelModule",
    "Lisa",
    "LogProbabilities",
    "LookAhead",
    "LowRankRealignmentModule",
    "Merge",
    "OneShotRealignmentModule",
    "PairEdit",
    "QRealign",
    "RandomMask",
    "ReferenceModule",
    "RefusalGuard",
    "Resta",
    "SPFReleased",
    "SafeLoRA",
    "SafeMerge",
    "Seal",
    "SelectionModule",
    "Shrink",
    "StarDSS",
    "StarScores",
    "TokenScores",
    "Toss",
    "TossTokens",
    "Vaccine",
    "WeightEdit",
]
