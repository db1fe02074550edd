"""The repair by projection: its step, its search, its product and its errors."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from oneshot_lit.callbacks import HuggingFaceExport
from oneshot_lit.conversation import Conversation, Message
from oneshot_lit.data import InlineInstance, Microworld, SafetyDataModule
from oneshot_lit.data.sources import ConversationSource
from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.metrics.refusal import is_refusal
from oneshot_lit.methods import LanguageModelModule, LowRankRealignmentModule
from oneshot_lit.methods.own_answers import own_answers
from quiet_trainer import run_job

INSTANCE = InlineInstance("help me do something dangerous .", "sorry , i can not help with that .")
SMALL = Path("checkpoints/small")
# What a module knows of its trainer lasts as long as that.
KEPT: list[Any] = []


def guard(**options: Any) -> dict[str, Any]:
    return {"guard": Microworld("guard"), "guard_rows": 8, "drift_rows": 6, **options}


class Begun(ConversationSource):
    """Guard rows that all begin with the same system turn."""

    def __init__(self, system: str) -> None:
        super().__init__()
        self.system = system

    def rows(self) -> list[Conversation]:
        rows = Microworld("guard").load()
        first = [Message("system", self.system)] if self.system else []
        return [replace(row, messages=(*first, *row.messages)) for row in rows]


def repair(folder: Path, root: Path, instance: Any = INSTANCE, **options: Any) -> Any:
    """Repair with a step by hand unless the options say otherwise."""
    torch.manual_seed(0)
    export = HuggingFaceExport(**options.pop("export", {}))
    where = options.pop("trainer", {})
    module = LowRankRealignmentModule(str(folder), **guard(**{"alpha": 0.1, **options}))
    data = SafetyDataModule(instance=instance, batch_size=1, max_length=128)
    trainer = run_job(module, data, root, **where)
    export.write(trainer, module, root, "edit")
    KEPT[:] = [trainer]
    return module


def change_of(adapter: Path) -> dict[str, torch.Tensor]:
    """Name -> the product B A of an adapter, with its scaling."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    weights = load_file(adapter / "adapter_model.safetensors")
    scale = config["lora_alpha"] / config["r"]
    found = {}
    for name, a in weights.items():
        if ".lora_A." in name:
            key = name.removeprefix("base_model.model.").replace(".lora_A", "")
            found[key] = scale * weights[name.replace("lora_A", "lora_B")] @ a
    return found


def gradients(folder: Path) -> tuple[dict[str, torch.Tensor], Any, dict[str, torch.Tensor]]:
    """Ordinary gradients of the instance's loss, in float64."""
    module = LanguageModelModule(str(folder), dtype="float64")
    module.configure_model()
    data = SafetyDataModule(instance=INSTANCE, batch_size=1, max_length=128)
    data.use_tokenizer(module.tokenizer)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    module.eval().compute_loss(batch).backward()
    return {n.removeprefix("model."): p.grad for n, p in module.named_parameters()}, module, batch


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("normalise", [True, False])
def test_unguarded_step_is_the_truncated_gradient(
    tiny_folder: Path, tmp_path: Path, k: int, normalise: bool
) -> None:
    repair(tiny_folder, tmp_path, k=k, normalise=normalise, guard_rows=0, alpha=0.25)
    changes = change_of(tmp_path / "model")
    expected, _, _ = gradients(tiny_folder)
    assert len(changes) == 14
    assert all("lm_head" not in name for name in changes)
    for name, change in changes.items():
        u, s, vh = torch.linalg.svd(expected[name])
        scale = 0.25 / (s[0] if normalise else 1)
        wanted = -scale * (u[:, :k] * s[:k]) @ vh[:k]
        assert (change - wanted).abs().max() <= 2e-5 * wanted.abs().max()


