"""Small tokenizers in the manner of each model family, with its special tokens and chat format.

The templates write what the families' published ones write, and mark the answers with
``{% generation %}``, so that transformers can say which tokens an assistant writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "how do I bake bread ? mix flour , water and salt",
    "system user assistant model you are a kind helper",
    "Cutting Knowledge Date: December 2023 Today Date: 26 Jul 2024",
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
]
BYTE_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Family:
    """A family: its tokenizer's kind, special tokens and chat template."""

    kind: str
    special: tuple[str, ...]
    template: str
    bos: str | None
    eos: str
    pad: str | None = None
    legacy_space: bool = False


def build(family: Family) -> Any:
    """Train the family's small tokenizer."""
    core, alphabet = _bytes() if family.kind == "bytes" else _pieces(family.legacy_space)
    special = [AddedToken(t, special=True, normalized=False) for t in family.special]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=family.bos,
        eos_token=family.eos,
        pad_token=family.pad,
        chat_template=family.template,
        clean_up_tokenization_spaces=False,
    )


def _bytes() -> tuple[Any, list[str]]:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(BYTE_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    return core, sorted(pre_tokenizers.ByteLevel.alphabet())


def _pieces(legacy_space: bool) -> tuple[Any, list[str]]:
    """As SentencePiece: a space is part of the word behind it; unknown letters become bytes."""
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    spaces = [normalizers.Replace(" ", "▁")]
    if legacy_space:
        # Each piece of text between special tokens gets a space of its own.
        spaces = [normalizers.Prepend("▁"), *spaces]
    core.normalizer = normalizers.Sequence(spaces)
    core.pre_tokenizer = pre_tokenizers.Split(Regex("▁[^▁\n]*|\n+|[^▁\n]+"), "isolated")
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    letters = [chr(i) for i in range(33, 127)] + ["▁", "\n"]
    return core, letters


_BYTE_PIECES = tuple(f"<0x{i:02X}>" for i in range(256))

LLAMA_2 = Family(
    "pieces",
    ("<unk>", "<s>", "</s>", *_BYTE_PIECES),
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
    "{% set turns = messages[1:] %}{% else %}{% set system = none %}{% set turns = messages %}"
    "{% endif %}{% for m in turns %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% set text = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + m.content "
    "if loop.first and system is not none else m.content %}"
    "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + text.strip() + ' [/INST]' }}"
    "{% else %}{% generation %}{{ ' ' + text.strip() + ' ' + eos_token }}{% endgeneration %}"
    "{% endif %}{% endfor %}",
    "<s>",
    "</s>",
    legacy_space=True,
)
LLAMA_3 = Family(
    "bytes",
    (
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eom_id|>",
        "<|eot_id|>",
        "<|finetune_right_pad_id|>",
    ),
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{% set system = messages[0].content | trim %}{% set turns = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\n' }}"
    "{{ 'Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n' }}"
    "{{ system + '<|eot_id|>' }}{% for m in turns %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
    "{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content | trim + '<|eot_id|>' }}{% endgeneration %}"
    "{% else %}{{ m.content | trim + '<|eot_id|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    "<|begin_of_text|>",
    "<|eot_id|>",
    "<|finetune_right_pad_id|>",
)
# The system turn goes to the last user turn, as in the newest published template.
MISTRAL = Family(
    "pieces",
    ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", *_BYTE_PIECES),
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{% set system = messages[0].content %}{% set turns = messages[1:] %}"
    "{% else %}{% set system = none %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}{% if m.role == 'user' %}"
    "{% if loop.last and system is not none %}"
    "{{ '[INST] ' + system + '\n\n' + m.content + '[/INST]' }}"
    "{% else %}{{ '[INST] ' + m.content + '[/INST]' }}{% endif %}"
    "{% else %}{% generation %}{{ ' ' + m.content | trim + eos_token }}{% endgeneration %}"
    "{% endif %}{% endfor %}",
    "<s>",
    "</s>",
)
QWEN = Family(
    "bytes",
    ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    "{% if messages[0].role == 'system' %}{% set turns = messages %}{% else %}"
    "{{ '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. "
    "You are a helpful assistant.<|im_end|>\n' }}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    None,
    "<|im_end|>",
    "<|endoftext|>",
)
GEMMA = Family(
    "pieces",
    ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", *_BYTE_PIECES),
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% set role = 'model' if m.role == 'assistant' else m.role %}"
    "{{ '<start_of_turn>' + role + '\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content | trim + '<end_of_turn>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ m.content | trim + '<end_of_turn>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
    "<bos>",
    "<eos>",
    "<pad>",
)
FAMILIES = {
    "llama_2_7b_chat": LLAMA_2,
    "llama_3_1_8b_instruct": LLAMA_3,
    "mistral_7b_instruct": MISTRAL,
    "qwen2_5_7b_instruct": QWEN,
    "qwen2_5_0_5b_instruct": QWEN,
    "gemma_2_9b_it": GEMMA,
}
