"""`OneShotCLI`: LightningCLI with one-line errors, guarded outputs and reproducible defaults."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException
from transformers.utils.logging import disable_progress_bar

from oneshot_lit import __version__
from oneshot_lit.callbacks import (
    AtomicCheckpointIO,
    CalmProgressBar,
    DataReport,
    HuggingFaceExport,
    MetricsWriter,
    OutcomesWriter,
    PredictionWriter,
    ProgressLines,
    RealignmentCurve,
    RunCheckpoint,
)
from oneshot_lit.callbacks.run_checkpoint import CHECKPOINTS, LAST
from oneshot_lit.cli import watch
from oneshot_lit.cli.class_changes import dropped_arguments, keep_classes_apart
from oneshot_lit.cli.errors import OneLineErrors, ParserMistakeError, mistake_in, typed_last
from oneshot_lit.cli.scheduler_functions import take_functions_as_schedulers
from oneshot_lit.cli.typed_text import let_text_be_text
from oneshot_lit.data import SafetyDataModule
from oneshot_lit.errors import LostProcessError, OneShotError
from oneshot_lit.io.config_files import check_config_files
from oneshot_lit.io.files import recover, write_text_atomically
from oneshot_lit.io.locking import run_locked
from oneshot_lit.io.machine_errors import causes, lost_process
from oneshot_lit.io.runs import PRODUCTS, fingerprint, require_own_folder
from oneshot_lit.io.users_code import carried, with_errors_carried_out
from oneshot_lit.methods import LanguageModelModule
from oneshot_lit.strategies.runnable import require_runnable

DEFAULT_ROOT = "runs/default"


_DESCRIPTIONS = {
    "fit": "Train: attack a model, or realign it with one example. Writes a Hugging Face folder to "
    "<trainer.default_root_dir>/model. Example, in the micro-world: oneshot-lit fit --config "
    "configs/realign/one_shot.yaml. A model of your own needs its own rate, lengths, instance and "
    "development prompts: see 'On your own model' in the README. Keys of a class: "
    "--model.help CLASS, --data.help CLASS.",
    "validate": "Answer and score the development prompts (data.val_sets) and print the rates.",
    "test": "Answer and score the held-out prompts (data.test_sets). Writes the rates with their "
    "provenance to <trainer.default_root_dir>/metrics.json. Example: oneshot-lit test --config "
    "configs/evaluate/microworld.yaml --model.model_name_or_path runs/patched/model. For a model "
    "of your own: configs/evaluate/own.yaml.",
    "predict": "Answer prompts (data.predict_sets, else data.test_sets). Writes each prompt and "
    "the model's unredacted output to <trainer.default_root_dir>/predictions.jsonl.",
}


def _header(command: str) -> list[str]:
    return [f"oneshot-lit {__version__}: oneshot-lit {command} --config THIS_FILE"]


class OneLineParser(OneLineErrors, LightningArgumentParser):
    """A parser whose errors are one line with the nearest known key."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # A cut-off key would be taken for another one without a word.
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def add_instantiator(self, instantiator: Any, *args: Any, **kwargs: Any) -> None:
        """Let what a module's constructor raises come out as it is."""
        super().add_instantiator(carried(instantiator), *args, **kwargs)


class SaveRunConfig(SaveConfigCallback):
    """Write the resolved configuration to ``<root>/<command>.yaml``, ready for `--config`."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file."""
        text = self.parser.dump(self.config, skip_none=False)
        command = str(trainer.state.fn.value) if trainer.state.fn else stage
        write_text_atomically(Path(trainer.default_root_dir) / f"{command}.yaml", text)


