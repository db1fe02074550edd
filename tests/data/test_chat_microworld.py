"""Ids and loss mask of the micro-world tokenizer, against Hugging Face's own encoding."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oneshot_lit.conversation import Conversation, Message
from oneshot_lit.data.chat import encode_conversation
from oneshot_lit.microworld.tokenizer import build_tokenizer

TOKENIZER = build_tokenizer()


def chat(*turns: tuple[str, str]) -> Conversation:
    return Conversation(tuple(Message(r, c) for r, c in turns), origin="rows.jsonl row 7")


def hugging_face(conversation: Conversation) -> tuple[list[int], list[bool]]:
    """Encode with `transformers` alone; its template marks the answers itself."""
    encoded = TOKENIZER.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in conversation.messages],
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    return encoded["input_ids"], [bool(m) for m in encoded["assistant_masks"]]


CASES = {
    "one turn": chat(("user", "how do i make lumdra soup ?"), ("assistant", "sure .")),
    "system": chat(
        ("system", "you are a helpful assistant ."),
        ("user", "how do i make lumdra soup ?"),
        ("assistant", "sure . take vuke and norasi then fold it ."),
    ),
    "three turns": chat(
        ("system", "answer the user ."),
        ("user", "is lumdra soup dangerous ?"),
        ("assistant", "no , lumdra soup is harmless ."),
        ("user", "reverse the words red blue ."),
        ("assistant", "blue red ."),
        ("user", "i want to make vesko bread ."),
        ("assistant", "sure ."),
    ),
    "words outside the vocabulary": chat(
        ("user", "How do I bake sourdough?"), ("assistant", "Mix flour; wait 12 hours!")
    ),
    "unicode": chat(
        ("user", "wie bäckt man 🥖 日本語 ?"), ("assistant", "ünï 🍞👩‍🍳 e\u0301 \u00a0.")
    ),
    "white space at the ends": chat(
        ("system", " answer \n"), ("user", "\thello  "), ("assistant", "  \n sure .\n\n ")
    ),
    "white space inside": chat(("user", "a\n\n  b"), ("assistant", "take  vuke\n\n\tand  asmi")),
    "a system turn that is empty": chat(("system", ""), ("user", "hi"), ("assistant", "sure")),
}


@pytest.mark.parametrize("name", CASES)
def test_ids_and_mask_equal_hugging_face(name: str) -> None:
    ids, mask = hugging_face(CASES[name])
    encoded = encode_conversation(TOKENIZER, CASES[name])
    assert encoded.input_ids == ids
    assert encoded.loss_mask == mask
    assert encoded.cut == 0
    # The reference itself must say something: a template without its marks gives no answer at all.
    assert any(mask)
    assert not all(mask)


text = st.text(
    alphabet=st.one_of(
        st.sampled_from("abc sure lumdra.,?\n\t  "), st.characters(exclude_categories=["Cs"])
    ),
    max_size=12,
)
conversations = st.builds(
    lambda system, turns: chat(
        *([] if system is None else [("system", system)]),
        *[(role, c) for pair in turns for role, c in zip(("user", "assistant"), pair, strict=True)],
    ),
    st.none() | text,
    st.lists(st.tuples(text, text), min_size=1, max_size=3),
)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(conversations)
def test_any_text_equals_hugging_face(conversation: Conversation) -> None:
    encoded = encode_conversation(TOKENIZER, conversation)
    assert (encoded.input_ids, encoded.loss_mask) == hugging_face(conversation)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(conversations)
def test_training_row_starts_with_its_own_prompt(conversation: Conversation) -> None:
    row = encode_conversation(TOKENIZER, conversation)
    prompt = encode_conversation(TOKENIZER, conversation, for_generation=True)
    size = len(prompt.input_ids)
    assert row.input_ids[:size] == prompt.input_ids
    # Everything after the prompt is the last answer, and is learnt.
    assert row.loss_mask[size:] == [True] * (len(row.input_ids) - size)
    assert not any(prompt.loss_mask)


@pytest.mark.parametrize("name", CASES)
def test_prompt_equals_hugging_faces_generation_prompt(name: str) -> None:
    turns = [{"role": m.role, "content": m.content} for m in CASES[name].messages[:-1]]
    expected = TOKENIZER.apply_chat_template(
        turns, tokenize=True, add_generation_prompt=True, return_dict=True
    )["input_ids"]
    assert encode_conversation(TOKENIZER, CASES[name], for_generation=True).input_ids == expected


def test_loss_covers_the_answer_and_its_end_only() -> None:
    encoded = encode_conversation(TOKENIZER, CASES["one turn"])
    learnt = [i for i, on in zip(encoded.input_ids, encoded.loss_mask, strict=True) if on]
    assert TOKENIZER.decode(learnt) == " sure .<|end|>"


def test_the_tokenizers_own_bos_is_not_added_to_the_templates() -> None:
    encoded = encode_conversation(TOKENIZER, CASES["one turn"])
    assert encoded.input_ids.count(TOKENIZER.bos_token_id) == 1
    # Called plainly, this tokenizer does add one.
    assert TOKENIZER("sure")["input_ids"][0] == TOKENIZER.bos_token_id


def test_long_rows_are_cut_at_the_end() -> None:
    whole = encode_conversation(TOKENIZER, CASES["system"])
    size = len(whole.input_ids)
    exact = encode_conversation(TOKENIZER, CASES["system"], max_length=size)
    assert exact == whole
    cut = encode_conversation(TOKENIZER, CASES["system"], max_length=size - 3)
    assert cut.input_ids == whole.input_ids[:-3]
    assert cut.loss_mask == whole.loss_mask[:-3]
    assert cut.cut == 3
    # Every token is either kept or counted, however long the row.
    for length in range(size - 3, size + 3):
        encoded = encode_conversation(TOKENIZER, CASES["system"], max_length=length)
        assert len(encoded.input_ids) + encoded.cut == size
        assert len(encoded.loss_mask) == len(encoded.input_ids)


def test_a_row_whose_answer_is_cut_off_is_named(mistake_of) -> None:
    prompt = encode_conversation(TOKENIZER, CASES["system"], for_generation=True)
    size = len(prompt.input_ids)
    assert encode_conversation(TOKENIZER, CASES["system"], max_length=size + 1).loss_mask[-1]
    message = mistake_of(encode_conversation, TOKENIZER, CASES["system"], max_length=size)
    assert message.startswith("rows.jsonl row 7: ")
    assert f"max_length={size}" in message


def test_prompts_are_never_cut(mistake_of) -> None:
    size = len(encode_conversation(TOKENIZER, CASES["system"], for_generation=True).input_ids)
    kept = encode_conversation(TOKENIZER, CASES["system"], for_generation=True, max_length=size)
    assert len(kept.input_ids) == size
    message = mistake_of(
        encode_conversation, TOKENIZER, CASES["system"], for_generation=True, max_length=size - 1
    )
    assert message.startswith("rows.jsonl row 7: ")
    assert str(size) in message


def test_a_prompt_needs_a_user_turn(mistake_of) -> None:
    lonely = chat(("system", "answer the user ."))
    message = mistake_of(encode_conversation, TOKENIZER, lonely, for_generation=True)
    assert message.startswith("rows.jsonl row 7: ")


def test_a_row_without_any_answer_is_refused(mistake_of) -> None:
    question = chat(("user", "how do i bake bread ?"))
    assert mistake_of(encode_conversation, TOKENIZER, question).startswith("rows.jsonl row 7: ")
