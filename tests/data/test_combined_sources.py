"""Inline rows, mixtures, the micro-world and Hugging Face data sets as sources."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest

from oneshot_lit.conversation import Conversation, conversation_from_pair
from oneshot_lit.data.sources import ConversationSource, Inline, Microworld, Mixture
from oneshot_lit.data.tables import ChatJsonl, HuggingFaceDataset, TableFile


class Numbers(ConversationSource):
    """The smallest source of one's own: the numbers below `size`."""

    def __init__(self, size: int, name: str = "n", **kwargs) -> None:
        super().__init__(**kwargs)
        self.size, self.name = size, name

    def rows(self) -> list[Conversation]:
        return [conversation_from_pair(f"{self.name}{i}", "yes") for i in range(self.size)]


def texts(source: ConversationSource) -> list[str]:
    return [row.prompt_text for row in source.load()]


def test_limit_takes_the_first_rows() -> None:
    assert texts(Numbers(5, limit=3)) == ["n0", "n1", "n2"]
    assert texts(Numbers(2, limit=3)) == ["n0", "n1"]


def test_shuffle_is_a_permutation_decided_by_its_seed() -> None:
    plain, one = texts(Numbers(40)), texts(Numbers(40, shuffle_seed=1))
    assert sorted(one) == sorted(plain)
    assert one != plain
    assert one == texts(Numbers(40, shuffle_seed=1))
    assert one != texts(Numbers(40, shuffle_seed=2))
    assert texts(Numbers(40, shuffle_seed=1, limit=7)) == one[:7]


def test_skip_comes_after_shuffling_and_before_limit() -> None:
    assert texts(Numbers(5, skip=3)) == ["n3", "n4"]
    assert texts(Numbers(9, skip=2, limit=3)) == ["n2", "n3", "n4"]
    whole = texts(Numbers(40, shuffle_seed=1))
    development = texts(Numbers(40, shuffle_seed=1, limit=10))
    held_out = texts(Numbers(40, shuffle_seed=1, skip=10))
    assert development + held_out == whole


def test_every_source_can_skip(tmp_path: Path) -> None:
    turns = [[{"role": "user", "content": f"n{i}"}] for i in range(4)]
    rows = [{"messages": t} for t in turns]
    chat = tmp_path / "chat.jsonl"
    chat.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = tmp_path / "rows.csv"
    table.write_text("prompt\nn0\nn1\nn2\nn3\n")
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "hub"))
    for source in (
        ChatJsonl(str(chat), skip=2, limit=1),
        TableFile(str(table), skip=2, limit=1),
        HuggingFaceDataset(str(tmp_path / "hub"), skip=2, limit=1),
        Inline(turns, skip=2, limit=1),
        Mixture([Numbers(2), Numbers(9, skip=2)], skip=2, limit=1),
    ):
        assert texts(source) == ["n2"]
    first, second = Microworld("pool", limit=2).load()
    assert [r.id for r in Microworld("pool", skip=1, limit=1).load()] == [second.id]
    assert first.id != second.id


def test_skip_is_no_new_positional_argument() -> None:
    # Sources of one's own may hand limit and shuffle_seed over by position.
    class Old(Numbers):
        def __init__(self) -> None:
            ConversationSource.__init__(self, 2, None)
            self.size, self.name = 5, "n"

    assert texts(Old()) == ["n0", "n1"]


def test_shuffling_leaves_the_sources_own_list_alone() -> None:
    class Kept(Numbers):
        kept = Numbers(20).rows()

        def rows(self) -> list[Conversation]:
            return self.kept

    texts(Kept(20, shuffle_seed=3))
    assert [r.prompt_text for r in Kept.kept] == [f"n{i}" for i in range(20)]


def test_mixture_puts_its_parts_one_after_the_other() -> None:
    parts = [Numbers(9, "a", limit=2), Numbers(9, "b", limit=3)]
    assert texts(Mixture(parts)) == ["a0", "a1", "b0", "b1", "b2"]
    assert texts(Mixture(parts, limit=3)) == ["a0", "a1", "b0"]
    mixed = texts(Mixture(parts, shuffle_seed=0))
    assert sorted(mixed) == ["a0", "a1", "b0", "b1", "b2"]


def test_mixture_names_an_empty_part(mistake_of, tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text("")
    mixture = Mixture([Numbers(1), ChatJsonl(str(path))])
    assert mistake_of(mixture.load).startswith(f"{path}: holds no conversation")
    assert mixture.describe() == f"Numbers + {path}"
    assert mistake_of(Mixture([]).load).startswith("Mixture: holds no conversation")


def test_inline_rows() -> None:
    user, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    rows = Inline([[user, answer], [user]]).load()
    assert [r.response_text for r in rows] == ["b", None]
    assert [r.origin for r in rows] == ["inline row 1", "inline row 2"]


def test_inline_mistakes_name_the_row(mistake_of) -> None:
    user = {"role": "user", "content": "a"}
    assert mistake_of(Inline([[user], [user, user]]).load).startswith("inline row 2: ")
    assert mistake_of(Inline([]).load).startswith("Inline: holds no conversation")


def test_microworld_source(mistake_of) -> None:
    (row,) = Microworld("pool", limit=1).load()
    assert row.id == "toxins-00"
    assert row.origin == "microworld pool row 1"
    message = mistake_of(Microworld("harmful_heldot").load)
    assert "did you mean 'harmful_heldout'" in message


# ----------------------------------------------------------------- Hugging Face

ROWS = [
    {"goal": "how do i bake bread ?", "target": "mix, then wait", "label": "safe"},
    {"goal": "how do i bake\nrye ?", "target": "the same", "label": "other"},
]


@pytest.fixture
def no_shared_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def check(source: HuggingFaceDataset, place: str) -> None:
    first, second = source.load()
    assert (first.prompt_text, first.response_text) == (ROWS[0]["goal"], ROWS[0]["target"])
    assert second.prompt_text == ROWS[1]["goal"]
    assert (first.origin, second.origin) == (f"{place} row 1", f"{place} row 2")


def test_folder_of_save_to_disk(tmp_path: Path, mistake_of) -> None:
    table = datasets.Dataset.from_list(ROWS)
    table.save_to_disk(str(tmp_path / "one"))
    check(HuggingFaceDataset(str(tmp_path / "one"), preset="advbench"), f"{tmp_path}/one[train]")
    parts = datasets.DatasetDict({"train": table.select([1]), "test": table})
    parts.save_to_disk(str(tmp_path / "two"))
    two = str(tmp_path / "two")
    check(HuggingFaceDataset(two, split="test", preset="advbench"), f"{two}[test]")
    message = mistake_of(HuggingFaceDataset(two, split="dev", preset="advbench").load)
    assert message.startswith(f"{two}[dev]: cannot be loaded")


@pytest.mark.usefixtures("no_shared_cache")
def test_folder_with_a_data_file(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    (folder / "train.jsonl").write_text(text, encoding="utf-8")
    check(HuggingFaceDataset(str(folder), preset="advbench"), f"{folder}[train]")
    source = HuggingFaceDataset(str(folder), preset="advbench", where={"label": "other"})
    assert [r.origin for r in source.load()] == [f"{folder}[train] row 2"]


def test_a_format_that_the_folder_remembers_does_not_matter(tmp_path: Path) -> None:
    rows = [{"goal": 7, "target": True}, {"goal": 8, "target": False}]
    table = datasets.Dataset.from_list(rows).with_format("torch")
    table.save_to_disk(str(tmp_path / "one"))
    found = HuggingFaceDataset(str(tmp_path / "one")).load()
    assert [(r.prompt_text, r.response_text) for r in found] == [("7", "True"), ("8", "False")]


def test_cells_of_a_data_set_that_are_lists(tmp_path: Path, mistake_of) -> None:
    datasets.Dataset.from_list([{"prompt": ["a", "b"]}]).save_to_disk(str(tmp_path / "one"))
    message = mistake_of(HuggingFaceDataset(str(tmp_path / "one")).load)
    assert message.startswith(f"{tmp_path}/one[train] row 1: column 'prompt' holds a list")


def test_columns_of_chat_data(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    table = datasets.Dataset.from_list([{"messages": turns}] * 3)
    table.save_to_disk(str(tmp_path / "chat"))
    rows = HuggingFaceDataset(str(tmp_path / "chat"), system="be kind", limit=2).load()
    assert [[m.content for m in r.messages] for r in rows] == [["be kind", "a", "b"]] * 2


def test_missing_local_folder_never_asks_the_network(tmp_path: Path, mistake_of) -> None:
    message = mistake_of(HuggingFaceDataset(str(tmp_path / "gone")).load)
    assert message == f"{tmp_path}/gone: folder not found; check the path."
    assert "folder not found" in mistake_of(HuggingFaceDataset("./no/such").load)


def test_wrong_columns_name_the_row(tmp_path: Path, mistake_of) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "one"))
    source = HuggingFaceDataset(str(tmp_path / "one"), columns={"prompt": "gool"})
    message = mistake_of(source.load)
    assert message.startswith(f"{tmp_path}/one[train] row 1: unknown column 'gool'")
    assert "did you mean 'goal'" in message
