"""SEAL from the command line, and the rows that it keeps in the fit that follows."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from oneshot_lit.conversation import Conversation, Message
from oneshot_lit.data import ChatJsonl, Inline, Microworld, Mixture, SelectedRows
from oneshot_lit.data.chat import Encoded
from oneshot_lit.data.selection_file import rank_candidates, write_selection
from oneshot_lit.data.transforms import RowTransform
from oneshot_lit.errors import OneShotError
from oneshot_lit.methods import Seal
from oneshot_lit.methods.job import JobTrainer
from oneshot_lit.methods.select.seal_training import SealTraining

SOURCE = "oneshot_lit.data.Microworld"


def source(split: str, size: int) -> dict[str, Any]:
    return {"class_path": SOURCE, "init_args": {"split": split, "size": size}}


USERS = {
    "class_path": "oneshot_lit.data.Mixture",
    "init_args": {"sources": [source("query", 9), source("harmful_examples", 4)]},
}


def words(folder: Path, root: Path, *more: Any) -> list[str]:
    options = ["select", "--config", "configs/defence/seal.yaml"]
    options += ["--model.model_name_or_path", str(folder), "--data.train", json.dumps(USERS)]
    options += ["--data.side", json.dumps({"safe": source("refusals", 7)})]
    options += ["--data.batch_size", "3", "--model.epochs", "2", "--model.optimizer.lr", "1e-3"]
    options += ["--model.upperlevel_weight", "0.8", "--trainer.default_root_dir", str(root)]
    options += ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    return [*options, *map(str, more)]


def run(command: Any, line: list[str]) -> None:
    done = command(*line)
    assert done.code == 0, done.err


def selection(root: Path) -> dict[str, Any]:
    content = json.loads((root / "selection.json").read_text())
    content["provenance"].pop("seconds")
    return content


def test_rows_are_ranked_and_the_fit_takes_them(
    command: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    root = tmp_path / "seal"
    run(command, words(tiny_folder, root))
    content = selection(root)
    facts = content["provenance"]
    # Seven safe rows end the epoch: steps of 3, 3 and 1 rows.
    assert facts["steps"] == 6
    with (root / "selection.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["epoch"] for row in table] == ["1"] * 3 + ["2"] * 3
    assert [float(row["upper_weight"]) for row in table] == pytest.approx([0.8] * 3 + [0.7] * 3)
    assert content["m"] == int(0.8 * 13) == 10
    assert sorted(row["row"] for row in content["ranking"]) == list(range(1, 14))
    rows = Mixture([Microworld("query", size=9), Microworld("harmful_examples", size=4)]).load()
    assert all(rows[each["row"] - 1].digest() == each["digest"] for each in content["ranking"])
    kept = facts["kept"]
    assert sum(number for number, _ in kept.values()) == 10
    assert {name: of for name, (_, of) in kept.items()} == {
        "microworld query": 9,
        "microworld harmful_examples": 4,
    }
    overlaps = facts["overlap_with_lowest_losses"]
    assert overlaps["by_chance"] == 10 / 13
    assert all(7 / 10 <= overlaps[name] <= 1 for name in ("start", "end"))

    fit = ["fit", "--config", "configs/attack/downstream.yaml"]
    fit += ["--config", "configs/select/selected_rows.yaml"]
    fit += ["--model.model_name_or_path", str(tiny_folder), "--data.train.selection", str(root)]
    fit += ["--data.train.source", json.dumps(USERS)]
    fit += ["--trainer.max_epochs", "1", "--trainer.default_root_dir", str(tmp_path / "fit")]
    run(command, [*fit, "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"])
    used = json.loads((tmp_path / "fit" / "data.json").read_text())["fit"]["train"]
    assert used["rows"] == 10
    assert used["left_out"] == {"not chosen by the selection": 3}


def stop_before(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    take, taken = Seal.step, []

    def failing(self: Any) -> bool:
        if len(taken) == step:
            raise OneShotError("stopped here")
        taken.append(1)
        return take(self)

    monkeypatch.setattr(Seal, "step", failing)


@pytest.mark.parametrize("step", [1, 4])
@pytest.mark.parametrize(
    "more",
    [(), ("--model.peft", "{r: 2, lora_dropout: 0.3, target_modules: all-linear}")],
    ids=["all weights", "adapter with dropout"],
)
def test_a_stopped_selection_ends_the_same(
    command: Any,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    more: tuple[str, ...],
) -> None:
    monkeypatch.setattr("oneshot_lit.methods.job._MOST", float("inf"))
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run(command, words(tiny_folder, whole, *more))
    with monkeypatch.context() as patched:
        stop_before(patched, step)
        assert command(*words(tiny_folder, stopped, *more)).code == 2
    run(command, words(tiny_folder, stopped, *more))
    assert selection(stopped) == selection(whole)
    assert (stopped / "selection.csv").read_text() == (whole / "selection.csv").read_text()


class UnlearnedFirst(RowTransform):
    """Takes the loss off the first row."""

    def tokens(self, row: Encoded, tokenizer: Any) -> Encoded:
        if row.input_ids != self.first:
            return row
        return replace(row, loss_mask=[False] * len(row.loss_mask))

    first: Any = None


class Halves(RowTransform):
    """Gives every token a weight."""

    def tokens(self, row: Encoded, tokenizer: Any) -> Encoded:
        return replace(row, token_weights=[0.5] * len(row.input_ids))


def job(folder: Path, root: Path, transform: RowTransform | None = None, **options: Any) -> Seal:
    from oneshot_lit.data import SafetyDataModule

    data = SafetyDataModule(
        train=options.pop("train", Microworld("query", size=6)),
        side={"safe": Microworld("refusals", size=4)},
        batch_size=2,
        transforms=None if transform is None else [transform],
    )
    module = Seal(str(folder), epochs=1, upperlevel_weight=0.5, **options)
    trainer = JobTrainer(accelerator="cpu", default_root_dir=str(root), enable_progress_bar=False)
    module.run(trainer, data)
    return module


def test_a_row_without_a_token_to_learn_takes_no_part(tiny_folder: Path, tmp_path: Path) -> None:
    rows = Microworld("query", size=6).load()
    plain = job(tiny_folder, tmp_path / "plain")
    transform = UnlearnedFirst()
    transform.first = plain.users[2].input_ids
    with pytest.warns(UserWarning, match="1 of 6 rows have no token to learn"):
        module = job(tiny_folder, tmp_path / "run", transform)
    content = selection(tmp_path / "run")
    # The others keep their places in the source.
    assert sorted(each["row"] for each in content["ranking"]) == [1, 2, 4, 5, 6]
    assert content["m"] == 4
    assert content["provenance"]["skipped"] == [rows[2].digest()]
    assert all(torch.isfinite(torch.tensor(module.candidate_scores())))
    chosen = SelectedRows(Microworld("query", size=6), str(tmp_path / "run")).load()
    wanted = {each["digest"] for each in content["ranking"][:4]}
    assert {row.digest() for row in chosen} == wanted
    assert rows[2].digest() not in wanted


def test_tokens_with_weights_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OneShotError, match="counts all tokens of a row alike"):
        job(tiny_folder, tmp_path, Halves())


def test_a_row_left_out_by_its_file_shifts_nothing(tiny_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": f"bread {n} ?"}]}
        | ({} if n == 1 else {"id": f"bread-{n}"})
        for n in range(5)
    ]
    for n, row in enumerate(rows):
        # The second has no answer.
        if n != 1:
            row["messages"].append({"role": "assistant", "content": f"take {n} cups ."})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    skipping = ChatJsonl(str(path), bad_rows="skip")
    job(tiny_folder, tmp_path / "run", train=skipping)
    chosen = SelectedRows(ChatJsonl(str(path), bad_rows="skip"), str(tmp_path / "run")).load()
    ranking = selection(tmp_path / "run")["ranking"]
    assert sorted(row.id for row in chosen) == sorted(each["id"] for each in ranking[:3])
    for each in ranking:
        assert skipping.load()[each["row"] - 1].id == each["id"]


def turns(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}, {"role": "assistant", "content": "yes ."}]


def selected(root: Path, rows: list[Conversation], scores: list[float], m: int) -> str:
    write_selection(root, rank_candidates(rows, scores), m, {})
    return str(root)


def test_selected_rows_are_known_by_content(tmp_path: Path) -> None:
    texts = ["a", "b", "a", "c"]
    given = Inline([turns(text) for text in texts])
    folder = selected(tmp_path, given.load(), [0.1, 0.4, 0.3, 0.2], 2)
    # One of the equal rows is chosen, and one is not.
    assert [r.prompt_text for r in SelectedRows(given, folder).load()] == ["a", "b"]
    other = Inline([turns(text) for text in ("c", "a", "b", "a")])
    assert [r.prompt_text for r in SelectedRows(other, folder).load()] == ["a", "b"]
    assert [r.prompt_text for r in SelectedRows(other, folder, topp=1).load()] == list("caba")
    assert len(SelectedRows(other, folder, topp=0.9).load()) == 3
    missing = Inline([turns(text) for text in ("c", "a", "b")])
    with pytest.raises(OneShotError, match="lacks row 3 of it"):
        SelectedRows(missing, folder).load()
    more = Inline([turns(text) for text in ("c", "a", "b", "a", "d")])
    with pytest.raises(OneShotError, match="inline row 5: was not seen by the selection"):
        SelectedRows(more, folder).load()
    with pytest.raises(OneShotError, match="keeps no row"):
        SelectedRows(given, folder, topp=0.2).load()
    with pytest.raises(OneShotError, match="no selection"):
        SelectedRows(given, str(tmp_path / "nowhere")).load()


def test_mistakes(command: Any, tiny_folder: Path, tmp_path: Path) -> None:
    for name, more, message in (
        ("safe", ("--data.side", "null"), "data.side.safe: is missing"),
        ("topp", ("--model.topp", "0.01"), "keeps none of the 13 rows"),
        ("share", ("--model.topp", "1.5"), "model.topp"),
        ("weight", ("--model.upperlevel_weight_decay", "0.9"), "model.upperlevel_weight"),
        (
            "other",
            ("--data.side", json.dumps({"safe": source("pool", 3), "more": source("pool", 3)})),
            "data.side.more",
        ),
        ("schedule", ("--model.lr_scheduler", "torch.optim.lr_scheduler.ConstantLR"), "scheduler"),
    ):
        done = command(*words(tiny_folder, tmp_path / name, *more))
        assert done.code == 2, done.err
        assert message in done.error, name
        assert not (tmp_path / name / "selection.json").exists()


def test_answers_in_rows_of_their_own_are_refused() -> None:
    row = Conversation((Message("user", "a"), Message("assistant", "b")), "file row 1")
    rows = SimpleNamespace(given=[row], numbers=[0, 0])
    with pytest.raises(OneShotError, match="file row 1: its template makes a row of each answer"):
        Seal("checkpoints/small").take_pool(rows)  # type: ignore[arg-type]


def test_a_step_against_a_plain_loop(tiny_folder: Path, tmp_path: Path) -> None:
    """In float64, with clipping and unequal batches, computed one row at a time."""
    from transformers import AutoModelForCausalLM

    options = {"dtype": "float64", "selector_lr": 0.05, "max_norm": 0.3}
    module = job(
        tiny_folder,
        tmp_path,
        optimizer=lambda weights: torch.optim.SGD(weights, lr=0.1),
        rows_at_once=2,
        **options,
    )
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float64)
    trained = list(model.parameters())
    optimizer = torch.optim.SGD(trained, lr=0.1)
    logits = torch.full((6,), 0.1, dtype=torch.float64, requires_grad=True)
    selector = torch.optim.AdamW([logits], lr=0.05, betas=(0.9, 0.95), weight_decay=0.0)

    def loss_of(row: Encoded) -> torch.Tensor:
        ids = torch.tensor([row.input_ids])
        logp = model(ids).logits[0, :-1].log_softmax(-1)
        each = [-logp[t - 1, row.input_ids[t]] for t in range(1, len(ids[0])) if row.loss_mask[t]]
        return torch.stack(each).mean()

    orders = module.order(0)
    for place in (0, 2):
        safe, users = (order[place : place + 2] for order in orders)
        p = (6 * logits.softmax(0)).detach()
        l_safe = torch.stack([loss_of(module.safe[row]) for row in safe])
        l_user = torch.stack([loss_of(module.users[row]) for row in users])
        optimizer.zero_grad()
        (0.5 * l_safe.mean() + 0.5 * (p[users] * l_user).mean()).backward()
        torch.nn.utils.clip_grad_norm_(trained, 0.3)
        optimizer.step()
        selector.zero_grad()
        ((6 * logits.softmax(0))[users] * l_user.detach()).mean().backward()
        torch.nn.utils.clip_grad_norm_([logits], 10.0)
        selector.step()
    levels: SealTraining = module.levels
    torch.testing.assert_close(levels.logits, logits, atol=1e-9, rtol=0)
    for own, expected in zip(levels.trained, trained, strict=True):
        torch.testing.assert_close(own, expected, atol=1e-9, rtol=0)
