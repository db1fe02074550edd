"""Spectra in the CSV against float64 singular values of the explicit gradient."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

from oneshot_lit.callbacks import GradientRank
from oneshot_lit.data import ChatJsonl, SafetyDataModule
from oneshot_lit.errors import OneShotError
from oneshot_lit.methods import LanguageModelModule
from oneshot_lit.spectral.recorder import FactorRecorder
from quiet_trainer import quiet_trainer


def run(
    folder: Path,
    rows: Path,
    root: Path,
    callback: GradientRank,
    batch_size: int = 4,
    accumulate: int = 1,
    **options: Any,
) -> LanguageModelModule:
    torch.manual_seed(0)
    module = LanguageModelModule(str(folder), **options)
    data = SafetyDataModule(train=ChatJsonl(str(rows)), batch_size=batch_size, shuffle=False)
    trainer = quiet_trainer(
        root,
        callback,
        max_epochs=2,
        accumulate_grad_batches=accumulate,
        use_distributed_sampler=False,
    )
    trainer.fit(module, data)
    return module


def read(root: Path) -> dict[tuple[int, str], list[float]]:
    found: dict[tuple[int, str], list[float]] = defaultdict(list)
    with (root / "spectra" / "spectra.csv").open() as file:
        for row in csv.DictReader(file):
            found[int(row["epoch"]), row["parameter"]].append(float(row["singular_value"]))
    return found


def explicit_gradients(folder: Path, rows: Path, size: int, **options: Any) -> dict[str, Any]:
    """Gradients of the first `size` rows' mean loss, in float64, without any hook."""
    torch.manual_seed(0)
    module = LanguageModelModule(str(folder), dtype="float64", **options)
    module.configure_model()
    data = SafetyDataModule(train=ChatJsonl(str(rows)), batch_size=size, shuffle=False)
    data.use_tokenizer(module.tokenizer)
    data.setup("fit")
    module.compute_loss(next(iter(data.train_dataloader()))).backward()
    return {
        n.removeprefix("model."): p.grad
        for n, p in module.named_parameters()
        if p.ndim == 2 and p.requires_grad
    }


def assert_equal(values: list[float], gradient: torch.Tensor) -> None:
    reference = torch.linalg.svdvals(gradient.double())
    padded = torch.zeros_like(reference)
    padded[: len(values)] = torch.tensor(values, dtype=torch.float64)
    assert (padded - reference).abs().max() <= 1e-5 * reference.max() + 1e-12
    assert abs(padded.norm() - gradient.norm()) <= 1e-5 * gradient.norm() + 1e-12


@pytest.fixture
def ragged_rows(tmp_path: Path) -> Path:
    """Rows of very different lengths, so that batches are padded."""
    path = tmp_path / "ragged.jsonl"
    turns = '{"role": "user", "content": "how ?"}, {"role": "assistant", "content": "%s"}'
    line = '{"messages": [' + turns + "]}"
    path.write_text("".join(line % " ".join(["take flour"] * n) + "\n" for n in (1, 9, 2, 5)))
    return path


@pytest.mark.parametrize(
    "options", [{}, {"gradient_checkpointing": True}], ids=["", "checkpointing"]
)
def test_padded_batch(tiny_folder: Path, ragged_rows: Path, tmp_path: Path, options: Any) -> None:
    run(tiny_folder, ragged_rows, tmp_path, GradientRank(), **options)
    found = read(tmp_path)
    expected = explicit_gradients(tiny_folder, ragged_rows, 4)
    assert {name for _, name in found} == set(expected)
    assert {epoch for epoch, _ in found} == {0, 1}
    for name, gradient in expected.items():
        assert_equal(found[0, name], gradient)


def test_each_thread_decomposes_matrices_of_its_own(
    tiny_folder: Path, ragged_rows: Path, tmp_path: Path
) -> None:
    before = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            run(tiny_folder, ragged_rows, tmp_path / str(threads), GradientRank())
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
    one, three = (read(tmp_path / each) for each in ("1", "3"))
    assert list(one) == list(three)
    for key, values in one.items():
        assert three[key] == pytest.approx(values, rel=1e-4, abs=1e-6 * max(values)), key


def test_accumulated_batches(tiny_folder: Path, rows_file: Path, tmp_path: Path) -> None:
    # All rows have equally many assistant tokens, so the mean of two batches is the mean of all.
    run(tiny_folder, rows_file, tmp_path, GradientRank(), batch_size=6, accumulate=2)
    found = read(tmp_path)
    for name, gradient in explicit_gradients(tiny_folder, rows_file, 12).items():
        assert_equal(found[0, name], gradient)


def test_tied_embeddings(ragged_rows: Path, tmp_path: Path) -> None:
    """The one matrix gets gradient as embedding and as output layer."""
    run(Path("checkpoints/small"), ragged_rows, tmp_path, GradientRank(parameters="*embed*"))
    found = read(tmp_path)
    expected = explicit_gradients(Path("checkpoints/small"), ragged_rows, 4)
    assert {name for _, name in found} == {"model.embed_tokens.weight"}
    assert_equal(found[0, "model.embed_tokens.weight"], expected["model.embed_tokens.weight"])


PEFT = {"r": 4, "target_modules": "all-linear", "init_lora_weights": "orthogonal"}


def test_adapter(tiny_folder: Path, ragged_rows: Path, tmp_path: Path) -> None:
    run(tiny_folder, ragged_rows, tmp_path, GradientRank(frozen=False), peft=PEFT)
    found = read(tmp_path)
    assert all("lora_" in name for _, name in found)
    assert all(len(values) <= 4 for values in found.values())
    assert max(values[0] for values in found.values()) > 0


@pytest.mark.parametrize("checkpointing", [False, True])
def test_frozen_weights_under_an_adapter(
    tiny_folder: Path, ragged_rows: Path, tmp_path: Path, checkpointing: bool
) -> None:
    """As if they were trained, the first layer's included, whose inputs need no gradient."""
    options = {"peft": PEFT, "gradient_checkpointing": checkpointing}
    run(tiny_folder, ragged_rows, tmp_path, GradientRank("*base_layer.weight"), **options)
    found = read(tmp_path)
    torch.manual_seed(0)
    module = LanguageModelModule(str(tiny_folder), dtype="float64", peft=PEFT)
    module.configure_model()
    for name, parameter in module.named_parameters():
        parameter.requires_grad_("base_layer" in name)
    data = SafetyDataModule(train=ChatJsonl(str(ragged_rows)), batch_size=4, shuffle=False)
    data.use_tokenizer(module.tokenizer)
    data.setup("fit")
    module.compute_loss(next(iter(data.train_dataloader()))).backward()
    expected = {
        n.removeprefix("model."): p.grad
        for n, p in module.named_parameters()
        if "base_layer" in n and p.ndim == 2
    }
    assert len(expected) == 14
    assert {name for _, name in found} == set(expected)
    for name, gradient in expected.items():
        assert_equal(found[0, name], gradient)


