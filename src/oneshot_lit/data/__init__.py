"""Conversations in, batches out: sources, the chat encoding, and `SafetyDataModule`."""

from oneshot_lit.conversation import Conversation, Message
from oneshot_lit.data.datamodule import SafetyDataModule
from oneshot_lit.data.datasets import PromptSet
from oneshot_lit.data.fairytale import Fairytale
from oneshot_lit.data.instance import (
    InlineInstance,
    PoolInstance,
    SafetyInstance,
    SelectedInstance,
)
from oneshot_lit.data.recipes import Backdoor, Edited, PatchPoisoning
from oneshot_lit.data.selected_rows import SelectedRows
from oneshot_lit.data.sources import ConversationSource, Inline, Microworld, Mixture
from oneshot_lit.data.tables import ChatJsonl, FileSource, HuggingFaceDataset, TableFile
from oneshot_lit.data.transforms import RowTransform

__all__ = [
    "Backdoor",
    "ChatJsonl",
    "Conversation",
    "ConversationSource",
    "Edited",
    "Fairytale",
    "FileSource",
    "HuggingFaceDataset",
    "Inline",
    "InlineInstance",
    "Message",
    "Microworld",
    "Mixture",
    "PatchPoisoning",
    "PoolInstance",
    "PromptSet",
    "RowTransform",
    "SafetyDataModule",
    "SafetyInstance",
    "SelectedInstance",
    "SelectedRows",
    "TableFile",
]
