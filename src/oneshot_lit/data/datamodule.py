"""`SafetyDataModule`: any source or mixture to train on, or ONE repeated safety instance."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader, Dataset

from oneshot_lit.data.chat import check_tokenizer, rows_with_special_tokens
from oneshot_lit.data.datasets import (
    Collate,
    PromptDataset,
    PromptSet,
    TrainingDataset,
    joined,
)
from oneshot_lit.data.digests import contents_of, facts_of
from oneshot_lit.data.instance import SafetyInstance
from oneshot_lit.data.leakage import refuse_shared
from oneshot_lit.data.left_out import LeftOut
from oneshot_lit.data.limits import Limits
from oneshot_lit.data.position import EpochPosition
from oneshot_lit.data.samplers import ResumableDataLoader, ResumableSampler
from oneshot_lit.data.sources import ConversationSource
from oneshot_lit.data.training_rows import TrainingRows
from oneshot_lit.data.transforms import RowTransform
from oneshot_lit.errors import OneShotError


class SafetyDataModule(TrainingRows):
    """Data for harmful fine-tuning, single-example realignment and evaluation.

    For `fit` give either `train` or `instance`. The tokenizer is the module's, so that prompts and
    loss masks always fit the model.

    Args:
        train: Conversations to train on: any source, or a `Mixture`.
        instance: ONE safety example, repeated `instance_repeats` times an epoch on every process,
            so the update does not depend on the number of processes.
        val_sets: Prompt sets of the development split, scored during `fit` and by `validate`.
        test_sets: Held-out prompt sets, scored by `test`; no prompt may also be in `val_sets`.
        predict_sets: Prompt sets that `predict` answers; the test sets when not given.
        extra_val_sets: Further sets of the development split, so that a config can add some
            without repeating the others.
        extra_test_sets: Further held-out sets.
        batch_size: Training rows a batch, of each process.
        share_batch: Let the processes share `batch_size` rows instead, so that their number changes
            nothing but the speed.
        eval_batch_size: Prompts answered together, of each process.
        max_length: Maximum number of tokens; longer training rows are truncated, longer prompts
            are an error.
        long_prompts: ``skip`` leaves out prompts longer than `max_length`, counts them and says so.
        instance_repeats: Rows an epoch when an instance is given; one step each at batch size 1.
        shuffle: Shuffle the training rows each epoch.
        num_workers: Processes that collate batches.
        seed: Decides the order of rows; the run's `seed_everything` when not given.
        side: Further streams of rows, by name: each batch comes with as many rows of them, in
            ``batch["side"][name]``, for methods that need alignment data beside the task.
        transforms: Change each training row, as text and as tokens, in this order.
    """

    def __init__(
        self,
        train: ConversationSource | None = None,
        instance: SafetyInstance | None = None,
        val_sets: dict[str, PromptSet] | None = None,
        test_sets: dict[str, PromptSet] | None = None,
        predict_sets: dict[str, PromptSet] | None = None,
        extra_val_sets: dict[str, PromptSet] | None = None,
        extra_test_sets: dict[str, PromptSet] | None = None,
        batch_size: int = 8,
        share_batch: bool = False,
        eval_batch_size: int = 64,
        max_length: int = 512,
        long_prompts: Literal["error", "skip"] = "error",
        instance_repeats: int = 1,
        shuffle: bool = True,
        num_workers: int = 0,
        seed: int | None = None,
        side: dict[str, ConversationSource] | None = None,
        transforms: list[RowTransform] | None = None,
    ) -> None:
        super().__init__()
        self.train, self.instance = train, instance
        self.val_sets = joined(val_sets, extra_val_sets, "val_sets")
        self.test_sets = joined(test_sets, extra_test_sets, "test_sets")
        self.predict_sets = joined(predict_sets, None, "predict_sets")
        for name, value in {
            "batch_size": batch_size,
            "eval_batch_size": eval_batch_size,
            "max_length": max_length,
            "instance_repeats": instance_repeats,
        }.items():
            if value < 1:
                raise OneShotError(f"data.{name} must be at least 1, not {value}.")
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.share_batch = share_batch
        self.max_length, self.instance_repeats = max_length, instance_repeats
        self.long_prompts = long_prompts
        self.shuffle, self.num_workers, self.seed = shuffle, num_workers, seed
        self.tokenizer: Any = None
        self.side, self.transforms = side or {}, transforms or []
        if self.side:
            # Only then: where both have the hook, Lightning leaves out that of the module.
            self.on_before_batch_transfer = self._side_into_batch  # type: ignore[method-assign]
        self.training: TrainingDataset | None = None
        self._sides: dict[str, TrainingDataset] = {}
        self._limits = Limits(max_length)
        self._prompts: dict[str, list[PromptDataset]] = {}
        # Keys are train and <split>/<set>: how many rows, how long, how many left out.
        self.report: dict[str, dict[str, Any]] = {}
        self._epochs = EpochPosition()

    def setup(self, stage: str | None = None) -> None:
        """Load, check and tokenise what `stage` (fit, validate, test, predict) needs."""
        if self.tokenizer is None:
            self.use_tokenizer(self._module_tokenizer())
        self._limits = Limits.of(self.max_length, self._module())
        if stage in ("fit", None):
            self._epochs = EpochPosition()
            self.training = self._training_dataset()
            self._sides = self._side_datasets()
        if stage in ("fit", "validate", None):
            self._prompts["val"] = self._datasets("val", self.val_sets)
        if stage == "validate" and not self.val_sets:
            raise OneShotError("data.val_sets is empty; give a prompt set to validate on.")
        if stage in ("test", None):
            if stage == "test" and not self.test_sets:
                raise OneShotError("data.test_sets is empty; give a prompt set to test on.")
            self._prompts["test"] = self._datasets("test", self.test_sets)
        if stage == "predict":
            sets = self.predict_sets or self.test_sets
            if not sets:
                raise OneShotError("data.predict_sets is empty; give a prompt set to answer.")
            self._prompts["predict"] = self._datasets("predict", sets)
        self._refuse_shared_prompts(stage)

    def use_tokenizer(self, tokenizer: Any, name: str = "tokenizer") -> None:
        """Set the tokenizer by hand; under a trainer the module's is used."""
        check_tokenizer(tokenizer, name)
        self.tokenizer = tokenizer

    def _module(self) -> Any:
        return None if self.trainer is None else self.trainer.lightning_module

    def _module_tokenizer(self) -> Any:
        tokenizer = getattr(self._module(), "tokenizer", None)
        if tokenizer is None:
            raise OneShotError(
                "SafetyDataModule has no tokenizer; use a module of oneshot_lit or use_tokenizer()."
            )
        return tokenizer

    def _note(
        self, name: str, source: ConversationSource | None, dataset: TrainingDataset | PromptDataset
    ) -> None:
        """Keep the facts of a set for `data.json`, and warn of the rows that are left out."""
        left_out = LeftOut() if source is None else source.all_left_out()
        left_out.add(dataset.left_out)
        if left_out:
            rank_zero_warn(f"data set {name}: {left_out}")
        prompts_only = isinstance(dataset, PromptDataset)
        rows = [row.prompt if prompts_only else row for row in dataset.conversations]
        if special := rows_with_special_tokens(rows, self.tokenizer):
            rank_zero_warn(
                f"data set {name}: {len(special)} rows hold special tokens of the tokenizer in "
                f"their text, such as {special[0].origin}; they act as the template's own"
            )
        self.report[name] = {
            **facts_of(dataset.conversations, dataset.encoded),
            "left_out": dict(left_out.reasons),
        }

    def prompt_sets(self, split: str) -> list[PromptDataset]:
        """Return the loaded prompt sets of ``val``, ``test`` or ``predict``; after `setup`."""
        return self._prompts.get(split, [])

    def _datasets(self, split: str, sets: dict[str, PromptSet]) -> list[PromptDataset]:
        datasets = []
        for name, prompt_set in sets.items():
            skip_long = self.long_prompts == "skip"
            dataset = PromptDataset(name, prompt_set, self.tokenizer, self._limits, skip_long)
            self._note(f"{split}/{name}", prompt_set.source, dataset)
            datasets.append(dataset)
        return datasets

    def _refuse_shared_prompts(self, stage: str | None) -> None:
        """Refuse development prompts that are also in a test set.

        A fit reads the test prompts only for this check and does not encode them.
        """
        if stage != "fit" or not (self.val_sets and self.test_sets):
            return
        shown = [p for d in self._prompts["val"] for p in d.conversations]
        for name, prompt_set in self.test_sets.items():
            refuse_shared(shown, prompt_set.source.load(), f"test set {name}")

    def _world(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def contents(self) -> dict[str, list[Any]]:
        """Return what a resumed run must find unchanged (see `contents_of`)."""
        rows = {f"data.side.{name}": dataset for name, dataset in self._sides.items()}
        if self.training is not None:
            rows["data.train" if self.instance is None else "data.instance"] = self.training
        return contents_of(rows, self._prompts.get("val", []))

    def state_dict(self) -> dict[str, Any]:
        """Return how epochs are divided into batches; a checkpoint's position depends on it."""
        return {"cut": self._epochs.cut}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember how the interrupted run divided its epochs."""
        self._epochs.cut = state_dict["cut"]

    def _loader(
        self, dataset: Dataset[Any], sampler: Any, batch_size: int, generation: bool
    ) -> DataLoader[dict[str, Any]]:
        return ResumableDataLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            collate_fn=Collate(self.tokenizer.pad_token_id, generation),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            # A separate generator: a draw from the global one would shift dropout after a resume.
            generator=torch.Generator().manual_seed(0),
        )

    def _prompt_loaders(self, name: str) -> list[DataLoader[dict[str, Any]]]:
        """Return loaders that share each set's prompts among the processes, the longest first."""
        rank, world_size = self._world()
        loaders = []
        for prompts in self._prompts[name]:
            sampler = ResumableSampler(
                len(prompts), shuffle=False, rank=rank, world_size=world_size
            )
            loaders.append(self._loader(prompts, sampler, self.eval_batch_size, generation=True))
        return loaders

    def val_dataloader(self) -> list[DataLoader[dict[str, Any]]]:
        """Return one loader of left-padded prompts for each development set."""
        return self._prompt_loaders("val")

    def test_dataloader(self) -> list[DataLoader[dict[str, Any]]]:
        """Return one loader of left-padded prompts for each held-out set."""
        return self._prompt_loaders("test")

    def predict_dataloader(self) -> list[DataLoader[dict[str, Any]]]:
        """Return one loader of left-padded prompts for each set to answer."""
        return self._prompt_loaders("predict")
