"""`SafetyDataModule`: any source or mixture to train on, or ONE repeated safety instance."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.utils.data import DataLoader

from oneshot_lit.data.chat import check_tokenizer
from oneshot_lit.data.datasets import (
    PromptDataset,
    PromptSet,
    TrainingDataset,
    joined,
)
from oneshot_lit.data.hub import announce_hub_sets
from oneshot_lit.data.instance import SafetyInstance
from oneshot_lit.data.leakage import refuse_shared
from oneshot_lit.data.samplers import ResumableSampler, StreamSampler
from oneshot_lit.data.side import MAIN, SideStreams, Stream
from oneshot_lit.data.sources import ConversationSource
from oneshot_lit.data.transforms import RowTransform
from oneshot_lit.errors import OneShotError


class SafetyDataModule(SideStreams):
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
        max_length: Maximum number of tokens, or the model's positions if these are fewer; longer
            training rows are truncated, longer prompts are an error.
        long_prompts: ``skip`` leaves out prompts that are too long, counts them and says so.
        instance_repeats: Rows an epoch when an instance is given; one step each at batch size 1.
        shuffle: Shuffle the training rows each epoch.
        num_workers: Processes that collate batches.
        seed: Decides the order of rows; the run's `seed_everything` when not given.
        side: Further streams of rows, by name: each batch comes with as many rows of them, in
            ``batch["side"][name]``, for methods that need alignment data beside the task.
        transforms: Change each training row, as text and as tokens, in this order.
        anchors: Harmless conversations to learn beside the instance, so that the model keeps
            answering them; a row without an answer gets the model's own at the start of the run.
            No prompt may also be in `val_sets` or `test_sets`.
        anchor_rows: Anchor rows a batch, the same on every process; pass after pass over all rows.
        anchor_answers: ``own`` replaces the answers that are given by the model's own.
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
        anchors: ConversationSource | None = None,
        anchor_rows: int = 8,
        anchor_answers: Literal["given", "own"] = "given",
    ) -> None:
        super().__init__(side, anchors, anchor_rows, anchor_answers, transforms)
        self.train, self.instance = train, instance
        self.val_sets = joined(val_sets, extra_val_sets, "val_sets")
        self.test_sets = joined(test_sets, extra_test_sets, "test_sets")
        self.predict_sets = joined(predict_sets, None, "predict_sets")
        sizes = {"batch_size": batch_size, "eval_batch_size": eval_batch_size}
        sizes |= {"max_length": max_length, "instance_repeats": instance_repeats}
        sizes["anchor_rows"] = anchor_rows
        for name, value in sizes.items():
            if value < 1:
                raise OneShotError(f"data.{name} must be at least 1, not {value}.")
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.share_batch = share_batch
        self.max_length, self.instance_repeats = max_length, instance_repeats
        self._given_length = self._longest_prompt = max_length
        self.long_prompts = long_prompts
        self.shuffle, self.num_workers, self.seed = shuffle, num_workers, seed
        self.training: TrainingDataset | None = None
        self._prompts: dict[str, list[PromptDataset]] = {}

    def setup(self, stage: str) -> None:
        """Load, check and tokenise what `stage` (fit, validate, test, predict) needs."""
        self.report = {}
        module = None if self.trainer is None else self.trainer.lightning_module
        if self.tokenizer is None:
            tokenizer = getattr(module, "tokenizer", None)
            if tokenizer is None:
                raise OneShotError(
                    "SafetyDataModule has no tokenizer; use a module of oneshot_lit or "
                    "use_tokenizer()."
                )
            self.use_tokenizer(tokenizer)
        self._set_lengths(module)
        # The trainer's stages equal these words, but print as their names in code.
        split = {"fit": "val", "validate": "val", "test": "test", "predict": "predict"}[stage]
        given = {"val": self.val_sets, "test": self.test_sets, "predict": self.predict_sets}
        sets = given[split] or (self.test_sets if split == "predict" else {})
        sources = {f"data.{split}_sets.{name}.source": each.source for name, each in sets.items()}
        more = {"data.train": self.train, "data.anchors": self.anchors}
        more |= {f"data.side.{name}": source for name, source in self.side.items()}
        more |= getattr(module, "sources", {})
        announce_hub_sets(more | sources if stage == "fit" else sources)
        if stage == "fit":
            self._resumed = None
            self.training = self._training_dataset()
            self._setup_sides(module)
        if stage != "fit" and not sets:
            raise OneShotError(f"data.{split}_sets is empty; give a prompt set to {stage}.")
        self._prompts[split] = self._datasets(split, sets)
        if stage == "fit":
            self._refuse_leaks()

    def _refuse_leaks(self) -> None:
        """Refuse prompts of one part of the data that are also in another."""
        shown = [p for d in self._prompts["val"] for p in d.conversations]
        anchors = [] if self.anchor_set is None else self.anchor_set.conversations
        if anchors and self.training is not None:
            refuse_shared(self.training.conversations, anchors, "data.anchors", "instance")
        for each in self._prompts["val"]:
            refuse_shared(anchors, each.conversations, f"development set {each.name}", "anchors")
        # The test prompts are read for this check alone, and not encoded.
        for name, prompt_set in self.test_sets.items() if shown or anchors else ():
            held_out = prompt_set.source.load()
            refuse_shared(shown, held_out, f"test set {name}")
            refuse_shared(anchors, held_out, f"test set {name}", "anchors")

    def use_tokenizer(self, tokenizer: Any, name: str = "tokenizer") -> None:
        """Set the tokenizer by hand; under a trainer the module's is used."""
        check_tokenizer(tokenizer, name)
        self.tokenizer = tokenizer

    def _set_lengths(self, module: Any) -> None:
        """Find the longest rows and prompts; beyond its positions a model answers nonsense."""
        new_tokens = getattr(getattr(module, "decoding", None), "max_new_tokens", 0)
        positions = getattr(module, "context_length", None)
        self.max_length = self._longest_prompt = self._given_length
        if positions is not None:
            self.max_length = min(self._given_length, positions)
            self._longest_prompt = max(0, min(self._given_length, positions - new_tokens))

    def _training_dataset(self) -> TrainingDataset:
        if (self.train is None) == (self.instance is None):
            given = "neither" if self.train is None else "both"
            raise OneShotError(f"data: {given} of train and instance given; fit needs exactly one.")
        if self.instance is not None:
            rows = [self.instance.load()] * self.instance_repeats
        else:
            assert self.train is not None
            self.train.use_tokenizer(self.tokenizer)
            rows = self.train.load()
        dataset = self._encoded(rows, self.train, "data.train")
        pairs = zip(dataset.conversations, dataset.encoded, strict=True)
        shortened = [row for row, encoded in pairs if encoded.cut]
        if shortened and self.instance is not None:
            raise OneShotError(
                f"data.instance: longer than data.max_length={self.max_length}, and its end would "
                "not be learned; raise data.max_length or give a shorter one."
            )
        if shortened:
            rank_zero_warn(
                f"{len(shortened)} of {len(dataset)} training rows are cut to {self.max_length} "
                f"tokens (data.max_length, or the model's positions); the first is "
                f"{shortened[0].origin}"
            )
        self._note("train", self.train, dataset)
        self.report["train"]["cut"] = len(shortened)
        return dataset

    def prompt_sets(self, split: str) -> list[PromptDataset]:
        """Return the loaded prompt sets of ``val``, ``test`` or ``predict``; after `setup`."""
        return self._prompts.get(split, [])

    def _datasets(self, split: str, sets: dict[str, PromptSet]) -> list[PromptDataset]:
        datasets, skip_long = [], self.long_prompts == "skip"
        for name, each in sets.items():
            dataset = PromptDataset(name, each, self.tokenizer, self._longest_prompt, skip_long)
            self._note(f"{split}/{name}", each.source, dataset)
            datasets.append(dataset)
        return datasets

    def contents(self) -> dict[str, list[Any]]:
        """Return what a resumed run must find unchanged: how many rows, and their digest.

        The keys name the sources. So a resumed run can tell whether a file, a table or a template
        has changed in between.
        """
        own = "data.train" if self.instance is None else "data.instance"
        names = {
            "train": own,
            "anchors": "data.anchors",
            "side": "data.side.",
            "val": "data.val_sets.",
        }
        return {
            names[split] + name: [facts["rows"], facts["digest"]]
            for key, facts in self.report.items()
            for split, _, name in [key.partition("/")]
            if split in names
        }

    def train_dataloader(self) -> DataLoader[dict[str, Any]] | CombinedLoader:
        """Return right-padded batches: ``input_ids``, ``attention_mask``, ``labels``, ``index``.

        With `side` or `anchors`, each batch has those of the other streams in ``side``, by name.
        """
        assert self.training is not None
        batch_size = self._batch_of_process()
        # Every process repeats the whole instance, so their number does not change the gradient.
        rank, world_size = self.world() if self.instance is None else (0, 1)
        per_epoch = -(-len(self.training) // (world_size * batch_size))
        epoch, done = self.position(per_epoch, batch_size * world_size)
        order: dict[str, Any] = {
            "shuffle": self.shuffle,
            "seed": self.seed if self.seed is not None else torch.initial_seed(),
            "start_epoch": epoch,
        }
        order_of_main = {**order, "rank": rank, "world_size": world_size}
        wanted = self._wanted_streams(per_epoch)
        numbers = wanted.get(MAIN, Stream()).numbers
        rows = len(self.training)
        sampler = ResumableSampler(rows, skip=done * batch_size, **order_of_main)
        if numbers is not None:
            size = {"batches": per_epoch, "batch_size": batch_size, "skip": done}
            sampler = StreamSampler(rows, numbers=numbers, **size, **order_of_main)
        main = self.loader(self.training, sampler, batch_size, generation=False)
        return self._with_sides(main, per_epoch, batch_size, done, order, wanted)

    def _batch_of_process(self) -> int:
        """Return how many rows a batch of this process has."""
        world_size = self.world()[1]
        if not self.share_batch or self.instance is not None:
            return self.batch_size
        share = -(-self.batch_size // world_size)
        if share * world_size != self.batch_size:
            rank_zero_warn(
                f"data.batch_size {self.batch_size} does not divide by {world_size} processes: "
                f"each takes {share}, together {share * world_size}"
            )
        return share

    def _prompt_loaders(self, name: str) -> list[DataLoader[dict[str, Any]]]:
        """Return loaders that share each set's prompts among the processes, the longest first."""
        rank, world_size = self.world()
        loaders = []
        for prompts in self._prompts[name]:
            sampler = ResumableSampler(
                len(prompts), shuffle=False, rank=rank, world_size=world_size
            )
            loaders.append(self.loader(prompts, sampler, self.eval_batch_size, generation=True))
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
