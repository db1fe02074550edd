"""SPF against numbers of its released training step, and its parts against float64 references."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_llama import batch_of, fit, golden, part, require_close, tiny_llama
from torch import Tensor

from oneshot_lit.errors import OneShotError
from oneshot_lit.methods import SPF, SPFReleased
from oneshot_lit.methods.finetuning.projection import (
    Space,
    inner_product,
    leave_space,
    low_rank,
    project,
)

DATA, FACTS = golden("spf")
SAFETY = batch_of(DATA["ids_safety"], DATA["labels_safety"])
OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.1),
    "adamw": lambda ps: torch.optim.AdamW(ps, lr=0.01, betas=(0.5, 0.999), weight_decay=0.0),
}


def user(kind: str = "user") -> dict[str, Any]:
    return {**batch_of(DATA[f"ids_{kind}"], DATA[f"labels_{kind}"]), "side": {"safety": SAFETY}}


def same(values: Tensor) -> Tensor:
    return values.clone()


class EachBatchAlike(SPF):
    """The mean of the batches' means, as in the golden numbers."""

    def loss_weight(self, batch: dict[str, Tensor]) -> Tensor:
        return torch.tensor(1.0)


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_a_projected_step(tmp_path: Path, optimizer: str) -> None:
    model = tiny_llama(part(DATA, "w0."))
    module = SPF("tiny", optimizer=OPTIMIZERS[optimizer])
    steps = fit(module, model, [user()], tmp_path)
    require_close(steps.gradients, part(DATA, "g_projected."), 1e-6)
    after = part(DATA, f"w_projected_{optimizer}.")
    require_close(dict(model.named_parameters()), after, 1e-5)
    (logged,) = steps.logged
    assert logged["train/loss"] == pytest.approx(FACTS["loss_user"], abs=1e-6)
    assert logged["train/safety_loss"] == pytest.approx(FACTS["loss_safety"], abs=1e-6)
    expected = sum(each["projected"] for each in FACTS["per_tensor"].values())
    assert logged["train/projected_tensors"] == expected == 4
    moved = {n: after[n] - w for n, w in part(DATA, "w0.").items()}
    change = sum(float((moved[n] * g).sum()) for n, g in part(DATA, "g_safety.").items())
    assert logged["train/safety_change"] == pytest.approx(change, abs=1e-5)


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_two_steps_as_released(tmp_path: Path, optimizer: str) -> None:
    model = tiny_llama(part(DATA, "w0."))
    schedulers: list[Any] = []

    def scheduler(of: Any) -> Any:
        schedulers.append(torch.optim.lr_scheduler.ConstantLR(of, factor=1.0, total_iters=9))
        return schedulers[-1]

    module = SPFReleased("tiny", optimizer=OPTIMIZERS[optimizer], lr_scheduler=scheduler)
    steps = fit(module, model, [user()], tmp_path)
    require_close(dict(model.named_parameters()), part(DATA, f"w_two_step_{optimizer}."), 1e-5)
    # Both steps count as one.
    assert module.global_step == 1
    assert schedulers[0].last_epoch == 1
    assert steps.logged[0]["train/loss"] == pytest.approx(FACTS["loss_user"], abs=1e-6)
    norm = torch.stack([g.square().sum() for g in part(DATA, "g_user.").values()]).sum().sqrt()
    assert steps.logged[0]["train/grad_norm"] == pytest.approx(float(norm), abs=1e-5)


def test_accumulated_batches_are_projected_once(tmp_path: Path) -> None:
    model = tiny_llama(part(DATA, "w0."))
    module = EachBatchAlike("tiny", optimizer=OPTIMIZERS["sgd"])
    batches = [user("user"), user("user2")]
    steps = fit(module, model, batches, tmp_path, accumulate_grad_batches=2)
    wanted = part(DATA, "g_accum2_own.")
    require_close(steps.gradients, wanted, 1e-6)
    released = part(DATA, "g_accum2_released.")
    assert max(float((released[n] - g).abs().max()) for n, g in wanted.items()) > 1e-3


@pytest.mark.parametrize("rank", [1, 2])
def test_leading_directions(tmp_path: Path, rank: int) -> None:
    model = tiny_llama(part(DATA, "w0."))
    module = SPF("tiny", optimizer=OPTIMIZERS["sgd"], subspace="rank_k", rank_k=rank)
    steps = fit(module, model, [user()], tmp_path)
    require_close(steps.gradients, part(DATA, f"g_topk{rank}_own."), 1e-6)
    for name, share in FACTS[f"cer_safety_k{rank}"].items():
        whole = DATA[f"g_safety.{name}"]
        nearest, left = low_rank(whole, rank)
        assert left.shape == (len(whole), rank)
        assert float(nearest.norm() ** 2 / whole.norm() ** 2) == pytest.approx(share, abs=1e-5)