def test_summary_sums_up_the_spectra(tiny_folder: Path, ragged_rows: Path, tmp_path: Path) -> None:
    run(tiny_folder, ragged_rows, tmp_path, GradientRank(k=[1, 3]))
    found, expected = read(tmp_path), explicit_gradients(tiny_folder, ragged_rows, 4)
    with (tmp_path / "spectra" / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(found)
    for row in rows:
        values = torch.tensor(found[int(row["epoch"]), row["parameter"]], dtype=torch.float64)
        energy, shares = values.square(), values / values.sum()
        assert float(row["cer_3"]) == pytest.approx(
            float(energy[:3].sum() / energy.sum()), rel=1e-6
        )
        entropy = -(shares * shares.clamp_min(1e-300).log()).sum()
        assert float(row["effective_rank"]) == pytest.approx(float(entropy.exp()), rel=1e-6)
        if row["epoch"] == "0":
            norm = expected[row["parameter"]].norm()
            assert float(row["frobenius_norm"]) == pytest.approx(float(norm), rel=1e-5)


@pytest.mark.parametrize(("every", "steps"), [(1, [0, 1, 2, 3, 4, 5]), (4, [0, 4])])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_n_steps(
    tiny_folder: Path,
    rows_file: Path,
    tmp_path: Path,
    every: int,
    steps: list[int],
    accumulate: int,
) -> None:
    callback = GradientRank("*q_proj*", every_n_steps=every)
    run(
        tiny_folder,
        rows_file,
        tmp_path,
        callback,
        batch_size=4 // accumulate,
        accumulate=accumulate,
    )
    with (tmp_path / "spectra" / "spectra.csv").open() as file:
        assert sorted({int(row["step"]) for row in csv.DictReader(file)}) == steps


def test_several_patterns(tiny_folder: Path, rows_file: Path, tmp_path: Path) -> None:
    run(tiny_folder, rows_file, tmp_path, GradientRank(["*0*q_proj*", "*lm_head*"]))
    names = {name for _, name in read(tmp_path)}
    assert names == {"model.layers.0.self_attn.q_proj.weight", "lm_head.weight"}


@pytest.mark.parametrize(
    "options",
    [
        {"every_n_epochs": 0},
        {"every_n_steps": 0},
        {"k": [0, 1]},
        {"parameters": ["*", "x"]},
    ],
)
def test_what_makes_no_sense(
    tiny_folder: Path, rows_file: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(OneShotError, match="GradientRank"):
        run(tiny_folder, rows_file, tmp_path, GradientRank(**options))


def test_weight_used_outside_its_layer_is_read_whole(
    tiny_folder: Path, ragged_rows: Path, tmp_path: Path
) -> None:
    class Regularised(LanguageModelModule):
        def compute_loss(self, batch: Any) -> torch.Tensor:
            weight = self.model.get_output_embeddings().weight
            return super().compute_loss(batch) + weight.square().sum()

    torch.manual_seed(0)
    module = Regularised(str(tiny_folder))
    data = SafetyDataModule(train=ChatJsonl(str(ragged_rows)), batch_size=4, shuffle=False)
    callback = GradientRank(parameters="*lm_head*")
    trainer = quiet_trainer(tmp_path, callback, max_epochs=1)
    with pytest.warns(UserWarning, match="used outside its layer"):
        trainer.fit(module, data)
    plain = explicit_gradients(tiny_folder, ragged_rows, 4)["lm_head.weight"]
    fresh = LanguageModelModule(str(tiny_folder), dtype="float64")
    fresh.configure_model()
    weight = fresh.model.get_output_embeddings().weight.detach()
    assert_equal(read(tmp_path)[0, "lm_head.weight"], plain + 2 * weight)


def test_pattern_that_matches_nothing(tiny_folder: Path, rows_file: Path, tmp_path: Path) -> None:
    with pytest.raises(OneShotError, match="matches 'nothing"):
        run(tiny_folder, rows_file, tmp_path, GradientRank(parameters="nothing"))


@pytest.mark.slow
def test_spectra_change_no_weight(tiny_folder: Path, rows_file: Path, tmp_path: Path) -> None:
    one = run(tiny_folder, rows_file, tmp_path / "a", GradientRank()).state_dict()
    other = run(tiny_folder, rows_file, tmp_path / "b", GradientRank(every_n_epochs=9)).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_whole_gradients(
    tiny_folder: Path, ragged_rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of what is trained, as of weights that are in no layer, where there are no factors."""
    monkeypatch.setattr(FactorRecorder, "factors", lambda recorder: {})
    run(tiny_folder, ragged_rows, tmp_path / "all", GradientRank())
    expected = explicit_gradients(tiny_folder, ragged_rows, 4)
    found = read(tmp_path / "all")
    assert {name for _, name in found} == set(expected)
    for name, gradient in expected.items():
        assert len(found[0, name]) == min(gradient.shape)
        assert_equal(found[0, name], gradient)


def summary(root: Path) -> dict[tuple[int, str], dict[str, str]]:
    with (root / "spectra" / "summary.csv").open() as file:
        return {(int(row["epoch"]), row["parameter"]): row for row in csv.DictReader(file)}


def explicit_comparison(one: torch.Tensor, other: torch.Tensor, k: int) -> list[float]:
    """Overlap, its chance level and the cosine of two whole gradients."""
    u, v = (torch.linalg.svd(g).U[:, :k] for g in (one, other))
    cosine = (one * other).sum() / one.norm() / other.norm()
    return [float((u.T @ v).norm() ** 2) / k, k / len(one), float(cosine)]


def compared(row: dict[str, str]) -> list[float]:
    return [float(row[key]) for key in ("overlap", "overlap_chance", "cosine")]


@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True}], ids=["", "checkpoint"])
def test_reference_batch(
    tiny_folder: Path, ragged_rows: Path, rows_file: Path, tmp_path: Path, options: Any
) -> None:
    callback = GradientRank(reference=ChatJsonl(str(rows_file)), reference_rows=5, overlap_k=3)
    run(tiny_folder, ragged_rows, tmp_path, callback, **options)
    one = explicit_gradients(tiny_folder, ragged_rows, 4)
    other = explicit_gradients(tiny_folder, rows_file, 5)
    found = summary(tmp_path)
    for name, gradient in one.items():
        row = found[0, name]
        if "embed" in name:
            assert row["overlap"] == row["cosine"] == ""
            continue
        assert compared(row) == pytest.approx(
            explicit_comparison(gradient, other[name], 3), abs=1e-4
        )


def test_reference_under_an_adapter(
    tiny_folder: Path, ragged_rows: Path, rows_file: Path, tmp_path: Path
) -> None:
    """Frozen weights are compared, too, though nothing below them needs a gradient."""
    callback = GradientRank(
        "*base_layer.weight", reference=ChatJsonl(str(rows_file)), reference_rows=5
    )
    run(tiny_folder, ragged_rows, tmp_path, callback, peft=PEFT)
    rows = [row for row in summary(tmp_path).values() if row["epoch"] == "0"]
    assert len(rows) == 14
    assert all(-1 <= float(row["cosine"]) <= 1 for row in rows)
    assert all(0 < float(row["overlap"]) <= 1 for row in rows)


@pytest.mark.slow
def test_reference_changes_no_weight(
    gpt2_folder: Path, rows_file: Path, ragged_rows: Path, tmp_path: Path
) -> None:
    """Nor does it draw a random number: the model has dropout."""
    reference = GradientRank(reference=ChatJsonl(str(ragged_rows)), every_n_steps=1)
    one = run(gpt2_folder, rows_file, tmp_path / "a", GradientRank(every_n_epochs=9))
    other = run(gpt2_folder, rows_file, tmp_path / "b", reference)
    state = other.state_dict()
    assert all(torch.equal(v, state[name]) for name, v in one.state_dict().items())
    assert other.model.training


@pytest.mark.parametrize("name", ["overlap_k", "reference_rows"])
def test_references_that_make_no_sense(rows_file: Path, name: str) -> None:
    with pytest.raises(OneShotError, match=f"{name} must be >= 1"):
        GradientRank(reference=ChatJsonl(str(rows_file)), **{name: 0})


def test_pictures(tiny_folder: Path, ragged_rows: Path, tmp_path: Path) -> None:
    run(tiny_folder, ragged_rows, tmp_path, GradientRank())
    for name in ("energy", "effective_rank"):
        assert (tmp_path / "spectra" / f"{name}.png").stat().st_size > 5000


def test_adapters_that_scale_do_not_pass_for_ones_that_add(
    tiny_folder: Path, ragged_rows: Path, tmp_path: Path
) -> None:
    """IA3 multiplies: the gradient of its output is not that of the weight below it."""
    peft = {"peft_type": "IA3", "init_ia3_weights": False, "target_modules": ["v_proj"]}
    peft["feedforward_modules"] = []
    run(tiny_folder, ragged_rows, tmp_path, GradientRank(), peft=peft)
    assert not any("base_layer" in name for _, name in read(tmp_path))
