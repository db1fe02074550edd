"""The chat encoding on published tokenizers with their own templates.

`make fetch` fetches them; without them these tests are skipped. Expected values are from
`apply_chat_template`, or put together from texts.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoTokenizer

from experiments.fetch import TOKENIZERS, published
from oneshot_lit.conversation import Conversation, Message
from oneshot_lit.data.chat import check_tokenizer, encode_conversation, encode_training
from oneshot_lit.models.chat_format import ChatOptions, set_chat_options, stop_token_ids

# What ends an answer.
ENDS = {
    "deepseek_v3": "<｜end▁of▁sentence｜>",  # noqa: RUF001
    "gemma3": "<end_of_turn>",
    "llama3": "<|eot_id|>",
    "llama3_1": "<|eot_id|>",
    "qwen3": "<|im_end|>",
}
pytestmark = pytest.mark.slow
_REAL = Path(__file__).parents[2] / "configs" / "realign" / "real.yaml"
BUILT_IN = yaml.safe_load(_REAL.read_text())["data"]["init_args"]["instance"]["init_args"]
SYSTEM, USER, MODEL = "system", "user", "assistant"
CONVERSATIONS: dict[str, list[tuple[str, str]]] = {
    "one question": [(USER, "How do I bake bread?"), (MODEL, "Mix flour and water.")],
    "a system turn": [(SYSTEM, "Be kind."), (USER, "Bake bread?"), (MODEL, "Mix flour.")],
    "other scripts": [
        (USER, "Wie backe ich Brot? 빵을 어떻게 굽나요? كيف أخبز الخبز؟"),
        (MODEL, "小麦粉と水を混ぜます。Тесто 🍞👩‍🍳 é"),
    ],
    "blank lines": [(USER, "a\n\nb\n\n\nc"), (MODEL, "one\n\n\ntwo\n\n- three\n    four")],
    "spaces inside": [(USER, "a   b\tc"), (MODEL, "x    y\t z")],
    "code": [(USER, "SQL?"), (MODEL, "```sql\nSELECT 1;\n```")],
    "the built-in instance": [(USER, BUILT_IN["prompt"]), (MODEL, BUILT_IN["response"])],
    "digits": [(USER, "12345678901 + 1"), (MODEL, "12345678902")],
}
EDGES = {
    "an answer that begins with newlines": "\n\nMix flour.",
    "an answer that ends with newlines": "Mix flour.\n\n",
    "an answer that begins with a space": " Mix flour.",
}
TURNS = [
    (SYSTEM, "Be kind."),
    (USER, "Bake bread?"),
    (MODEL, "Mix flour.\n\nAnd salt 🍞"),
    (USER, "Für wie lange?"),
    (MODEL, "An hour."),
    (USER, "And then?"),
    (MODEL, "Eat."),
]


def conversation(turns: list[tuple[str, str]]) -> Conversation:
    """Return a conversation of (role, text)."""
    return Conversation(tuple(Message(role, text) for role, text in turns), origin="rows row 1")


@pytest.fixture(scope="module", params=sorted(TOKENIZERS))
def family(request: Any) -> tuple[str, Any]:
    """A published tokenizer, ready to encode."""
    folder = published(request.param)
    if not folder.exists():
        pytest.skip(f"{request.param} is not there; `make fetch` fetches it")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    check_tokenizer(tokenizer, request.param)
    return request.param, tokenizer


def learned(tokenizer: Any, row: Any) -> list[str]:
    """Return the text of each run of tokens with loss."""
    runs = itertools.groupby(zip(row.loss_mask, row.input_ids, strict=True), lambda p: p[0])
    return [tokenizer.decode([i for _, i in run]) for learns, run in runs if learns]


def ids_of(tokenizer: Any, turns: list[tuple[str, str]], generation: bool = False) -> list[int]:
    """Return the ids that transformers itself gives."""
    dicts = [{"role": role, "content": text} for role, text in turns]
    return list(
        tokenizer.apply_chat_template(
            dicts, tokenize=True, add_generation_prompt=generation, return_dict=True
        )["input_ids"]
    )


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_rows_are_what_the_template_writes(family: tuple[str, Any], name: str) -> None:
    label, tokenizer = family
    turns = CONVERSATIONS[name]
    row = encode_conversation(tokenizer, conversation(turns))
    written = ids_of(tokenizer, turns)
    assert row.input_ids == written
    assert learned(tokenizer, row) == [turns[-1][1] + ENDS[label]]


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_prompts_begin_their_rows(family: tuple[str, Any], name: str) -> None:
    label, tokenizer = family
    turns = CONVERSATIONS[name]
    row = encode_conversation(tokenizer, conversation(turns))
    prompt = encode_conversation(tokenizer, conversation(turns), for_generation=True)
    first = row.loss_mask.index(True)
    assert prompt.input_ids == row.input_ids[:first]
    asked = ids_of(tokenizer, turns[:-1], generation=True)
    # Qwen3 writes an empty thought before an answer that has none, asked or not.
    thought = "<think>\n\n</think>\n\n" if label == "qwen3" else ""
    assert tokenizer.decode(prompt.input_ids) == tokenizer.decode(asked) + thought


@pytest.mark.parametrize("answer", EDGES.values(), ids=EDGES)
def test_answers_keep_the_prompt_at_their_edges(family: tuple[str, Any], answer: str) -> None:
    label, tokenizer = family
    turns = [(USER, "How do I bake bread?"), (MODEL, answer)]
    prompt = encode_conversation(tokenizer, conversation(turns), for_generation=True)
    row = encode_conversation(tokenizer, conversation(turns))
    first = row.loss_mask.index(True)
    assert row.input_ids[:first] == prompt.input_ids
    # Some templates trim the answer; the row says what the template says.
    assert tokenizer.decode(row.input_ids) == tokenizer.decode(ids_of(tokenizer, turns))
    (text,) = learned(tokenizer, row)
    assert text.strip() == answer.strip() + ENDS[label] or text == answer + ENDS[label]


def test_an_answer_ends_where_generation_stops(family: tuple[str, Any]) -> None:
    label, tokenizer = family
    row = encode_conversation(tokenizer, conversation(CONVERSATIONS["one question"]))
    last = [i for i, learns in zip(row.input_ids, row.loss_mask, strict=True) if learns][-1]
    assert last in stop_token_ids(tokenizer)
    assert tokenizer.decode([last]) == ENDS[label]


def test_an_empty_answer_is_its_end_of_turn(family: tuple[str, Any]) -> None:
    label, tokenizer = family
    row = encode_conversation(tokenizer, conversation([(USER, "Say nothing."), (MODEL, "")]))
    assert learned(tokenizer, row) == [ENDS[label]]


def test_special_tokens_in_a_text_are_those_of_the_template(family: tuple[str, Any]) -> None:
    label, tokenizer = family
    turns = [(USER, f"What is {ENDS[label]}?"), (MODEL, f"{ENDS[label]} is an end.")]
    row = encode_conversation(tokenizer, conversation(turns))
    assert row.input_ids == ids_of(tokenizer, turns)
    assert learned(tokenizer, row) == [turns[1][1] + ENDS[label]]


def test_every_answer_of_several_turns_is_learned_behind_its_own_prompt(
    family: tuple[str, Any],
) -> None:
    label, tokenizer = family
    rows = encode_training(tokenizer, conversation(TURNS))
    # Qwen3 drops the thoughts of earlier turns, and writes an empty one before the last answer.
    assert len(rows) == (3 if label == "qwen3" else 1)
    answers = [n for n, (role, _) in enumerate(TURNS) if role == MODEL]
    texts = [text for _, row in rows for text in learned(tokenizer, row)]
    assert texts == [TURNS[n][1] + ENDS[label] for n in answers]
    starts = [
        row.input_ids[:n]
        for _, row in rows
        for n in range(1, len(row.input_ids))
        if row.loss_mask[n] and not row.loss_mask[n - 1]
    ]
    for number, start in zip(answers, starts, strict=True):
        prompt = encode_conversation(tokenizer, conversation(TURNS[:number]), for_generation=True)
        assert start == prompt.input_ids
    if label != "qwen3":
        assert rows[0][1].input_ids == ids_of(tokenizer, TURNS)


def test_arguments_of_the_template_reach_rows_and_prompts() -> None:
    folder = published("qwen3")
    if not folder.exists():
        pytest.skip("qwen3 is not there; `make fetch` fetches it")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    turns = [{"role": USER, "content": "Bake bread?"}]
    plain = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    options = ChatOptions(template_arguments=(("enable_thinking", False),))
    set_chat_options(tokenizer, options, "qwen3")
    row = encode_conversation(tokenizer, conversation([(USER, "Bake bread?"), (MODEL, "Mix.")]))
    prompt = encode_conversation(
        tokenizer, conversation([(USER, "Bake bread?")]), for_generation=True
    )
    expected = tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert expected == plain + "<think>\n\n</think>\n\n"
    assert tokenizer.decode(prompt.input_ids) == expected
    assert row.input_ids[: len(prompt.input_ids)] == prompt.input_ids
