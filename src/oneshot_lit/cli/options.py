"""Parses the options of a command and builds their classes; a mistake becomes one line."""

from __future__ import annotations

from argparse import ArgumentError
from collections.abc import Callable, Sequence
from typing import Any

from jsonargparse import ArgumentParser

from oneshot_lit.cli.diagnosis import find_mistake
from oneshot_lit.errors import OneShotError
from oneshot_lit.io.machine_errors import causes
from oneshot_lit.io.users_code import raised_in, users_error

_LONGEST = 300


def parsed(parse: Callable[[], Any], parser: ArgumentParser, words: Sequence[str]) -> Any:
    """Return what `parse` returns; a mistake becomes one line with its file and the nearest key.

    Args:
        parse: Reads the command line; its parser must not exit on errors.
        parser: Knows the keys of the command.
        words: The command line, as `begin_parsing` returns it.

    Raises:
        OneShotError: for a wrong key or value.
        Exception: what a user's module raises while it is imported.
    """
    try:
        return parse()
    except (ArgumentError, TypeError, ValueError, OneShotError) as error:
        raise told(error, find_mistake(parser, words)) from error


def told(error: Exception, mistake: str | None = None) -> Exception:
    """Return a user's own error, or a bug of ours, unchanged, and any other error as one line."""
    chain = list(causes(error))
    if (own := next((e for e in chain if isinstance(e, OneShotError)), None)) is not None:
        return own
    if (users := users_error(error)) is not None:
        return users
    if raised_in(chain[-1]).startswith("oneshot_lit."):
        return error
    said = mistake or " ".join(str(chain[-1]).split())
    return OneShotError(said if len(said) <= _LONGEST else said[:_LONGEST] + " ...")


class Builder:
    """Builds the classes of a config, and keeps the last error of a constructor.

    After an error the parser tries other readings of a value, and may lose the error.
    """

    error: Exception | None = None
    failed = ""

    def __call__(self, class_type: type, *args: Any, **kwargs: Any) -> Any:
        """Return an instance of a class."""
        try:
            return class_type(*args, **kwargs)
        except Exception as error:
            self.error, self.failed = error, class_type.__qualname__
            raise

    def told(self) -> Exception | None:
        """Return what `told` makes of the error, with the name of the class; None without one."""
        if self.error is None:
            return None
        return told(self.error, f"{self.failed}: {' '.join(str(self.error).split())}")


def built(parser: ArgumentParser, options: Any) -> Any:
    """Return the options with their classes instantiated.

    Raises:
        OneShotError: if a class refuses its arguments.
        Exception: what a user's own class raises.
    """
    builder = Builder()
    parser.add_instantiator(builder, object, subclasses=True)
    try:
        return parser.instantiate_classes(options)
    except (TypeError, ValueError, ArgumentError) as error:
        raise builder.told() or told(error) from error
