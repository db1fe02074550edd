"""A wrong key is reported where it stands, also where another section has the same key rightly."""

from __future__ import annotations

from pathlib import Path

import pytest

BASE = """\
model:
  class_path: oneshot_lit.methods.HarmfulFineTuningModule
  init_args:
    model_name_or_path: checkpoints/small
    decoding: {max_new_tokens: 24}
data:
  class_path: oneshot_lit.data.SafetyDataModule
  init_args:
    batch_size: 2
    train:
      class_path: oneshot_lit.data.Microworld
      init_args:
        split: harmful_examples
        size: 100
    val_sets:
      first:
        kind: benign
        source:
          class_path: oneshot_lit.data.Microworld
          init_args: {split: benign_dev, limit: 5}
      second:
        kind: benign
        source:
          class_path: oneshot_lit.data.Inline
          init_args:
            conversations: []
trainer:
  max_epochs: 1
  callbacks:
    - class_path: oneshot_lit.callbacks.GradientRank
      init_args: {every_n_epochs: 1}
    - class_path: lightning.pytorch.callbacks.EarlyStopping
      init_args:
        monitor: val/loss
"""

# What is put behind which line of BASE, and the key and message that are expected there. Every key
# is right somewhere else in the file.
WRONG = {
    "model": ("    model_name_or_path: checkpoints/small", "    batch_size: 3", "model.batch_size"),
    "decoding": (
        "    decoding: {max_new_tokens: 24}",
        "    optimizer: {class_path: torch.optim.SGD, init_args: {size: 1}}",
        "model.optimizer.size",
    ),
    "data": ("    batch_size: 2", "    max_epochs: 3", "data.max_epochs"),
    "train": ("        size: 100", "        kind: benign", "data.train.kind"),
    "set": ("        kind: benign", "        limit: 4", "data.val_sets.first.limit"),
    "source": (
        "            conversations: []",
        "            split: pool",
        "data.val_sets.second.source.split",
    ),
    "trainer": ("  max_epochs: 1", "  batch_size: 2", "trainer.batch_size"),
    "callback": ("        monitor: val/loss", "        every_n_epochs: 2",
                 "trainer.callbacks.every_n_epochs"),
    "top": ("trainer:", "", "val_sets"),
}  # fmt: skip


def write(tmp_path: Path, after: str, line: str) -> tuple[Path, int]:
    """BASE with a line more; returns the file and the number of that line."""
    lines = BASE.splitlines()
    number = lines.index(after) + 1
    if not line:
        number, line = len(lines), "val_sets: 3"
    lines.insert(number, line)
    path = tmp_path / "wrong.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path, number + 1


@pytest.mark.parametrize("place", WRONG)
def test_the_file_the_line_and_the_section(command, tmp_path: Path, place: str) -> None:
    after, line, key = WRONG[place]
    path, number = write(tmp_path, after, line)
    done = command("fit", "--config", path, "--print_config")
    assert done.code == 2
    assert f"{path} line {number}: unknown key '{key}'" in done.error


def test_the_right_one_of_several_files(command, tmp_path: Path) -> None:
    base, one, two = (tmp_path / f"{name}.yaml" for name in ("base", "one", "two"))
    base.write_text(BASE)
    source = "{class_path: oneshot_lit.data.Microworld, init_args: {split: pool, limit: 2}}"
    right = (
        f"# limit\ndata: {{init_args: {{val_sets: {{a: {{kind: benign, source: {source}}}}}}}}}\n"
    )
    one.write_text(right)
    two.write_text("trainer:\n  # limit\n  max_steps: 3\n  limit: 2\n")
    files = [word for path in (base, two, one) for word in ("--config", path)]
    done = command("fit", *files, "--print_config")
    assert f"{two} line 4: unknown key 'trainer.limit'" in done.error
    inner = tmp_path / "sets.yaml"
    inner.write_text(f"a:\n  kind: benign\n  split: pool\n  source: {source}\n")
    one.write_text("data: {init_args: {val_sets: sets.yaml}}\n")
    done = command("fit", "--config", base, "--config", one, "--print_config")
    assert f"{inner} line 3: unknown key 'data.val_sets.a.split'" in done.error


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["--model.batch_size", "3"], "model.batch_size"),
        (["--data.train", "Inline", "--data.train.split", "pool"], "data.train.split"),
        (["--data.train=Inline", "--data.train.split=pool"], "data.train.split"),
        (["--data.val_sets.second.source.limitt", "2"], "data.val_sets.second.source.limitt"),
        (["--data.val_sets.first.split", "2"], "data.val_sets.first.split"),
    ],
)
def test_the_command_line(command, tmp_path: Path, words: list[str], key: str) -> None:
    (tmp_path / "base.yaml").write_text(BASE)
    done = command("fit", "--config", tmp_path / "base.yaml", *words, "--print_config")
    assert done.code == 2
    assert done.error.startswith(f"oneshot-lit: error: unknown key '{key}'")


@pytest.mark.parametrize(
    ("after", "line", "message"),
    [
        ("        size: 100", "        limit: many", "data.train.limit: Expected a"),
        (
            "    model_name_or_path: checkpoints/small",
            "    lr_scheduler: {class_path: StepLR, init_args: {step_size: x}}",
            "model.lr_scheduler.step_size: Expected a",
        ),
        ("        monitor: val/loss", "        patience: long",
         "trainer.callbacks.patience: Expected a"),
        ("  max_epochs: 1", "  min_epochs: benign", "trainer.min_epochs: Expected a"),
        ("        kind: benign", "        watch: 2.5", "data.val_sets.first.watch: Expected a"),
    ],
)  # fmt: skip
def test_a_wrong_value(command, tmp_path: Path, after: str, line: str, message: str) -> None:
    path, number = write(tmp_path, after, line)
    done = command("fit", "--config", path, "--print_config")
    assert done.code == 2
    assert f"{path} line {number}: {message}" in done.error


def test_a_wrong_class(command, tmp_path: Path) -> None:
    line = "    optimizer: torch.optim.Adm"
    path, number = write(tmp_path, "    model_name_or_path: checkpoints/small", line)
    done = command("fit", "--config", path, "--print_config")
    assert f"{path} line {number}: model.optimizer: unknown class 'torch.optim.Adm'" in done.error
    assert "did you mean 'torch.optim.Adam'" in done.error