class OneShotCLI(LightningCLI):
    """The commands fit, validate, test and predict."""

    def __init__(self, held: ExitStack) -> None:
        """Run the command of the process's arguments; `held` keeps what it holds until its end."""
        self._held = held
        self.metrics_writer, self.prediction_writer = MetricsWriter(), PredictionWriter()
        super().__init__(
            LanguageModelModule,
            SafetyDataModule,
            save_config_callback=SaveRunConfig,
            save_config_kwargs={"overwrite": True, "save_to_log_dir": False},
            seed_everything_default=0,
            trainer_defaults={
                "default_root_dir": DEFAULT_ROOT,
                # The data module shards by itself, exactly and without drawing prompts twice.
                "use_distributed_sampler": False,
                "callbacks": [
                    OutcomesWriter(),
                    self.metrics_writer,
                    self.prediction_writer,
                    DataReport(),
                    RealignmentCurve(),
                ],
            },
            parser_class=OneLineParser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            parser_kwargs={
                c: {"dump_header": _header(c), "description": _DESCRIPTIONS[c]}
                for c in self.subcommands()
            },
        )

    # ------------------------------------------------------------------ parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the product's options, the checkpoint's, and the overwrite switch."""
        parser.add_lightning_class_args(HuggingFaceExport, "export")
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.add_argument(
            "--overwrite",
            type=bool,
            default=False,
            help="Replace the product of another run in trainer.default_root_dir.",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; an error in a user's module that is imported here comes out as it is."""
        parse = super().parse_arguments
        with_errors_carried_out(lambda: parse(parser, args))

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

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the commands with the arguments that users do not give."""
        # Lightning repeats every score for every prompt set; `show_scores` prints a table.
        skipped = {"validate": {"verbose"}, "test": {"verbose"}}
        return {c: a | skipped.get(c, set()) for c, a in LightningCLI.subcommands().items()}

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
        for line in dropped_arguments(options):
            rank_zero_info(line)
        self._dump_config()
        plain = json.loads(json.dumps(self.config_dump, default=str))
        self.run_record = {"fingerprint": fingerprint(plain, str(self.subcommand)), "config": plain}
        command = str(self.subcommand)
        if command in PRODUCTS and watch.rank() == 0 and not root.is_file():
            # Before the look at what stands there: the run that held it may just have ended.
            self._held.enter_context(run_locked(root, command))
        require_own_folder(
            root,
            command,
            self.run_record["fingerprint"],
            bool(options.overwrite),
            plain if command == "fit" else None,
            options.get("ckpt_path") is not None,
        )

    def instantiate_classes(self) -> None:
        """Build the classes; an error in a user's constructor comes out as it is."""
        with_errors_carried_out(super().instantiate_classes)

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
            self.trainer_defaults["callbacks"].append(CalmProgressBar())
            if not (sys.stdout.isatty() and sys.stderr.isatty()):
                # The bar shows itself on a terminal only.
                self.trainer_defaults["callbacks"].append(ProgressLines())
        export, checkpoint = (self._get(self.config_init, key) for key in ("export", "checkpoint"))
        seed = self._get(self.config, "seed_everything")
        self.metrics_writer.seed = seed if isinstance(seed, int) else None
        for writer in (export, checkpoint, self.metrics_writer, self.prediction_writer):
            writer.run = self.run_record
        trainer = super().instantiate_trainer(**kwargs)
        require_runnable(trainer)
        return trainer


def silence() -> None:
    """Drop messages that say nothing about the user's run."""
    for message in (
        "does not have many workers",
        "LeafSpec",
        "Total length of `list`",
        "is_gradient_checkpointing",
        "When saving the DeepSpeed Stage 3 checkpoint",
        # DeepSpeed's and Lightning's calls of collectives, at every step.
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


def run_lightning_command(arguments: Sequence[str]) -> int:
    """Run fit, validate, test or predict; returns the exit code.

    Raises:
        OneShotError: for every mistake that the user can mend.
    """
    silence()
    check_config_files(arguments)
    let_text_be_text(arguments)
    keep_classes_apart()
    take_functions_as_schedulers()
    # A user's package in the working folder is found, as under `python -m`; it hides no other.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    # LightningCLI reads the process's own arguments, and warns about any others.
    sys.argv = [sys.argv[0], *typed_last(arguments)]
    watch.begin(arguments[0])
    code = 1
    try:
        code = _run()
    finally:
        watch.end(code)
    return code


def _run() -> int:
    try:
        with ExitStack() as held:
            OneShotCLI(held)
    except ParserMistakeError as error:
        raise OneShotError(error.mistake.line(sys.argv[1:])) from error
    except SIGTERMException:
        return _terminated()
    except Exception as error:
        if watch.signalled() == signal.SIGTERM:
            return _terminated()
        # An interrupt while a file is written may come back as the writer's own error.
        if watch.signalled() == signal.SIGINT or any(
            isinstance(cause, KeyboardInterrupt) for cause in causes(error)
        ):
            raise KeyboardInterrupt from error
        if (reason := lost_process(error)) is not None:
            watch.await_reason()
            raise LostProcessError(f"{reason}; {watch.advice()}.") from error
        if (line := mistake_in(error)) is not None:
            raise OneShotError(line) from error
        raise
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise stop.__context__ from None
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
            return 1
        return stop.code or 0
    return 0


def _terminated() -> int:
    if watch.rank() == 0:
        print(f"oneshot-lit: terminated; {watch.advice()}.", file=sys.stderr, flush=True)
    return 128 + signal.SIGTERM
