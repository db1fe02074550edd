"""Weight edits: tensor by tensor over the files of one or several models."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from oneshot_lit.data import Microworld, SafetyDataModule
from oneshot_lit.errors import OneShotError
from oneshot_lit.methods import WeightEdit
from oneshot_lit.methods.job import JobTrainer
from oneshot_lit.methods.posttuning.weight_edit import Calibration, write_edited
from oneshot_lit.models.edit_files import TensorFiles, edit_folder

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


def folder_of(root: Path, tensors: Mapping[str, Tensor], files: int = 2) -> Path:
    """Write a folder of several safetensors files, with a config and a note beside them."""
    root.mkdir(parents=True, exist_ok=True)
    names, places = list(tensors), {}
    for number in range(files):
        file = f"model-{number + 1:05d}-of-{files:05d}.safetensors"
        part = {n: tensors[n] for n in names[number::files]}
        save_file(part, root / file, metadata={"format": "pt"})
        places |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (root / "model.safetensors.index.json").write_text(json.dumps(index))
    (root / "config.json").write_text('{"model_type": "llama", "torch_dtype": "bfloat16"}')
    (root / "tokenizer.json").write_text("{}")
    (root / "old.bin").write_bytes(b"not copied")
    return root


def tensors(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a.weight": (5, 3), "b.weight": (7,), "c.weight": (2, 2, 2), "d.weight": (1,)}
    made = {n: torch.randn(s, generator=generator).to(dtype) for n, s in shapes.items()}
    return {**made, "steps": torch.tensor([3, 4], dtype=torch.int64)}


def read(folder: Path) -> dict[str, Tensor]:
    return {n: t for file in folder.glob("*.safetensors") for n, t in load_file(file).items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("wanted", [None, torch.float32, torch.bfloat16])
def test_each_tensor_is_edited_with_those_of_the_other_models(
    tmp_path: Path, dtype: torch.dtype, wanted: torch.dtype | None
) -> None:
    models = {name: tensors(seed, dtype) for seed, name in enumerate(("tuned", "base", "aligned"))}
    # The files of the others are cut in another way.
    folders = {
        name: folder_of(tmp_path / name, models[name], files)
        for files, name in ((2, "tuned"), (1, "base"), (3, "aligned"))
    }
    target = tmp_path / "out"
    target.mkdir()
    seen = []

    def edit(name: str, weights: Mapping[str, Tensor]) -> Tensor:
        seen.append(name)
        if name in ("b.weight", "steps"):
            return weights["tuned"]
        return weights["tuned"].double() + 0.5 * (weights["aligned"] - weights["base"]).double()

    assert edit_folder(TensorFiles(folders), target, edit, dtype=wanted) == 3
    assert sorted(seen) == sorted(models["tuned"])
    got = read(target)
    assert got["steps"].tolist() == [3, 4]
    for name in ("a.weight", "b.weight", "c.weight", "d.weight"):
        expected = models["tuned"][name].double()
        if name != "b.weight":
            expected = expected + 0.5 * (models["aligned"][name] - models["base"][name]).double()
        assert got[name].dtype == (wanted or dtype)
        assert torch.equal(got[name], expected.to(wanted or dtype))
    # What is beside the weights comes along; other weights do not.
    assert {p.name for p in target.iterdir()} == {
        p.name for p in folders["tuned"].iterdir() if p.suffix != ".bin"
    }
    index = json.loads((target / "model.safetensors.index.json").read_text())
    sizes = sum(t.numel() * t.element_size() for t in got.values())
    assert index["metadata"]["total_size"] == sizes
    config = json.loads((target / "config.json").read_text())
    assert config.get("dtype") == (None if wanted is None else str(wanted).removeprefix("torch."))
    with safe_open(target / "model-00001-of-00002.safetensors", framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_a_tensor_that_another_model_lacks_or_has_otherwise(tmp_path: Path) -> None:
    tuned = folder_of(tmp_path / "tuned", tensors(0))
    (tmp_path / "out").mkdir()
    lacking = {n: t for n, t in tensors(1).items() if n != "a.weight"}
    folders = {"tuned": tuned, "base": folder_of(tmp_path / "base", lacking)}
    with pytest.raises(OneShotError, match=r"base: has no tensor a\.weight; give the model that"):
        edit_folder(TensorFiles(folders), tmp_path / "out", lambda name, weights: weights["tuned"])
    wider = {**tensors(1), "a.weight": torch.zeros(6, 3)}
    folders["base"] = folder_of(tmp_path / "wider", wider)
    with pytest.raises(OneShotError, match=r"a\.weight is \(6, 3\) there and \(5, 3\) in the"):
        edit_folder(TensorFiles(folders), tmp_path / "out", lambda name, weights: weights["tuned"])
    with pytest.raises(ValueError, match=r"a\.weight: edited to"):
        edit_folder(
            TensorFiles({"tuned": tuned}), tmp_path / "out", lambda name, weights: torch.zeros(9)
        )


def test_the_documented_edit_from_the_command_line(
    command: Any, tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    code = next(c for c in PAGE.read_text().split("```python\n") if "class SafetyVector" in c)
    (tmp_path / "my_edits.py").write_text(code.split("```")[0])
    monkeypatch.syspath_prepend(str(tmp_path))
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01)
    model.save_pretrained(tmp_path / "aligned")
    words = [
        *["edit", "--model", "my_edits.SafetyVector", "--model.scale", "2"],
        *["--model.model_name_or_path", tiny_folder, "--model.base", tiny_folder],
        *["--model.aligned", tmp_path / "aligned", "--trainer.default_root_dir", tmp_path / "run"],
        *["--trainer.accelerator", "cpu"],
    ]
    done = command(*words)
    assert done.code == 0, done.err
    edited = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    for name, weight in edited.named_parameters():
        torch.testing.assert_close(weight, start[name] + 0.02, atol=1e-6, rtol=0)
    assert AutoTokenizer.from_pretrained(tmp_path / "run" / "model").chat_template
    # A folder that is an edit's is no other's.
    done = command(*words, "--model.scale", "3")
    assert done.code == 2
    assert "holds the output of another run" in done.error
    assert command(*words, "--model.scale", "3", "--overwrite", "true").code == 0
    missing = command(*words[:3], *words[4:], "--model.base", tmp_path / "nowhere")
    assert missing.code == 2
    sys.modules.pop("my_edits")


class Scaled(WeightEdit):
    """Multiplies matrices by the mean size of what goes into them."""

    def __init__(self, model_name_or_path: str) -> None:
        self.model_name_or_path = model_name_or_path
        self.sizes: dict[str, float] = {}

    def sources(self) -> dict[str, str]:
        return {"tuned": self.model_name_or_path}

    def calibrate(self, model: Any, batches: Any) -> None:
        assert not model.training
        seen: dict[str, list[Tensor]] = {}

        def keep(name: str) -> Any:
            def hook(module: nn.Module, given: Any) -> None:
                seen.setdefault(name, []).append(given[0].abs().mean())

            return hook

        layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
        handles = [m.register_forward_pre_hook(keep(n)) for n, m in layers.items()]
        for batch in batches:
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        for handle in handles:
            handle.remove()
        self.sizes = {f"{n}.weight": float(torch.stack(v).mean()) for n, v in seen.items()}

    def edit(self, name: str, weights: Mapping[str, Tensor]) -> Tensor:
        return weights["tuned"] * self.sizes[name] if name in self.sizes else weights["tuned"]


def test_an_edit_may_see_activations_first(tiny_folder: Path, tmp_path: Path) -> None:
    edit = Scaled(str(tiny_folder))
    data = SafetyDataModule(train=Microworld("pool", limit=4), batch_size=2, max_length=128)
    trainer = JobTrainer("cpu", devices=1, default_root_dir=str(tmp_path))
    Calibration(edit).run(trainer, data)
    assert len(edit.sizes) == 15
    assert write_edited(edit, tmp_path) == 15
    before, after = read(tiny_folder), read(tmp_path / "model")
    for name, weight in after.items():
        assert torch.equal(weight, before[name] * edit.sizes.get(name, 1.0))


def test_an_adapter_is_no_model_to_edit(tiny_folder: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_folder), LoraConfig(r=2))
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(OneShotError, match="is an adapter; give the merged model"):
        write_edited(Scaled(str(tmp_path / "adapter")), tmp_path)
