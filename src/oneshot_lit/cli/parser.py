"""An argparse parser for the small commands, with one-line errors."""

from __future__ import annotations

import argparse
from typing import NoReturn

from oneshot_lit.errors import OneShotError


class CommandParser(argparse.ArgumentParser):
    """A parser that raises `OneShotError` instead of printing its usage and exiting."""

    def __init__(self, command: str, description: str, example: str) -> None:
        super().__init__(
            prog=f"oneshot-lit {command}",
            description=description,
            epilog=f"example: oneshot-lit {command} {example}",
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raise the mistake."""
        raise OneShotError(f"{message}; see {self.prog} --help.")
