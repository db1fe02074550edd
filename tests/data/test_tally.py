"""What becomes of every row of files in the public sets' shapes, faulty ones included."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from oneshot_lit.data import ChatJsonl, TableFile
from oneshot_lit.data.columns import PRESETS
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
    shape, mapping = PRESETS[preset]
    row = dict.fromkeys(shape, "x")
    row |= {mapping.context: ""} if mapping.context else {}
    return row | {mapping.prompt or "": prompt}


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


TABLES = [name for name in PRESETS if name != "chat"]


@pytest.mark.parametrize("preset", TABLES)
@pytest.mark.parametrize("write", [write_csv, write_jsonl], ids=["csv", "jsonl"])
def test_every_row_of_a_table_is_accounted_for(preset: str, write: Any, tmp_path: Path) -> None:
    path = write(tmp_path / f"rows.{'csv' if write is write_csv else 'jsonl'}", preset)
    with pytest.raises(OneShotError, match=r"row 3: column '.*' is empty; fill it or drop the row"):
        TableFile(str(path)).load()
    source = TableFile(str(path), bad_rows="skip")
    assert [r.prompt_text for r in source.load()] == [p for p in PROMPTS if p.strip()]
    tally = source.tally
    assert (tally.read, tally.kept, tally.duplicates) == (len(PROMPTS), GOOD, DOUBLE)
    assert list(tally.faulty.values()) == [EMPTY]
    assert tally.first_faulty is not None
    assert tally.first_faulty.startswith(f"{path} row 3: column")


def test_every_row_of_a_chat_is_accounted_for(tmp_path: Path) -> None:
    path = write_chat(tmp_path / "rows.jsonl")
    with pytest.raises(OneShotError, match=r"row 3: the user turn is empty"):
        ChatJsonl(str(path)).load()
    for kind in (ChatJsonl, TableFile):
        source = kind(str(path), bad_rows="skip", duplicates="drop")
        assert len(source.load()) == GOOD - DOUBLE
        tally = source.tally
        assert (tally.read, tally.dropped, sum(tally.faulty.values())) == (len(PROMPTS), 1, EMPTY)


def test_counts_add_up_whatever_is_left_out(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i % 7}", "category": "ab"[i % 2]} for i in range(40)]
    rows += [{"prompt": "", "category": "a"}, {"prompt": ["x"], "category": "a"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows) + "{broken\n[1]\n")
    options: list[dict[str, Any]] = [
        {},
        {"limit": 3},
        {"skip": 2, "limit": 3, "shuffle_seed": 1},
        {"duplicates": "drop"},
        {"where": {"category": "a"}, "duplicates": "drop", "skip": 1},
    ]
    for given in options:
        source = TableFile(str(path), bad_rows="skip", **given)
        kept = source.load()
        t = source.tally
        assert len(kept) == t.kept
        assert t.read == len(rows) + 2
        assert t.unselected + sum(t.faulty.values()) + t.dropped + t.unused + t.kept == t.read
    assert len(source.load()) == source.tally.kept, "a second load counts anew"


def test_a_row_of_other_columns_is_one_fault(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "category": "x"}\n{"text": "b"}\n')
    source = TableFile(str(path), bad_rows="skip")
    assert [r.prompt_text for r in source.load()] == ["a"]
    assert sum(source.tally.faulty.values()) == 1
    # But columns that no row fits are the config's fault.
    with pytest.raises(OneShotError, match="unknown column 'goal'"):
        TableFile(str(path), columns={"prompt": "goal"}, bad_rows="skip").load()


def test_nothing_but_faulty_rows_is_an_error_that_says_so(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('prompt,category\n"",a\n"",b\n')
    with pytest.raises(OneShotError, match=r"no conversation \(2 of 2 rows skipped \(2 x column"):
        TableFile(str(path), bad_rows="skip").load()


@pytest.mark.slow
def test_a_run_over_every_shape_loses_nothing(command: Any, tmp_path: Path) -> None:
    sets: dict[str, Any] = {}
    for preset in TABLES:
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
    with pytest.warns(UserWarning, match="rows skipped") as warned:
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
    accounts = json.loads((root / "data.json").read_text())["predict"]
    answered = [json.loads(line)["set"] for line in (root / "predictions.jsonl").open()]
    assert set(accounts) == {f"predict/{name}" for name in sets}
    for name, found in accounts.items():
        (tally,) = found["sources"]
        assert tally["read"] == len(PROMPTS)
        assert sum(tally["faulty"].values()) == EMPTY
        assert tally["duplicates"] == DOUBLE
        assert found["answered"] == found["rows"]
        assert found["too_long"] == TOO_LONG
        assert found["rows"] == answered.count(name.removeprefix("predict/")) == GOOD - TOO_LONG
        assert "soup" not in json.dumps(found)
    said = " ".join(str(w.message) for w in warned)
    assert "2 of 8 rows skipped (2 x column 'goal' is empty)" in said
    assert "1 rows are duplicates and kept" in said
    assert "prompts longer than data.max_length=200 tokens are left out" in said
