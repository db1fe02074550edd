"""`OneShotCLI`: LightningCLI with one-line errors, guarded outputs and reproducible defaults."""

from __future__ import annotations

import json
import logging
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from transformers.utils.logging import disable_progress_bar

from oneshot_lit import __version__
from oneshot_lit.callbacks import (
    AtomicCheckpointIO,
    DataReport,
    HuggingFaceExport,
    MetricsWriter,
    PredictionWriter,
    ProgressLines,
    RealignmentCurve,
    RunCheckpoint,
)
from oneshot_lit.callbacks.run_checkpoint import CHECKPOINTS, LAST
from oneshot_lit.cli import watch
from oneshot_lit.cli.config_command import ConfigCommandParser, building, parsed
from oneshot_lit.cli.parsing import begin_parsing
from oneshot_lit.data import SafetyDataModule
from oneshot_lit.errors import OneShotError, causes
from oneshot_lit.io.files import recover, write_text_atomically
from oneshot_lit.io.locking import run_locked
from oneshot_lit.io.runs import PRODUCTS, fingerprint, require_own_folder
from oneshot_lit.methods import LanguageModelModule
from oneshot_lit.strategies import register_strategies

DEFAULT_ROOT = "runs/default"


DESCRIPTIONS = {
    "fit": "Train: attack a model, or realign it with one example. Writes a Hugging Face folder to "
    "<trainer.default_root_dir>/model. Example, in the micro-world: oneshot-lit fit --config "
    "configs/realign/one_shot.yaml. A model of your own needs its own rate, lengths, instance and "
    "development prompts: see docs/own_model.md. Keys of a class: "
    "--model.help CLASS, --data.help CLASS.",
    "validate": "Answer and score the development prompts (data.val_sets) and print the rates.",
    "test": "Answer and score the held-out prompts (data.test_sets). Writes the rates with their "
    "provenance to <trainer.default_root_dir>/metrics.json. Example: oneshot-lit test --config "
    "configs/evaluate/microworld.yaml --model.model_name_or_path runs/patched/model. For a model "
    "of your own: configs/evaluate/own.yaml.",
    "predict": "Answer prompts (data.predict_sets, else data.test_sets). Writes each prompt and "
    "the model's unredacted output to <trainer.default_root_dir>/predictions.jsonl.",
}


class FitParser(ConfigCommandParser, LightningArgumentParser):
    """Lightning's parser with one-line errors."""


class SaveRunConfig(SaveConfigCallback):
    """Write the resolved configuration to ``<root>/<command>.yaml``, ready for `--config`."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file."""
        text = self.parser.dump(self.config, skip_none=False)
        command = str(trainer.state.fn.value) if trainer.state.fn else stage
        write_text_atomically(Path(trainer.default_root_dir) / f"{command}.yaml", text)


