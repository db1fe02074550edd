"""Every strategy loads the weights that `transformers` would load from the same folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from oneshot_lit.errors import OneShotError
from oneshot_lit.models import loading
from oneshot_lit.models.weight_files import weight_files
from strategies.processes import in_processes
from strategies.training import train

INDEX = "model.safetensors.index.json"
RUNS = {"single": ("single", 1), "fsdp2 alone": ("fsdp2", 1)} | {
    name: (name, 2) for name in ("ddp", "fsdp2", "zero3")
}


def others(folder: Path, seed: int = 7) -> dict[str, torch.Tensor]:
    """Return random weights under the names of a folder's own."""
    torch.manual_seed(seed)
    weights = load_file(folder / "model.safetensors")
    return {name: torch.randn_like(weight) for name, weight in weights.items()}


def save(weights: dict[str, torch.Tensor], path: Path) -> None:
    save_file(weights, path, metadata={"format": "pt"})


def shard(weights: dict[str, torch.Tensor], folder: Path) -> list[Path]:
    """Write two shards and their index."""
    names, parts = sorted(weights), []
    for number, chosen in enumerate((names[::2], names[1::2]), start=1):
        parts.append(folder / f"model-0000{number}-of-00002.safetensors")
        save({name: weights[name] for name in chosen}, parts[-1])
    of = {n: parts[k].name for k, c in enumerate((names[::2], names[1::2])) for n in c}
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": of}))
    return parts


def stray(folder: Path) -> None:
    save(others(folder), folder / "model_backup.safetensors")


def stale_index(folder: Path) -> None:
    shard(others(folder), folder)


def consolidated(folder: Path) -> None:
    wrong = others(folder)
    shard(load_file(folder / "model.safetensors"), folder)
    (folder / "model.safetensors").unlink()
    for name in ("consolidated.safetensors", "pytorch_model.safetensors"):
        save(wrong, folder / name)


def beside_an_adapter(folder: Path) -> None:
    save(others(folder), folder / "adapter_model.safetensors")


def twice_in_the_shards(folder: Path) -> None:
    """The second shard holds another value of a tensor that the index says is in the first."""
    parts = shard(load_file(folder / "model.safetensors"), folder)
    (folder / "model.safetensors").unlink()
    first, second = load_file(parts[0]), load_file(parts[1])
    name = next(name for name, weight in first.items() if weight.dim() == 2)
    save(second | {name: torch.randn_like(first[name])}, parts[1])


def tied_by_the_config_alone(folder: Path) -> None:
    """Two different matrices that the config calls tied are not tied."""
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config))


FOLDERS: dict[str, Callable[[Path], None]] = {
    made.__name__: made
    for made in (
        stray,
        stale_index,
        consolidated,
        beside_an_adapter,
        twice_in_the_shards,
        tied_by_the_config_alone,
    )
}


def first_loss(root: Path) -> float:
    return float(json.loads((root / "losses.json").read_text())[0]["train/loss"])


@pytest.fixture(scope="module")
def runs(tiny_folder: Path, uneven_rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("files")

    def case(name: str, run: str, folder: str) -> dict[str, object]:
        strategy, processes = RUNS[run]
        place = str(root / f"{run}, {name}")
        rows = {"rows": str(uneven_rows), "processes": processes, "epochs": 1}
        return {"name": strategy, "root": place, "folder": folder, **rows}

    cases: dict[int, list[dict[str, object]]] = {1: [], 2: []}
    for name, make in FOLDERS.items():
        folder = root / name
        shutil.copytree(tiny_folder, folder)
        make(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        model.config.tie_word_embeddings = False
        model.save_pretrained(root / f"{name}, clean")
        for file in tiny_folder.glob("token*"):
            shutil.copy(file, root / f"{name}, clean")
        shutil.copy(tiny_folder / "chat_template.jinja", root / f"{name}, clean")
        train(**case(f"{name}, clean", "single", str(root / f"{name}, clean")))  # type: ignore[arg-type]
        for run, (_, processes) in RUNS.items():
            cases[processes].append(case(name, run, str(folder)))
    for processes, some in cases.items():
        in_processes(root, "training", "train", some, processes=processes, seconds=200)
    return root


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("run", RUNS)
def test_the_first_loss_is_that_of_the_weights_transformers_loads(
    run: str, name: str, runs: Path
) -> None:
    expected = first_loss(runs / f"single, {name}, clean")
    assert first_loss(runs / f"{run}, {name}") == pytest.approx(expected, abs=1e-5)


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_folder, tmp_path / "folder")


@pytest.mark.parametrize("make", FOLDERS.values())
def test_the_files_are_those_that_transformers_opens(
    folder: Path, make: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import modeling_utils

    make(folder)
    opened: list[Path] = []

    def safe_open(file: str, *args: object, **kwargs: object) -> object:
        opened.append(Path(file))
        return original(file, *args, **kwargs)

    original = modeling_utils.safe_open
    monkeypatch.setattr(modeling_utils, "safe_open", safe_open)
    AutoModelForCausalLM.from_pretrained(folder)
    assert weight_files(folder) == opened


def test_both_of_a_tied_pair_that_differ_are_kept_and_the_config_says_so(folder: Path) -> None:
    tied_by_the_config_alone(folder)
    model = loading.load_model(str(folder), dtype=torch.float32)
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert model.config.tie_word_embeddings is False


def test_a_missing_or_damaged_file_is_one_line_that_names_it(folder: Path) -> None:
    def refused(message: str) -> None:
        with pytest.raises(OneShotError, match=message) as caught:
            loading.require_model_folder(str(folder))
        assert "\n" not in str(caught.value)

    parts = shard(load_file(folder / "model.safetensors"), folder)
    whole = folder / "model.safetensors"
    whole.write_bytes(whole.read_bytes()[:-1])
    refused(r"folder/model\.safetensors: no whole safetensors file")
    whole.unlink()
    loading.require_model_folder(str(folder))
    saved = parts[1].read_bytes()
    parts[1].unlink()
    refused(r"model-00002-of-00002\.safetensors: missing")
    for length in (0, 5, 100, len(saved) - 1):
        parts[1].write_bytes(saved[:length])
        refused(r"model-00002-of-00002\.safetensors: no whole safetensors file")
    parts[1].write_bytes(saved)
    for text in ("{", "[]", "{}", '{"metadata": {}, "weight_map": 3}'):
        (folder / INDEX).write_text(text)
        refused(r"model\.safetensors\.index\.json: no index of weights")
    (folder / INDEX).unlink()
    # No file has a name that `transformers` knows.
    refused(r"a model folder without weights")


def test_an_adapter_is_never_read_from_a_pickle(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    torch.save({}, tmp_path / "adapter_model.bin")
    save({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(OneShotError, match=r"only pickled weights \(adapter_model\.bin\)"):
        loading.require_model_folder(str(tmp_path))
