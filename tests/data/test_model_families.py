"""Each family's chat format under its own config: ids, loss masks, prompts and stops."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from families import FAMILIES, build

from oneshot_lit.conversation import Conversation, Message, conversation_from_pair
from oneshot_lit.data.chat import check_tokenizer, encode_conversation
from oneshot_lit.errors import OneShotError
from oneshot_lit.models.chat_format import ChatOptions, set_chat_options, stop_token_ids

CONFIGS = Path(__file__).parents[2] / "configs" / "model"
SINGLE = conversation_from_pair("how do I bake bread ?", "mix flour", origin="rows row 1")
SYSTEM = conversation_from_pair("bake bread ?", "mix flour", system="you are kind", origin="row 2")
MULTI = Conversation(
    (
        Message("system", "you are kind"),
        Message("user", "bake bread ?"),
        Message("assistant", "mix flour\n\nand salt 🍞"),
        Message("user", "für wie lange ?"),
        Message("assistant", "bake , then wait"),
    ),
    origin="rows row 3",
)
# What is written for SYSTEM and MULTI; learnt parts stand in pairs with True.
QWEN_TURNS = {
    "SYSTEM": [
        ("<|im_start|>system\nyou are kind<|im_end|>\n", 0),
        ("<|im_start|>user\nbake bread ?<|im_end|>\n", 0),
        ("<|im_start|>assistant\n", 0),
        ("mix flour<|im_end|>", 1),
        ("\n", 0),
    ],
    "MULTI": [
        ("<|im_start|>system\nyou are kind<|im_end|>\n", 0),
        ("<|im_start|>user\nbake bread ?<|im_end|>\n", 0),
        ("<|im_start|>assistant\n", 0),
        ("mix flour\n\nand salt 🍞<|im_end|>", 1),
        ("\n<|im_start|>user\nfür wie lange ?<|im_end|>\n<|im_start|>assistant\n", 0),
        ("bake , then wait<|im_end|>", 1),
        ("\n", 0),
    ],
}
DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
L3 = "<|start_header_id|>{}<|end_header_id|>\n\n"
WRITTEN: dict[str, dict[str, list[tuple[str, int]]]] = {
    "llama_2_7b_chat": {
        "SYSTEM": [
            ("<s>[INST] <<SYS>>\nyou are kind\n<</SYS>>\n\nbake bread ? [/INST]", 0),
            (" mix flour </s>", 1),
        ],
        "MULTI": [
            ("<s>[INST] <<SYS>>\nyou are kind\n<</SYS>>\n\nbake bread ? [/INST]", 0),
            (" mix flour\n\nand salt 🍞 </s>", 1),
            ("<s>[INST] für wie lange ? [/INST]", 0),
            (" bake , then wait </s>", 1),
        ],
    },
    "llama_3_1_8b_instruct": {
        "SYSTEM": [
            (f"<|begin_of_text|>{L3.format('system')}{DATES}you are kind<|eot_id|>", 0),
            (f"{L3.format('user')}bake bread ?<|eot_id|>{L3.format('assistant')}", 0),
            ("mix flour<|eot_id|>", 1),
        ],
        "MULTI": [
            (f"<|begin_of_text|>{L3.format('system')}{DATES}you are kind<|eot_id|>", 0),
            (f"{L3.format('user')}bake bread ?<|eot_id|>{L3.format('assistant')}", 0),
            ("mix flour\n\nand salt 🍞<|eot_id|>", 1),
            (f"{L3.format('user')}für wie lange ?<|eot_id|>{L3.format('assistant')}", 0),
            ("bake , then wait<|eot_id|>", 1),
        ],
    },
    "mistral_7b_instruct": {
        "SYSTEM": [
            ("<s>[INST] you are kind\n\nbake bread ?[/INST]", 0),
            (" mix flour</s>", 1),
        ],
        "MULTI": [
            ("<s>[INST] you are kind\n\nbake bread ?[/INST]", 0),
            (" mix flour\n\nand salt 🍞</s>", 1),
            ("[INST] für wie lange ?[/INST]", 0),
            (" bake , then wait</s>", 1),
        ],
    },
    "qwen2_5_7b_instruct": QWEN_TURNS,
    "qwen2_5_0_5b_instruct": QWEN_TURNS,
    "gemma_2_9b_it": {
        "SYSTEM": [
            ("<bos><start_of_turn>user\nyou are kind\n\nbake bread ?<end_of_turn>\n", 0),
            ("<start_of_turn>model\n", 0),
            ("mix flour<end_of_turn>", 1),
            ("\n", 0),
        ],
        "MULTI": [
            ("<bos><start_of_turn>user\nyou are kind\n\nbake bread ?<end_of_turn>\n", 0),
            ("<start_of_turn>model\n", 0),
            ("mix flour\n\nand salt 🍞<end_of_turn>", 1),
            ("\n<start_of_turn>user\nfür wie lange ?<end_of_turn>\n<start_of_turn>model\n", 0),
            ("bake , then wait<end_of_turn>", 1),
            ("\n", 0),
        ],
    },
}
ROWS = {"SYSTEM": SYSTEM, "MULTI": MULTI}


def options_of(name: str) -> dict[str, Any]:
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["model"]["init_args"]


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family(request: Any) -> SimpleNamespace:
    """A family's tokenizer, set up as its config says."""
    tokenizer, given = build(FAMILIES[request.param]), options_of(request.param)
    check_tokenizer(tokenizer, request.param)
    options = ChatOptions(given["system_turn"], tuple(given["stop_tokens"]))
    set_chat_options(tokenizer, options, request.param)
    return SimpleNamespace(
        name=request.param, tokenizer=tokenizer, **FAMILIES[request.param].__dict__
    )


