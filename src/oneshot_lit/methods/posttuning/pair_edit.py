"""`PairEdit`: a weight edit of a LoRA adapter's pairs, or of whole weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from oneshot_lit.errors import OneShotError
from oneshot_lit.io.files import folder_written_whole
from oneshot_lit.methods.posttuning.weight_edit import OUTPUT, WeightEdit, given
from oneshot_lit.models.adapters import base_of, is_adapter
from oneshot_lit.models.edit_files import TUNED, Progress, read_tensor
from oneshot_lit.models.loading import local_folder
from oneshot_lit.models.lora_pairs import LoraPair, padded, read_pairs, write_pairs
from oneshot_lit.models.quantised import require_trainable
from oneshot_lit.models.weight_files import tensors_of, weight_files

ALIGNED = "aligned"
Factors = tuple[Tensor, Tensor]


class PairEdit(WeightEdit):
    """A weight edit whose tuned model may be a LoRA adapter.

    Of an adapter, `edit_pair` changes the pairs, one module after the other, and the output is an
    adapter again; of a whole model, `edit` changes the tensors. For an adapter, the aligned model
    is by default its base.
    """

    # An adapter beside the tuned one: its name in `sources`.
    second: str | None = None
    # Whether a whole model needs the aligned one beside it.
    needs_aligned = True
    # The tuned adapter's pairs; none for a whole model.
    pairs: Mapping[str, LoraPair] = {}

    def edit_pair(
        self, module: str, pair: LoraPair, weights: Mapping[str, Tensor], second: LoraPair | None
    ) -> tuple[Factors, float] | None:
        """Return A and B in the place of a pair, and their scaling; None if nothing changes.

        Args:
            module: The module's name.
            pair: Of the tuned adapter.
            weights: The module's weight in each whole model of `sources`, (out, in).
            second: The pair of the second adapter, if the edit has one.
        """
        raise NotImplementedError

    @property
    def tuned(self) -> Path:
        """The folder of the tuned model or adapter."""
        return local_folder(self.sources()[TUNED])

    def folders(self) -> dict[str, Path]:
        """Return the folder of each model; for an adapter, those beside it must be whole.

        Raises:
            OneShotError: for an adapter in the place of a whole model, and for quantised weights.
        """
        if not is_adapter(self.tuned):
            if self.needs_aligned:
                given(ALIGNED, self.sources().get(ALIGNED))
            return super().folders()
        sources = {ALIGNED: base_of(self.tuned)} | self.sources()
        folders = {name: local_folder(source) for name, source in sources.items()}
        for name, folder in folders.items():
            wanted = name in (TUNED, self.second)
            if is_adapter(folder) != wanted:
                kind = "no adapter, and the tuned model is one" if wanted else "an adapter"
                raise OneShotError(f"{folder} ({name}): is {kind}; give another.")
            if not wanted:
                require_trainable(str(folder), adapter=False)
        return folders

    def write(self, root: Path, dtype: torch.dtype | None, progress: Progress | None) -> int:
        """Write the edited model or adapter; returns how many tensors or modules were changed."""
        if not is_adapter(self.tuned):
            return super().write(root, dtype, progress)
        folders = self.folders()
        self.pairs = pairs = read_pairs(folders[TUNED])
        others = read_pairs(folders[self.second]) if self.second else {}
        if self.second and others.keys() != pairs.keys():
            module = sorted(others.keys() ^ pairs.keys())[0]
            raise OneShotError(
                f"{folders[self.second]}: only one of the two adapters has {module}; train both on "
                "the same modules."
            )
        models = {n: f for n, f in folders.items() if n not in (TUNED, self.second)}
        places = {name: tensors_of(weight_files(folder)) for name, folder in models.items()}

        def read(module: str) -> dict[str, Tensor]:
            own = {}
            for name, files in places.items():
                key = f"{module}.weight"
                if key not in files:
                    raise OneShotError(f"{models[name]}: has no {key}, which the adapter changes.")
                own[name] = read_tensor(files[key], key)
                shape = pairs[module].b.shape[0], pairs[module].a.shape[1]
                if own[name].shape != shape:
                    raise OneShotError(
                        f"{models[name]}: {key} is {tuple(own[name].shape)}, and the adapter is "
                        f"for {shape}; give the model that was tuned."
                    )
            return own

        self.prepare(list(pairs), read)
        after: dict[str, tuple[Factors, float] | None] = {}
        for number, (module, pair) in enumerate(pairs.items(), start=1):
            after[module] = self.edit_pair(module, pair, read(module), others.get(module))
            self._record(module, pair, after[module])
            if progress is not None:
                progress(number, len(pairs))
        with folder_written_whole(root / OUTPUT) as folder:
            self._write_pairs(folders[TUNED], folder, pairs, after)
        return sum(each is not None for each in after.values())

    def _record(self, module: str, pair: LoraPair, after: tuple[Factors, float] | None) -> None:
        (a, b), scaling = after or ((pair.a, pair.b), pair.scaling)
        change = LoraPair(a.to(pair.a), b.to(pair.b), scaling).change
        self.recorded.pair(module, (pair.a, pair.b, pair.change), (a, b, change))

    @staticmethod
    def _write_pairs(
        source: Path,
        target: Path,
        pairs: Mapping[str, LoraPair],
        after: Mapping[str, tuple[Factors, float] | None],
    ) -> None:
        """Write the pairs with the source's scalings, or with 1 if one of them has changed."""
        whole = {
            module: own or ((pairs[module].a, pairs[module].b), pairs[module].scaling)
            for module, own in after.items()
        }
        same = all(
            scaling == pairs[m].scaling and len(a) == pairs[m].rank
            for m, ((a, _), scaling) in whole.items()
        )
        if same:
            write_pairs(source, target, {m: factors for m, (factors, _) in whole.items()})
            return
        rank = max(len(a) for (a, _), _ in whole.values())
        scaled = {m: padded(a, s * b, rank) for m, ((a, b), s) in whole.items()}
        write_pairs(source, target, scaled, plain=True)
