"""Commands with classes as options: their parser, and its mistakes as one line."""

from __future__ import annotations

import argparse
from argparse import ArgumentError
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from jsonargparse._required import iter_required_keys, set_required

from oneshot_lit.cli.blame import blamed, given_keys
from oneshot_lit.cli.parsing import MistakeError, begin_parsing
from oneshot_lit.errors import OneShotError, causes, did_you_mean
from oneshot_lit.io.provenance import raised_in, users_error

_LONGEST = 300


class UnknownKeyError(MistakeError):
    """A key that a class does not take, and the end of the line about it."""

    def __init__(self, key: str, hint: str) -> None:
        super().__init__(f"unknown key '{key}'{hint}")
        self.key, self.hint = key, hint


class ConfigCommandParser(ArgumentParser):
    """A parser that raises its errors, takes no shortened keys, and names the nearest key."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, "exit_on_error": False} | kwargs)

    def validate(self, namespace: Namespace, *args: Any, **kwargs: Any) -> None:
        """Name the key most similar to an unknown one; the parsers of classes do so, too."""
        try:
            super().validate(namespace, *args, **kwargs)
        except KeyError as error:
            parser = getattr(error, "subcommand_parser", self)
            for key in list(namespace.keys()):
                name = key if parser is self else key.partition(".")[2]
                if (hint := unknown_key(parser, name)) is not None:
                    raise UnknownKeyError(name, hint) from error
            raise


def unknown_key(parser: ArgumentParser, name: str) -> str | None:
    """Return the end of the line about a key that the parser does not have, or None if it does."""
    dests = [action.dest for action in parser._actions if not action.dest.endswith(".help")]
    # A group, such as trainer, takes a file, but none of its keys.
    keys = [key for key in dests if not any(each.startswith(f"{key}.") for each in dests)]
    if any(f"{key}.".startswith(f"{name}.") or f"{name}.".startswith(f"{key}.") for key in keys):
        return None
    above, _, below = name.rpartition(".")
    while above and not any(key.startswith(f"{above}.") for key in keys):
        above, _, last = above.rpartition(".")
        below = f"{last}.{below}"
    start = f"{above}." if above else ""
    known = [k.removeprefix(start).partition(".")[0] for k in keys if k.startswith(start)]
    return f"{did_you_mean(below.partition('.')[0], known)}."


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
) -> Any:
    """Return the options with their classes instantiated.

    Args:
        parser: The command's parser.
        arguments: The command line after the verb.
        see: Called with the config before any class is instantiated.

    Raises:
        OneShotError: for every mistake that the user can correct.
    """
    words = begin_parsing([parser.prog.split()[-1], *arguments])[1:]
    config = parsed(parser, words, parser)
    see(config)
    with building(parser):
        return parser.instantiate_classes(config)


def parsed(parser: ArgumentParser, words: Sequence[str], keys: ArgumentParser) -> Any:
    """Parse a command line; a mistake becomes one line with its file and the nearest key.

    Args:
        parser: The parser of the words; it must not exit on errors.
        words: The command line, as `begin_parsing` returns it.
        keys: The parser that has the keys of the command.

    Raises:
        OneShotError: for a wrong key or value.
        Exception: what a user's module raises while it is imported.
    """
    try:
        return parser.parse_args(list(words))
    except (ArgumentError, TypeError, ValueError) as error:
        refused = error
    # Outside of the handler, so that the mistakes of other words are not told as its consequences.
    told = plain(refused)
    if not isinstance(told, OneShotError):
        raise told from None

    def mistake(line: Sequence[str]) -> str | None:
        try:
            parser.parse_args(list(line))
        except (ArgumentError, TypeError, ValueError) as error:
            return str(plain(error))
        return None

    for each in (parser, keys):
        vars(each).pop("print_config", None)
    if absent := [key for key in iter_required_keys(keys) if key not in given_keys(words)]:
        for key in absent:
            set_required(keys, key, False)
        keys._extra_required_keys.clear()
        if mistake(words) is None:
            raise OneShotError(f"--{' and --'.join(absent)} missing; see --help.") from refused
    where, key, value = blamed(words, mistake)
    if value.endswith((".yaml", ".yml", ".json")) and not Path(value).exists():
        told = OneShotError(f"{value}: file not found.")
    unknown = unknown_key(keys, key) if key else None
    if unknown is None and key and isinstance(told, UnknownKeyError):
        # The class may be blamed for it, if the key is right for the class before.
        key += "" if f".{key}".endswith(f".{told.key}") else f".{told.key}"
        unknown = told.hint
    line = f"unknown key '{key}'{unknown}" if unknown else f"{key}: {told}" if key else told
    raise OneShotError(f"{where}{line}") from refused


def plain(error: Exception, line: str | None = None) -> Exception:
    """Return a user's own error, or a bug of ours, unchanged, and any other error as one line."""
    chain = list(causes(error))
    if (own := next((e for e in chain if isinstance(e, OneShotError)), None)) is not None:
        return own
    if (users := users_error(error)) is not None:
        return users
    if raised_in(chain[-1]).startswith("oneshot_lit."):
        return error
    said = line or " ".join(str(chain[-1]).split())
    return OneShotError(said if len(said) <= _LONGEST else said[:_LONGEST] + " ...")


@contextmanager
def building(parser: ArgumentParser) -> Iterator[None]:
    """Raise what the constructor of a class raised, in one line; the parser may lose the error."""
    failed: list[tuple[str, Exception]] = []

    def instance(class_type: type, *args: Any, **kwargs: Any) -> Any:
        try:
            return class_type(*args, **kwargs)
        except Exception as error:
            failed.append((class_type.__qualname__, error))
            raise

    parser.add_instantiator(instance, object, subclasses=True)
    try:
        yield
    except Exception as error:
        if not failed:
            raise
        name, cause = failed[-1]
        raise plain(cause, f"{name}: {' '.join(str(cause).split())}") from error


def recorded(kind: type, config: Any, place: str) -> Any:
    """Return the instance of a class from a config that an earlier run has recorded.

    Args:
        kind: The base of the class.
        config: Its ``class_path`` and ``init_args``.
        place: Where the config was recorded, for the error.

    Raises:
        OneShotError: if it cannot be built, as a key, class or package may be gone.
        Exception: what a user's own class raises.
    """
    parser = ConfigCommandParser()
    parser.add_subclass_arguments(kind, "it", fail_untyped=False)
    # As for a fit, a user's package in the working folder can be imported.
    begin_parsing([])
    try:
        options = parser.parse_object({"it": config})
        with building(parser):
            return parser.instantiate_classes(options).it
    except (ArgumentError, TypeError, ValueError, OneShotError) as error:
        told = plain(error)
        if not isinstance(told, OneShotError):
            raise told from None
        raise OneShotError(
            f"{place}: cannot be built; run where its package is installed or in the working "
            f"folder ({told})"
        ) from error