def test_the_space_of_a_whole_gradient(tmp_path: Path) -> None:
    """Each matrix that conflicts loses all that lies in the left singular space."""
    model = tiny_llama(part(DATA, "w0."))
    module = SPF("tiny", optimizer=OPTIMIZERS["sgd"], subspace="left_space", rank_k=2)
    steps = fit(module, model, [user()], tmp_path)
    changed = 0
    for name, g in part(DATA, "g_user.").items():
        g, s = g.double().numpy(), DATA[f"g_safety.{name}"].double().numpy()
        if g.ndim == 2:
            u, values, v = np.linalg.svd(s, full_matrices=False)
            s = (u[:, :2] * values[:2]) @ v[:2]
        if (g * s).sum() < 0:
            changed += 1
            g = g - (u[:, :2] @ (u[:, :2].T @ g) if g.ndim == 2 else (g @ s) / (s @ s) * s)
        np.testing.assert_allclose(steps.gradients[name].numpy(), g, atol=2e-6, err_msg=name)
    assert changed


def random_tensors(seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    sizes = {"a": 12, "b": 7, "c": 1, "d": 30}
    draw = {
        n: torch.randn(s, 2, generator=generator, dtype=torch.float64) for n, s in sizes.items()
    }
    return {n: d[:, 0].clone() for n, d in draw.items()}, {n: d[:, 1] for n, d in draw.items()}


@pytest.mark.parametrize("granularity", ["tensor", "global"])
@pytest.mark.parametrize("seed", range(6))
def test_projection_against_a_reference(granularity: Any, seed: int) -> None:
    gradients, safety = random_tensors(seed)
    if seed == 0:
        safety["a"] = safety["a"] * 1e-9
    if seed == 1:
        del safety["b"]
    wanted = {}
    names = list(safety)
    whole = [np.concatenate([d[n].numpy() for n in names]) for d in (gradients, safety)]
    expected = []
    for name, gradient in gradients.items():
        g = wanted[name] = gradient.numpy().copy()
        if name not in safety:
            continue
        s = safety[name].numpy()
        dot, square = (g @ s, s @ s) if granularity == "tensor" else (whole[0] @ whole[1],) * 2
        if granularity == "global":
            square = whole[1] @ whole[1]
        if square > 1e-8 and dot < 0:
            wanted[name] = g - dot / square * s
            expected.append(name)
    assert project(gradients, safety, same, granularity=granularity) == expected
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient.numpy(), wanted[name], atol=1e-12)
    after = float(inner_product(gradients, safety, same))
    assert granularity == "tensor" or after >= -1e-12


def test_a_safety_gradient_that_overflows_changes_nothing() -> None:
    gradients = {"a": torch.tensor([1.0, -1.0])}
    safety = {"a": torch.tensor([-float("inf"), 0.0])}
    assert not project(gradients, safety, same)
    assert gradients["a"].tolist() == [1.0, -1.0]
    assert not project({"a": torch.ones(2)}, {}, same)


def test_a_space_over_parts_of_any_shape() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(5, 2, generator=generator, dtype=torch.float64))[0]
    wanted = (matrix - basis @ (basis.T @ matrix)).flatten()
    entries = torch.arange(20).split([7, 0, 13])
    parts = [matrix.flatten()[own].clone() for own in entries]
    own: list[Tensor] = []
    for piece, numbers in zip(parts, entries, strict=True):
        leave_space(piece.clone(), Space(basis, 4, numbers), lambda v: own.append(v.clone()) or v)
    for piece, numbers in zip(parts, entries, strict=True):
        leave_space(piece, Space(basis, 4, numbers), lambda v: torch.stack(own).sum(0))
    torch.testing.assert_close(torch.cat(parts), wanted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"safety_batch": 0}, "model.safety_batch"),
        ({"rank_k": 2}, "model.rank_k"),
        ({"subspace": "rank_k"}, "model.rank_k"),
        ({"subspace": "rank_k", "rank_k": 0}, "model.rank_k"),
        ({"eps": -1.0}, "model.eps"),
        ({"subspace": "left_space", "rank_k": 1, "granularity": "global"}, "model.granularity"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OneShotError, match=message):
        SPF("tiny", **options)
