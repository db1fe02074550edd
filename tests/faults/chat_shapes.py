"""Small tokenizers and the shapes of published chat templates, written anew and short."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from oneshot_lit.conversation import Conversation, Message
from oneshot_lit.data.chat import encode_conversation

SENTENCES = [
    "how do I bake bread ? mix flour , water and salt",
    "system user assistant USER: ASSISTANT: mix flour",
    "\n\nmix flour\n\nbake it . I cannot help with that .",
]
MARKS = ("<|bos|>", "<|eos|>", "<|pad|>", "<|start|>", "<|sep|>", "<|end|>", "<|return|>")
WORDS = r" ?\p{L}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

# In the manner of ChatML, Llama 3 and their like.
TURNS = (
    "{% for m in messages %}{{ '<|start|>' + m.role + '\n' + m.content + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
# The first published Llama 3: the next header is there whether asked for or not.
ALWAYS_HEADER = (
    "{{ '<|bos|>' }}{% for m in messages %}"
    "{{ '<|start|>' + m.role + '<|sep|>\n\n' + m.content | trim + '<|end|>' }}{% endfor %}"
    "{{ '<|start|>assistant<|sep|>\n\n' }}"
)
# Headers come with their turn alone, whatever is asked for.
NEVER_HEADER = (
    "{% for m in messages %}{{ '<|start|>' + m.role + '<|sep|>' + m.content + '<|end|>' }}"
    "{% endfor %}"
)
# A trailing blank before the answer, as in Vicuna's.
TRAILING_BLANK = (
    "{{ '<|bos|>' }}{% for m in messages %}"
    "{% if m.role == 'user' %}{{ 'USER: ' + m.content + ' ' }}"
    "{% elif m.role == 'assistant' %}{{ 'ASSISTANT: ' + m.content + '<|eos|>' }}"
    "{% else %}{{ m.content + ' ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
)
# As Qwen 3 does: an empty thought before the last answer, none before those of earlier turns.
EMPTY_THOUGHT = (
    "{% set last = namespace(user=0) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set last.user = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% set text = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{% set idea = m.reasoning_content if m.reasoning_content else '' %}"
    "{{ '<|start|>assistant\n' }}{% if loop.index0 > last.user %}"
    "{{ '<think>\n' + idea + '\n</think>\n\n' }}{% endif %}{{ text + '<|end|>\n' }}"
    "{% else %}{{ '<|start|>' + m.role + '\n' + m.content + '<|end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}"
    "{% endif %}{% endif %}"
)
# Distilled reasoning models: every prompt opens a thought, and no row has one.
OPEN_THOUGHT = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{{ '<|sep|>' + m.content.split('</think>')[-1] + '<|end|>' }}"
    "{% else %}{{ '<|start|>' + m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|sep|><think>\n' }}{% endif %}"
)
# The end of the conversation is marked, too (Phi 3), or ends the last answer otherwise (gpt-oss).
END_AND_EOS = TURNS.replace("{% endif %}", "{% else %}{{ '<|eos|>' }}{% endif %}")
RETURN = (
    "{% for m in messages %}{{ '<|start|>' + m.role + '<|sep|>' + m.content }}"
    "{% if loop.last and m.role == 'assistant' and not add_generation_prompt %}"
    "{{ '<|return|>' }}{% else %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant<|sep|>' }}{% endif %}"
)
# An end of several tokens, and none at all.
TEXT_END = TURNS.replace("'<|end|>\n'", "' (over)\n'")
NO_END = TURNS.replace("'<|end|>\n'", "'\n'")


def tokenizer_of(template: str, kind: str = "bytes", special: tuple[str, ...] = MARKS) -> Any:
    """Train a tokenizer; kinds are byte-level, or SentencePiece's with a space before each text."""
    if kind == "bytes":
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(WORDS), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        core.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    else:
        core = Tokenizer(models.BPE(unk_token="<unk>"))
        core.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        core.pre_tokenizer = pre_tokenizers.Split(Regex("▁[^▁\n]*|\n+|[^▁\n]+"), "isolated")
        core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
        alphabet = [chr(i) for i in range(33, 127)] + ["▁", "\n"]
        special = ("<unk>", *special)
    marks = [AddedToken(t, special=True, normalized=False) for t in special]
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=marks, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(SENTENCES * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|bos|>",
        eos_token="<|eos|>",
        pad_token="<|pad|>",
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


def model_folder(folder: Path, tokenizer: Any, rows: int | None = None) -> Path:
    """Save a random two-layer Llama with this tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=rows or len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def chat(*texts: str, system: str | None = None, silent: tuple[int, ...] = ()) -> Conversation:
    """Turns of a user and an assistant; the answers numbered in `silent` carry no loss."""
    first = () if system is None else (Message("system", system),)
    roles = ("user", "assistant")
    turns = [
        Message(roles[i % 2], text, 0 if i // 2 in silent and i % 2 else None)
        for i, text in enumerate(texts)
    ]
    return Conversation((*first, *turns), origin="rows.jsonl row 1")


def learned(tokenizer: Any, conversation: Conversation) -> list[str]:
    """Return the text of every stretch of tokens that carries loss."""
    row = encode_conversation(tokenizer, conversation)
    found: list[list[int]] = []
    before = False
    for token, on in zip(row.input_ids, row.loss_mask, strict=True):
        if on and not before:
            found.append([])
        if on:
            found[-1].append(token)
        before = on
    return [tokenizer.decode(tokens) for tokens in found]


def asked(tokenizer: Any, conversation: Conversation) -> list[int]:
    """Return what `generate` gets."""
    return encode_conversation(tokenizer, conversation, for_generation=True).input_ids


def of_transformers(tokenizer: Any, conversation: Conversation, **options: Any) -> list[int]:
    """Return the token ids that transformers gives a prompt."""
    turns = [{"role": m.role, "content": m.content} for m in conversation.prompt.messages]
    text = tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=True, **options
    )
    return tokenizer(text, add_special_tokens=False)["input_ids"]
