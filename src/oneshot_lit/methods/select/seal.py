"""`Seal`: choose the rows to fine-tune on by bilevel optimisation (SEAL)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from oneshot_lit.data.chat import Encoded
from oneshot_lit.data.datasets import TrainingDataset
from oneshot_lit.data.samplers import ResumableSampler, SideSampler
from oneshot_lit.errors import OneShotError
from oneshot_lit.methods.about import About
from oneshot_lit.methods.select.base import SelectionModule
from oneshot_lit.methods.select.seal_steps import (
    Activation,
    largest,
    overlap_with_low_losses,
    rows_to_keep,
    upper_weight,
)
from oneshot_lit.methods.select.seal_training import SealTraining

SAFE = "safe"
ABOUT = About(
    name="SEAL",
    stage="during fine-tuning",
    needs="safe rows; chooses among the user's rows",
    paper="2410.07471",
    agreement="each step equals the release's; final weights to 2e-5",
    config="defence/seal.yaml",
)


class Seal(SelectionModule):
    """Weigh the user's rows while a model learns safe ones; keep the share of largest weight.

    Each step takes safe rows from ``data.side.safe`` and as many user rows from ``data.train``;
    the shorter of both ends the epoch. The model learns ``u mean(l_safe) + (1 - u) mean(p_i l_i)``,
    the selector then lowers ``mean(p_i l_i)``, with the losses from before the model's step
    (arXiv 2410.07471). The value of the lower level is not subtracted, as in the release: the
    choice is of rows with a low loss under the safety-leaning model. So ``selection.json`` says how
    far a plain ranking by loss agrees.

    Args:
        topp: Share of the user's rows to keep.
        activation: How logits become weights: ``softmax`` over all rows, or a ``sigmoid`` each.
        selector_lr: Step size of the selector's AdamW (betas .9 and .95, no decay).
        upperlevel_weight: u in the first epoch; 1 trains on safe rows alone.
        upperlevel_weight_decay: How much u falls at the start of each later epoch.
        epochs: Passes over the rows.
        max_norm: Clip the model's gradient to this norm; null does not.
        selector_max_norm: The same for the selector.
    """

    trains = several_processes = True

    def __init__(
        self,
        *args: Any,
        topp: float = 0.8,
        activation: Activation = "softmax",
        selector_lr: float = 5e-3,
        upperlevel_weight: float = 1.0,
        upperlevel_weight_decay: float = 0.03,
        epochs: int = 3,
        max_norm: float | None = 1.0,
        selector_max_norm: float | None = 10.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, m=1, require_refusals=False, **kwargs)
        if not 0 < topp <= 1:
            raise OneShotError(f"model.topp must be in (0, 1], not {topp}.")
        if epochs < 1:
            raise OneShotError(f"model.epochs must be at least 1, not {epochs}.")
        last = upper_weight(upperlevel_weight, upperlevel_weight_decay, epochs - 1)
        if not 0 <= upperlevel_weight <= 1 or not -1e-9 <= last <= 1:
            raise OneShotError(
                f"model.upperlevel_weight: goes from {upperlevel_weight} to {last:.3g} in {epochs} "
                "epochs; it must stay between 0 and 1."
            )
        self.topp, self.activation, self.selector_lr = topp, activation, selector_lr
        self.upperlevel_weight = upperlevel_weight
        self.upperlevel_weight_decay = upperlevel_weight_decay
        self.epochs, self.max_norm, self.selector_max_norm = epochs, max_norm, selector_max_norm
        self.records: list[dict[str, float]] = []
        self.users: list[Encoded] = []
        self.safe: list[Encoded] = []
        # The rows' losses at the model as it was given, and after the last step.
        self.losses: dict[str, Tensor] = {}
        self.levels: SealTraining
        self._skipped: list[str] = []
        self._resumed: dict[str, Any] | None = None

    # ------------------------------------------------------------------- the rows

    def check(self) -> None:
        """Take the safe rows, too."""
        super().check()
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        for name in data.side:
            if name != SAFE:
                raise OneShotError(f"data.side.{name}: SEAL reads only data.side.{SAFE}; drop it.")
        safe = data.side_rows(SAFE)
        self.safe = [safe.encoded[place] for place in _learnable(safe, f"data.side.{SAFE}")]

    def take_pool(self, training: TrainingDataset) -> None:
        """Take the rows that have a token to learn; they keep their places in the source."""
        twice, count = Counter(training.numbers).most_common(1)[0]
        if count > 1:
            raise OneShotError(
                f"{training.given[twice].origin}: its template makes a row of each answer, and "
                "SEAL weighs whole rows; give rows with one answer."
            )
        places = _learnable(training, "data.train")
        self.users = [training.encoded[place] for place in places]
        numbers = [training.numbers[place] for place in places]
        self.pool = [training.given[number] for number in numbers]
        self.pool_rows = [number + 1 for number in numbers]
        others = set(range(len(training.given))) - set(numbers)
        self._skipped = [training.given[number].digest() for number in sorted(others)]
        self.m = rows_to_keep(self.topp, len(self.pool))
        if self.m < 1:
            raise OneShotError(
                f"model.topp {self.topp}: keeps none of the {len(self.pool)} rows; raise it."
            )

    def order(self, epoch: int) -> tuple[list[int], list[int]]:
        """Return the order of the safe rows and of the user's rows in an epoch."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        more: dict[str, Any] = {"shuffle": data.shuffle, "seed": self.run_seed}
        safe = SideSampler(len(self.safe), batches=1, batch_size=1, **more)
        return safe.one_pass(epoch), ResumableSampler(len(self.users), **more).one_pass(epoch)

    def batch_size(self) -> int:
        """Return how many rows of each kind a step takes, over all processes."""
        return int(self.trainer.datamodule.batch_size)  # type: ignore[attr-defined]

    def _steps_an_epoch(self) -> int:
        return -(-min(len(self.safe), len(self.users)) // self.batch_size())

    # ---------------------------------------------------------------------- steps

    def prepare(self) -> None:
        """Make both optimisers, and measure the rows' losses at the given model."""
        super().prepare()
        self.levels = SealTraining(
            self,
            self.users,
            self.safe,
            self.activation,
            self.selector_lr,
            self.max_norm,
            self.selector_max_norm,
            self.rows_at_once,
        )
        if self._resumed is None:
            self.losses["start"] = self._losses()
        else:
            self.levels.restore(self._resumed)
            self._resumed = None

    def steps(self) -> tuple[int, int]:
        """Return how many steps are done, and how many there are."""
        return len(self.records), self.epochs * self._steps_an_epoch()

    def step(self) -> bool:
        """Take one step of the model and one of the selector."""
        number, size = len(self.records), self.batch_size()
        epoch, place = divmod(number, self._steps_an_epoch())
        part = slice(place * size, (place + 1) * size)
        safe, users = (order[part] for order in self.order(epoch))
        upper = upper_weight(self.upperlevel_weight, self.upperlevel_weight_decay, epoch)
        upper = max(0.0, upper)
        try:
            facts = self.levels.step(safe, users, upper)
        except FloatingPointError as error:
            raise OneShotError(
                f"model.optimizer.lr: {error} at step {number + 1}; lower it."
            ) from error
        self.records.append(
            {"step": number + 1, "epoch": epoch + 1, "upper_weight": upper, **facts}
        )
        done, total = self.steps()
        return done >= total

    def progress_text(self) -> str:
        """Return the losses of the last step."""
        last = self.records[-1]
        return f"loss of safe rows {last['safe_loss']:.4g}, of the user's {last['user_loss']:.4g}"

    def job_state(self) -> dict[str, Any]:
        """Return the records, the losses at the start, and the state of both levels."""
        return {
            "records": self.records,
            "losses": self.losses,
            "training": self.levels.state(),
        }

    def load_job_state(self, state: dict[str, Any]) -> None:
        """Restore the records; `prepare` restores the rest once the optimisers are there."""
        self.records, self.losses = list(state["records"]), dict(state["losses"])
        self._resumed = state["training"]

    def _losses(self) -> Tensor:
        with self.trainer.autocast():  # type: ignore[attr-defined]
            return self.levels.losses()

    # --------------------------------------------------------------------- output

    def candidate_scores(self) -> list[float]:
        """Return the logits of the user's rows."""
        return [float(logit) for logit in self.levels.logits.detach()]

    def selection_facts(self) -> dict[str, Any]:
        """Return settings, what was kept of each source, and the agreement with plain losses."""
        chosen = largest(self.candidate_scores(), self.m)
        # An origin is the name of a source and a row.
        origins = [row.origin.rpartition(" row ")[0] or row.origin for row in self.pool]
        kept, given = Counter(origins[place] for place in chosen), Counter(origins)
        overlaps = {
            name: overlap_with_low_losses(chosen, losses.tolist())
            for name, losses in self.losses.items()
        }
        return {
            "topp": self.topp,
            "activation": self.activation,
            "selector_lr": self.selector_lr,
            "upperlevel_weight": self.upperlevel_weight,
            "upperlevel_weight_decay": self.upperlevel_weight_decay,
            "epochs": self.epochs,
            "steps": len(self.records),
            "rows": len(self.pool),
            "safe_rows": len(self.safe),
            "skipped": self._skipped,
            "kept": {name: [kept[name], number] for name, number in given.items()},
            "overlap_with_lowest_losses": {**overlaps, "by_chance": self.m / len(self.pool)},
        }

    def progress_rows(self) -> list[dict[str, Any]]:
        """Return the record of each step."""
        return list(self.records)

    def finish(self, root: Path) -> None:
        """Measure the rows' losses once more, and write ``selection.json`` and the table."""
        self.losses["end"] = self._losses()
        super().finish(root)


def _learnable(rows: TrainingDataset, name: str) -> list[int]:
    """Return the places of rows that have a token to learn; warn of the others.

    Raises:
        OneShotError: if there is none, or tokens have weights, which the mean of a row ignores.
    """
    kept: list[int] = []
    for place, row in enumerate(rows.encoded):
        if row.token_weights is not None:
            raise OneShotError(
                f"{rows.conversations[place].origin}: SEAL counts all tokens of a row alike; drop "
                "the transform that gives them weights (data.transforms)."
            )
        # Nothing predicts the first token.
        if any(row.loss_mask[1:]):
            kept.append(place)
    if not kept:
        raise OneShotError(f"{name}: no row has a token to learn; give others.")
    if left := len(rows.encoded) - len(kept):
        first = min(set(range(len(rows.encoded))) - set(kept))
        rank_zero_warn(
            f"{name}: {left} of {len(rows.encoded)} rows have no token to learn and take no part; "
            f"the first is {rows.conversations[first].origin}"
        )
    return kept
