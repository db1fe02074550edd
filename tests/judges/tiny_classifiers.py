"""Tiny classifiers, made on the spot: one that answers yes or no by what it reads, one that says a
given text, and one with a head."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

SPECIAL = ["<unk>", "<pad>", "<s>", "</s>"]
REPLIES = ["yes", "no", "safe", "unsafe", "S1", ",S7", "\n", "maybe"]
# As Llama Guard's: the conversation, then the mark of the turn in which the verdict stands.
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} {% endfor %}"
    "[verdict]"
)
MARKS = ["[verdict]", "[user]", "[assistant]"]


def tokenizer(template: bool = True) -> PreTrainedTokenizerFast:
    # Characters, so that every text has its own tokens; replies are tokens of their own.
    words = [*SPECIAL, *REPLIES, *MARKS]
    letters = [chr(c) for c in range(32, 127) if chr(c) not in words]
    vocabulary = {word: n for n, word in enumerate([*words, *letters])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )
    made.add_special_tokens({"additional_special_tokens": MARKS})
    made.chat_template = TEMPLATE if template else None
    return made


def _config(size: int, **more: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=2048,
        initializer_range=0.5,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=1,
        **more,
    )


def save_choosing(folder: Path, among: Sequence[str] = ("yes", "no"), **options: Any) -> Path:
    """Save a causal model that says one of two words, depending on all that it reads."""
    words = tokenizer(**options)
    torch.manual_seed(0)
    model = LlamaForCausalLM(_config(len(words)))
    ids = words.convert_tokens_to_ids(list(among))
    texts = [f"{'how ' * (n % 7)}{n} {'an answer ' * (n % 11)} Answer: [/INST]" for n in range(30)]
    with torch.no_grad():
        seen = [model.model(**words(text, return_tensors="pt"))[0][0, -1] for text in texts]
        mean = torch.stack(seen).mean(0)
        # Where the texts differ most, and 0 in their middle, so that both words are said.
        row = torch.linalg.svd(torch.stack(seen) - mean).Vh[0]
        row = row - mean * (row @ mean) / (mean @ mean)
        model.lm_head.weight.zero_()
        model.lm_head.weight[ids[0]], model.lm_head.weight[ids[1]] = row, -row
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def save_saying(folder: Path, says: Sequence[str]) -> Path:
    """Save a causal model that says these tokens after its verdict mark, whatever it reads."""
    words = tokenizer()
    model = LlamaForCausalLM(_config(len(words)))
    following = words.convert_tokens_to_ids(["[verdict]", *says, "</s>"])
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        # Only the last token is seen; each points at the next.
        model.model.embed_tokens.weight.normal_(0, 0.001)
        model.lm_head.weight.zero_()
        for n, (token, after) in enumerate(itertools.pairwise(following)):
            model.model.embed_tokens.weight[token] = torch.nn.functional.one_hot(
                torch.tensor(n), 32
            ).float()
            model.lm_head.weight[after, n] = 10.0
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def save_head(folder: Path, labels: Sequence[str]) -> Path:
    """Save a classifier with one probability for each label."""
    words = tokenizer()
    torch.manual_seed(0)
    config = _config(len(words), num_labels=len(labels), problem_type="multi_label_classification")
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: n for n, label in enumerate(labels)}
    model = LlamaForSequenceClassification(config)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder
