"""`oneshot-lit annotate`: log-probabilities, what has changed, and what is computed again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from annotating import SMALL, fit, plain, words, written
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from oneshot_lit.conversation import Conversation, Message
from oneshot_lit.data.annotations import Annotations, RowNumbers
from oneshot_lit.data.chat import Encoded, encode_conversation
from oneshot_lit.errors import OneShotError
from oneshot_lit.methods.annotate import base
from oneshot_lit.methods.annotate.log_probabilities import KIND


@pytest.fixture
def model(tiny_folder: Path, tmp_path: Path) -> Path:
    """The tiny model, to be changed."""
    shutil.copytree(tiny_folder, tmp_path / "start")
    return tmp_path / "start"


def changed(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    trained = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        trained.get_input_embeddings().weight.mul_(1.5)
    trained.save_pretrained(folder)
    assert weights.keys() == load_file(folder / "model.safetensors").keys()


def test_log_probabilities(
    command: Any, model: Path, rows_file: Path, uneven_rows: Path, tmp_path: Path
) -> None:
    from oneshot_lit.data import ChatJsonl

    done = command(*words("LogProbabilities", model, uneven_rows, tmp_path / "log"))
    assert done.code == 0, done.err
    file = Annotations(tmp_path / "log", KIND)
    file.require_current()
    for conversation in ChatJsonl(str(uneven_rows)).load():
        row, expected = plain(model, conversation)
        (place, *_) = file.places(row, "a row")
        got = file.numbers["log_probabilities"][place]
        torch.testing.assert_close(got, expected, atol=2e-6, rtol=0)
        with pytest.raises(OneShotError, match="has no numbers for a row; its text"):
            file.places(Encoded(row.input_ids[:-1], row.loss_mask[:-1]), "a row")
        with pytest.raises(OneShotError, match="has no numbers"):
            file.places(Encoded(row.input_ids, [*row.loss_mask[:-1], False]), "a row")


def test_what_has_changed_is_refused(
    command: Any, model: Path, rows_file: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    assert command(*words("LogProbabilities", model, rows_file, log)).code == 0
    given = fit(model, rows_file, tmp_path / "run", "ConstrainedSFT")
    given += ["--model.reference_file", str(log)]

    def refused(*more: str) -> str:
        done = command(*given, *more)
        assert done.code == 2, done.err
        return str(done.error)

    # Other rows, another truncation, another template.
    other = written(tmp_path / "other.jsonl", [("how do i bake bread ?", "take flour .")])
    assert "has no numbers for a row of data.train" in refused("--data.train.path", str(other))
    first = json.loads(rows_file.read_text().splitlines()[0])["messages"]
    row = Conversation(tuple(Message(**turn) for turn in first))
    size = len(encode_conversation(AutoTokenizer.from_pretrained(model), row).input_ids)
    assert "the truncation has changed" in refused("--data.max_length", str(size - 1))
    template = (model / "chat_template.jinja").read_text().replace("bos_token }}", "bos_token }}a")
    (tmp_path / "mine.jinja").write_text(template)
    assert "has no numbers" in refused("--model.chat_template", str(tmp_path / "mine.jinja"))
    # Another start model, and the same folder with other weights.
    assert "not of the start model" in refused("--model.model_name_or_path", SMALL)
    assert "drop model.reference_name" in refused("--model.reference_name_or_path", SMALL)
    assert "where STAR scores is needed" in refused(
        *["--model", "StarDSS", "--model.annotations", str(log)]
    )
    assert "no annotations; write them" in refused("--model.reference_file", str(tmp_path / "no"))
    assert command(*given).code == 0
    changed(model)
    assert "has changed since it gave these numbers" in refused("--overwrite", "true")
    (log / "annotations.safetensors").write_bytes(b"x" * 100)
    assert "is not what oneshot-lit annotate writes" in refused("--overwrite", "true")


def test_only_what_is_new_is_computed(
    command: Any,
    model: Path,
    rows_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[int] = []
    plain_losses = base.Annotation.answer_losses

    def counted(self: Any, own: Any, indices: list[int]) -> list[Tensor]:
        if stop_at is not None and len(seen) >= stop_at:
            raise KeyboardInterrupt
        seen.extend(indices)
        return plain_losses(self, own, indices)

    monkeypatch.setattr(base.Annotation, "answer_losses", counted)
    monkeypatch.setattr(base.Annotation, "saves_each_step", True)
    given = words("LogProbabilities", model, rows_file, tmp_path / "log")
    given += ["--model.rows_at_once", "2"]
    stop_at: int | None = 6
    assert command(*given).code == 130
    stop_at = None
    done = command(*given)
    assert done.code == 0, done.err
    # Twelve rows of which two are the same.
    lines = rows_file.read_text().splitlines()
    assert len(seen) == len(set(lines))
    whole = Annotations(tmp_path / "log", KIND)
    assert len(whole.keys) == 12
    # One row more, then other weights.
    with rows_file.open("a") as file:
        turns = [{"role": "user", "content": "and ?"}, {"role": "assistant", "content": "yes ."}]
        file.write(json.dumps({"messages": turns}) + "\n")
    seen.clear()
    assert command(*given).code == 0
    assert len(seen) == 1
    again = Annotations(tmp_path / "log", KIND)
    for key in whole.keys:
        assert torch.equal(again[key]["log_probabilities"], whole[key]["log_probabilities"])
    seen.clear()
    changed(model)
    assert command(*given).code == 0
    assert len(seen) == len(set(lines)) + 1
    assert not set(Annotations(tmp_path / "log", KIND).keys) & set(again.keys)


def test_mistakes_of_annotate(command: Any, model: Path, rows_file: Path, tmp_path: Path) -> None:
    for kind, more, message in (
        ("TokenScores", ["--model.harmful", model], "required: utility"),
        ("TokenScores", ["--model.harmful", "./no", "--model.utility", model], "not found"),
        ("StarScores", ["--model.guards", "[]"], "model.guards: is empty"),
        ("LogProbabilities", ["--trainer.precision", "bf16-true"], "trainer.precision"),
        ("LogProbabilities", ["--model.rows_at_once", "0"], "rows_at_once"),
        ("LogProbabilities", ["--model.peft", "{r: 2}"], "peft"),
    ):
        done = command(*words(kind, model, rows_file, tmp_path / "x", *more))
        assert done.code == 2, done.err
        assert message in done.error, done.error
    done = command(*fit(model, rows_file, tmp_path / "run", "LogProbabilities"))
    assert "run oneshot-lit annotate in place of fit" in done.error


def test_rows_that_fill_up_a_batch_have_no_numbers() -> None:
    rows = RowNumbers([torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0])])
    batch = {"input_ids": torch.zeros(3, 4).long(), "index": torch.tensor([1, -1, 0])}
    got = rows.of(batch)
    assert got.shape == (3, 4)
    assert got[0, 0] == 4.0
    assert got[2, :3].tolist() == [1.0, 2.0, 3.0]
    assert int(got.isnan().sum()) == 3 + 4 + 1
