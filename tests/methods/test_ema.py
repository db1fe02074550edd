"""The moving average of weights: golden numbers, a plain loop, resuming, and the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from oneshot_lit.callbacks import ExponentialMovingAverage
from oneshot_lit.cli.export import _fill
from oneshot_lit.errors import OneShotError
from oneshot_lit.methods import LanguageModelModule
from oneshot_lit.methods.finetuning.ema import update_average
from quiet_trainer import quiet_trainer

GOLDEN = Path(__file__).with_name("golden") / "ema"
DATA = load_file(GOLDEN / "data.safetensors")
BATCHES = DATA["batches"].long()
OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda ps, rate: torch.optim.SGD(ps, lr=0.2 * rate),
    "adamw": lambda ps, rate: torch.optim.AdamW(
        ps, lr=0.01 * rate, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1
    ),
}
# Of the golden file.
CLOSE = {"sgd": 1e-6, "adamw": 1e-5}


class Tiny(LightningModule):
    """The golden file's model and optimiser, at `rate` times their learning rate."""

    def __init__(self, kind: str, rate: float = 1.0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        config = LlamaConfig(
            vocab_size=12,
            hidden_size=8,
            intermediate_size=12,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=False,
            attn_implementation="eager",
        )
        self.model = LlamaForCausalLM(config)
        start = {n.removeprefix("w0."): w for n, w in DATA.items() if n.startswith("w0.")}
        self.model.load_state_dict(start)
        self.model.to(dtype)
        self.kind, self.rate = kind, rate

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        return self.model(input_ids=batch, labels=batch).loss

    def configure_optimizers(self) -> Any:
        return OPTIMIZERS[self.kind](self.parameters(), self.rate)


def trained(
    kind: str, tmp_path: Path, callback: Any = None, rate: float = 1.0, **options: Any
) -> dict[str, Tensor]:
    """Six steps on the golden batches; returns the model's weights at the end."""
    module = Tiny(kind, rate)
    loader: Any = DataLoader(BATCHES, batch_size=None)
    callbacks = [] if callback is None else [callback]
    trainer = Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
        **options,
    )
    trainer.fit(module, loader)
    return {name: weight.detach() for name, weight in module.model.state_dict().items()}


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def golden(name: str) -> dict[str, Tensor]:
    return {n.removeprefix(name): w for n, w in DATA.items() if n.startswith(name)}


@pytest.mark.parametrize("kind", list(OPTIMIZERS))
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("shadow_eta.9.", {"eta": 0.9}),
        ("feedback1_eta.75.", {"eta": 0.75, "feedback_every": 1}),
        ("feedback3_eta.75.", {"eta": 0.75, "feedback_every": 3}),
    ],
)
def test_golden_numbers(kind: str, name: str, options: dict[str, Any], tmp_path: Path) -> None:
    got = trained(kind, tmp_path, ExponentialMovingAverage(**options))
    wanted = golden(f"{kind}.{name}")
    assert wanted
    assert difference(got, wanted) < CLOSE[kind]
    # The plain run differs by more than the tolerance.
    assert difference(golden(f"{kind}.raw."), wanted) > 100 * CLOSE[kind]


@pytest.mark.parametrize("kind", list(OPTIMIZERS))
def test_feedback_after_every_step_is_a_smaller_rate(kind: str, tmp_path: Path) -> None:
    """With theta = average, eta*theta + (1-eta)*(theta + step) = theta + (1-eta)*step."""
    eta = 0.75
    with pytest.warns(UserWarning, match="learning rate times 0.25"):
        fed = trained(kind, tmp_path, ExponentialMovingAverage(eta, feedback_every=1))
    control = trained(kind, tmp_path, rate=1 - eta)
    assert difference(fed, control) < 5e-7
    third = trained(kind, tmp_path, ExponentialMovingAverage(eta, feedback_every=3))
    assert difference(third, control) > 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_the_average_against_its_closed_form(seed: int) -> None:
    """After n steps it is eta^n theta_0 + (1 - eta) sum_k eta^(n-k) theta_k, in float64."""
    torch.manual_seed(seed)
    eta, steps = float(torch.rand(1)), [torch.randn(3, 4, dtype=torch.float64) for _ in range(9)]
    average = {"w": steps[0].clone()}
    for weights in steps[1:]:
        update_average(average, [("w", weights)], eta)
    wanted = eta**8 * steps[0]
    for k, weights in enumerate(steps[1:], start=1):
        wanted += (1 - eta) * eta ** (8 - k) * weights
    torch.testing.assert_close(average["w"], wanted, atol=1e-12, rtol=0)


