"""SafeR-CLIP: safety of a CLIP model, with data and losses of its own."""

from oneshot_lit.methods.safer_clip.clip_module import ClipModule
from oneshot_lit.methods.safer_clip.data import QuadrupleData
from oneshot_lit.methods.safer_clip.losses import TermWeights
from oneshot_lit.methods.safer_clip.module import SaferClipModule
from oneshot_lit.methods.safer_clip.patches import Patches
from oneshot_lit.methods.safer_clip.quadruples import Quadruple, QuadrupleFile, QuadrupleSource

__all__ = [
    "ClipModule",
    "Patches",
    "Quadruple",
    "QuadrupleData",
    "QuadrupleFile",
    "QuadrupleSource",
    "SaferClipModule",
    "TermWeights",
]