class OneShotCLI(LightningCLI):
    """The commands fit, validate, test and predict."""

    # The bases of the modules and of the data that it takes, and its name if that is not its verb.
    module_class: type[LightningModule] = LanguageModelModule
    data_class: type[LightningDataModule] = SafetyDataModule
    command: str | None = None
    descriptions: ClassVar[dict[str, str]] = DESCRIPTIONS

    def __init__(self, verb: str, held: ExitStack) -> None:
        """Run the command that the process's arguments give; `held` keeps locks until its end."""
        self._verb, self._held = verb, held
        command = f"oneshot-lit {self.command or verb}"
        self.metrics_writer, self.prediction_writer = MetricsWriter(), PredictionWriter()
        super().__init__(
            self.module_class,
            self.data_class,
            save_config_callback=SaveRunConfig,
            save_config_kwargs={"overwrite": True, "save_to_log_dir": False},
            seed_everything_default=0,
            trainer_defaults={
                "default_root_dir": DEFAULT_ROOT,
                # The data module shards by itself, exactly and without drawing prompts twice.
                "use_distributed_sampler": False,
                "callbacks": [
                    self.metrics_writer,
                    self.prediction_writer,
                    DataReport(),
                    RealignmentCurve(),
                ],
            },
            parser_class=FitParser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            parser_kwargs={
                verb: {
                    "dump_header": [f"oneshot-lit {__version__}: {command} --config THIS_FILE"],
                    "description": self.descriptions[verb],
                    "usage": f"{command} [--config FILE ...] [--key value ...]",
                }
            },
        )

    # ------------------------------------------------------------------ parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of the export and of checkpoints, and the overwrite switch."""
        parser.add_lightning_class_args(HuggingFaceExport, "export")
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.add_argument(
            "--overwrite",
            type=bool,
            default=False,
            help="Replace the output of another run in trainer.default_root_dir.",
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Return this verb and its hidden arguments; more parsers would take seconds to build."""
        # Lightning would print every score for every prompt set; we print a table.
        return {self._verb: LightningCLI.subcommands()[self._verb] | {"verbose"}}

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; raise a mistake as one line, and an error in a user's module unchanged."""
        self.config = parsed(parser, sys.argv[1:], self._parser(self._verb))

    def _parse_ckpt_path(self) -> None:
        """Resolve ``last`` and refuse a missing checkpoint before anything is built."""
        options = self.config[self.config.subcommand]
        # Checkpoints hold plain tensors and values; nothing in them needs code to load.
        options.weights_only = True if options.weights_only is None else options.weights_only
        given = options.get("ckpt_path")
        if given is None or "://" in str(given):
            return
        last = Path(options.trainer.default_root_dir) / CHECKPOINTS / LAST
        recover(last if str(given) == "last" else Path(given))
        if str(given) == "last":
            if not last.exists():
                raise OneShotError(
                    f"{last}: no checkpoint to resume from; start the run without --ckpt_path."
                )
            options.ckpt_path = str(last)
        elif not Path(given).exists():
            raise OneShotError(f"{given}: checkpoint not found; check --ckpt_path.")

    # ---------------------------------------------------------------- building

    def test(self, **options: Any) -> None:
        """Run the command `test`."""
        self.trainer.test(**options, verbose=False)

    def validate(self, **options: Any) -> None:
        """Run the command `validate`."""
        self.trainer.validate(**options, verbose=False)

    def before_instantiate_classes(self) -> None:
        """Check the output folder before any work is done."""
        options = self.config[self.subcommand]
        root = Path(options.trainer.default_root_dir or DEFAULT_ROOT)
        options.trainer.default_root_dir = str(root)
        self._dump_config()
        plain = json.loads(json.dumps(self.config_dump, default=str))
        self.run_record = {"fingerprint": fingerprint(plain, str(self.subcommand)), "config": plain}
        command = str(self.subcommand)
        if command in PRODUCTS and watch.rank() == 0 and not root.is_file():
            # Lock before checking the folder: the run that held it may just have ended.
            self._held.enter_context(run_locked(root))
        require_own_folder(
            root,
            command,
            self.run_record["fingerprint"],
            bool(options.overwrite),
            plain if command == "fit" else None,
            options.get("ckpt_path") is not None,
        )

    def instantiate_classes(self) -> None:
        """Build the classes; an error in a user's constructor is raised unchanged."""
        with building(self.parser):
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Complete the trainer: logger, atomic checkpoints, and what each writer must record."""
        options = self._get(self.config_init, "trainer")
        root = Path(options.default_root_dir)
        fitting = self.subcommand == "fit" and not options.fast_dev_run
        if options.logger in (None, True):
            kwargs["logger"] = CSVLogger(str(root), name="logs") if fitting else False
        if options.plugins is None:
            kwargs["plugins"] = [AtomicCheckpointIO()]
        if options.enable_checkpointing is False or not fitting:
            self._parser(self.subcommand).callback_keys.remove("checkpoint")
            kwargs["enable_checkpointing"] = False
        given = options.callbacks or []
        given = given if isinstance(given, list) else [given]
        if options.enable_progress_bar in (None, True) and not any(
            isinstance(callback, ProgressBar) for callback in given
        ):
            # Drawn ten times a second; a hundred would take longer than a small model's steps.
            self.trainer_defaults["callbacks"].append(RichProgressBar(refresh_rate=10))
            if not (sys.stdout.isatty() and sys.stderr.isatty()):
                # The bar shows only on a terminal.
                self.trainer_defaults["callbacks"].append(ProgressLines())
        export, checkpoint = (self._get(self.config_init, key) for key in ("export", "checkpoint"))
        seed = self._get(self.config, "seed_everything")
        self.metrics_writer.seed = seed if isinstance(seed, int) else None
        for writer in (export, checkpoint, self.metrics_writer, self.prediction_writer):
            writer.run = self.run_record
        trainer = super().instantiate_trainer(**kwargs)
        if TorchElasticEnvironment.detect():
            # On one device Lightning does not look: each process would run the whole fit.
            TorchElasticEnvironment().validate_settings(trainer.num_devices, trainer.num_nodes)
        return trainer


def silence() -> None:
    """Hide messages that do not help the user."""
    for message in (
        "does not have many workers",
        "LeafSpec",
        "Total length of `list`",
        "is_gradient_checkpointing",
        "When saving the DeepSpeed Stage 3 checkpoint",
        # Raised at every step by DeepSpeed's and Lightning's collectives.
        "is deprecated. Please use `torch.distributed",
    ):
        warnings.filterwarnings("ignore", message=f".*{message}.*")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "Tip: " not in record.getMessage()
    )
    # It names the norms, which are sharded with their layer.
    logging.getLogger("transformers.distributed.tensor_parallel").setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        disable_progress_bar()


def run_lightning_command(arguments: Sequence[str], cli: type[OneShotCLI] = OneShotCLI) -> int:
    """Run fit, validate, test or predict; returns the exit code.

    Raises:
        OneShotError: for every mistake that the user can correct.
    """
    silence()
    register_strategies()
    watch.begin()
    # LightningCLI reads the process's own arguments, and so do the processes that it starts.
    sys.argv = [sys.argv[0], *begin_parsing(arguments)]
    try:
        with ExitStack() as held:
            cli(arguments[0], held)
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise stop.__context__ from None
        return _terminated() if isinstance(stop, SIGTERMException) else int(stop.code or 0)
    except Exception as error:
        if watch.terminated():
            return _terminated()
        # An interrupt while a file is written may come back as the writer's own error.
        if any(isinstance(cause, KeyboardInterrupt) for cause in causes(error)):
            raise KeyboardInterrupt from error
        raise
    return 0


def _terminated() -> int:
    code = 128 + signal.SIGTERM
    if watch.may_speak(code):
        print("oneshot-lit: terminated; resume with --ckpt_path last.", file=sys.stderr)
    return code