def test_the_first_steps_may_be_left_out(tmp_path: Path) -> None:
    seen: list[dict[str, Tensor]] = []

    class Seeing(ExponentialMovingAverage):
        def on_train_batch_end(self, trainer: Any, module: Any, *rest: Any) -> None:
            super().on_train_batch_end(trainer, module, *rest)
            now = {n: p.detach().clone() for n, p in module.model.named_parameters()}
            seen.append(now)

    got = trained("sgd", tmp_path, Seeing(0.5, start_step=4))
    average = {n: w.clone() for n, w in golden("w0.").items() if n in seen[0]}
    for step in (4, 5):
        update_average(average, seen[step].items(), 0.5)
    assert difference(average, got) < 1e-7
    # Never begun, the average is the start.
    start = trained("sgd", tmp_path, ExponentialMovingAverage(0.5, start_step=6))
    assert difference(start, golden("w0.")) == 0


def test_once_an_optimiser_step_under_accumulation(tmp_path: Path) -> None:
    calls: list[int] = []

    class Counting(ExponentialMovingAverage):
        def should_update(self, step_idx: Any = None, epoch_idx: Any = None) -> bool:
            if step_idx is not None:
                calls.append(step_idx)
            return super().should_update(step_idx, epoch_idx)

    got = trained("sgd", tmp_path, Counting(0.9), accumulate_grad_batches=2)
    assert calls == [0, 1, 2]
    module = Tiny("sgd")
    optimizer: Any = module.configure_optimizers()
    average = {n: p.detach().clone() for n, p in module.model.named_parameters()}
    for step in range(3):
        for batch in BATCHES[2 * step : 2 * step + 2]:
            (module.training_step(batch, 0) / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
        update_average(average, module.model.named_parameters(), 0.9)
    assert difference(average, got) < 1e-7


def test_the_average_keeps_float32(tmp_path: Path) -> None:
    """In bfloat16 hardly an entry would move at a high eta."""
    facts = json.loads((GOLDEN / "data.json").read_text())
    shares = {}
    for dtype in (torch.bfloat16, torch.float32):
        module = Tiny("sgd", 1e-5 / 0.2, torch.bfloat16)
        start = {n: p.detach().clone() for n, p in module.model.named_parameters()}
        average = {n: p.to(dtype) for n, p in start.items()}
        moved = {n: p.float() for n, p in start.items()}
        torch.manual_seed(0)
        for _ in range(6):
            for weight in moved.values():
                weight -= 1e-5 * torch.randn_like(weight)
            update_average(average, moved.items(), 0.999)
        changed = torch.cat([(average[n] != start[n].to(dtype)).flatten() for n in start])
        shares[dtype] = float(changed.float().mean())
    assert shares[torch.bfloat16] < 0.05 < 0.5 < shares[torch.float32]
    assert facts["bf16_shadow_eta.999_lr1e-5_share_of_entries_changed"] < 0.05
    # The callback holds it so for a 16-bit model, also over a validation.
    kept: list[Any] = []

    class Keeping(ExponentialMovingAverage):
        def on_train_batch_end(self, trainer: Any, module: Any, *rest: Any) -> None:
            super().on_train_batch_end(trainer, module, *rest)
            before = {n: w.clone() for n, w in self._average_model.weights.items()}
            own = {n: p.detach().clone() for n, p in module.named_parameters()}
            self.on_validation_epoch_start(trainer, module)
            for name, parameter in module.named_parameters():
                assert torch.equal(parameter, before[name].bfloat16())
            self.on_validation_epoch_end(trainer, module)
            for name, parameter in module.named_parameters():
                assert torch.equal(parameter, own[name])
                assert torch.equal(self._average_model.weights[name], before[name])
            kept.append({w.dtype for w in before.values()})

    sixteen = Tiny("sgd", dtype=torch.bfloat16)
    quiet_trainer(tmp_path, Keeping(0.9), max_epochs=1).fit(
        sixteen, DataLoader(BATCHES, batch_size=None)
    )
    assert kept == [{torch.float32}] * 6


# ------------------------------------------------------------------------- the command line

RATE = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-2, "weight_decay": 0.1}}


def averaging(fit_words: list[str], **options: Any) -> list[str]:
    callback = {
        "class_path": "oneshot_lit.callbacks.ExponentialMovingAverage",
        "init_args": {"eta": 0.8, **options},
    }
    words = [*fit_words, "--trainer.callbacks", json.dumps([callback])]
    words += ["--model.optimizer", json.dumps(RATE), "--checkpoint.max_share", "1"]
    return [*words, "--checkpoint.every_n_train_steps", "1"]


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model" / "model.safetensors")


LORA = ["--model.peft", "{r: 2, target_modules: all-linear, init_lora_weights: gaussian}"]


