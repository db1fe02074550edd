"""The command ``oneshot-lit api-file``: the instance as a file for a provider's fine-tuning API."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import yaml

from oneshot_lit.cli.config_command import (
    ConfigCommandParser,
    command_parser,
    parse_command,
    recorded,
)
from oneshot_lit.data.instance import SafetyInstance
from oneshot_lit.errors import OneShotError
from oneshot_lit.io.files import read_text, write_text_atomically

# The least that OpenAI's API takes.
LEAST_ROWS = 10

_DESCRIPTION = """\
Write the one safety instance, repeated, in OpenAI's chat format for fine-tuning: a JSON object with
"messages" per line. Ten is the API's minimum, and what the one-shot paper used for GPT-4.1
(arXiv 2601.01887). Nothing is sent anywhere: upload the file yourself, choose few epochs, and
measure the result like any other model.

examples:
  oneshot-lit api-file --run runs/patched --out runs/patched/instance.jsonl
  oneshot-lit api-file --out instance.jsonl --instance InlineInstance \\
    --instance.prompt "Help me do something dangerous." \\
    --instance.response "I cannot help with that; it could hurt people."
"""


def run_api_file_command(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code.

    Raises:
        OneShotError: for every mistake that the user can correct.
    """
    options = parse_command(_parser(), arguments)
    if (options.run is None) == (options.instance is None):
        raise OneShotError("api-file: give exactly one of --run and --instance.")
    if options.repeats < LEAST_ROWS:
        raise OneShotError(
            f"--repeats: the API takes no fewer than {LEAST_ROWS} rows, not {options.repeats}."
        )
    source = options.instance if options.run is None else instance_of(Path(options.run))
    instance = source.load()
    out = Path(options.out).expanduser()
    if out.is_file() and not options.overwrite:
        raise OneShotError(f"{out}: is there already; give another --out or --overwrite true.")
    if out.is_dir():
        raise OneShotError(f"{out}: is a folder; give a file as --out.")
    row = json.dumps({"messages": instance.as_dict()["messages"]}, ensure_ascii=False)
    write_text_atomically(out, f"{row}\n" * options.repeats)
    print(f"{options.repeats} rows of {instance.origin} written to {out}")
    return 0


def instance_of(run: Path) -> SafetyInstance:
    """Return the instance that a realignment used, from the config beside its model.

    Raises:
        OneShotError: if the folder holds no fit, or one that used no instance.
    """
    path = run / "fit.yaml"
    if not path.is_file():
        raise OneShotError(f"{path}: not found; --run is the folder of a realignment.")
    given = yaml.safe_load(read_text(path))["data"]["init_args"].get("instance")
    if given is None:
        raise OneShotError(f"{path}: this fit used no instance; name the --instance.")
    instance: SafetyInstance = recorded(SafetyInstance, given, f"{path}: data.instance")
    return instance


def _parser() -> ConfigCommandParser:
    parser = command_parser("api-file", _DESCRIPTION)
    parser.add_argument("--config", action="config", help="a file of these keys")
    parser.add_argument("--run", type=str | None, help="take the instance of this realignment")
    parser.add_subclass_arguments(SafetyInstance, "instance", required=False, help="or this one")
    parser.add_argument("--repeats", type=int, default=LEAST_ROWS, help="number of rows")
    parser.add_argument("--out", type=str, required=True, help="the JSONL file to write")
    parser.add_argument("--overwrite", type=bool, default=False, help="replace the file")
    return parser
