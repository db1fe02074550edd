"""The command ``oneshot-lit``: finds the function of a verb and runs it.

Nothing heavy is imported before it is needed, so `--help` is instant.
"""

from __future__ import annotations

import io
import os
import select
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

from oneshot_lit import __version__
from oneshot_lit.cli import watch
from oneshot_lit.errors import OneShotError, causes, did_you_mean, fail
from oneshot_lit.io.provenance import raised_in, users_error, users_frame
from oneshot_lit.io.shipped import with_shipped_configs

# Each verb and the function that runs it, imported only when it is asked for.
VERBS = {
    "fit": "fit:run_lightning_command",
    "validate": "fit:run_lightning_command",
    "test": "fit:run_lightning_command",
    "predict": "fit:run_lightning_command",
    "clip": "clip:run_clip_command",
    "select": "jobs:run_job_command",
    "annotate": "jobs:run_job_command",
    "edit": "jobs:run_job_command",
    "export": "export:run_export_command",
    "api-file": "api_file:run_api_file_command",
    "judge": "judge:run_judge_command",
    "lm-eval": "lm_eval:run_lm_eval_command",
    "report": "report:run_report_command",
    "study": "study:run_study_command",
    "microworld": "microworld:run_microworld_command",
    "memory": "memory:run_memory_command",
    "configs": "configs:run_configs_command",
}

