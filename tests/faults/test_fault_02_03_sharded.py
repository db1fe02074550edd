"""Faults 2 and 3 under each strategy: the adapter's product is that of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from oneshot_lit.methods import LanguageModelModule
from strategies.processes import in_processes
from strategies.training import train

pytestmark = [pytest.mark.slow, pytest.mark.long]

LORA = {"r": 4, "init_lora_weights": "gaussian"}
VARIANTS: dict[str, dict[str, Any]] = {
    "head": {"peft": {**LORA, "target_modules": ["q_proj", "lm_head"]}},
    "head, merged": {"peft": {**LORA, "target_modules": ["q_proj", "lm_head"]}, "merge": True},
    "embedding, merged": {"peft": {**LORA, "target_modules": ["embed_tokens"]}, "merge": True},
    "saved, merged": {
        "peft": {**LORA, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        "merge": True,
    },
    "fixed projections": {
        "peft": {"peft_type": "VERA", "r": 4, "target_modules": ["q_proj", "v_proj"]}
    },
}
STRATEGIES = ("ddp", "fsdp2", "zero2", "zero3")


@pytest.fixture(scope="module")
def runs(tied_folder: Path, uneven_rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("sharded")

    def case(name: str, variant: str, processes: int) -> dict[str, Any]:
        paths = {"folder": str(tied_folder), "rows": str(uneven_rows), "epochs": 1}
        place = str(root / f"{name}, {variant}")
        return {"name": name, "root": place, "processes": processes, **paths, **VARIANTS[variant]}

    for variant in VARIANTS:
        train(**case("single", variant, 1))
    cases = [case(name, variant, 2) for name in STRATEGIES for variant in VARIANTS]
    in_processes(root, "training", "train", cases, seconds=300)
    return root


def logits(folder: Path) -> torch.Tensor:
    ids = torch.randint(10, 400, (3, 17), generator=torch.Generator().manual_seed(1))
    loaded = LanguageModelModule(str(folder))
    loaded.configure_model()
    with torch.no_grad():
        return loaded.eval()(ids, torch.ones_like(ids))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", STRATEGIES)
def test_the_product_is_that_of_one_process(
    name: str, variant: str, runs: Path, tied_folder: Path
) -> None:
    expected = logits(runs / f"single, {variant}" / "model")
    assert float((logits(tied_folder) - expected).abs().max()) > 1e-6
    found = logits(runs / f"{name}, {variant}" / "model")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
