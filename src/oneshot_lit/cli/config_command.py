"""Small commands whose options are classes: a parser with one-line errors, and how to run it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from jsonargparse import ArgumentParser

from oneshot_lit.cli.class_changes import keep_classes_apart
from oneshot_lit.cli.errors import OneLineErrors, ParserMistakeError, mistake_in, typed_last
from oneshot_lit.cli.typed_text import let_text_be_text
from oneshot_lit.errors import OneShotError
from oneshot_lit.io.config_files import check_config_files
from oneshot_lit.io.users_code import with_errors_carried_out


class ConfigCommandParser(OneLineErrors, ArgumentParser):
    """A parser whose errors are one line with the nearest known key."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False} | kwargs)


def command_parser(command: str, description: str) -> ConfigCommandParser:
    """Return the parser of ``oneshot-lit <command>``, without options yet."""
    return ConfigCommandParser(
        prog=f"oneshot-lit {command}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        exit_on_error=False,
    )


def parse_command(
    parser: ConfigCommandParser,
    arguments: Sequence[str],
    see: Callable[[Any], None] = lambda config: None,
) -> Any | None:
    """Return the options with their classes instantiated, or None after ``--help``.

    Args:
        parser: The command's parser.
        arguments: The command line behind the verb.
        see: Is given the config before any class is instantiated.

    Raises:
        OneShotError: for every mistake that the user can mend.
    """
    check_config_files(arguments)
    let_text_be_text(arguments)
    keep_classes_apart()
    # A user's class in the working folder is found, as for a fit.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())

    def instantiate() -> Any:
        config = parser.parse_args(words[1:])
        see(config)
        return parser.instantiate_classes(config)

    words = typed_last([parser.prog.split()[-1], *arguments])
    try:
        return with_errors_carried_out(instantiate)
    except SystemExit as stop:
        if stop.code:
            raise
        return None
    except ParserMistakeError as error:
        raise OneShotError(error.mistake.line(words)) from error
    except Exception as error:
        if (line := mistake_in(error)) is not None:
            raise OneShotError(line) from error
        raise
