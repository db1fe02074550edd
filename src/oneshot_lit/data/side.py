"""`SideStreams`: rows that come with each batch of the first stream, such as anchors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.utils.data import DataLoader

from oneshot_lit.conversation import Conversation
from oneshot_lit.data.anchors import AnchorDataset, OwnAnswer
from oneshot_lit.data.datasets import EncodedRows, TrainingDataset
from oneshot_lit.data.left_out import LeftOut
from oneshot_lit.data.resuming import ResumableDataModule
from oneshot_lit.data.samplers import SideSampler
from oneshot_lit.data.sources import ConversationSource
from oneshot_lit.data.transforms import RowTransform
from oneshot_lit.errors import OneShotError

# Names of streams.
MAIN, ANCHORS = "train", "anchors"


@dataclass(frozen=True)
class Stream:
    """How a module wants a stream of rows, if not as `data.batch_size` says.

    A module that has such wishes returns name -> `Stream` from ``streams(batches)``, with the
    number of batches of an epoch; `MAIN` is the first stream.

    Attributes:
        rows: Rows a batch, the same ones in every process; None for `data.batch_size` rows.
        numbers: Epoch -> which batch of the stream comes at each batch of that epoch, see
            `StreamSampler`.
    """

    rows: int | None = None
    numbers: Callable[[int], Sequence[int]] | None = None


def require_stream(trainer: Any, name: str, method: str, what: str) -> None:
    """Refuse to train without a stream of rows that a method needs.

    Raises:
        OneShotError: if the data module has no such stream.
    """
    side = getattr(trainer.datamodule, "side", None)
    if side is not None and name not in side:
        raise OneShotError(
            f"data.side.{name}: missing; {method} needs {what}. Give a source, such as "
            f"--data.side '{{{name}: {{class_path: ChatJsonl, init_args: {{path: rows.jsonl}}}}}}'."
        )


class SideStreams(ResumableDataModule):
    """The part of `SafetyDataModule` that holds the streams beside the first one.

    Attributes:
        anchor_set: The anchor rows, from `setup` for a fit on.
        report: Facts of each set for `data.json`; keys are train, anchors and <split>/<set>.
    """

    max_length: int
    _longest_prompt: int
    instance: Any

    def __init__(
        self,
        side: dict[str, ConversationSource] | None,
        anchors: ConversationSource | None,
        anchor_rows: int,
        anchor_answers: str,
        transforms: list[RowTransform] | None,
    ) -> None:
        super().__init__()
        self.side, self.transforms = side or {}, transforms or []
        self.anchors, self.anchor_rows, self.anchor_answers = anchors, anchor_rows, anchor_answers
        self.anchor_set: AnchorDataset | None = None
        self._sides: dict[str, TrainingDataset] = {}
        self.report: dict[str, dict[str, Any]] = {}
        for name in self.side:
            if name == MAIN or (name == ANCHORS and anchors is not None):
                raise OneShotError(f"data.side.{name}: is another stream; choose another name.")
        if self.side or anchors is not None:
            # Only then: where both have the hook, Lightning leaves out that of the module.
            self.on_before_batch_transfer = self._side_into_batch  # type: ignore[method-assign]

    def _note(
        self,
        name: str,
        source: ConversationSource | None,
        dataset: EncodedRows,
        known: int = 0,
    ) -> None:
        """Keep the facts of a set for `data.json`, and warn of the rows that are left out.

        Of as many rows left out as are `known`, a warning has told already.
        """
        left_out = LeftOut()
        for part in (source, dataset):
            if part is not None:
                left_out.add(part.left_out)
        if left_out.reasons.total() > known:
            rank_zero_warn(f"data set {name}: {left_out}")
        self.report[name] = {**dataset.facts(), "left_out": dict(left_out.reasons)}

    def _encoded(
        self, rows: list[Conversation], source: ConversationSource | None, name: str | None
    ) -> TrainingDataset:
        skip = source is not None and source.skips_bad_rows
        return TrainingDataset(rows, self.tokenizer, self.max_length, skip, self.transforms, name)

    def side_rows(self, name: str) -> TrainingDataset:
        """Return the rows of a stream of `data.side`, after `setup` for a fit.

        Raises:
            OneShotError: if there is no such stream.
        """
        if name not in self._sides:
            raise OneShotError(f"data.side.{name}: is missing; give the rows of this stream.")
        return self._sides[name]

    def _encoded_anchors(self, rows: list[Conversation]) -> TrainingDataset:
        return self._encoded(rows, self.anchors, None)

    def _setup_sides(self, module: Any) -> None:
        """Read the rows of every stream beside the first one."""
        self._sides, self.anchor_set = {}, None
        for name, source in self.side.items():
            source.use_tokenizer(self.tokenizer)
            self._sides[name] = self._encoded(source.load(), source, f"data.side.{name}")
            self._note(f"side/{name}", source, self._sides[name])
        if (anchors := self.anchors) is None:
            return
        if self.instance is None:
            raise OneShotError(
                "data.anchors: anchor rows come beside data.instance; give one, or drop them."
            )
        if module is not None and not getattr(module, "learns_anchors", False):
            raise OneShotError(
                f"data.anchors: {type(module).__name__} does not learn anchor rows; drop them, or "
                "use OneShotRealignmentModule."
            )
        self.anchor_set = AnchorDataset(
            anchors.load(),
            self.anchor_answers == "own",
            self.tokenizer,
            min(self._longest_prompt, self.max_length - 1),
            self._encoded_anchors,
            anchors.skips_bad_rows,
        )
        if len(self.anchor_set) < self.anchor_rows:
            rank_zero_warn(
                f"data.anchor_rows={self.anchor_rows}, but {anchors.describe()} has "
                f"{len(self.anchor_set)} usable rows: each step learns all of them"
            )
        self._note_anchors()

    def _rows_a_step(self) -> int:
        assert self.anchor_set is not None
        return min(self.anchor_rows, len(self.anchor_set))

    def _note_anchors(self) -> None:
        assert self.anchor_set is not None
        before = self.report.get(ANCHORS, {}).get("left_out", {})
        self._note(ANCHORS, self.anchors, self.anchor_set, known=sum(before.values()))
        self.report[ANCHORS]["rows_a_step"] = self._rows_a_step()

    def answer_anchors(self, answers: Sequence[OwnAnswer]) -> None:
        """Complete the anchor rows without an answer with the model's own."""
        assert self.anchor_set is not None
        self.anchor_set.answer(answers, self._encoded_anchors)
        self._note_anchors()

    def _wanted_streams(self, batches: int) -> Mapping[str, Stream]:
        """Return how the module wants its streams, for epochs of so many batches."""
        module = None if self.trainer is None else getattr(self.trainer, "lightning_module", None)
        wanted = getattr(module, "streams", None)
        # Not all batches of an epoch may be run.
        return {} if wanted is None else wanted((self._division or [batches])[0])

    def _with_sides(
        self,
        main: DataLoader[Any],
        batches: int,
        batch_size: int,
        skip: int,
        order: dict[str, Any],
        wanted: Mapping[str, Stream],
    ) -> DataLoader[Any] | CombinedLoader:
        """Return the loader of the first stream together with those of the others.

        Args:
            main: The loader of the first stream.
            batches: Batches of an epoch.
            batch_size: Rows a batch of a side stream, of each process.
            skip: Batches already done in the epoch that a resumed run continues.
            order: Further arguments of the samplers.
            wanted: How the module wants them.
        """
        rank, world_size = self.world()
        streams: dict[str, tuple[EncodedRows, int, int, int]] = {}
        for name, dataset in self._sides.items():
            alike = wanted.get(name, Stream()).rows
            shared = (dataset, batch_size, rank, world_size)
            streams[name] = shared if alike is None else (dataset, alike, 0, 1)
        if self.anchor_set is not None:
            # Every process learns the same rows, as it does the instance.
            streams[ANCHORS] = (self.anchor_set, self._rows_a_step(), 0, 1)
        if not streams:
            return main
        loaders = {MAIN: main}
        for name, (rows, size, place, shares) in streams.items():
            sampler = SideSampler(
                len(rows),
                batches=batches,
                batch_size=size,
                skip=skip,
                rank=place,
                world_size=shares,
                numbers=wanted.get(name, Stream()).numbers,
                **order,
            )
            loaders[name] = self.loader(rows, sampler, size, generation=False)
        return CombinedLoader(loaders, "min_size")

    def _side_into_batch(self, batch: Any, dataloader_idx: int) -> Any:
        """Put the batches of other streams into that of the first, as ``batch["side"]``."""
        if isinstance(batch, dict) and isinstance(batch.get(MAIN), dict):
            side = {name: each for name, each in batch.items() if name != MAIN}
            return {**batch[MAIN], "side": side}
        return batch
