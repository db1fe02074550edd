"""The commands ``oneshot-lit select``, ``annotate`` and ``edit``: jobs without optimiser steps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from oneshot_lit.callbacks import HuggingFaceExport
from oneshot_lit.cli import watch
from oneshot_lit.cli.config_command import ConfigCommandParser, command_parser, parse_command
from oneshot_lit.cli.fit import silence
from oneshot_lit.cli.progress import progress_lines
from oneshot_lit.data import SafetyDataModule
from oneshot_lit.errors import OneShotError
from oneshot_lit.io.files import write_text_atomically
from oneshot_lit.io.locking import run_locked
from oneshot_lit.io.runs import fingerprint, record_run, require_own_folder
from oneshot_lit.methods.annotate.base import Annotation
from oneshot_lit.methods.job import Job, JobTrainer
from oneshot_lit.methods.posttuning.weight_edit import (
    Calibration,
    Repair,
    WeightEdit,
    write_edited,
)
from oneshot_lit.methods.select.base import SelectionModule

_DESCRIPTIONS = {
    "select": """\
Choose the safety instance: rank the refusals of a pool (data.train) for a broken model. Writes
<root>/selection.json, which the instance SelectedInstance reads, and a table of the steps;
<root> is --trainer.default_root_dir. After a kill, the same command resumes.

example, in the micro-world:
  oneshot-lit select --config configs/select/enumeration.yaml
  oneshot-lit fit --config configs/realign/one_shot.yaml --config configs/realign/selected.yaml \\
    --data.instance.selection runs/selection_enumeration

SEAL ranks the rows to fine-tune on instead; SelectedRows reads its choice:
  oneshot-lit select --config configs/defence/seal.yaml

more: configs/select/ has a file for each selector;
oneshot-lit select --model.help EnumerationModule lists the keys of one.
""",
    "annotate": """\
Let models say something about each training row, before it is learned: the scores of STAR-DSS and
TOSS, or a reference's log-probabilities. Writes <root>/annotations.safetensors, which the methods
read; <root> is --trainer.default_root_dir. Rows are known by a hash of the models and of their
tokens: give the same data here and in the fit. After a kill, or with more rows, the same command
does only what is left.

examples, in the micro-world:
  oneshot-lit annotate --config configs/annotate/star_dss.yaml
  oneshot-lit annotate --config configs/annotate/log_probabilities.yaml

more: oneshot-lit annotate --model.help StarScores lists the keys of a kind; docs/annotations.md
""",
    "edit": """\
Repair a model by editing its weights, without optimiser steps. Writes a Hugging Face folder, or an
adapter, to <root>/model; <root> is --trainer.default_root_dir. After a kill, give the same command
again.

  --tuned T    the model to edit, or its adapter: short for --model.model_name_or_path
  --aligned A  the model before fine-tuning: short for --model.aligned
  --base U     an unaligned model: short for --model.base

examples, in the micro-world:
  oneshot-lit edit --config configs/realign/low_rank.yaml
  oneshot-lit edit --config configs/defence/safe_lora.yaml --tuned T --aligned A --base U

more: oneshot-lit edit --model.help SafeLoRA lists the keys of a method; docs/methods.md lists the
methods; docs/extending.md shows how to write one.
""",
}

_KINDS: dict[str, type] = {"select": SelectionModule, "annotate": Annotation, "edit": Repair}
_SHORT = {
    "--tuned": "--model.model_name_or_path",
    "--aligned": "--model.aligned",
    "--base": "--model.base",
}


def run_job_command(arguments: Sequence[str]) -> int:
    """Run ``oneshot-lit select``, ``annotate`` or ``edit`` and return its exit code.

    Args:
        arguments: The command line, with the command as its first word.

    Raises:
        OneShotError: for every mistake that the user can correct.
    """
    silence()
    watch.begin()
    words = [_written_out(word) for word in arguments[1:]]
    with ExitStack() as held:
        return _run(arguments[0], words, held)


def _written_out(word: str) -> str:
    """Return a word of the command line with the name of a model written out."""
    name, equals, value = word.partition("=")
    return f"{_SHORT.get(name, name)}{equals}{value}"


def _parser(command: str, kind: type) -> ConfigCommandParser:
    parser = command_parser(command, _DESCRIPTIONS[command])
    parser.add_argument("--config", action="config", help="a file of keys")
    parser.add_argument("--seed_everything", type=int, default=0, help="seed of all random draws")
    parser.add_subclass_arguments(kind, "model", required=True, help="the method and its keys")
    parser.add_subclass_arguments(
        SafetyDataModule, "data", required=kind is not Repair, help="the rows"
    )
    parser.add_class_arguments(JobTrainer, "trainer", help="where the job runs")
    if kind is Repair:
        parser.add_class_arguments(HuggingFaceExport, "export", help="how the model is written")
    parser.add_argument(
        "--overwrite",
        type=bool,
        default=False,
        help="replace the output of another run in trainer.default_root_dir",
    )
    return parser


def _run(command: str, arguments: Sequence[str], held: ExitStack) -> int:
    kind = _KINDS[command]
    parser = _parser(command, kind)
    seen: dict[str, Any] = {}

    def see(config: Any) -> None:
        """Check the output folder before any work is done."""
        text = parser.dump(config, skip_none=False)
        plain = json.loads(parser.dump(config, skip_none=False, format="json"))
        root = Path(plain["trainer"]["default_root_dir"]).expanduser()
        seen.update(root=root, run={"fingerprint": fingerprint(plain), "config": plain}, text=text)
        if watch.rank() == 0:
            if not root.is_file():
                held.enter_context(run_locked(root))
            overwrite = bool(plain["overwrite"])
            require_own_folder(root, command, seen["run"]["fingerprint"], overwrite, plain)

    options = parse_command(parser, arguments, see)
    root, trainer, model, data = seen["root"], options.trainer, options.model, options.data
    if watch.rank() == 0:
        write_text_atomically(root / f"{command}.yaml", seen["text"])
    progress = progress_lines(command, trainer.enable_progress_bar and watch.rank() == 0)
    if isinstance(model, Job):
        model.run_record = seen["run"]
        model.run(trainer, _required(data), options.seed_everything, progress)
    else:
        _edit_files(model, data, options, root, progress)
    if kind is Repair:
        export: HuggingFaceExport = options.export
        export.run = seen["run"]
        if isinstance(model, Job):
            if export.enabled:
                export.write(trainer, model, root, command)
        elif trainer.is_global_zero:
            export.record(root, command)
    elif trainer.is_global_zero:
        record_run(root, command, seen["run"])
    return 0


def _required(data: SafetyDataModule | None) -> SafetyDataModule:
    if data is None:
        raise OneShotError("data: is missing; this method needs rows.")
    return data


def _edit_files(model: WeightEdit, data: Any, options: Any, root: Path, progress: Any) -> None:
    """Run an edit that is not a module: calibrate it if needed, and write the files."""
    if type(model).calibrate is not WeightEdit.calibrate:
        Calibration(model).run(options.trainer, _required(data), options.seed_everything, progress)
    if options.trainer.is_global_zero:
        changed = write_edited(
            model,
            root,
            dtype=options.export.save_dtype,
            progress=lambda done, total: progress(done, total, "tensors"),
        )
        rank_zero_info(f"{changed} tensors changed; model written to {root / 'model'}")
