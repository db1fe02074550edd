"""Data files of every common format are read; what is not there is not asked of the hub."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from oneshot_lit.data import ChatJsonl, HuggingFaceDataset, TableFile
from oneshot_lit.errors import OneShotError

PAIRS: list[dict[str, Any]] = [
    {"goal": "wie backe ich Brötchen ?", "target": 'man nehme "Mehl",\nund\tWasser'},
    {"goal": "what is 2 + 3 ?", "target": "5"},
]
CHATS: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "user", "content": pair["goal"]},
            {"role": "assistant", "content": pair["target"]},
        ],
        "id": f"row-{n}",
    }
    for n, pair in enumerate(PAIRS)
]
PACKED: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": lambda raw: pyarrow.Codec("zstd").compress(raw, asbytes=True),
}


def raw(suffix: str, rows: list[dict[str, Any]]) -> bytes:
    """Return rows in the format of a suffix."""
    if suffix == ".parquet":
        sink = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
        return sink.getvalue()
    if suffix in (".csv", ".tsv"):
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), delimiter="," if suffix == ".csv" else "\t")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    joined = f"[{','.join(lines)}]" if suffix == ".json" else "\n".join(lines) + "\n"
    return joined.encode()


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def written(suffix: str, packed: str = "", rows: list[dict[str, Any]] = PAIRS) -> str:
        path = tmp_path / f"rows{suffix}{packed}"
        path.write_bytes(PACKED[packed](raw(suffix, rows)))
        return str(path)

    return written


def said(load: Callable[..., Any], *arguments: Any, **more: Any) -> str:
    with pytest.raises(OneShotError) as caught:
        load(*arguments, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def turns(rows: list[Any]) -> list[list[tuple[str, str]]]:
    return [[(m.role, m.content) for m in row.messages] for row in rows]


EXPECTED = [[("user", p["goal"]), ("assistant", p["target"])] for p in PAIRS]


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet"])
def test_every_format_gives_the_same_rows(suffix: str, packed: str, write) -> None:
    path = write(suffix, packed)
    for source in (TableFile(path), HuggingFaceDataset(path)):
        rows = source.load()
        assert turns(rows) == EXPECTED
        assert rows[1].origin.endswith(" row 2")


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".txt"])
def test_chats_in_every_format(suffix: str, packed: str, write) -> None:
    path = write(suffix, packed, CHATS)
    loaded = ChatJsonl(path).load()
    assert turns(loaded) == EXPECTED
    assert [row.id for row in loaded] == ["row-0", "row-1"]
    if suffix != ".txt":
        assert turns(TableFile(path).load()) == turns(HuggingFaceDataset(path).load()) == EXPECTED


def test_upper_case_names_are_the_same(write) -> None:
    path = Path(write(".parquet"))
    assert turns(TableFile(str(path.rename(path.with_name("ROWS.PARQUET")))).load()) == EXPECTED
    path = Path(write(".csv", ".gz"))
    assert turns(TableFile(str(path.rename(path.with_name("ROWS.CSV.GZ")))).load()) == EXPECTED


def test_lines_of_json_may_be_called_json(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(raw(".jsonl", CHATS))
    assert turns(ChatJsonl(str(path)).load()) == EXPECTED


def test_keys_that_only_other_turns_have_are_not_there(write) -> None:
    """All turns of a Parquet column have all keys; null stands for one that a turn never had."""
    first = {"role": "user", "content": "hi", "name": "Ada", "parts": [{"a": 1}, {"b": None}]}
    rows = [{"messages": [first, {"role": "assistant", "content": "hello"}], "tags": {"x": None}}]
    loaded = ChatJsonl(write(".parquet", "", [*rows, *CHATS])).load()
    assert turns(loaded)[0] == [("user", "hi"), ("assistant", "hello")]
    assert loaded[0].extra["tags"] == {}
    from oneshot_lit.io.read_files import read_rows

    ((_, row), *_) = list(read_rows(write(".parquet", "", rows)))
    assert row["messages"][1] == {"role": "assistant", "content": "hello"}
    assert row["messages"][0]["parts"] == [{"a": 1}, {}]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".parquet"])
def test_a_faulty_row_is_named_by_its_number(suffix: str, write) -> None:
    path = write(suffix, ".gz", [*PAIRS, {"goal": "  ", "target": "x"}, *PAIRS])
    assert said(TableFile(path).load).startswith(f"{path} row 3: column 'goal' is empty")
    source = TableFile(path, bad_rows="skip")
    assert len(source.load()) == 4
    assert source.left_out.reasons == {"column 'goal' is empty": 1}


def test_a_parquet_file_that_is_not_utf8(tmp_path: Path) -> None:
    texts = pyarrow.array([b"a", b"f\xfcr", b"c"], pyarrow.binary()).view(pyarrow.string())
    table = pyarrow.table({"goal": texts, "target": ["1", "2", "3"]})
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(table, path)
    message = said(TableFile(str(path)).load)
    assert message == f"{path}: holds text that is not UTF-8; re-encode it."


@pytest.mark.parametrize("packed", [".gz", ".bz2", ".zst"])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json", ".parquet"])
def test_a_damaged_file_is_named(suffix: str, packed: str, write) -> None:
    path = Path(write(suffix, packed, PAIRS * 2000))
    whole = path.read_bytes()
    # Cut in the middle, and never compressed.
    for content in (whole[: len(whole) // 2], raw(suffix, PAIRS)):
        path.write_bytes(content)
        # The rows before the damage are no reason to go on without the rest.
        for source in (TableFile(str(path)), TableFile(str(path), bad_rows="skip")):
            message = said(source.load)
            assert message.startswith(f"{path}: damaged, or not a {packed} file (")
            assert message.endswith("); get it again.")


def test_a_damaged_parquet_file_is_named(write) -> None:
    path = Path(write(".parquet"))
    whole = path.read_bytes()
    for content in (b"", b"goal,target\na,b\n", whole[:-20], whole[:30] + b"\0" * 30 + whole[60:]):
        path.write_bytes(content)
        assert said(TableFile(str(path)).load).startswith(f"{path}: damaged, or not a Parquet file")


def test_a_parquet_file_that_names_a_column_twice(tmp_path: Path) -> None:
    arrays = [pyarrow.array(["a"])] * 3
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table(arrays, ["goal", "target", "goal"]), path)
    assert said(TableFile(str(path)).load) == (
        f"{path}: the header has two columns 'goal'; rename or remove one."
    )


@pytest.mark.parametrize("name", ["gone.parquet", "gone.jsonl.gz", "gone.tsv", "data/gone.json.gz"])
@pytest.mark.parametrize("source", [TableFile, ChatJsonl, HuggingFaceDataset])
def test_a_file_that_is_not_there_is_not_asked_of_the_hub(
    name: str, source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said(source(name).load) == f"{name}: file not found; check the path."


def test_a_name_that_may_be_a_path_or_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = said(HuggingFaceDataset("somebody/rows").load)
    assert "is no file or folder here, and as a name of the hub cannot be loaded" in message
    (tmp_path / "somebody").mkdir()
    message = said(HuggingFaceDataset("somebody/rows").load)
    assert message == "somebody/rows: folder not found; check the path."


@pytest.mark.parametrize("more", [{"split": "test"}, {"name": "main"}, {"revision": "v1"}])
def test_a_file_has_no_split(more: dict[str, str], write) -> None:
    path = write(".parquet")
    message = said(HuggingFaceDataset(path, **more).load)
    assert message == f"{path}: a file has no split, name or revision; drop it."


def test_a_folder_of_parquet_files_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "rows.parquet"
    folder.mkdir()
    (folder / "part-0.parquet").write_bytes(raw(".parquet", CHATS))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    assert turns(HuggingFaceDataset("~/rows.parquet").load()) == EXPECTED


def test_other_types_are_refused_with_those_known(tmp_path: Path) -> None:
    path = tmp_path / "rows.xlsx.gz"
    path.write_bytes(b"")
    message = said(TableFile(str(path)).load)
    assert message.startswith(f"{path}: unknown table type '.xlsx'; use .csv, .tsv, .jsonl,")
    assert "compressed (.gz, .bz2, .zst)" in message


def test_the_header_option_is_for_tsv_files_too(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text("one, two ?\tfine\n")
    rows = TableFile(str(path), header=["prompt", "target"]).load()
    assert turns(rows) == [[("user", "one, two ?"), ("assistant", "fine")]]
    path.write_text("prompt\ttarget\none\n")
    assert (
        "row 1: has another number of fields than the header (2); fix its quotes or separators."
        in said(TableFile(str(path)).load)
    )