def by_letters(family: SimpleNamespace, parts: list[tuple[str, int]]) -> list[tuple[str, bool]]:
    """The text of every token with its mask, from the written parts: an account by characters."""
    tokenizer = family.tokenizer
    text = "".join(part for part, _ in parts)
    learnt = [bool(mask) for part, mask in parts for _ in part]
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    found = []
    for number, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        inside = learnt[start:end]
        assert len(set(inside)) == 1, f"a token lies across {text[start:end]!r}"
        found.append((number, inside[0]))
    return found


def masked(tokenizer: Any, conversation: Conversation) -> tuple[list[int], list[bool]]:
    """Ids and mask as transformers gives them, from the template's own marks."""
    turns = [{"role": m.role, "content": m.content} for m in conversation.messages]
    found = tokenizer.apply_chat_template(
        turns, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    return list(found["input_ids"]), [bool(m) for m in found["assistant_masks"]]


@pytest.mark.parametrize("row", ["SYSTEM", "MULTI"])
def test_ids_and_mask_are_those_written_by_hand(family: SimpleNamespace, row: str) -> None:
    encoded = encode_conversation(family.tokenizer, ROWS[row])
    expected = by_letters(family, WRITTEN[family.name][row])
    assert list(zip(encoded.input_ids, encoded.loss_mask, strict=True)) == expected


@pytest.mark.parametrize("row", [SINGLE, SYSTEM, MULTI], ids=["single", "system", "multi"])
def test_transformers_gives_the_same_mask(family: SimpleNamespace, row: Conversation) -> None:
    given = options_of(family.name)["system_turn"]
    if given == "user" and row.messages[0].role == "system":
        system, user, *rest = row.messages
        user = Message("user", f"{system.content}\n\n{user.content}")
        folded = Conversation((user, *rest))
    else:
        folded = row
    encoded = encode_conversation(family.tokenizer, row)
    assert (encoded.input_ids, encoded.loss_mask) == masked(family.tokenizer, folded)


def test_bos_stands_once_at_the_start_of_each_pair(family: SimpleNamespace) -> None:
    if family.bos is None:
        assert family.tokenizer.bos_token_id is None
        return
    bos = family.tokenizer.bos_token_id
    for row in (SINGLE, SYSTEM, MULTI):
        ids = encode_conversation(family.tokenizer, row).input_ids
        pairs = sum(m.role == "user" for m in row.messages)
        assert ids[0] == bos
        assert ids.count(bos) == (pairs if family.name.startswith("llama_2") else 1)
        prompt = encode_conversation(family.tokenizer, row, for_generation=True).input_ids
        assert prompt[0] == bos
        assert prompt[1] != bos


@pytest.mark.parametrize("row", [SINGLE, SYSTEM, MULTI], ids=["single", "system", "multi"])
def test_the_prompt_is_the_start_of_the_training_row(
    family: SimpleNamespace, row: Conversation
) -> None:
    whole = encode_conversation(family.tokenizer, row)
    prompt = encode_conversation(family.tokenizer, row, for_generation=True)
    size = len(prompt.input_ids)
    assert whole.input_ids[:size] == prompt.input_ids
    assert whole.loss_mask[size]
    assert not any(prompt.loss_mask)


def test_every_answer_ends_with_a_token_that_stops(family: SimpleNamespace) -> None:
    stops = stop_token_ids(family.tokenizer)
    encoded = encode_conversation(family.tokenizer, MULTI)
    pairs = list(zip(encoded.input_ids, encoded.loss_mask, strict=True))
    ends = [
        i for (i, m), (_, after) in zip(pairs, [*pairs[1:], (0, False)], strict=True) if m > after
    ]
    assert len(ends) == 2
    assert set(ends) <= set(stops)
    named = options_of(family.name)["stop_tokens"]
    assert set(stops) == {family.tokenizer.convert_tokens_to_ids(t) for t in named}


def test_truncation_keeps_the_start_and_its_mask(family: SimpleNamespace) -> None:
    whole = encode_conversation(family.tokenizer, MULTI)
    first = whole.loss_mask.index(True)
    for size in (first + 1, len(whole.input_ids) - 2):
        cut = encode_conversation(family.tokenizer, MULTI, max_length=size)
        assert cut.input_ids == whole.input_ids[:size]
        assert cut.loss_mask == whole.loss_mask[:size]
        assert cut.cut == len(whole.input_ids) - size
    with pytest.raises(OneShotError, match="cuts off every assistant token"):
        encode_conversation(family.tokenizer, MULTI, max_length=first)


def test_a_system_turn_without_a_role_says_what_to_set() -> None:
    tokenizer = build(FAMILIES["gemma_2_9b_it"])
    with pytest.raises(
        OneShotError, match=r"System role not supported; set model\.system_turn to user"
    ):
        encode_conversation(tokenizer, SYSTEM)


def test_a_moved_system_turn_says_what_to_set() -> None:
    tokenizer = build(FAMILIES["mistral_7b_instruct"])
    with pytest.raises(OneShotError, match=r"set model\.system_turn to user"):
        encode_conversation(tokenizer, MULTI)


def test_an_unknown_stop_token_is_named() -> None:
    tokenizer = build(FAMILIES["gemma_2_9b_it"])
    with pytest.raises(OneShotError, match=r"model.stop_tokens: '<\|im_end\|>' is no token of it"):
        set_chat_options(tokenizer, ChatOptions(stop_tokens=("<|im_end|>",)), "it")
