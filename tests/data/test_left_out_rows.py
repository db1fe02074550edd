"""Rows of files in the public sets' shapes: the good ones kept, the others counted and named."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from oneshot_lit.data import ChatJsonl, TableFile
from oneshot_lit.data.columns import PRESETS, resolve_columns, shape
from oneshot_lit.errors import OneShotError

LONG = "very " * 400 + "long ?"
PROMPTS = [
    "how do i make lumdra soup ?",
    "für wen ist die 🍲 “suppe” ?",
    "",
    "a prompt, with a comma\nand a second line ?",
    "how do i make lumdra soup ?",
    LONG,
    "   ",
    "how do i make vesko bread ?",
]
GOOD, EMPTY, DOUBLE, TOO_LONG = 6, 2, 1, 1


def cells(preset: str, prompt: str) -> dict[str, str]:
    row = dict.fromkeys(shape(preset), "x")
    fields = resolve_columns(preset, None, list(row), "row 1")
    row |= {fields[more]: "" for more in ("context", "input") if more in fields}
    return row | {fields["prompt"]: prompt}


def write_csv(path: Path, preset: str) -> Path:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(cells(preset, "")), lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(cells(preset, prompt) for prompt in PROMPTS)
    # A table program also writes a byte-order mark.
    path.write_bytes(text.getvalue().encode("utf-8-sig"))
    return path


def write_jsonl(path: Path, preset: str) -> Path:
    lines = [json.dumps(cells(preset, p), ensure_ascii=preset == "advbench") for p in PROMPTS]
    path.write_bytes("\r\n".join([*lines, ""]).encode())
    return path


def write_chat(path: Path) -> Path:
    rows = [{"messages": [{"role": "user", "content": prompt}]} for prompt in PROMPTS]
    path.write_bytes("\r\n".join(json.dumps(row) for row in rows).encode())
    return path


TABLES = [name for name in PRESETS if name not in ("chat", "predictions")]


@pytest.mark.parametrize("preset", TABLES)
@pytest.mark.parametrize("write", [write_csv, write_jsonl], ids=["csv", "jsonl"])
def test_faulty_rows_of_a_table_are_named_or_left_out(
    preset: str, write: Any, tmp_path: Path
) -> None:
    path = write(tmp_path / f"rows.{'csv' if write is write_csv else 'jsonl'}", preset)
    with pytest.raises(OneShotError, match=r"row 3: column '.*' is empty; fill it or drop the row"):
        TableFile(str(path)).load()
    source = TableFile(str(path), bad_rows="skip")
    assert [r.prompt_text for r in source.load()] == [p for p in PROMPTS if p.strip()]
    assert list(source.left_out.reasons.values()) == [EMPTY]
    assert source.left_out.first.startswith(f"{path} row 3: column")


def test_faulty_rows_of_a_chat_are_named_or_left_out(tmp_path: Path) -> None:
    path = write_chat(tmp_path / "rows.jsonl")
    with pytest.raises(OneShotError, match=r"row 3: the user turn is empty"):
        ChatJsonl(str(path)).load()
    for kind in (ChatJsonl, TableFile):
        source = kind(str(path), bad_rows="skip", duplicates="drop")
        assert len(source.load()) == GOOD - DOUBLE
        assert sorted(source.left_out.reasons.values()) == [DOUBLE, EMPTY]
        assert source.left_out.reasons["duplicate"] == DOUBLE


def test_counts_start_anew_with_each_load(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": "a"}, {"prompt": ""}, {"prompt": ["x"]}, {"prompt": "a"}]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows) + "{broken\n[1]\n")
    source = TableFile(str(path), bad_rows="skip", duplicates="drop")
    for _ in range(2):
        assert len(source.load()) == 1
        assert source.left_out.reasons == {
            "column 'prompt' is empty": 1,
            "column 'prompt' holds a list": 1,
            "not JSON": 1,
            "must be a JSON object": 1,
            "duplicate": 1,
        }


def test_a_row_of_other_columns_is_one_fault(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "category": "x"}\n{"text": "b"}\n')
    source = TableFile(str(path), bad_rows="skip")
    assert [r.prompt_text for r in source.load()] == ["a"]
    assert str(source.left_out) == (
        "1 row left out (1 x the columns are no known shape); the first is "
        f"{path} row 2: the columns are no known shape"
    )
    # But columns that no row fits are the config's fault.
    with pytest.raises(OneShotError, match="unknown column 'goal'"):
        TableFile(str(path), columns={"prompt": "goal"}, bad_rows="skip").load()


def test_nothing_but_faulty_rows_is_an_error_that_says_so(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('prompt,category\n"",a\n"",b\n')
    with pytest.raises(OneShotError, match=r"no conversation \(2 rows left out \(2 x column"):
        TableFile(str(path), bad_rows="skip").load()


def test_a_run_over_several_shapes_says_what_it_left_out(command: Any, tmp_path: Path) -> None:
    sets: dict[str, Any] = {}
    for preset in ("advbench", "xstest"):
        for write, end in ((write_csv, "csv"), (write_jsonl, "jsonl")):
            path = write(tmp_path / f"{preset}.{end}", preset)
            init = {"path": str(path), "bad_rows": "skip"}
            sets[f"{preset}_{end}"] = {
                "kind": "benign",
                "metrics": ["over_refusal"],
                "source": {"class_path": "oneshot_lit.data.TableFile", "init_args": init},
            }
    chat = {"path": str(write_chat(tmp_path / "chat.jsonl")), "bad_rows": "skip"}
    sets["chat"] = {
        "kind": "benign",
        "source": {"class_path": "oneshot_lit.data.ChatJsonl", "init_args": chat},
        "metrics": ["over_refusal"],
    }
    (tmp_path / "sets.yaml").write_text(yaml.safe_dump(sets))
    root = tmp_path / "run"
    with pytest.warns(UserWarning, match="rows left out") as warned:
        done = command(
            "predict",
            "--config",
            "configs/evaluate/own.yaml",
            "--model.model_name_or_path",
            "checkpoints/small",
            "--model.decoding.max_new_tokens",
            "2",
            "--data.test_sets",
            str(tmp_path / "sets.yaml"),
            "--data.max_length",
            "200",
            "--data.long_prompts",
            "skip",
            "--trainer.default_root_dir",
            str(root),
            "--trainer.accelerator",
            "cpu",
        )
    assert done.code == 0, done.err
    report = json.loads((root / "data.json").read_text())["predict"]
    answered = [json.loads(line)["set"] for line in (root / "predictions.jsonl").open()]
    assert set(report) == {f"predict/{name}" for name in sets}
    for name, facts in report.items():
        assert sum(facts["left_out"].values()) == EMPTY + TOO_LONG
        assert facts["left_out"]["longer than 200 tokens"] == TOO_LONG
        assert facts["rows"] == answered.count(name.removeprefix("predict/")) == GOOD - TOO_LONG
        assert "soup" not in json.dumps(facts)
    said = " ".join(str(w.message) for w in warned)
    assert "3 rows left out (2 x column 'goal' is empty, 1 x longer than 200 tokens)" in said
