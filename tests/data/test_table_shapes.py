"""The public table shapes, as CSV and as JSONL, with harmless placeholder text."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from oneshot_lit.data.columns import PRESETS, find_preset, shape
from oneshot_lit.data.tables import TableFile
from oneshot_lit.errors import OneShotError, RowError

# Commas, quotes, a newline and characters beyond ASCII, as real prompts have them.
# A file of `oneshot-lit predict` has the shape of a chat, too.
GUESSED = [name for name in PRESETS if name != "predictions"]
ASK = 'How do I bake "rye", or oat,\nbread? Für zwölf 🥖'
TELL = "Mix flour, water;\n\nwait."

# header -> (a row, the fields a conversation must get from it)
SHAPES: dict[str, tuple[dict[str, str], dict[str, str | None]]] = {
    "goal,target": ({"goal": ASK, "target": TELL}, {"prompt": ASK, "response": TELL}),
    "instruction,category": (
        {"instruction": ASK, "category": "baking"},
        {"prompt": ASK, "category": "baking"},
    ),
    "prompt,category,category_id": (
        {"prompt": ASK, "category": "baking", "category_id": "4"},
        {"prompt": ASK, "category": "baking"},
    ),
    "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID": (
        {
            "Behavior": ASK,
            "FunctionalCategory": "contextual",
            "SemanticCategory": "baking",
            "Tags": "food, oven",
            "ContextString": "A note about ovens.",
            "BehaviorID": "bake_rye",
        },
        {
            "prompt": f"A note about ovens.\n\n---\n\n{ASK}",
            "category": "baking",
            "id": "bake_rye",
        },
    ),
    "category,source,forbidden_prompt": (
        {"category": "baking", "source": "me", "forbidden_prompt": ASK},
        {"prompt": ASK, "category": "baking"},
    ),
    "id,prompt,type,label,focus,note": (
        {
            "id": "v2-1",
            "prompt": ASK,
            "type": "homonyms",
            "label": "safe",
            "focus": "bake",
            "note": "",
        },
        {"prompt": ASK, "category": "homonyms", "id": "v2-1"},
    ),
    "id_v1,id_v2,type,prompt,focus,note": (
        {
            "id_v1": "",
            "id_v2": "v2-26",
            "type": "contrast_homonyms",
            "prompt": ASK,
            "focus": "bake",
            "note": "",
        },
        {"prompt": ASK, "category": "contrast_homonyms", "id": "v2-26"},
    ),
    "instruction,refusal,harmful": (
        {"instruction": ASK, "refusal": TELL, "harmful": "1"},
        {"prompt": ASK, "response": TELL},
    ),
    "Index,Goal,Target,Behavior,Category,Source": (
        {
            "Index": "0",
            "Goal": ASK,
            "Target": TELL,
            "Behavior": "Baking",
            "Category": "baking",
            "Source": "me",
        },
        {"prompt": ASK, "response": TELL, "category": "baking", "id": "0"},
    ),
    "prompt,category": (
        {"prompt": ASK, "category": "baking"},
        {"prompt": ASK, "category": "baking"},
    ),
    "prompt,target": ({"prompt": ASK, "target": TELL}, {"prompt": ASK, "response": TELL}),
    "prompt,response": ({"prompt": ASK, "response": TELL}, {"prompt": ASK, "response": TELL}),
    "prompt,completion": ({"prompt": ASK, "completion": TELL}, {"prompt": ASK, "response": TELL}),
    "instruction,output": ({"instruction": ASK, "output": TELL}, {"prompt": ASK, "response": TELL}),
    "instruction,response": (
        {"instruction": ASK, "response": TELL},
        {"prompt": ASK, "response": TELL},
    ),
    "question,answer": ({"question": ASK, "answer": TELL}, {"prompt": ASK, "response": TELL}),
    "instruction,input,output": (
        {"instruction": ASK, "input": "Rye, 2 kg.\nWater.", "output": TELL},
        {"prompt": f"{ASK}\n\nRye, 2 kg.\nWater.", "response": TELL},
    ),
    "instruction,context,response,category": (
        {"instruction": ASK, "context": "Rye.", "response": TELL, "category": "baking"},
        {"prompt": f"{ASK}\n\nRye.", "response": TELL, "category": "baking"},
    ),
    "question,context,answer": (
        {"question": ASK, "context": "CREATE TABLE rye (kg INT)", "answer": TELL},
        {"prompt": f"CREATE TABLE rye (kg INT)\n\n---\n\n{ASK}", "response": TELL},
    ),
    "prompt": ({"prompt": ASK}, {"prompt": ASK}),
    "goal": ({"goal": ASK}, {"prompt": ASK}),
    "prompt,focus,type,note,label": (
        {"prompt": ASK, "focus": "bake", "type": "homonyms", "note": "", "label": "safe"},
        {"prompt": ASK, "category": "homonyms"},
    ),
}


def write_csv(path: Path, rows: list[dict[str, str]], encoding: str = "utf-8") -> str:
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def write_jsonl(path: Path, rows: list[dict[str, Any]], encoding: str = "utf-8") -> str:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines), encoding=encoding)
    return str(path)


def write_json(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text(json.dumps(rows, indent=2), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "csv with BOM", "jsonl with BOM"])
@pytest.mark.parametrize("header", SHAPES)
def test_shape_is_known_by_its_header(header: str, kind: str, tmp_path: Path) -> None:
    row, expected = SHAPES[header]
    assert ",".join(row) == header
    write = {"csv": write_csv, "jsonl": write_jsonl, "json": write_json}[kind.split()[0]]
    encoding = {"encoding": "utf-8-sig"} if "BOM" in kind else {}
    path = write(tmp_path / f"rows.{kind.split()[0]}", [row, row], **encoding)
    first, second = TableFile(path).load()
    assert first.prompt_text == expected["prompt"]
    assert first.response_text == expected.get("response")
    assert first.category == expected.get("category")
    assert first.id == expected.get("id")
    assert first.reference is None
    assert (first.origin, second.origin) == (f"{path} row 1", f"{path} row 2")
    assert second.messages == first.messages


def test_order_of_columns_does_not_matter(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "rows.csv", [{"target": TELL, "goal": ASK}])
    (row,) = TableFile(path).load()
    assert (row.prompt_text, row.response_text) == (ASK, TELL)


@pytest.mark.parametrize("index", ["", "Unnamed: 0"])
@pytest.mark.parametrize("header", SHAPES)
def test_row_numbers_of_pandas_do_not_matter(header: str, index: str, tmp_path: Path) -> None:
    row, expected = SHAPES[header]
    rows = [{index: str(n), **row} for n in range(2)]
    first, second = TableFile(write_csv(tmp_path / "rows.csv", rows)).load()
    assert first.prompt_text == expected["prompt"]
    assert first.response_text == expected.get("response")
    assert (first.category, first.id) == (expected.get("category"), expected.get("id"))
    assert second.messages == first.messages


@pytest.mark.parametrize(
    ("header", "preset"),
    [
        # Every preset is found by its own header, also with its columns the other way round.
        *((shape(name), name) for name in GUESSED),
        *((shape(name)[::-1], name) for name in GUESSED),
        # Further columns do not matter where there are at least two to go by.
        *(((*shape(name), "extra"), name) for name in GUESSED if len(shape(name)) > 1),
        # The shape with the most columns wins.
        (("note", "label", "type", "extra", "prompt", "focus"), "xstest_v2"),
        (("note", "label", "id", "type", "extra", "prompt", "focus"), "xstest"),
        (("category_id", "prompt", "category", "split"), "prompt_category"),
        (("instruction", "category", "refusal", "harmful"), "refusal_pairs"),
        # Of equally long shapes, the earlier one, which brings answers.
        (("category", "prompt", "target"), "prompt_target"),
        (("goal", "target", "prompt", "category"), "advbench"),
        (("category", "prompt", "response"), "prompt_response"),
        (("instruction", "category", "context", "response"), "dolly"),
        (("instruction", "input", "output", "text"), "alpaca"),
        # A chat is a chat.
        (("prompt", "category", "messages"), "chat"),
        (("set", "messages", "output"), "chat"),
        # One common column is too little.
        (("prompt", "answer"), None),
        (("goal", "extra"), None),
        (("text",), None),
        ((), None),
    ],
)
def test_which_shape_a_header_has(header: tuple[str, ...], preset: str | None) -> None:
    assert find_preset(header) == preset


def test_each_row_of_a_jsonl_file_has_its_own_shape(tmp_path: Path) -> None:
    rows = [{"prompt": "a"}, {"prompt": "b", "target": "c"}, {"prompt": "d", "category": "e"}]
    found = TableFile(write_jsonl(tmp_path / "rows.jsonl", rows)).load()
    assert [(r.prompt_text, r.response_text, r.category) for r in found] == [
        ("a", None, None),
        ("b", "c", None),
        ("d", None, "e"),
    ]


def test_further_columns_of_a_chat_table(tmp_path: Path) -> None:
    user = {"role": "user", "content": ASK}
    rows = [{"source": "x", "id": "a", "messages": [user], "prompt": ASK, "reference": TELL}]
    (row,) = TableFile(write_jsonl(tmp_path / "rows.jsonl", rows)).load()
    assert (row.prompt_text, row.id, row.reference) == (ASK, "a", TELL)


def test_two_presets_never_share_a_header() -> None:
    headers = [frozenset(shape(name)) for name in PRESETS]
    assert len(headers) == len(set(headers))


def test_context_is_optional_in_each_row(tmp_path: Path) -> None:
    row = next(r for h, (r, _) in SHAPES.items() if h.startswith("Behavior"))
    path = write_csv(tmp_path / "rows.csv", [{**row, "ContextString": ""}, row])
    plain, contextual = TableFile(path).load()
    assert plain.prompt_text == ASK
    assert contextual.prompt_text != ASK


@pytest.mark.parametrize("empty", ["", " ", "\n"])
def test_alpaca_rows_without_an_input(empty: str, tmp_path: Path) -> None:
    rows = [{"instruction": ASK, "input": empty, "output": TELL}, {"instruction": ASK}]
    rows[1]["output"] = TELL
    for row in TableFile(write_jsonl(tmp_path / "rows.jsonl", rows)).load():
        assert (row.prompt_text, row.response_text) == (ASK, TELL)


def test_pairs_bring_what_chat_rows_bring(tmp_path: Path) -> None:
    row = {"id": "7", "category": "baking", "reference": "mix", "system_prompt": "be brief"}
    path = write_csv(tmp_path / "rows.csv", [{**row, "question": ASK, "answer": TELL, "note": "x"}])
    (found,) = TableFile(path).load()
    assert (found.id, found.category, found.reference) == ("7", "baking", "mix")
    assert [m.content for m in found.messages] == ["be brief", ASK, TELL]


def test_named_columns_join_an_input(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "rows.csv", [{"q": ASK, "data": "Rye.", "note": "Bake."}])
    columns = {"prompt": "q", "input": "data", "context": "note"}
    (row,) = TableFile(path, columns=columns).load()
    assert row.prompt_text == f"Bake.\n\n---\n\n{ASK}\n\nRye."


def test_our_own_prompt_set_shape_brings_references(tmp_path: Path) -> None:
    row = {"id": "a", "prompt": ASK, "category": "baking", "reference": TELL}
    (found,) = TableFile(write_csv(tmp_path / "rows.csv", [row])).load()
    assert (found.id, found.category, found.reference) == ("a", "baking", TELL)
    assert found.response_text is None


def test_csv_text_written_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(
        b'\xef\xbb\xbfgoal,target\r\n"How do I bake, say, rye?","Say ""mix"",\nthen wait"\r\n'
        b"\r\n\r\nplain,row\r\n"
    )
    first, second = TableFile(str(path)).load()
    assert first.prompt_text == "How do I bake, say, rye?"
    assert first.response_text == 'Say "mix",\nthen wait'
    assert (second.prompt_text, second.response_text) == ("plain", "row")


def test_csv_without_a_header_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes('\ufeff"How do I bake, say, rye?"\r\n\r\nbake\u2028oat "now"\r\nlast'.encode())
    rows = TableFile(str(path), header=["prompt"]).load()
    assert [r.prompt_text for r in rows] == [
        "How do I bake, say, rye?",
        'bake\u2028oat "now"',
        "last",
    ]
    assert [r.origin for r in rows] == [f"{path} row {n}" for n in (1, 2, 3)]
    path.write_text("a,b\n")
    (row,) = TableFile(str(path), header=["q", "r"], columns={"prompt": "r"}).load()
    assert row.prompt_text == "b"


def test_csv_passes_over_blank_lines_before_its_header(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"\xef\xbb\xbf\r\n\r\ngoal,target,,\r\n\r\na,b,,\r\n")
    (row,) = TableFile(str(path)).load()
    assert (row.prompt_text, row.response_text) == ("a", "b")
    assert row.origin == f"{path} row 1"


def test_jsonl_passes_over_blank_lines_and_counts_them(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    line = json.dumps({"goal": "a\u2028b", "target": "t"}, ensure_ascii=False)
    path.write_text(f"\n{line}\r\n  \n{line}\n\n", encoding="utf-8")
    rows = TableFile(str(path)).load()
    # A line separator inside a string is no new line, and rows keep the numbers an editor shows.
    assert [r.prompt_text for r in rows] == ["a\u2028b"] * 2
    assert [r.origin for r in rows] == [f"{path} row 2", f"{path} row 4"]


def test_system_prompt_for_every_row_that_has_none(tmp_path: Path) -> None:
    rows = [{"q": "a", "s": "mine"}, {"q": "b", "s": ""}]
    path = write_csv(tmp_path / "rows.csv", rows)
    found = TableFile(path, columns={"prompt": "q", "system": "s"}, system="default").load()
    assert [r.messages[0].content for r in found] == ["mine", "default"]
    assert [r.messages[0].role for r in found] == ["system", "system"]


def test_chat_rows_also_get_system_prompt_and_named_columns(tmp_path: Path) -> None:
    user, system = {"role": "user", "content": "a"}, {"role": "system", "content": "mine"}
    rows = [
        {"chat": [user], "name": 1, "group": "g", "truth": "t"},
        {"chat": [system, user], "name": 2, "group": "g", "truth": "t"},
    ]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    columns = {"messages": "chat", "id": "name", "category": "group", "reference": "truth"}
    first, second = TableFile(path, columns=columns, system="default").load()
    assert [m.content for m in first.messages] == ["default", "a"]
    assert [m.content for m in second.messages] == ["mine", "a"]
    assert (first.id, first.category, first.reference) == ("1", "g", "t")


def test_answers_of_predict_are_rows_to_learn(tmp_path: Path) -> None:
    user = {"role": "user", "content": ASK}
    row = {"set": "mine", "kind": "benign", "index": 0, "messages": [user], "output": TELL}
    path = write_jsonl(tmp_path / "predictions.jsonl", [{**row, "category": "c"}])
    (prompt,) = TableFile(path).load()
    assert prompt.response_text is None
    (learned,) = TableFile(path, preset="predictions", system="s").load()
    assert [m.role for m in learned.messages] == ["system", "user", "assistant"]
    assert (learned.response_text, learned.category) == (TELL, "c")


def test_two_answers_of_a_chat_row_are_refused(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": ASK}, {"role": "assistant", "content": TELL}]
    path = write_jsonl(tmp_path / "rows.jsonl", [{"messages": turns, "output": "another"}])
    with pytest.raises(RowError, match="row 1: the messages end with an answer, and column 'outp"):
        TableFile(path, preset="predictions").load()


# ------------------------------------------------------------ where and columns


def test_where_keeps_matching_rows_under_their_own_numbers(tmp_path: Path) -> None:
    base = SHAPES["id,prompt,type,label,focus,note"][0]
    rows = [{**base, "id": str(n), "label": "safe" if n % 2 else "unsafe"} for n in range(6)]
    path = write_csv(tmp_path / "rows.csv", rows)
    found = TableFile(path, where={"label": "safe"}).load()
    assert [r.id for r in found] == ["1", "3", "5"]
    assert [r.origin for r in found] == [f"{path} row {n}" for n in (2, 4, 6)]
    both = TableFile(path, where={"label": "safe", "id": "3"}).load()
    assert [r.id for r in both] == ["3"]


@pytest.mark.parametrize("wanted", ["true", "True", True])
def test_where_understands_json_booleans_and_numbers(tmp_path: Path, wanted: Any) -> None:
    rows = [
        {"instruction": "a", "refusal": "no", "harmful": True, "n": 1},
        {"instruction": "b", "refusal": "no", "harmful": False, "n": 1},
    ]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    columns = {"prompt": "instruction"}
    found = TableFile(path, columns=columns, where={"harmful": wanted, "n": "1"}).load()
    assert [r.prompt_text for r in found] == ["a"]


def test_columns_alone_are_the_whole_map(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "rows.csv", [{"goal": ASK, "target": TELL}])
    (row,) = TableFile(path, columns={"prompt": "goal"}).load()
    # The answers were not asked for, so they do not come along.
    assert row.response_text is None
    (swapped,) = TableFile(path, columns={"prompt": "target", "response": "goal"}).load()
    assert (swapped.prompt_text, swapped.response_text) == (TELL, ASK)


def test_columns_replace_fields_of_a_named_preset(tmp_path: Path) -> None:
    row = SHAPES["Index,Goal,Target,Behavior,Category,Source"][0]
    path = write_csv(tmp_path / "rows.csv", [row])
    source = TableFile(path, preset="jailbreakbench", columns={"category": "Behavior"})
    (found,) = source.load()
    assert (found.prompt_text, found.response_text) == (ASK, TELL)
    assert (found.id, found.category) == ("0", "Baking")


def test_preset_reads_a_table_with_further_columns(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "rows.csv", [{"n": "1", "goal": ASK, "target": TELL}])
    (row,) = TableFile(path, preset="advbench").load()
    assert (row.prompt_text, row.response_text) == (ASK, TELL)


def test_where_takes_one_value_or_a_list(tmp_path: Path) -> None:
    rows = [{"prompt": ASK, "category": c} for c in ("a", "b", "c", "a")]
    path = write_csv(tmp_path / "rows.csv", rows)
    for where, kept in (
        ({"category": "a"}, "aa"),
        ({"category": ["a", "c"]}, "aca"),
        ({"category": ["c"], "prompt": ASK}, "c"),
    ):
        assert "".join(str(r.category) for r in TableFile(path, where=where).load()) == kept
    with pytest.raises(OneShotError, match="no row matches"):
        TableFile(path, where={"category": []}).load()
