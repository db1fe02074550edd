"""The command ``oneshot-lit judge``."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path

from oneshot_lit.cli.config_command import ConfigCommandParser, command_parser, parse_command
from oneshot_lit.cli.progress import progress_lines
from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.judges import Judge
from oneshot_lit.io.runs import PRODUCTS

_DESCRIPTION = """\
Judge the answers of a run: by refusal phrases, a local classifier, or a model behind an
OpenAI-compatible endpoint. Reads <run>/predictions.jsonl, which oneshot-lit predict writes; writes
one verdict a row to <run>/judgments/<judge>.jsonl, without prompts and outputs, and merges the mean
scores of each set into <run>/metrics.json. Answers that could not be judged are counted but are in
no mean. After a kill, or with a higher cap, the same command resumes.

example:
  oneshot-lit predict --config configs/evaluate/microworld.yaml \\
    --model.model_name_or_path runs/patched/model --trainer.default_root_dir runs/patched
  oneshot-lit judge --config configs/judge/keyword.yaml --run runs/patched

more: configs/judge/ has a file for each judge, docs/judges.md says what its score means;
oneshot-lit judge --judge.help HarmBenchJudge lists the keys of a judge.
"""


def run_judge_command(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code.

    Raises:
        OneShotError: for every mistake that the user can correct.
    """
    options = parse_command(_parser(), arguments)
    root = Path(options.run).expanduser()
    if not root.is_dir():
        raise OneShotError(f"{root}: no such folder; check --run.")
    predictions = Path(options.predictions or root / PRODUCTS["predict"]).expanduser()
    # A scheduler's SIGTERM ends the run like Ctrl-C.
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        return _judge(options.judge, predictions, root, options.sets)
    finally:
        signal.signal(signal.SIGTERM, before)


def _parser() -> ConfigCommandParser:
    parser = command_parser("judge", _DESCRIPTION)
    parser.add_argument("--config", action="config", help="a file of keys, see configs/judge/")
    parser.add_argument(
        "--run", type=str, required=True, help="folder of the run that gets the scores"
    )
    parser.add_argument(
        "--predictions", type=str | None, help="file of answers, if not <run>/predictions.jsonl"
    )
    parser.add_argument("--sets", type=str, nargs="+", help="sets to judge (all of kind harmful)")
    parser.add_subclass_arguments(Judge, "judge", required=True, help="the judge and its keys")
    return parser


def _judge(judge: Judge, predictions: Path, root: Path, sets: list[str] | None) -> int:
    from oneshot_lit.evaluation.judges.judging import judge_predictions

    say = progress_lines(f"judge {judge.name}")
    scores, facts = judge_predictions(
        judge, predictions, root, sets, lambda done, of: say(done, of, "")
    )
    print(f"{judge.name} ({judge.version})")
    for name, count in facts["samples"].items():
        means = {metric: scores[f"{name}/{metric}"] for metric in judge.metrics}
        shown = [f"{m} {'-' if mean != mean else f'{mean:.3f}'}" for m, mean in means.items()]
        reasons = facts["unjudged"][name]
        unjudged = ", ".join(f"{n} {reason}" for reason, n in reasons.items()) or "0"
        print(f"{name}: {', '.join(shown)}; {count} answers, not judged: {unjudged}")
    print(f"verdicts: {root / facts['judgments']}\nscores:   {root / 'metrics.json'}")
    return 0
