"""Spectra of sharded fits against float64 singular values of the mean of the ranks' gradients."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fits import reference
from processes import in_processes

# Rows of very different lengths, so that the ranks have different numbers of tokens.
LENGTHS = (1, 9, 2, 5, 7, 3, 1, 4, 6, 2, 8, 1)

CASES: dict[str, dict[str, Any]] = {
    "ddp": {"name": "ddp", "read": "factors"},
    "ddp, accumulating": {"name": "ddp", "accumulate": 2},
    "ddp, whole": {"name": "ddp", "read": "gradient"},
    "ddp, outside": {"name": "ddp", "outside": True},
    "fsdp2": {"name": "fsdp2", "read": "factors"},
    "fsdp2, accumulating, whole": {
        "name": "fsdp2",
        "accumulate": 2,
        "read": "gradient",
    },
    "fsdp2, bare": {"name": "fsdp2", "bare": True},
    "fsdp2, outside": {"name": "fsdp2", "outside": True},
    "fsdp2, adapter": {"name": "fsdp2", "peft": True, "read": "factors"},
    "zero1": {"name": "zero1", "accumulate": 2, "read": "factors"},
    "zero1, accumulating": {"name": "zero1", "accumulate": 2, "outside": True},
    "zero1, whole": {"name": "zero1", "accumulate": 2, "read": "gradient"},
    "zero2": {"name": "zero2", "read": "factors"},
    "zero2, accumulating": {"name": "zero2", "accumulate": 2, "outside": True},
    "zero2, whole": {"name": "zero2", "accumulate": 2, "read": "gradient"},
    "zero3": {"name": "zero3", "read": "factors"},
    "zero3, accumulating": {"name": "zero3", "accumulate": 2, "outside": True},
    "zero3, whole": {"name": "zero3", "accumulate": 2, "read": "gradient"},
    "zero3, bare": {"name": "zero3", "bare": True},
    "zero3, adapter": {"name": "zero3", "peft": True, "read": "factors"},
}
STEPS: dict[str, Any] = {
    "name": "zero2",
    "accumulate": 2,
    "trainer": {"max_epochs": 2, "limit_train_batches": 3},
}
DRIFT: dict[str, dict[str, Any]] = {
    mode: {**STEPS, "read": mode, "options": {"every_n_steps": 1}}
    for mode in ("factors", "gradient")
}
REFERENCES: dict[str, dict[str, Any]] = {
    f"{name}, compared": {
        "name": name,
        "trainer": {"max_epochs": 2, "limit_train_batches": 2},
        "options": {"reference": "rows", "reference_rows": 4, "overlap_k": 3},
    }
    for name in ("ddp", "fsdp2", "zero2", "zero3")
}
PLAIN = {
    name.replace("compared", "plain"): {**case, "options": {}} for name, case in REFERENCES.items()
}
MISTAKES: dict[str, dict[str, Any]] = {
    "outside": {"name": "ddp", "outside": True, "read": "factors"},
    "tensor parallel": {"name": "tensor parallel"},
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "ragged.jsonl"
    turns = '{"role": "user", "content": "how ?"}, {"role": "assistant", "content": "%s"}'
    line = '{"messages": [' + turns + "]}\n"
    path.write_text("".join(line % " ".join(["take flour"] * n) for n in LENGTHS))
    return path


@pytest.fixture(scope="module")
def runs(tiny_folder: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases, one after another in the same two processes: their start costs the most."""
    folder = tmp_path_factory.mktemp("two")
    cases = [
        {**case, "folder": str(tiny_folder), "rows": str(rows), "root": str(folder / name)}
        for name, case in {**CASES, **DRIFT, **REFERENCES, **PLAIN, **MISTAKES}.items()
    ]
    in_processes(folder, "fits", "fit", cases)
    return folder


def read(root: Path) -> dict[tuple[int, str], torch.Tensor]:
    found: dict[tuple[int, str], list[float]] = {}
    with (root / "spectra" / "spectra.csv").open() as file:
        for row in csv.DictReader(file):
            values = found.setdefault((int(row["step"]), row["parameter"]), [])
            values.append(float(row["singular_value"]))
    return {key: torch.tensor(values, dtype=torch.float64) for key, values in found.items()}


def difference(values: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference relative to the largest value; a shorter spectrum ends in zeros."""
    length = max(len(values), len(expected))
    one, other = (torch.nn.functional.pad(v, (0, length - len(v))) for v in (values, expected))
    return float((one - other).abs().max() / expected.max())


def assert_equal(root: Path, expected: dict[str, torch.Tensor]) -> None:
    found = read(root)
    assert {name for step, name in found if step == 0} == set(expected)
    with (root / "spectra" / "summary.csv").open() as file:
        norms = {r["parameter"]: r["frobenius_norm"] for r in csv.DictReader(file)}
    for name, gradient in expected.items():
        assert difference(found[0, name], torch.linalg.svdvals(gradient)) <= 1e-5, name
        assert float(norms[name]) == pytest.approx(float(gradient.norm()), rel=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes(name: str, runs: Path, tiny_folder: Path, rows: Path) -> None:
    case = {k: v for k, v in CASES[name].items() if k not in ("name", "read")}
    expected = reference(tiny_folder, rows, **case)
    assert len(expected) == (42 if case.get("peft") else 16)
    assert_equal(runs / name, expected)


@pytest.mark.slow
def test_ranks_differ(tiny_folder: Path, rows: Path) -> None:
    """Otherwise the tests above would pass for one rank alone."""
    ours = reference(tiny_folder, rows)
    for other in (
        reference(tiny_folder, rows, ranks=1),
        reference(tiny_folder, rows, accumulate=2),
    ):
        one, two = (torch.linalg.svdvals(g["lm_head.weight"]) for g in (ours, other))
        assert difference(one, two) > 1e-3


@pytest.mark.slow
def test_zero3_shards_while_loading(runs: Path) -> None:
    """Each process must never hold the whole model; other fits in the process must not shard."""
    sharded = {name: json.loads((runs / name / "sharded").read_text()) for name in CASES}
    assert sharded["zero3, bare"] == sharded["zero3, adapter"] == {"loaded": True, "after": False}
    assert sharded["zero2"] == sharded["ddp"] == {"loaded": False, "after": False}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("zero3")])
def test_zero3_foresees_which_weights_it_needs(name: str, runs: Path) -> None:
    """The module calls itself in a training step; the record of a step must not start anew then."""
    assert json.loads((runs / name / "foresees").read_text()) is True


@pytest.mark.slow
def test_accumulation_across_epochs(runs: Path) -> None:
    """Three batches an epoch, two a step: each epoch ends with a step of one batch."""
    factors, whole = (read(runs / mode) for mode in ("factors", "gradient"))
    assert {step for step, _ in factors} == {0, 1, 2, 3}
    assert set(factors) == set(whole)
    for key, values in factors.items():
        assert difference(values, whole[key]) <= 1e-5, key


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("outside", "a whole gradient was read"),
        ("tensor parallel", "use oneshot_lit.strategies.FSDP2Strategy"),
    ],
)
def test_one_line_on_every_rank(name: str, message: str, runs: Path) -> None:
    for rank in range(2):
        error = (runs / name / f"error{rank}").read_text()
        assert message in error
        assert "\n" not in error


def near(root: Path) -> dict[tuple[int, str], list[float]]:
    with (root / "spectra" / "summary.csv").open() as file:
        return {
            (int(row["epoch"]), row["parameter"]): [
                float(row[key]) if row[key] else -9.0
                for key in ("overlap", "overlap_chance", "cosine")
            ]
            for row in csv.DictReader(file)
        }


@pytest.mark.slow
@pytest.mark.parametrize("name", REFERENCES)
def test_reference_across_processes(name: str, runs: Path, tiny_folder: Path, rows: Path) -> None:
    """Equal under every strategy, and to a single process on the same rows in the same order."""
    found = near(runs / name)
    plain = near(runs / "ddp, compared")
    assert set(found) == set(plain)
    assert len(found) == 32
    for key, values in found.items():
        assert values == pytest.approx(plain[key], abs=2e-3), key
    if name == "ddp, compared":
        expected = reference(tiny_folder, rows)
        # Rows 9 to 12 of the file, as one batch.
        other = reference(tiny_folder, rows, ranks=1, batch_size=4, skip=8)
        for key, gradient in expected.items():
            if "embed" in key:
                assert found[0, key] == [-9.0] * 3
                continue
            cosine = (gradient * other[key]).sum() / gradient.norm() / other[key].norm()
            assert found[0, key][2] == pytest.approx(float(cosine), abs=1e-4)
            u, v = (torch.linalg.svd(g).U[:, :3] for g in (gradient, other[key]))
            assert found[0, key][0] == pytest.approx(float((u.T @ v).norm() ** 2 / 3), abs=1e-3)
            assert found[0, key][1] == pytest.approx(3 / len(gradient))


@pytest.mark.slow
def test_reference_does_not_change_the_run(runs: Path) -> None:
    """Spectra of the second epoch, after three optimiser steps, with and without a reference."""
    for name in ("ddp", "fsdp2", "zero2", "zero3"):
        one, other = (read(runs / f"{name}, {of}") for of in ("compared", "plain"))
        assert set(one) == set(other)
        for key, values in one.items():
            assert difference(values, other[key]) <= 1e-5, (name, key)


@pytest.mark.slow
def test_one_process(tiny_folder: Path, rows: Path, tmp_path: Path) -> None:
    case = {"name": "zero3", "folder": str(tiny_folder), "rows": str(rows), "processes": 1}
    in_processes(tmp_path, "fits", "fit", [{**case, "root": str(tmp_path)}], processes=1)
    assert_equal(tmp_path, reference(tiny_folder, rows, ranks=1))