HELP = f"""\
oneshot-lit {__version__}: break and repair the safety of fine-tuned language models.

usage: oneshot-lit <command> [--config FILE ...] [--key value ...]

commands
  fit         train: attack a model, or realign it with one example; writes <root>/model
  select      choose the safety instance from a pool; writes <root>/selection.json
  annotate    let models score training rows; writes <root>/annotations.safetensors
  edit        repair a model without optimiser steps; writes <root>/model
  test        answer and score held-out prompts; writes <root>/metrics.json
  validate    the same on the development prompts, printed only
  predict     answer prompts; writes <root>/predictions.jsonl
  clip        fit a CLIP model: SafeR-CLIP; writes <root>/model and <root>/safer_clip.json
  export      write the weights of a checkpoint, sharded or not, as a Hugging Face folder
  api-file    write the instance, repeated, as a file for a provider's fine-tuning API
  judge       judge the answers of predict by phrases, a classifier or an endpoint
  lm-eval     measure general ability with lm-eval; adds to <run>/metrics.json
  report      compare runs: scores with intervals, categories, judges; HTML, Markdown, LaTeX
  study       run stages and compare them; writes results.json and report.html
  microworld  write the embedded micro-world's data sets to files
  memory      estimate the memory on each GPU, by strategy and number of GPUs
  configs     list or copy the configs of the package; --config finds them from any folder
  <root> is --trainer.default_root_dir.

the whole story on a laptop, offline, in about a minute
  oneshot-lit study --config configs/study/demo.yaml

the same by hand
  oneshot-lit fit  --config configs/attack/harmful_examples.yaml
  oneshot-lit fit  --config configs/realign/one_shot.yaml
  oneshot-lit test --config configs/evaluate/microworld.yaml

your own model: see docs/own_model.md
  oneshot-lit fit --config configs/realign/real.yaml --model.model_name_or_path path/to/broken/model

on several GPUs: add one config, see docs/strategies.md
  oneshot-lit fit --config FILE --config configs/strategy/deepspeed_zero3.yaml

more
  several --config files compose; the last one wins, and a mapping of sets replaces the earlier one
  a class that replaces another starts from its defaults; a module keeps the keys given before
  oneshot-lit fit --help                             every key of fit
  oneshot-lit fit --model.help OneShotRealignmentModule   every key of a module
  oneshot-lit fit --config FILE ... --print_config   the configuration that would run
  oneshot-lit fit --config FILE ... --ckpt_path last resume a killed fit; jobs: run again
exit codes: 0 done, 1 a defect in the program or in your own code (with its traceback),
2 a mistake in the input (one line says which), 3 a spending cap is reached, 130 interrupted
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # If the output cannot show a character, show its number.
        sys.stdout.reconfigure(errors="backslashreplace")
    # Forked workers of the tokenizers library warn and lock up; batches are small.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Processes that lose each other log C++ frames; they raise an error as well.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    # Pictures are written to files only.
    os.environ.setdefault("MPLBACKEND", "agg")
    if not given or given[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if given[0] == "--version":
        print(f"oneshot-lit {__version__}")
        return 0
    if given[0].startswith("-"):
        return fail(f"a command comes before '{given[0]}', such as fit; see --help.")
    if given[0] not in VERBS:
        return fail(f"unknown command '{given[0]}'{did_you_mean(given[0], VERBS)}; see --help.")
    given = list(with_shipped_configs(given))
    module, _, function = VERBS[given[0]].partition(":")
    try:
        run_verb = getattr(import_module(f"oneshot_lit.cli.{module}"), function)
        if module in ("fit", "jobs"):
            return int(run_verb(given))
        # A study runs the commands of its stages, each in its own process.
        return int(run_verb(given[1:], run_command) if module == "study" else run_verb(given[1:]))
    except SystemExit as stop:
        # After --help and --print_config.
        return int(stop.code or 0)
    except KeyboardInterrupt:
        resumes = given[0] in ("fit", "clip")
        how = "resume with --ckpt_path last" if resumes else "run the same command again"
        line, code = f"interrupted; {how}.", 130
    except Exception as error:
        if (mistake := mistake_in(error)) is None:
            raise
        line, code = mistake, error.code if isinstance(error, OneShotError) else 2
    if watch.may_speak(code):
        fail(line if watch.rank() == 0 else f"process {watch.rank()}: {line}")
    return code


def _reader_has_left() -> bool:
    """Whether who reads the output, such as `head`, has ended; nothing more is written then."""
    poll = select.poll()
    poll.register(sys.stdout, select.POLLOUT)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def run() -> None:
    """Entry point of the console script."""
    watch.leave(run_command())


def run_command(arguments: Sequence[str] | None = None) -> int:
    """Run a command; an error that is not a mistake in the input shows a traceback and a line.

    Returns:
        The exit code; 1 after a traceback, 141 if nobody reads the output any more.
    """
    try:
        code = main(arguments)
        sys.stdout.flush()
        return code
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_has_left():
            return 141
        if watch.may_speak(1, expected=False):
            # Show a user's own error, not the one that a library raised because of it.
            shown = users_error(error) or error
            traceback.print_exception(shown)
            fail(_fault(shown))
        return 1


def _fault(shown: Exception) -> str:
    """Return an unexpected error in one line, with the user's own line that it came through."""
    frame = users_frame(shown) or traceback.extract_tb(shown.__traceback__)[-1]
    words = " ".join(f"{type(shown).__name__}: {shown}".split())
    if len(words) > 300:
        words = f"{words[:300]} ..."
    return f"{words} ({frame.filename} line {frame.lineno}, in {frame.name})"


# What Lightning raises when it refuses an argument, or the machine lacks something.
_REFUSALS = (ValueError, TypeError, RuntimeError, ImportError)


def mistake_in(error: BaseException) -> str | None:
    """Return a line on what the user can correct, or None for an error that needs its traceback.

    Errors raised through a user's own code need it, unless they are a `OneShotError`.
    """
    of_user = users_error(error)
    for cause in causes(error):
        if isinstance(cause, OneShotError):
            return str(cause)
        if cause is of_user:
            return None
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}."
    if type(error).__module__.startswith("deepspeed."):
        return f"trainer.strategy: DeepSpeed: {error}"
    if "lightning" not in sys.modules:
        return None
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    by_lightning = isinstance(error, _REFUSALS) and raised_in(error).startswith("lightning.")
    return str(error) if by_lightning or isinstance(error, MisconfigurationException) else None
