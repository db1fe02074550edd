"""Every weight edit from the command line: what it writes, that it loads, and its mistakes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from oneshot_lit.methods.posttuning.alignment_matrix import alignment_matrix
from oneshot_lit.methods.posttuning.controls import random_rows
from oneshot_lit.methods.posttuning.merging import slerp
from oneshot_lit.models.lora_pairs import read_pairs

HARMFUL = ["--data", "oneshot_lit.data.SafetyDataModule", "--data.batch_size", "2"]
HARMFUL += ["--data.train", "oneshot_lit.data.Microworld"]
HARMFUL += ["--data.train.split", "harmful_examples", "--data.train.size", "5"]
# Method -> further words, and which other models it takes.
WHOLE: dict[str, tuple[list[str], str]] = {
    "SafeLoRA": (["--model.number", "3"], "aligned base"),
    "Resta": (["--model.dare_on", "finetune"], "aligned base"),
    "Merge": (["--model.rule", "ties"], "aligned"),
    "Antidote": (HARMFUL, ""),
}
PAIRS: dict[str, tuple[list[str], str]] = {
    "SafeLoRA": (["--model.mode", "threshold", "--model.threshold", "0.9"], "base"),
    "SafeMerge": (["--model.threshold", "0.9"], "base"),
    "Antidote": (HARMFUL, ""),
}


def words(method: str, more: list[str], root: Path, **models: Path) -> list[str]:
    own = ["edit", "--model", method, *more, "--trainer.default_root_dir", str(root)]
    for name, folder in models.items():
        own += [f"--{name}", str(folder)]
    return [*own, "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]


def tensors(folder: Path) -> dict[str, Tensor]:
    return {n: t for file in folder.glob("*.safetensors") for n, t in load_file(file).items()}


def record(root: Path) -> Any:
    return json.loads((root / "edit.json").read_text())


def same_files(before: Path, after: Path) -> None:
    for path in before.iterdir():
        if path.suffix != ".safetensors":
            assert (after / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("method", list(WHOLE))
def test_whole_models(command: Any, models: Any, tmp_path: Path, method: str) -> None:
    more, others = WHOLE[method]
    given = {name: getattr(models, name) for name in others.split()}
    done = command(*words(method, more, tmp_path, tuned=models.tuned, **given))
    assert done.code == 0, done.err
    same_files(models.tuned, tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert model.generation_config.temperature == 0.6
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.chat_template
    before, after, content = tensors(models.tuned), tensors(tmp_path / "model"), record(tmp_path)
    assert content["method"] == method
    assert set(content["inputs"]) == {"tuned", *others.split()}
    assert all(each["digest"] for each in content["inputs"].values())
    assert content["tensors"].keys() == before.keys()
    aligned = tensors(models.aligned)
    for name, facts in content["tensors"].items():
        share = float((after[name] != before[name]).float().mean())
        assert facts["share_changed"] == pytest.approx(share, abs=1e-6), name
        if "aligned" in others:
            sizes = [(each[name] - aligned[name]).norm() for each in (after, before)]
            assert facts["norm_ratio"] == pytest.approx(float(sizes[0] / sizes[1]), rel=1e-4)
    assert any(facts["share_changed"] for facts in content["tensors"].values())


@pytest.mark.parametrize("method", list(PAIRS))
def test_adapters(command: Any, models: Any, tmp_path: Path, method: str) -> None:
    more, others = PAIRS[method]
    more = [*more, "--model.safe_adapter", str(models.safe)] if method == "SafeMerge" else more
    given = {name: getattr(models, name) for name in others.split()}
    done = command(*words(method, more, tmp_path, tuned=models.adapter, **given))
    assert done.code == 0, done.err
    base = AutoModelForCausalLM.from_pretrained(models.aligned)
    start = {n: p.detach().clone() for n, p in base.named_parameters()}
    merged = PeftModel.from_pretrained(base, str(tmp_path / "model")).merge_and_unload()
    pairs, content = read_pairs(models.adapter), record(tmp_path)
    safe = read_pairs(models.safe)
    assert content["tensors"].keys() == pairs.keys()
    unaligned, whole = tensors(models.base), tensors(models.aligned)
    for module, pair in pairs.items():
        name, facts = f"{module}.weight", content["tensors"][module]
        change = merged.get_parameter(name).detach() - start[name]
        ratio = float(change.norm() / pair.change.norm())
        assert facts["norm_ratio"] == pytest.approx(ratio, rel=1e-3), module
        c = alignment_matrix(whole[name], unaligned[name])
        if method == "SafeLoRA" and facts["decision"] == "projected":
            torch.testing.assert_close(change, c @ pair.change, atol=1e-6, rtol=1e-4)
        elif method == "SafeMerge" and facts["decision"] == "merged":
            expected = 0.8 * pair.change + 0.2 * safe[module].change
            torch.testing.assert_close(change, expected, atol=1e-6, rtol=1e-4)
        elif method != "Antidote":
            torch.testing.assert_close(change, pair.change, atol=1e-6, rtol=1e-4)
    assert content["decisions"].keys() - {"kept"}


@pytest.mark.parametrize("form", ["paper", "released"])
def test_modules_that_are_not_merged_keep_their_change(
    command: Any, models: Any, tmp_path: Path, form: str
) -> None:
    more = ["--model.safe_adapter", str(models.safe), "--model.form", form]
    given = {"tuned": models.adapter, "base": models.base}
    assert command(*words("SafeMerge", more, tmp_path / "all", **given)).code == 0
    cosines = sorted(each["cosine"] for each in record(tmp_path / "all")["tensors"].values())
    middle = (cosines[2] + cosines[3]) / 2
    more += ["--model.threshold", str(middle)]
    assert command(*words("SafeMerge", more, tmp_path / "some", **given)).code == 0
    assert record(tmp_path / "some")["decisions"] == {"kept": 3, "merged": 3}
    before, after = read_pairs(models.adapter), read_pairs(tmp_path / "some" / "model")
    for module, facts in record(tmp_path / "some")["tensors"].items():
        same = torch.allclose(after[module].change, before[module].change, atol=1e-6)
        # The adapter has another scaling than the merged one, which is 1.
        assert same == (facts["decision"] == "kept"), module
    assert next(iter(after.values())).scaling == 1.0


def test_number_mode_of_an_adapter_projects_as_many(
    command: Any, models: Any, tmp_path: Path
) -> None:
    more = ["--model.number", "2"]
    done = command(*words("SafeLoRA", more, tmp_path, tuned=models.adapter, base=models.base))
    assert done.code == 0, done.err
    facts = record(tmp_path)["tensors"]
    projected = [m for m, each in facts.items() if each["decision"] == "projected"]
    assert len(projected) == 2
    assert {facts[m]["cosine"] for m in projected} == set(
        sorted(each["cosine"] for each in facts.values())[:2]
    )


def test_what_alignment_did_not_change_is_kept(command: Any, models: Any, tmp_path: Path) -> None:
    done = command(
        *words(
            "SafeLoRA",
            ["--model.mode", "threshold"],
            tmp_path,
            tuned=models.adapter,
            base=models.aligned,
        )
    )
    assert done.code == 0, done.err
    content = record(tmp_path)
    assert content["decisions"] == {"kept: alignment changed nothing": len(content["tensors"])}
    before, after = tensors(models.adapter), tensors(tmp_path / "model")
    assert all(torch.equal(before[n], after[n]) for n in before)


@pytest.mark.parametrize("rule", ["linear", "slerp", "dare_linear", "model_stock"])
def test_merging_rules(command: Any, models: Any, tmp_path: Path, rule: str) -> None:
    more = ["--model.rule", rule, "--model.weight", "0.3"]
    if rule == "model_stock":
        more += ["--model.others", f'["{models.near("third", 9)}"]']
    done = command(*words("Merge", more, tmp_path, tuned=models.tuned, aligned=models.aligned))
    assert done.code == 0, done.err
    one, other, got = (tensors(f) for f in (models.aligned, models.tuned, tmp_path / "model"))
    for name, tensor in got.items():
        if rule == "linear":
            torch.testing.assert_close(tensor, 0.7 * one[name] + 0.3 * other[name])
        elif rule == "slerp":
            torch.testing.assert_close(tensor, slerp(one[name], other[name], 0.3)[0])
        assert not torch.equal(tensor, other[name])


def test_the_same_draw_for_the_same_seed(command: Any, models: Any, tmp_path: Path) -> None:
    got = []
    for number, seed in enumerate((5, 5, 6)):
        more = ["--model.dare_on", "safety", "--model.seed", str(seed)]
        given = {"tuned": models.tuned, "aligned": models.aligned, "base": models.base}
        assert command(*words("Resta", more, tmp_path / str(number), **given)).code == 0
        got.append(tensors(tmp_path / str(number) / "model"))
    assert all(torch.equal(got[0][n], got[1][n]) for n in got[0])
    assert not all(torch.equal(got[0][n], got[2][n]) for n in got[0])


# --------------------------------------------------------------------------- controls


def test_rows_lose_as_many_entries_as_they_should() -> None:
    counts = torch.tensor([0, 1, 5, 3])
    mask = random_rows(counts, 5, torch.Generator().manual_seed(0))
    assert torch.equal(mask.sum(1), counts)
    again = random_rows(torch.full((200,), 2), 5, torch.Generator().manual_seed(1))
    # Each column is drawn about as often.
    assert (again.float().mean(0) - 0.4).abs().max() < 0.15


def test_controls_of_an_edit_of_pairs(command: Any, models: Any, tmp_path: Path) -> None:
    more = ["--model.mode", "threshold", "--model.threshold", "0.9"]
    given = {"tuned": models.adapter, "base": models.base}
    assert command(*words("SafeLoRA", more, tmp_path / "edit", **given)).code == 0
    more = ["--model.like", str(tmp_path / "edit")]
    done = command(*words("Shrink", more, tmp_path / "shrink", tuned=models.adapter))
    assert done.code == 0, done.err
    edit, shrunk = record(tmp_path / "edit")["tensors"], record(tmp_path / "shrink")["tensors"]
    for module, facts in edit.items():
        assert shrunk[module]["norm_ratio"] == pytest.approx(facts["norm_ratio"], rel=1e-4)
    assert command(*words("Antidote", HARMFUL, tmp_path / "zeros", tuned=models.adapter)).code == 0
    more = ["--model.like", str(tmp_path / "zeros")]
    done = command(*words("RandomMask", more, tmp_path / "mask", tuned=models.adapter))
    assert done.code == 0, done.err
    chosen, drawn = tensors(tmp_path / "zeros" / "model"), tensors(tmp_path / "mask" / "model")
    for name, tensor in chosen.items():
        assert torch.equal((tensor == 0).sum(-1), (drawn[name] == 0).sum(-1)), name
    assert any(not torch.equal(chosen[n] == 0, drawn[n] == 0) for n in chosen)


def test_shrinking_whole_weights(command: Any, models: Any, tmp_path: Path) -> None:
    given = {"tuned": models.tuned, "aligned": models.aligned}
    more = ["--model.number", "3"]
    edit = words("SafeLoRA", more, tmp_path / "edit", **given, base=models.base)
    assert command(*edit).code == 0
    more = ["--model.like", str(tmp_path / "edit")]
    done = command(*words("Shrink", more, tmp_path / "shrink", **given))
    assert done.code == 0, done.err
    edited, shrunk = record(tmp_path / "edit")["tensors"], record(tmp_path / "shrink")["tensors"]
    for name, facts in edited.items():
        assert shrunk[name]["norm_ratio"] == pytest.approx(facts["norm_ratio"], rel=1e-3)


# --------------------------------------------------------------------------- mistakes


def fails(done: Any, *parts: str) -> None:
    assert done.code == 2, done.err
    line = done.err.strip().splitlines()[-1]
    for part in parts:
        assert part in line, line
    assert "Traceback" not in done.err


def test_missing_models(command: Any, models: Any, tmp_path: Path) -> None:
    tuned = {"tuned": models.tuned}
    fails(command(*words("SafeLoRA", [], tmp_path, **tuned)), "model.base", "--base")
    more = {"base": models.base}
    fails(command(*words("SafeLoRA", [], tmp_path, **tuned, **more)), "model.aligned", "--aligned")
    fails(command(*words("Resta", [], tmp_path, **tuned, **more)), "model.aligned")
    fails(command(*words("Merge", [], tmp_path, **tuned)), "model.aligned")
    nowhere = {"aligned": tmp_path / "nowhere"}
    fails(command(*words("Merge", [], tmp_path, **tuned, **nowhere)), "nowhere")
    fails(command(*words("Antidote", [], tmp_path, **tuned)), "data")
    stock = ["--model.rule", "model_stock"]
    fails(command(*words("Merge", stock, tmp_path, **tuned, aligned=models.base)), "others")
    kinds = ["--model.matrices", '["q_prj"]']
    whole = {**tuned, **more, "aligned": models.aligned}
    fails(command(*words("SafeLoRA", kinds, tmp_path, **whole)), "q_prj", "q_proj")
    assert not (tmp_path / "model").exists()


def changed(folder: Path, start: Path, edit: Any) -> Path:
    shutil.copytree(start, folder)
    own = tensors(start)
    edit(own)
    save_file(own, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_models_that_do_not_fit(command: Any, models: Any, tmp_path: Path) -> None:
    def longer(own: dict[str, Tensor]) -> None:
        own["model.embed_tokens.weight"] = torch.zeros(99, 32)

    def fewer(own: dict[str, Tensor]) -> None:
        del own["model.norm.weight"]

    def more(own: dict[str, Tensor]) -> None:
        own["model.layers.7.mlp.up_proj.weight"] = torch.zeros(2, 2)

    cases: Mapping[str, tuple[Any, str]] = {
        "longer": (longer, "another vocabulary"),
        "fewer": (fewer, "has no tensor model.norm.weight"),
        "more": (more, "has no tensor model.layers.7.mlp.up_proj.weight"),
    }
    for name, (edit, message) in cases.items():
        other = changed(tmp_path / name, models.aligned, edit)
        done = command(*words("Merge", [], tmp_path / "run", tuned=models.tuned, aligned=other))
        fails(done, message)
        assert not (tmp_path / "run" / "model").exists()


def test_adapters_that_do_not_fit(command: Any, models: Any, tmp_path: Path) -> None:
    given = {"tuned": models.adapter, "base": models.base}
    wide = models.lora("wide", 5, 3)
    done = command(*words("SafeMerge", ["--model.safe_adapter", str(wide)], tmp_path, **given))
    fails(done, "rank 3", "2")
    done = command(
        *words("SafeMerge", ["--model.safe_adapter", str(models.base)], tmp_path, **given)
    )
    fails(done, "no adapter")
    fails(command(*words("SafeMerge", [], tmp_path, **given)), "safe_adapter")
    fails(
        command(*words("Merge", [], tmp_path, tuned=models.adapter, aligned=models.aligned)),
        "is an adapter",
    )
    dora = models.lora("dora", 6, 2, use_dora=True)
    done = command(*words("SafeLoRA", [], tmp_path, tuned=dora, base=models.base))
    fails(done, "DoRA", "merge")
    fails(
        command(
            *words(
                "SafeMerge",
                ["--model.safe_adapter", str(models.safe)],
                tmp_path,
                tuned=models.tuned,
                base=models.base,
            )
        ),
        "no LoRA adapter",
    )


def test_controls_of_another_model(command: Any, models: Any, tmp_path: Path) -> None:
    more = ["--model.like", str(tmp_path)]
    done = command(*words("Shrink", more, tmp_path / "s", tuned=models.adapter))
    fails(done, "edit.json")
    assert command(*words("Antidote", HARMFUL, tmp_path / "edit", tuned=models.adapter)).code == 0
    more = ["--model.like", str(tmp_path / "edit")]
    fails(command(*words("Shrink", more, tmp_path / "s", tuned=models.safe)), "another model")
    fails(command(*words("RandomMask", [], tmp_path / "s", tuned=models.safe)), "like")
