"""`MetricsWriter`: the scores of `test` at ``<root>/metrics.json``, with their provenance."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.metrics.refusal import PHRASE_LIST_VERSION
from oneshot_lit.io.files import write_json_atomically, write_text_atomically
from oneshot_lit.io.locking import results_locked
from oneshot_lit.io.metrics_file import is_tested, later_evaluations
from oneshot_lit.io.runs import PRODUCTS, record_run, recorded_runs
from oneshot_lit.models.gguf import gguf_facts
from oneshot_lit.strategies.exchange import everyones

OUTCOMES_FILE = "outcomes.jsonl"
_PACKAGES = (
    "oneshot-lit",
    "torch",
    "lightning",
    "transformers",
    "tokenizers",
    "peft",
    "torchmetrics",
    "sqlglot",
)


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of every package that can change a score."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def show_scores(module: Any) -> None:
    """Print a table: a row for each prompt set, a column for each metric."""
    from rich.console import Console
    from rich.table import Table

    metrics = list(dict.fromkeys(key.rsplit("/", 1)[1] for key in module.scores))
    table = Table("prompt set", "prompts", *metrics, title="scores, shares of prompts")
    for name, count in module.counts["samples"].items():
        values = [module.scores.get(f"{name}/{metric}") for metric in metrics]
        table.add_row(name, str(count), *("" if v is None else f"{v:.3f}" for v in values))
    Console().print(table)


def gathered_rows(
    trainer: Trainer, mine: list[dict[str, Any]], loaders: Any
) -> list[dict[str, Any]]:
    """Return the rows of all processes, in the order of the sets and of their sources."""
    loaders = loaders if isinstance(loaders, (list, tuple)) else [loaders]
    sets = [loader.dataset.name for loader in loaders]
    rows = [row for part in everyones(trainer, mine) for row in part]
    return sorted(rows, key=lambda row: (sets.index(row["set"]), row["index"]))


def json_lines(rows: list[dict[str, Any]]) -> str:
    """Return rows as JSON Lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


class MetricsWriter(Callback):
    """Write the scores of a test and show those of a test or validation; never a model output.

    ``outcomes.jsonl`` has a row for each prompt, for rates by category and for comparisons, without
    text: ``set``, ``kind``, ``index`` (in the source's order, from 0), ``id``, ``category``,
    ``prompt`` (a digest of its turns), ``digest`` (of prompt and answer, as in the judgments),
    ``scores`` (metric -> value, null where it could not be scored) and ``empty``.
    """

    def __init__(self) -> None:
        # The command line sets the seed and what identifies the run.
        self.seed: int | None = None
        self.run: dict[str, Any] = {}

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the files from the first process."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        rows = gathered_rows(trainer, pl_module.outcomes, trainer.test_dataloaders)  # type: ignore[arg-type]
        if not trainer.is_global_zero:
            return
        root = Path(trainer.default_root_dir)
        target = root / PRODUCTS["test"]
        # Refuses scores that cannot be written, before any file is.
        content = self.content(trainer, pl_module)
        # A judge may add its scores at the same moment.
        with results_locked(root):
            write_text_atomically(root / OUTCOMES_FILE, json_lines(rows))
            later = self._kept(root)
            measured: dict[str, Any] = getattr(pl_module, "evaluations", {})
            for name, facts in measured.items():
                later["metrics"] |= facts["scores"]
                later["evaluations"][name] = {**facts, "scores": sorted(facts["scores"])}
            content["metrics"] = later["metrics"] | content["metrics"]
            write_json_atomically(target, content | {"evaluations": later["evaluations"]})
            record_run(root, "test", self.run)
        show_scores(pl_module)
        rank_zero_info(f"scores written to {target}")

    def _kept(self, root: Path) -> dict[str, Any]:
        """Return what judges and lm-eval have added for this run, not for an earlier one."""
        before = recorded_runs(root).get("test", {})
        own = before.get("fingerprint") == self.run.get("fingerprint") or not is_tested(root)
        # A file that cannot be read is overwritten, now that the answers are there.
        with suppress(OneShotError):
            if own:
                return later_evaluations(root)
        return {"metrics": {}, "evaluations": {}}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the scores of the command `validate`."""
        if trainer.state.fn == "validate" and trainer.is_global_zero:
            show_scores(pl_module)

    def content(self, trainer: Trainer, module: Any) -> dict[str, Any]:
        """Return the scores with provenance, as plain values."""
        for key, value in module.scores.items():
            if not math.isfinite(value):
                raise OneShotError(
                    f"metric {key} is {value}: none of its answers could be scored; no "
                    "metrics.json was written."
                )
        return {
            "metrics": module.scores,
            **module.counts,
            "unscored": {key: n for key, n in module.counts["unscored"].items() if n},
            "model_name_or_path": module.given_model,
            **gguf_facts(module.given_model),
            "ckpt_path": None if trainer.ckpt_path is None else str(trainer.ckpt_path),
            "dtype": module.dtype_name,
            "precision": str(trainer.precision),
            "seed": self.seed,
            "decoding": asdict(module.decoding),
            "phrase_list": PHRASE_LIST_VERSION,
            "versions": package_versions(),
        }
