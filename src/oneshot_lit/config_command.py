"""Small commands whose options are classes: a parser with one-line errors, and how to run it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from oneshot_lit.class_changes import keep_classes_apart
from oneshot_lit.cli_errors import (
    ParserMistakeError,
    check_config_files,
    explain,
    mistake_in,
    typed_last,
)
from oneshot_lit.errors import OneShotError
from oneshot_lit.typed_text import let_text_be_text
from oneshot_lit.users_code import carry_out, users_error, with_errors_carried_out


class ConfigCommandParser(ArgumentParser):
    """A parser whose errors are one line with the nearest known key."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False} | kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the mistake; the parsers around this one add where it is."""
        if (fault := users_error(ex)) is not None:
            carry_out(fault)
        text = str(ex) if ex is not None else message
        raise ParserMistakeError(explain(text, self, sys.argv[1:])) from ex


def command_parser(command: str, description: str) -> ConfigCommandParser:
    """Return the parser of ``oneshot-lit <command>``, without options yet."""
    return ConfigCommandParser(
        prog=f"oneshot-lit {command}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        exit_on_error=False,
    )


def parse_command(parser: ConfigCommandParser, arguments: Sequence[str]) -> Any | None:
    """Return the options with their classes instantiated, or None after ``--help``.

    Raises:
        OneShotError: for every mistake that the user can mend.
    """
    check_config_files(arguments)
    let_text_be_text(arguments)
    keep_classes_apart()
    # A user's class in the working folder is found, as for a fit.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    words = typed_last([parser.prog.split()[-1], *arguments])
    # Where a key stands is looked up in the process's own arguments.
    sys.argv = [sys.argv[0], *words]
    try:
        return with_errors_carried_out(
            lambda: parser.instantiate_classes(parser.parse_args(words[1:]))
        )
    except SystemExit as stop:
        if stop.code:
            raise
        return None
    except ParserMistakeError as error:
        raise OneShotError(error.mistake.line()) from error
    except Exception as error:
        if (line := mistake_in(error)) is not None:
            raise OneShotError(line) from error
        raise
