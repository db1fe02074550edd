"""Commands with classes as options: a parser with one-line errors, and how to run it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from jsonargparse import ArgumentParser

from oneshot_lit.cli.errors import one_line_errors
from oneshot_lit.cli.options import built, parsed
from oneshot_lit.cli.parsing import begin_parsing


class ConfigCommandParser(ArgumentParser):
    """A parser that raises its errors, and takes no shortened keys."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, "exit_on_error": False} | kwargs)


def command_parser(command: str, description: str) -> ConfigCommandParser:
    """Return the parser of ``oneshot-lit <command>``, without options yet."""
    return ConfigCommandParser(
        prog=f"oneshot-lit {command}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def parse_command(
    parser: ConfigCommandParser,
    arguments: Sequence[str],
    see: Callable[[Any], None] = lambda config: None,
) -> Any | None:
    """Return the options with their classes instantiated, or None after ``--help``.

    Args:
        parser: The command's parser.
        arguments: The command line after the verb.
        see: Called with the config before any class is instantiated.

    Raises:
        OneShotError: for every mistake that the user can correct.
    """
    words = begin_parsing([parser.prog.split()[-1], *arguments])
    try:
        with one_line_errors():
            config = parsed(lambda: parser.parse_args(words[1:]), parser, words)
            see(config)
            return built(parser, config)
    except SystemExit as stop:
        if stop.code:
            raise
        return None
