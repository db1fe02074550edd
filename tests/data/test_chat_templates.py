"""Other templates: what is learnt in ChatML and Llama 3 style, and which templates are refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import ByT5Tokenizer

from oneshot_lit.conversation import Conversation, Message, conversation_from_pair
from oneshot_lit.data.chat import check_tokenizer, encode_conversation
from oneshot_lit.microworld.tokenizer import CHAT_TEMPLATE
from oneshot_lit.models.chat_format import stop_token_ids

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + "
    "'<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MULTI = Conversation(
    (
        Message("system", "you are a kind helper"),
        Message("user", "how do I bake bread ?"),
        Message("assistant", "mix flour,\n\nwait; then bake it."),
        Message("user", "für wie lange? 🍞"),
        Message("assistant", "eine Stunde ⏲!"),
    ),
    origin="rows.jsonl row 3",
)
SINGLE = conversation_from_pair("how do I bake bread ?", "mix flour", origin="rows.jsonl row 4")


@pytest.fixture(params=[False, True], ids=["offsets", "trimmed offsets"])
def chatml(bpe_tokenizer, request) -> Any:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return bpe_tokenizer(
        CHATML, special, trim_offsets=request.param, eos_token="<|endoftext|>", pad_token=special[0]
    )


@pytest.fixture(params=[False, True], ids=["offsets", "trimmed offsets"])
def llama3(bpe_tokenizer, request) -> Any:
    headers = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    return bpe_tokenizer(
        LLAMA3,
        ["<|begin_of_text|>", "<|end_of_text|>", *headers],
        trim_offsets=request.param,
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
    )


def joined(tokenizer: Any, parts: list[tuple[str, bool]]) -> tuple[list[int], list[bool]]:
    """Tokenise hand-written parts one by one; each says whether it is learnt."""
    ids: list[int] = []
    mask: list[bool] = []
    for text, learnt in parts:
        piece = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids += piece
        mask += [learnt] * len(piece)
    return ids, mask


def test_chatml_learns_the_end_of_turn_but_not_the_newline_after_it(chatml) -> None:
    encoded = encode_conversation(chatml, MULTI)
    assert (encoded.input_ids, encoded.loss_mask) == joined(
        chatml,
        [
            ("<|im_start|>system\nyou are a kind helper<|im_end|>\n", False),
            ("<|im_start|>user\nhow do I bake bread ?<|im_end|>\n", False),
            ("<|im_start|>assistant\n", False),
            ("mix flour,\n\nwait; then bake it.<|im_end|>", True),
            ("\n<|im_start|>user\nfür wie lange? 🍞<|im_end|>\n", False),
            ("<|im_start|>assistant\n", False),
            ("eine Stunde ⏲!<|im_end|>", True),
            ("\n", False),
        ],
    )


def test_llama3_learns_answers_and_their_end_of_turn(llama3) -> None:
    encoded = encode_conversation(llama3, MULTI)
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    assert (encoded.input_ids, encoded.loss_mask) == joined(
        llama3,
        [
            ("<|begin_of_text|>" + header.format("system"), False),
            ("you are a kind helper<|eot_id|>", False),
            (header.format("user") + "how do I bake bread ?<|eot_id|>", False),
            (header.format("assistant"), False),
            ("mix flour,\n\nwait; then bake it.<|eot_id|>", True),
            (header.format("user") + "für wie lange? 🍞<|eot_id|>", False),
            (header.format("assistant"), False),
            ("eine Stunde ⏲!<|eot_id|>", True),
        ],
    )


def test_white_space_tokens_inside_an_answer_are_learnt(llama3, chatml) -> None:
    answer = "mix flour   \n\n    then\tbake  it"
    for tokenizer, end in ((llama3, "<|eot_id|>"), (chatml, "<|im_end|>")):
        encoded = encode_conversation(tokenizer, conversation_from_pair("bread ?", answer))
        pairs = zip(encoded.input_ids, encoded.loss_mask, strict=True)
        assert tokenizer.decode([i for i, on in pairs if on]) == answer + end


def test_rows_start_with_the_prompt_that_is_given_to_generate(chatml, llama3) -> None:
    for tokenizer in (chatml, llama3):
        for conversation in (SINGLE, MULTI):
            row = encode_conversation(tokenizer, conversation).input_ids
            prompt = encode_conversation(tokenizer, conversation, for_generation=True).input_ids
            assert row[: len(prompt)] == prompt


def test_without_an_end_of_turn_the_answer_runs_to_its_end(bpe_tokenizer) -> None:
    template = (
        "{% for m in messages %}{{ m.role + ':\n' + m.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:\n' }}{% endif %}"
    )
    tokenizer = bpe_tokenizer(template, ["<pad>"], pad_token="<pad>")
    encoded = encode_conversation(tokenizer, SINGLE)
    learnt = [i for i, on in zip(encoded.input_ids, encoded.loss_mask, strict=True) if on]
    assert tokenizer.decode(learnt).lstrip() == "mix flour\n"
    assert stop_token_ids(tokenizer) == []


NO_END = (
    "{% for m in messages %}{{ m.role + ':\n' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:\n' }}{% endif %}"
)
ADDED = ["   ", "<think>", "</think>", "\n"]


def learnt_text(tokenizer: Any, conversation: Conversation) -> str:
    encoded = encode_conversation(tokenizer, conversation)
    pairs = zip(encoded.input_ids, encoded.loss_mask, strict=True)
    return tokenizer.decode([i for i, on in pairs if on])


@pytest.mark.parametrize("trim", [False, True], ids=["offsets", "trimmed offsets"])
@pytest.mark.parametrize(
    "answer",
    [
        "mix   flour",
        "<think>how</think>mix flour",
        "mix flour then <think>",
        "mix\nflour",
        "mix flour   ",
        "   mix flour",
    ],
)
def test_added_tokens_inside_an_answer_end_no_turn(bpe_tokenizer, answer: str, trim: bool) -> None:
    tokenizer = bpe_tokenizer(NO_END, ["<pad>"], trim_offsets=trim, pad_token="<pad>")
    tokenizer.add_tokens(ADDED)
    conversation = conversation_from_pair("bread ?", answer)
    assert learnt_text(tokenizer, conversation).strip() == answer.strip()
    row = encode_conversation(tokenizer, conversation)
    size = len(encode_conversation(tokenizer, conversation, for_generation=True).input_ids)
    # Without an end of turn the answer runs to its end, and its newline is all that ends it.
    assert row.loss_mask[size:] == [True] * (len(row.input_ids) - size)
    assert stop_token_ids(tokenizer) == []


@pytest.mark.parametrize("answer", ["mix   flour", "<think>how</think>mix\nflour", "end", "im_end"])
def test_added_tokens_leave_an_end_of_turn_as_it_is(chatml, llama3, answer: str) -> None:
    for tokenizer, end in ((chatml, "<|im_end|>"), (llama3, "<|eot_id|>")):
        tokenizer.add_tokens(ADDED)
        assert learnt_text(tokenizer, conversation_from_pair("bread ?", answer)) == answer + end
        assert stop_token_ids(tokenizer)[0] == tokenizer.convert_tokens_to_ids(end)


def test_a_message_that_the_template_rewrites_still_ends_at_its_mark(bpe_tokenizer) -> None:
    template = CHATML.replace("m.content", "m.content | upper")
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = bpe_tokenizer(template, special, eos_token="<|endoftext|>")
    assert learnt_text(tokenizer, SINGLE) == "MIX FLOUR<|im_end|>"


def test_stop_tokens_are_the_end_of_turn_and_every_eos(chatml, llama3, world_tokenizer) -> None:
    ids = chatml.convert_tokens_to_ids
    assert stop_token_ids(chatml) == [ids("<|im_end|>"), ids("<|endoftext|>")]
    config = SimpleNamespace(eos_token_id=[7, llama3.convert_tokens_to_ids("<|eot_id|>")])
    ids = llama3.convert_tokens_to_ids
    assert stop_token_ids(llama3, config) == [ids("<|eot_id|>"), ids("<|end_of_text|>"), 7]
    assert stop_token_ids(world_tokenizer) == [world_tokenizer.eos_token_id]


# --------------------------------------------------------------------- refusals


def test_two_bos_at_the_start_are_refused(own_world_tokenizer, mistake_of) -> None:
    own_world_tokenizer.chat_template = "{{ bos_token }}" + CHAT_TEMPLATE
    assert "second BOS" in mistake_of(check_tokenizer, own_world_tokenizer, "models/mine")
    for generation in (False, True):
        message = mistake_of(
            encode_conversation, own_world_tokenizer, SINGLE, for_generation=generation
        )
        assert message.startswith("rows.jsonl row 4: ")
        assert "second BOS" in message
        assert "<|begin|>" in message


def test_a_bos_at_the_start_and_before_its_turn_is_refused(own_world_tokenizer, mistake_of) -> None:
    own_world_tokenizer.chat_template = CHAT_TEMPLATE.replace("{{ '<|' +", "{{ bos_token + '<|' +")
    message = mistake_of(check_tokenizer, own_world_tokenizer, "models/mine")
    assert message.startswith("models/mine: ")
    assert "second BOS" in message


def test_a_generation_prompt_that_no_row_has_is_refused(own_world_tokenizer, mistake_of) -> None:
    template = CHAT_TEMPLATE.replace(
        "{{ '<|assistant|>' }}{% endif %}", "{{ bos_token + '<|assistant|>' }}{% endif %}"
    )
    assert template != CHAT_TEMPLATE
    own_world_tokenizer.chat_template = template
    message = mistake_of(encode_conversation, own_world_tokenizer, SINGLE)
    assert message.startswith("rows.jsonl row 4: the chat template renders a turn differently")


def test_bos_that_is_also_the_end_of_turn_is_no_second_bos(bpe_tokenizer) -> None:
    template = (
        "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '' }}{% endif %}"
    )
    end = "<|endoftext|>"
    tokenizer = bpe_tokenizer(template, [end], bos_token=end, eos_token=end)
    check_tokenizer(tokenizer, "gpt")
    encoded = encode_conversation(tokenizer, SINGLE)
    assert encoded.input_ids[-1] == tokenizer.eos_token_id
    assert encoded.loss_mask[-1]


def test_no_chat_template(own_world_tokenizer, mistake_of) -> None:
    own_world_tokenizer.chat_template = None
    message = mistake_of(check_tokenizer, own_world_tokenizer, "models/base")
    assert message.startswith("models/base: ")
    assert "chat template" in message


def test_slow_tokenizer(mistake_of) -> None:
    slow = ByT5Tokenizer(chat_template=CHAT_TEMPLATE)
    message = mistake_of(check_tokenizer, slow, "models/slow")
    assert message.startswith("models/slow: ")
    assert "fast tokenizer" in message


def test_padding_token_falls_back_to_eos(bpe_tokenizer, mistake_of) -> None:
    tokenizer = bpe_tokenizer(CHATML, ["<|im_end|>"], eos_token="<|im_end|>")
    check_tokenizer(tokenizer, "mine")
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    bare = bpe_tokenizer(CHATML, ["<|im_end|>"])
    assert mistake_of(check_tokenizer, bare, "bare").startswith("bare: ")


def test_a_template_that_raises_is_quoted_with_the_row(own_world_tokenizer, mistake_of) -> None:
    own_world_tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}"
        "{{ raise_exception('no system role,\nplease') }}{% endif %}" + CHAT_TEMPLATE
    )
    encode_conversation(own_world_tokenizer, SINGLE)
    message = mistake_of(encode_conversation, own_world_tokenizer, MULTI)
    assert message.startswith("rows.jsonl row 3: ")
    assert "no system role, please" in message


def test_a_broken_template_is_one_line(own_world_tokenizer, mistake_of) -> None:
    own_world_tokenizer.chat_template = "{% for m in messages %}"
    assert mistake_of(check_tokenizer, own_world_tokenizer, "models/x").startswith("models/x: ")


def test_a_template_that_rewrites_earlier_turns_is_refused(world_tokenizer, mistake_of) -> None:
    # As reasoning templates do: earlier answers are shortened once a new turn follows.
    template = CHAT_TEMPLATE.replace(
        "message['content'] | trim + '<|end|>' }}{% endgeneration %}",
        "(message['content'] if loop.last else '') + '<|end|>' }}{% endgeneration %}",
    )
    assert template != CHAT_TEMPLATE
    tokenizer = type(world_tokenizer)(
        tokenizer_object=world_tokenizer.backend_tokenizer,
        bos_token="<|begin|>",
        eos_token="<|end|>",
        chat_template=template,
    )
    encode_conversation(tokenizer, SINGLE)
    message = mistake_of(encode_conversation, tokenizer, MULTI)
    assert message.startswith("rows.jsonl row 3: ")
    assert "differently once its answer" in message