@pytest.mark.parametrize("peft", [False, True], ids=["weights", "adapter"])
def test_the_output_is_the_average(
    command: Any, fit_words: list[str], tiny_folder: Path, tmp_path: Path, peft: bool
) -> None:
    """From the weights after each of the six steps, which plain runs of that many steps write."""
    name = "adapter_model.safetensors" if peft else "model.safetensors"
    words = averaging(fit_words) + (LORA if peft else [])
    plain = [*words, "--trainer.callbacks", "[]"]
    done = command(*words)
    assert done.code == 0, done.err
    after = []
    for step in range(7):
        root = tmp_path / f"plain{step}"
        more = ["--trainer.max_steps", str(step)] if step else ["--model.optimizer.lr", "0"]
        more += [] if step else ["--trainer.max_steps", "1"]
        done = command(*plain, *more, "--trainer.default_root_dir", str(root))
        assert done.code == 0, done.err
        after.append(load_file(root / "model" / name))
    average = {n: w.clone() for n, w in after[0].items()}
    for state in after[1:]:
        update_average(average, state.items(), 0.8)
    got = load_file(tmp_path / "run" / "model" / name)
    assert difference(average, got) < 1e-6
    assert difference(after[-1], got) > 1e-3


@pytest.mark.parametrize("options", [{}, {"feedback_every": 2, "start_step": 1}], ids=str)
@pytest.mark.parametrize("peft", [False, True], ids=["weights", "adapter"])
def test_a_resumed_run_ends_the_same(
    command: Any, fit_words: list[str], tmp_path: Path, options: dict[str, Any], peft: bool
) -> None:
    words = averaging(fit_words, **options) + (LORA if peft else [])
    assert command(*words).code == 0
    file = "model/adapter_model.safetensors" if peft else "model/model.safetensors"
    whole = (tmp_path / "run" / file).read_bytes()
    other = [*words, "--trainer.default_root_dir", str(tmp_path / "cut")]
    assert command(*other, "--trainer.max_steps", "4").code == 0
    assert (tmp_path / "cut" / file).read_bytes() != whole
    done = command(*other, "--ckpt_path", "last")
    assert done.code == 0, done.err
    assert (tmp_path / "cut" / file).read_bytes() == whole
    # Also where nothing is left to do.
    (tmp_path / "cut" / file).unlink()
    done = command(*other, "--ckpt_path", "last")
    assert done.code == 0, done.err
    assert (tmp_path / "cut" / file).read_bytes() == whole
    out = tmp_path / "out"
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    done = command("export", "--checkpoint", last, "--out", out)
    assert done.code == 0, done.err
    assert (out / Path(file).name).read_bytes() == whole


def test_the_configs(command: Any, fit_words: list[str], tmp_path: Path) -> None:
    # The command line is that of the comments, with less data.
    small = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    small += ["--trainer.max_steps", "2", "--model.model_name_or_path", fit_words[4]]
    outputs = []
    for name in ("ema", "ema_control"):
        words = ["fit", "--config", "configs/attack/downstream.yaml"]
        words += ["--config", f"configs/defence/{name}.yaml", *small]
        done = command(*words, "--trainer.default_root_dir", str(tmp_path / name))
        assert done.code == 0, done.err
        outputs.append(weights(tmp_path / name))
    start = load_file(Path(fit_words[4]) / "model.safetensors")
    for each in outputs:
        assert 0 < difference(each, start) < 1e-4


def test_mistakes(command: Any, fit_words: list[str]) -> None:
    for options, message in (
        ({"eta": 1.0}, "eta must be in"),
        ({"eta": -0.1}, "eta must be in"),
        ({"feedback_every": 0}, "feedback_every must be at least 1"),
        ({"start_step": -1}, "start_step must be at least 0"),
    ):
        with pytest.raises(OneShotError, match=message):
            ExponentialMovingAverage(**options)
    plain = [*averaging(fit_words), "--trainer.callbacks", "[]"]
    assert command(*plain, "--trainer.max_epochs", "1").code == 0
    done = command(*averaging(fit_words), "--ckpt_path", "last")
    assert done.code == 2
    done = command(*averaging(fit_words, eta=2), "--overwrite", "true")
    assert done.code == 2
    assert "eta must be in" in done.error


def test_a_sharded_average_is_not_exported_from_a_checkpoint(tmp_path: Path) -> None:
    """Its parts lie in the files of each process; the plain weights would be wrong."""
    callbacks = [{"class_path": "oneshot_lit.callbacks.ExponentialMovingAverage"}]
    config = {"trainer": {"callbacks": callbacks}}
    module = LanguageModelModule("checkpoints/small")
    for kind in ("fsdp2", "deepspeed"):
        with pytest.raises(OneShotError, match="resume the run to its end instead"):
            _fill(module, tmp_path, {"kind": kind, "run": {"config": config}})
