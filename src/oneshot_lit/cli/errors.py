"""Turn the parser's nested messages into one line that names the key and the nearest known one."""

from __future__ import annotations

import json
import re
import sys
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from oneshot_lit.cli.config_places import find_key, find_value, places_in
from oneshot_lit.errors import OneShotError, did_you_mean
from oneshot_lit.io.config_files import split_configs
from oneshot_lit.io.machine_errors import causes, full_disk, refusal, unreachable
from oneshot_lit.io.users_code import carry_out, users_error

_LONGEST = 300
_LIGHTNING = ("lightning.", "lightning_utilities.")


def typed_last(arguments: Sequence[str]) -> list[str]:
    """Return a command with its config files first, and each class before its arguments.

    The parser lets later words win; this way what the user typed wins over every file, wherever
    the two stand. A class starts from its own defaults, so arguments before it would be lost.
    """
    files, others = split_configs(arguments)
    pairs = [word for file in files for word in ("--config", file)]
    options: list[list[str]] = []
    for word in others[1:]:
        if not options or word.startswith("--"):
            options.append([])
        options[-1].append(word)
    ordered: list[list[str]] = []
    for option in options:
        name, _, value = " ".join(option).replace(" ", "=", 1).partition("=")
        is_class = value != "null" and all(part.isidentifier() for part in value.split("."))
        # What stands behind a class of the same key is that one's.
        if not is_class or name in (other[0].split("=")[0] for other in ordered):
            ordered.append(option)
            continue
        below = (n for n, other in enumerate(ordered) if other[0].startswith(f"{name}."))
        ordered.insert(next(below, len(ordered)), option)
    return [*others[:1], *pairs, *(word for option in ordered for word in option)]


@dataclass(frozen=True)
class Mistake:
    """A mistake in a key of the configuration.

    Attributes:
        text: The line, with ``{key}`` in it.
        key: The dotted key, as far as the parsers have told.
        owner: Name of the class whose argument the key is.
        given: The key's value, where that is the mistake.
        named: What is wrong is this value, of a key that is not known.
    """

    text: str
    key: str = ""
    owner: str = ""
    given: str | None = None
    named: str | None = None

    def line(self, arguments: Sequence[str]) -> str:
        """Return the one line for the user, with the place in the command's config files."""
        files, words = split_configs(arguments)
        places = places_in([Path(file) for file in files], words)
        if self.named is not None:
            place = find_value(places, self.named)
        else:
            place = find_key(places, self.key, self.owner, self.given) if self.key else None
        key = self.key if place is None else ".".join(place.keys)
        return ("" if place is None else place.where) + self.text.replace("{key}", key)

    def under(self, parent: str) -> Mistake:
        """Return the same mistake as the parser of the enclosing key sees it."""
        key = self.key if self.key.startswith(f"{parent}.") else f"{parent}.{self.key}"
        return replace(self, key=key.strip("."))


class ParserMistakeError(OneShotError):
    """A mistake on its way out through nested parsers, which keep only an exception's text."""

    def __init__(self, mistake: Mistake) -> None:
        super().__init__(f"\u27e6{json.dumps(asdict(mistake))}\u27e7")
        self.mistake = mistake


