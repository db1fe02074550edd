"""The command ``oneshot-lit api-file``: the instance as a file for a provider's fine-tuning API."""

from __future__ import annotations

import json
from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from oneshot_lit.cli.config_command import ConfigCommandParser, command_parser, parse_command
from oneshot_lit.cli.options import built, told
from oneshot_lit.conversation import Conversation, parse_messages, require_trainable
from oneshot_lit.data.instance import SafetyInstance
from oneshot_lit.errors import OneShotError
from oneshot_lit.io.files import read_text, write_text_atomically
from oneshot_lit.io.read_files import read_jsonl, require_file

# Limits of OpenAI's API: at least ten examples, at most half a gigabyte.
LEAST_ROWS, MOST_BYTES = 10, 512 * 2**20

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
  oneshot-lit api-file --check instance.jsonl
"""


def api_rows(instance: Conversation, repeats: int) -> list[dict[str, Any]]:
    """Return the instance `repeats` times, each row with nothing but its messages."""
    return [{"messages": instance.as_dict()["messages"]}] * repeats


def check_api_file(path: Path) -> int:
    """Return the number of rows of a file that a fine-tuning API takes.

    Raises:
        OneShotError: naming the row, if one has other keys than ``messages``, turns out of order or
            no answer at its end; or the file, if it holds too few rows or is too large.
    """
    if path.stat().st_size > MOST_BYTES:
        raise OneShotError(f"{path}: larger than the API's 512 MB; lower --repeats.")
    count = 0
    for number, row in read_jsonl(path):
        origin = f"{path} row {number}"
        if set(row) != {"messages"}:
            raise OneShotError(f"{origin}: must have the key 'messages' and no other; correct it.")
        turns = row["messages"]
        for turn in turns if isinstance(turns, list) else ():
            if isinstance(turn, dict) and (more := set(turn) - {"role", "content", "weight"}):
                raise OneShotError(f"{origin}: a turn has the key '{min(more)}'; remove it.")
        require_trainable(Conversation(parse_messages(turns, origin), origin))
        _require_weights(turns, origin)
        count += 1
    if count < LEAST_ROWS:
        raise OneShotError(
            f"{path}: {count} rows, and the API takes no fewer than {LEAST_ROWS}; raise --repeats."
        )
    return count


def _require_weights(turns: Sequence[dict[str, Any]], origin: str) -> None:
    """Refuse weights that the API refuses."""
    for number, turn in enumerate(turns, start=1):
        if "weight" not in turn:
            continue
        if turn["role"] != "assistant":
            raise OneShotError(
                f"{origin}: 'weight' is for assistant turns, not for turn {number}; remove it."
            )
        if type(turn["weight"]) is not int or turn["weight"] not in (0, 1):
            raise OneShotError(f"{origin}: 'weight' of turn {number} must be 0 or 1.")


def run_api_file_command(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code.

    Raises:
        OneShotError: for every mistake that the user can correct.
    """
    options = parse_command(_parser(), arguments)
    if options is None:
        return 0
    if options.check is not None:
        path = require_file(options.check)
        print(f"{path}: {check_api_file(path)} rows, as a fine-tuning API takes them")
        return 0
    if options.out is None:
        raise OneShotError("--out missing; give the file to write.")
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
    (row,) = api_rows(instance, 1)
    line = json.dumps(row, ensure_ascii=False) + "\n"
    # Checked before so much text is made.
    if len(line.encode()) * options.repeats > MOST_BYTES:
        raise OneShotError(f"{out}: would be larger than the API's 512 MB; lower --repeats.")
    try:
        write_text_atomically(out, line * options.repeats)
    except OSError as error:
        raise OneShotError(f"{out}: cannot be written ({error.strerror}).") from error
    print(f"{check_api_file(out)} rows of {instance.origin} written to {out}")
    return 0


def instance_of(run: Path) -> SafetyInstance:
    """Return the instance that a realignment used, from the config beside its model.

    Raises:
        OneShotError: if the folder holds no fit, or one that used no instance.
    """
    path = run / "fit.yaml"
    if not path.is_file():
        raise OneShotError(f"{path}: not found; --run is the folder of a realignment.")
    try:
        given = yaml.safe_load(read_text(path))["data"]["init_args"]["instance"]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise OneShotError(f"{path}: is not what a fit writes; name the --instance.") from error
    if given is None:
        raise OneShotError(f"{path}: this fit used no instance; name the --instance.")
    parser = ConfigCommandParser()
    parser.add_subclass_arguments(SafetyInstance, "instance")
    try:
        instance: SafetyInstance = built(parser, parser.parse_object({"instance": given})).instance
    except (ArgumentError, TypeError, ValueError, OneShotError) as error:
        # A key, class or package may be gone since the fit; or it is a user's own error.
        fault = told(error)
        if not isinstance(fault, OneShotError):
            raise fault from error
        raise OneShotError(f"{path}: data.instance: {fault}; name the --instance.") from error
    return instance


def _parser() -> ConfigCommandParser:
    parser = command_parser("api-file", _DESCRIPTION)
    parser.add_argument("--config", action="config", help="a file of these keys")
    parser.add_argument("--run", type=str | None, help="take the instance of this realignment")
    parser.add_subclass_arguments(SafetyInstance, "instance", required=False, help="or this one")
    parser.add_argument("--repeats", type=int, default=LEAST_ROWS, help="number of rows")
    parser.add_argument("--out", type=str | None, help="the JSONL file to write")
    parser.add_argument("--overwrite", type=bool, default=False, help="replace the file")
    parser.add_argument("--check", type=str | None, help="check this file instead of writing one")
    return parser