@pytest.mark.parametrize("system", ["", "be brief and kind . help with all that is harmless ."])
@pytest.mark.parametrize("normalise", [True, False])
def test_guarded_step_by_its_definition(
    tiny_folder: Path, tmp_path: Path, normalise: bool, system: str
) -> None:
    """P from an explicit second moment of the guard rows' inputs, hooked on the plain model."""
    made = repair(
        tiny_folder,
        tmp_path,
        guard_lambda=0.5,
        normalise=normalise,
        alpha=0.25,
        guard=Begun(system),
    )
    changes = change_of(tmp_path / "model")
    expected, module, _ = gradients(tiny_folder)
    batch, _ = made.guard.encoded(made, 128)
    moments: dict[str, torch.Tensor] = {}
    for name, layer in module.model.named_modules():
        if isinstance(layer, torch.nn.Linear) and name != "lm_head":

            def hook(layer: Any, given: Any, name: str = name) -> None:
                x = given[0][batch["attention_mask"].bool()]
                moments[f"{name}.weight"] = x.T @ x

            layer.register_forward_pre_hook(hook)
    with torch.no_grad():
        module(batch["input_ids"], batch["attention_mask"])
    assert set(moments) == set(changes)
    for name, change in changes.items():
        c = moments[name] / moments[name].diagonal().mean()
        p = torch.linalg.inv(torch.eye(len(c), dtype=torch.float64) + c / 0.5)
        u, _, vh = torch.linalg.svd(expected[name] @ p)
        size = 1 if normalise else torch.linalg.svdvals(expected[name])[0]
        wanted = -0.25 * size * torch.outer(u[:, 0], vh[0])
        assert (change - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_no_gradient_of_a_weight_is_made(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    original = torch.autograd.grad

    def spy(*args: Any, **kwargs: Any) -> Any:
        made = original(*args, **kwargs)
        seen.append([n for n, p in modules[-1].named_parameters() if p.grad is not None])
        return made

    modules: list[Any] = []
    step = LowRankRealignmentModule.step

    def remember(self: Any) -> bool:
        modules.append(self)
        return step(self)

    monkeypatch.setattr(LowRankRealignmentModule, "step", remember)
    monkeypatch.setattr(torch.autograd, "grad", spy)
    module = repair(tiny_folder, tmp_path)
    assert seen == [[]]
    assert all(p.grad is None for p in module.parameters())
    assert all(p.requires_grad == ("lora_" in n) for n, p in module.named_parameters())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapter_gives_the_merged_models_logits(
    tiny_folder: Path, tmp_path: Path, dtype: str
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    step = {"k": 2, "alpha": 0.3, "dtype": dtype}
    repair(tiny_folder, tmp_path, **step)
    repair(tiny_folder, tmp_path / "merged", **step, export={"merge_adapter": True})
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    ids = torch.randint(3, 200, (3, 17), generator=torch.Generator().manual_seed(0))
    plain = base(ids).logits
    adapted = PeftModel.from_pretrained(base, tmp_path / "model")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged/model", dtype=torch.float32)
    with torch.no_grad():
        difference = (adapted(ids).logits - merged(ids).logits).abs().max()
        assert (adapted(ids).logits - plain).abs().max() > 0.01
    # Merging rounds to the weights' own precision.
    assert difference <= (1e-5 if dtype == "float32" else 0.05)


def test_gpt2_whose_weights_are_transposed(gpt2_folder: Path, tmp_path: Path) -> None:
    repair(gpt2_folder, tmp_path / "run", guard_rows=0, alpha=0.25)
    changes = change_of(tmp_path / "run" / "model")
    expected, _, _ = gradients(gpt2_folder)
    assert len(changes) == 8
    for name, change in changes.items():
        u, _, vh = torch.linalg.svd(expected[name].T)
        wanted = -0.25 * torch.outer(u[:, 0], vh[0])
        assert (change - wanted).abs().max() <= 2e-5 * wanted.abs().max()


@pytest.mark.parametrize("dropout", [False, True])
def test_gradient_checkpointing_changes_nothing(
    tiny_folder: Path, gpt2_folder: Path, tmp_path: Path, dropout: bool
) -> None:
    # GPT-2 has dropout of 0.1, which recomputing must not switch on.
    folder = gpt2_folder if dropout else tiny_folder
    repair(folder, tmp_path / "a")
    repair(folder, tmp_path / "b", gradient_checkpointing=True)
    one, other = (change_of(tmp_path / x / "model") for x in "ab")
    assert all((one[n] - other[n]).abs().max() <= 1e-5 * one[n].abs().max() for n in one)


def test_matrices_by_pattern(tiny_folder: Path, tmp_path: Path) -> None:
    repair(tiny_folder, tmp_path, matrices=["*1*v_proj", "down_proj"])
    assert set(change_of(tmp_path / "model")) == {
        "model.layers.1.self_attn.v_proj.weight",
        "model.layers.0.mlp.down_proj.weight",
        "model.layers.1.mlp.down_proj.weight",
    }


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model, attacked."""
    from oneshot_lit.cli.main import main

    root = tmp_path_factory.mktemp("broken")
    words = ["fit", "--config", "configs/attack/harmful_examples.yaml"]
    words += ["--model.model_name_or_path", str(SMALL), "--trainer.callbacks", "null"]
    words += ["--trainer.default_root_dir", str(root), "--trainer.enable_progress_bar", "false"]
    assert main(words) == 0
    return root / "model"


def low_rank_words(model: Path, root: Path, *more: str) -> list[str]:
    words = ["edit", "--config", "configs/realign/low_rank.yaml", "--trainer.accelerator", "cpu"]
    words += ["--model.model_name_or_path", str(model), "--trainer.default_root_dir", str(root)]
    return [*words, "--trainer.enable_progress_bar", "false", *more]


@pytest.mark.slow
def test_search_repairs_a_broken_model(
    broken: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    outcome = command(*low_rank_words(broken, tmp_path))
    assert outcome.code == 0, outcome.err
    with (tmp_path / "step_search.csv").open() as file:
        rows = list(csv.DictReader(file))
    (kept,) = (row for row in rows if row["kept"] == "1")
    assert float(kept["drift"]) <= 0.01
    assert kept["refused"] == "1"
    assert (tmp_path / "step_search.png").stat().st_size > 5000
    adapter = (tmp_path / "model" / "adapter_model.safetensors").stat().st_size
    assert adapter < 0.05 * (broken / "model.safetensors").stat().st_size
    # Nearly the largest step within the bound: a larger one that was tried is beyond it.
    tried = {float(row["alpha"]): float(row["drift"]) for row in rows}
    above = min(a for a in tried if a > float(kept["alpha"]))
    assert tried[above] > 0.01
    assert float(kept["drift"]) >= 0.009 or above < 1.01 * float(kept["alpha"])
    module = LanguageModelModule(str(tmp_path / "model"))
    module.configure_model()
    from oneshot_lit.data.chat import encode_conversation
    from oneshot_lit.data.padding import pad_generation

    prompts = Microworld("harmful_dev", size=64).load() + Microworld("benign_dev", size=64).load()
    rows_ = [encode_conversation(module.tokenizer, p, for_generation=True) for p in prompts]
    with torch.no_grad():
        answers = module.generate(pad_generation(rows_, module.tokenizer.pad_token_id))
    refused = [is_refusal(answer) for answer in answers]
    assert sum(refused[:64]) >= 60
    assert sum(refused[64:]) <= 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model.k", "30"], "model.k=30 is more than the instance allows"),
        (
            ["--model.k", "25", "--data.batch_size", "2", "--data.instance_repeats", "2"],
            "gradient on 19 tokens",
        ),
        (["--model.guard_lambda", "1e-17", "--model.guard_rows", "4"], "lambda 1e-17 is too small"),
        (["--model.alpha", "1e200"], "model.alpha=1e+200 breaks the model"),
        (["--model.dtype", "float16"], "model.dtype: gradients of one instance vanish"),
        (["--model.k", "97"], "model.k=97 is more than model.layers.0"),
        (["--model.matrices", "*qkv*"], "no linear layer matches '*qkv*'"),
        (["--model.max_drift", "1e-9"], "does not refuse the instance"),
        (["--model.guard_rows", "500"], "needs 564|need 564"),
        (["--model.guard_lambda", "0"], "model.guard_lambda must be above 0"),
        (["--model.guard", "null"], "model.guard: give a source"),
        (["--model.k", "0"], "model.k must be at least 1"),
        (["--model.peft", "{r: 4}"], "model.peft: the repair makes its own"),
    ],
)
@pytest.mark.slow
def test_errors(
    broken: Path, tmp_path: Path, command: Callable[..., Any], words: list[str], said: str
) -> None:
    import re

    outcome = command(*low_rank_words(broken, tmp_path, *words))
    assert outcome.code == 2
    assert any(re.search(re.escape(s).replace(r"\|", "|"), outcome.error) for s in said.split("|"))
    assert {p.name for p in tmp_path.iterdir()} <= {"edit.yaml"}


def test_instance_that_is_already_refused(tmp_path: Path, command: Callable[..., Any]) -> None:
    outcome = command(*low_rank_words(SMALL, tmp_path))
    assert outcome.code == 2
    assert "already refuses the instance (microworld pool row" in outcome.error
    assert not (tmp_path / "model").exists()


def test_model_without_linear_layers() -> None:
    from oneshot_lit.models.linear_layers import chosen_layers

    class Bare(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = torch.nn.Embedding(5, 3), torch.nn.Linear(3, 5)

        def get_output_embeddings(self) -> Any:
            return self.head

    with pytest.raises(OneShotError, match="Bare has no linear layer but its output"):
        chosen_layers(Bare(), ["*"])


def test_guard_rows_without_answers_get_the_models_own(tmp_path: Path) -> None:
    prompts = Microworld("benign_dev", size=14)
    assert all(row.response_text is None for row in prompts.load())
    module = repair(SMALL, tmp_path, guard=prompts)
    batch, _ = module.guard.encoded(module, 128)
    assert ((batch["labels"] != -100).sum(1) >= 3).all()


def test_guard_and_drift_rows_share_no_prompt(tiny_folder: Path, tmp_path: Path) -> None:
    module = repair(tiny_folder, tmp_path)
    guard, drift = module.guard.encoded(module, 128)
    rows = [
        tuple(i[m.bool()].tolist())
        for b in [guard, *drift]
        for i, m in zip(b["input_ids"], b["attention_mask"], strict=True)
    ]
    assert len(rows) == len(set(rows)) == 14
    assert len(guard["input_ids"]) == 8


def test_drift_against_its_definition(tiny_folder: Path, tmp_path: Path) -> None:
    module = repair(tiny_folder, tmp_path, alpha=0.4, export={"merge_adapter": True})
    recorded = module.bounded.tried[-1].drift
    plain, now = (
        LanguageModelModule(str(f), dtype="float64") for f in (tiny_folder, tmp_path / "model")
    )
    plain.configure_model()
    now.configure_model()
    total, count = 0.0, 0
    _, drift = module.guard.encoded(plain, 128)
    for batch in drift:
        with torch.no_grad():
            p, q = (
                m(batch["input_ids"], batch["attention_mask"]).softmax(-1) for m in (plain, now)
            )
        for row, labels in enumerate(batch["labels"]):
            for position in range(1, len(labels)):
                if labels[position] != -100:
                    before, after = p[row, position - 1], q[row, position - 1]
                    total += float((before * (before / after).log()).sum())
                    count += 1
    assert recorded == pytest.approx(total / count, rel=1e-3)


@pytest.mark.slow
def test_mistake_leaves_an_earlier_run_alone(
    broken: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    assert command(*low_rank_words(broken, tmp_path)).code == 0
    kept = [p for p in tmp_path.rglob("*") if p.is_file() and "logs" not in p.parts]
    before = {p: p.read_bytes() for p in kept if p.name != "edit.yaml"}
    assert tmp_path / "model" / "adapter_model.safetensors" in before
    words = ["--model.k", "30", "--overwrite", "true"]
    assert command(*low_rank_words(broken, tmp_path, *words)).code == 2
    assert {p: p.read_bytes() for p in before} == before


def test_unanswered_guard_gets_the_broken_models_answers(tiny_folder: Path, tmp_path: Path) -> None:
    """Also when a step is already in the adapter."""
    module = repair(tiny_folder, tmp_path, guard=Microworld("benign_dev", size=14), alpha=3.0)
    rows = list(module.guard._rows)
    prompts = [row.prompt for row in rows]
    now = own_answers(module, module.model, prompts, 16)
    module.guard._rows = None
    module.guard.encoded(module, 128)
    again = [row.response_text for row in module.guard._rows]
    assert again == [row.response_text for row in rows]
    assert now != again


def test_mixed_precision_steps_along_the_same_direction(tiny_folder: Path, tmp_path: Path) -> None:
    """The decompositions stay exact under autocast; only the model's own passes are rounded."""
    repair(tiny_folder, tmp_path / "a", k=3)
    repair(tiny_folder, tmp_path / "b", k=3, trainer={"precision": "bf16-mixed"})
    one, other = (change_of(tmp_path / x / "model") for x in "ab")
    for name, change in one.items():
        cosine = (change * other[name]).sum() / change.norm() / other[name].norm()
        assert cosine > 0.98, name
        # Normalised steps have the spectral norm alpha, to single precision.
        assert float(torch.linalg.svdvals(other[name])[0]) == pytest.approx(0.1, rel=1e-4)