class OneLineErrors:
    """What makes a parser of jsonargparse tell a mistake in one line, with the nearest known key.

    Attributes:
        owner: Name of the class or function whose arguments the parser reads; empty for several.
    """

    owner = ""

    def add_class_arguments(self, theclass: Any, *args: Any, **kwargs: Any) -> Any:
        """Note whose arguments these are."""
        self._note(theclass, args, kwargs)
        return super().add_class_arguments(theclass, *args, **kwargs)  # type: ignore[misc]

    def add_function_arguments(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Note whose arguments these are."""
        self._note(function, args, kwargs)
        return super().add_function_arguments(function, *args, **kwargs)  # type: ignore[misc]

    def _note(self, owner: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        if not args and kwargs.get("nested_key") is None:
            self.owner = getattr(owner, "__name__", "")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the mistake; the parsers around this one add where it is."""
        if (fault := users_error(ex)) is not None:
            carry_out(fault)
        raise ParserMistakeError(explain(message, self, ex)) from ex


def explain(message: str, parser: Any, error: Exception | None = None) -> Mistake:
    """Return what a parser's error means.

    Args:
        message: The parser's text.
        parser: The parser, whose keys are the known ones.
        error: What led to it; it may hold the `ParserMistakeError` of a parser inside.
    """
    text = " ".join((message if error is None else str(error)).split())
    outer = ".".join(re.findall(r'[Pp]arser key "([^"]+)"', re.sub("\u27e6.*?\u27e7", "", text)))
    if inner := re.findall("\u27e6(.*?)\u27e7", text):
        mistakes = [Mistake(**json.loads(each)) for each in inner]
        # Of several readings of a value, the one that understood its keys is meant.
        order = ("unknown key", "{key}: needs", "")
        chosen = next(m for start in order for m in mistakes if m.text.startswith(start))
        return chosen.under(outer)
    owner = str(getattr(parser, "owner", ""))
    if match := re.search(r"Group '([^']+)' does not accept option '([^']+)'", text):
        return _unknown_key(f"{match[1]}.{match[2]}", parser, owner)
    if match := re.search(r"(?:does not accept option|Option) '([^']+)'", text):
        return _unknown_key(match[1], parser, owner).under(outer)
    if match := re.search(r"[Uu]nrecognized arguments?: (\S+)", text):
        key = match[1].split("=")[0].lstrip("-")
        return Mistake(f"unknown option '--{{key}}'{did_you_mean(key, _keys(parser))}.", key)
    if match := re.search(r"module '?([\w.]+)'? has no attribute '?(\w+)'?", text):
        module = sys.modules.get(match[1])
        known = [] if module is None else [f"{match[1]}.{name}" for name in dir(module)]
        return _unknown_class(f"{match[1]}.{match[2]}", known)
    if match := re.search(r"Expected a dot import path string: (\S+)", text):
        return _unknown_class(match[1], [c.__qualname__ for c in _classes()])
    if match := re.search(r"arguments are required: (.*)", text):
        keys = match[1].replace("fit.", "").replace("test.", "")
        if owner:
            return Mistake(f"{{key}}: {owner} needs {keys}, which {_are(keys)} not given.")
        return Mistake(f"{keys} missing; give a --config file (see configs/) or --KEY VALUE.")
    given = re.search(r"(?:Given|Got) value: (.*?)(?: - Expected|$)", text)
    value = given[1].strip("'\"") if given else ""
    about = Mistake("", outer, owner, value if given else None)
    if outer and re.fullmatch(r"\S+\.(ya?ml|json)", value) and not Path(value).exists():
        return replace(about, text=f"{{key}}: {value}: file not found.")
    reason = list(causes(error))[-1] if error is not None else None
    if outer and isinstance(reason, ModuleNotFoundError):
        problem = f"{{key}}: cannot import {value}; check its spelling, and that its package is "
        return replace(about, text=f"{problem}installed or in the working folder.")
    if outer and isinstance(reason, ImportError):
        # It is no class, or one of another kind.
        return replace(about, text=f"{{key}}: {reason}")
    wanted = re.findall(r"Expected an? <class '([^']+)'>", text)
    if outer and given and (choices := re.search(r"Expected an? typing\.Literal\[([^]]*)\]", text)):
        allowed = choices[1].replace("'", "")
        return replace(about, text=f"{{key}}: needs one of {allowed}, not {_short(given[1])}.")
    if outer and wanted and given and wanted != ["NoneType"]:
        kind = next(each for each in wanted if each != "NoneType").rsplit(".", 1)[-1]
        return replace(about, text=f"{{key}}: needs {kind}, not {_short(given[1])}.")
    if outer and reason is not None:
        said = str(reason).split("\n")[0].removeprefix(f'Parser key "{outer}": ')
        return replace(about, text=f"{{key}}: {_short(said)}")
    return Mistake(_short(text.removeprefix("error: ")))


def _are(keys: str) -> str:
    return "are" if "," in keys else "is"


def _unknown_key(name: str, parser: Any, owner: str) -> Mistake:
    known = _keys(parser)
    hint = did_you_mean(name, known) or did_you_mean(name.split(".", 1)[0], known)
    return Mistake(f"unknown key '{{key}}'{hint}.", name, owner)


def _unknown_class(name: str, known: Iterable[str]) -> Mistake:
    return Mistake(f"unknown class '{name}'{did_you_mean(name, known)}.", named=name)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " ..."


def _keys(parser: Any) -> list[str]:
    """Return every dotted key of a parser and of its subcommands."""
    found: list[str] = []
    for action in getattr(parser, "_actions", []):
        if isinstance(action.choices, dict):
            for child in action.choices.values():
                found += _keys(child)
        found.append(str(action.dest))
    tops = {key.split(".", 1)[0] for key in found}
    return sorted({*found, *tops})


def _classes() -> Iterable[type]:
    """Yield every class that a config may name and that is imported, users' own ones included."""
    from lightning.pytorch import Callback, LightningDataModule, LightningModule

    from oneshot_lit.data.instance import SafetyInstance
    from oneshot_lit.data.sources import ConversationSource
    from oneshot_lit.evaluation.judges import AnswerFormat, Judge, Rubric

    def below(base: type) -> Iterable[type]:
        yield base
        children: list[type] = base.__subclasses__()
        for child in children:
            yield from below(child)

    for base in (
        LightningModule,
        LightningDataModule,
        Callback,
        ConversationSource,
        SafetyInstance,
        Judge,
        AnswerFormat,
        Rubric,
    ):
        yield from below(base)


def mistake_in(error: BaseException) -> str | None:
    """Return what the user can mend about an error, or None for a defect that needs its traceback.

    What comes through a user's own code is such a defect, unless it is a `OneShotError`. Lightning
    refuses arguments with a ValueError; the file system's refusals name their file.
    """
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    of_user = users_error(error)
    for cause in causes(error):
        if isinstance(cause, OneShotError):
            return str(cause)
        if cause is of_user:
            break
    if (line := full_disk(error) or unreachable(error)) is not None:
        return line
    if of_user is not None:
        return None
    if isinstance(error, MisconfigurationException):
        return refusal(str(error))
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}."
    if type(error).__module__.startswith("deepspeed."):
        return f"trainer.strategy: DeepSpeed: {' '.join(str(error).split())}"
    if error.__traceback__ is not None:
        raised_in = _module(error)
        # Its constructors refuse arguments so, and its strategies what the machine cannot do.
        refusals: tuple[type[Exception], ...] = (ValueError, TypeError)
        if re.match(r"lightning\.\w+\.(strategies|plugins|accelerators)\.", raised_in):
            refusals += (RuntimeError, ImportError)
        if isinstance(error, refusals) and raised_in.startswith(_LIGHTNING):
            return refusal(" ".join(str(error).split()))
    return None


def _module(error: BaseException) -> str:
    """Return the name of the module that raised an error."""
    frame = list(traceback.walk_tb(error.__traceback__))[-1][0]
    return str(frame.f_globals.get("__name__", ""))
