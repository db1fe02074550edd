"""STAR-DSS and TOSS from the command line: what is annotated, and what the fits do with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from annotating import QUIET, SMALL, fit, plain, words, written
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer

from oneshot_lit.conversation import Conversation, Message
from oneshot_lit.data import Microworld
from oneshot_lit.data.annotations import Annotations
from oneshot_lit.data.chat import encode_conversation
from oneshot_lit.errors import OneShotError
from oneshot_lit.methods import (
    RefusalGuard,
    StarDSS,
    TossTokens,
)
from oneshot_lit.methods.annotate.star import beginnings, chunk_ends
from oneshot_lit.methods.finetuning.star_dss import KIND as STAR
from oneshot_lit.methods.finetuning.toss import KIND as TOSS


@pytest.fixture
def model(tiny_folder: Path, tmp_path: Path) -> Path:
    """The tiny model, to be changed."""
    shutil.copytree(tiny_folder, tmp_path / "start")
    return tmp_path / "start"


def test_star_scores_of_the_microworld(command: Any, tmp_path: Path) -> None:
    """The aligned model's own guard tells harmful rows from others, and chunks are whole words."""
    mixture = [
        {"class_path": "oneshot_lit.data.Microworld", "init_args": {"split": s, "size": 6}}
        for s in ("harmful_examples", "guard", "refusals")
    ]
    train = {"class_path": "oneshot_lit.data.Mixture", "init_args": {"sources": mixture}}
    guard = {"class_path": "RefusalGuard", "init_args": {"model_name_or_path": SMALL}}
    given = ["annotate", "--model", "StarScores", "--model.model_name_or_path", SMALL]
    given += ["--model.guards", json.dumps([guard]), "--model.chunk_words", "3"]
    given += ["--data", "oneshot_lit.data.SafetyDataModule", "--data.train", json.dumps(train)]
    done = command(*given, "--trainer.default_root_dir", tmp_path, *QUIET)
    assert done.code == 0, done.err
    file = Annotations(tmp_path, STAR)
    tokenizer = AutoTokenizer.from_pretrained(SMALL)
    for split, (low, high) in {
        "harmful_examples": (0.0, 0.2),
        "guard": (0.9, 1.0),
        "refusals": (1.0, 1.0),
    }.items():
        for conversation in Microworld(split, size=6).load():
            row = encode_conversation(tokenizer, conversation)
            place = file.places(row, split, conversation.digest())[0]
            values = file.numbers["values"][place]
            assert low <= values.min() <= values.max() <= high, split
            text = str(conversation.response_text).split()
            assert len(values) == -(-len(text) // 3)
            exact = file.numbers["exact"][place].tolist()
            start = row.loss_mask.index(True)
            for n, end in enumerate(exact[:-1], 1):
                assert tokenizer.decode(row.input_ids[start:end]).split() == text[: 3 * n]
            assert exact[-1] == len(row.input_ids)
            # One token further: the end of turn is counted.
            released = file.numbers["released"][place].tolist()
            assert released[:-1] == [end + 1 for end in exact[:-1]]


def test_chunks_of_rows_that_are_truncated_or_have_several_answers() -> None:
    tokenizer = AutoTokenizer.from_pretrained(SMALL)
    turns = [("user", "how ?"), ("assistant", "take  the\nold soup"), ("user", "and ?")]
    turns += [("assistant", "then the lamp and the chair")]
    conversation = Conversation(tuple(Message(*turn) for turn in turns))
    row = encode_conversation(tokenizer, conversation)
    ends = chunk_ends(tokenizer, conversation, row, 2, exact=True)
    texts = [each.text for each in beginnings(conversation, 2)]
    assert texts[:2] == ["take the", "take the old soup"]
    assert texts[2:] == ["then the", "then the lamp and", "then the lamp and the chair"]
    said = [tokenizer.decode(row.input_ids[:end]) for end in ends]
    assert said[0].endswith("take  the")
    assert said[1].endswith("old soup<|end|>")
    assert said[3].endswith("then the lamp and")
    assert ends[-1] == len(row.input_ids)
    cut = encode_conversation(tokenizer, conversation, max_length=ends[3] - 1)
    assert chunk_ends(tokenizer, conversation, cut, 2, exact=True) == [
        *ends[:3],
        *[ends[3] - 1] * 2,
    ]


@pytest.mark.parametrize("boundary", ["exact", "released"])
def test_star_dss_learns_by_its_scores(
    command: Any, model: Path, rows_file: Path, tmp_path: Path, boundary: str
) -> None:
    """Where every chunk is safe, it is plain fine-tuning; where none is, the model stays."""
    for value, same in ((1.0, "HarmfulFineTuningModule"), (0.0, None)):
        root = tmp_path / f"{value}"
        guard = "RefusalGuard" if value else f"{__name__}.NothingIsSafe"
        guards = [{"class_path": guard, "init_args": {"model_name_or_path": str(model)}}]
        done = command(
            *words("StarScores", model, rows_file, root / "a", "--model.guards", json.dumps(guards))
        )
        assert done.code == 0, done.err
        path = root / "a" / "annotations.safetensors"
        if value:
            _set_values(path, value)
        given = ["--model.annotations", str(path), "--model.boundary", boundary]
        done = command(*fit(model, rows_file, root / "run", "StarDSS", *given))
        assert done.code == 0, done.err
        after = load_file(root / "run" / "model" / "model.safetensors")
        expected = load_file(model / "model.safetensors")
        if same:
            assert command(*fit(model, rows_file, root / "plain", same)).code == 0
            expected = load_file(root / "plain" / "model" / "model.safetensors")
        for name, weight in expected.items():
            torch.testing.assert_close(after[name], weight, atol=1e-6, rtol=0)


class NothingIsSafe(RefusalGuard):
    """Finds everything unsafe."""

    def scores(self, rows: Any, beginnings: Any) -> Tensor:
        return torch.zeros(len(rows))


def _set_values(path: Path, value: float) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(path, framework="pt") as opened:
        facts = opened.metadata()
    tensors = load_file(path)
    tensors["values"].fill_(value)
    save_file(tensors, path, facts)


def test_mistakes_of_star_dss(model: Path) -> None:
    with pytest.raises(OneShotError, match=r"model.annotations: is missing"):
        StarDSS(str(model))
    with pytest.raises(OneShotError, match="rejection has no reference"):
        StarDSS(str(model), annotations="x", variant="rejection", reference_file="y")
    with pytest.warns(UserWarning, match="k1 pushes label tokens down"):
        StarDSS(str(model), annotations="x", kl_estimator="k1")
    with pytest.raises(OneShotError, match="kl_scale must not be negative"):
        StarDSS(str(model), annotations="x", kl_scale=-1.0)


def test_toss_from_the_command_line(
    command: Any, models: Any, rows_file: Path, tmp_path: Path
) -> None:
    given = ["--model.harmful", models.tuned, "--model.utility", models.base]
    scored = tmp_path / "scores"
    done = command(
        *words("TokenScores", models.aligned, rows_file, scored, *given, "--model.pro_rows", "3")
    )
    assert done.code == 0, done.err
    file = Annotations(scored, TOSS)
    from oneshot_lit.data import ChatJsonl

    each = []
    for number, conversation in enumerate(ChatJsonl(str(rows_file)).load()):
        losses = [-plain(folder, conversation)[1] for folder in (models.base, models.tuned)]
        for name, own in zip(("utility", "harmful"), losses, strict=True):
            torch.testing.assert_close(file.numbers[name][number], own, atol=2e-6, rtol=0)
        each.append(file.numbers["utility"][number].double() - file.numbers["harmful"][number])
    flat = torch.cat(each)
    out = flat.argsort(descending=True, stable=True)[: int(len(flat) * 0.3)].tolist()
    # Rows by their best token, and written as rows.
    owners = [n for n, own in enumerate(each) for _ in own]
    best = list(dict.fromkeys(owners[i] for i in flat.argsort(descending=True, stable=True)))[:3]
    lines = rows_file.read_text().splitlines()
    pro = (scored / "harmful_rows.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in pro] == [json.loads(lines[n]) for n in best]

    transform = TossTokens(str(scored), discard=0.3)
    tokenizer = AutoTokenizer.from_pretrained(models.aligned)
    place = 0
    for _ in range(2):
        place = 0
        for conversation in ChatJsonl(str(rows_file)).load():
            row = transform.tokens(encode_conversation(tokenizer, conversation), tokenizer)
            assert row.token_weights is not None
            for learned, weight in zip(row.loss_mask, row.token_weights, strict=True):
                assert weight == (0.0 if learned and place in out else 1.0)
                place += learned
    transforms = json.dumps(
        [{"class_path": "TossTokens", "init_args": {"annotations": str(scored), "discard": 0.3}}]
    )
    for reduction in ("all_response_tokens", "example_mean", "token_mean"):
        root = tmp_path / reduction
        own = fit(models.aligned, rows_file, root, "Toss", "--model.reduction", reduction)
        done = command(*own, "--data.transforms", transforms)
        assert done.code == 0, done.err
        assert "TOSS leaves out" in done.err + done.out
    done = command(*fit(models.aligned, rows_file, tmp_path / "no", "Toss"))
    assert done.code == 2
    assert "Toss needs TossTokens" in done.error
    other = written(tmp_path / "other.jsonl", [("how ?", "take flour .")])
    done = command(
        *fit(models.aligned, other, tmp_path / "no", "Toss"), "--data.transforms", transforms
    )
    assert done.code == 2
    assert "has no numbers for a row of data.train" in done.error
    with pytest.raises(OneShotError, match="discard must be in"):
        TossTokens(str(scored), discard=1.0)
