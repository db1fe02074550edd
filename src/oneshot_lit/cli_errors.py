"""Turn the parser's nested messages into one line that names the key and the nearest known one."""

from __future__ import annotations

import json
import re
import sys
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from oneshot_lit.errors import OneShotError, did_you_mean
from oneshot_lit.files import read_text
from oneshot_lit.machine_errors import causes, full_disk, refusal, unreachable
from oneshot_lit.users_code import users_error

_LONGEST = 300
_LIGHTNING = ("lightning.", "lightning_utilities.")


def check_config_files(arguments: Sequence[str]) -> None:
    """Refuse config files that are missing or not YAML mappings, by name.

    Raises:
        OneShotError: naming the file, and the line where its YAML breaks.
    """
    for path in config_files(arguments):
        if not path.is_file():
            near = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
            raise OneShotError(f"{path}: config file not found{did_you_mean(path.name, near)}.")
        try:
            content = yaml.safe_load(read_text(path))
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            place = f" line {mark.line + 1}" if mark is not None else ""
            problem = getattr(error, "problem", None) or "a character that YAML does not allow"
            raise OneShotError(f"{path}{place}: not YAML ({problem}); mend it.") from error
        if not isinstance(content, dict):
            raise OneShotError(f"{path}: must hold keys such as model, data and trainer.")


def config_files(arguments: Sequence[str]) -> list[Path]:
    """Return the files given by ``--config`` (or ``-c``), in order."""
    return [Path(file) for file in _split_configs(arguments)[0]]


def typed_last(arguments: Sequence[str]) -> list[str]:
    """Return a command with its config files first, and each class before its arguments.

    The parser lets later words win; this way what the user typed wins over every file, wherever
    the two stand. A class starts from its own defaults, so arguments before it would be lost.
    """
    files, others = _split_configs(arguments)
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


def _split_configs(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the config files and all other words, each in order."""
    files, others, words = [], [], iter(arguments)
    for word in words:
        if word.startswith("--config="):
            files.append(word.split("=", 1)[1])
        elif word in ("--config", "-c") and (file := next(words, None)) is not None:
            files.append(file)
        else:
            others.append(word)
    return files, others


@dataclass(frozen=True)
class Mistake:
    """A mistake in a key: where it stands, the dotted key, and the text with ``{key}`` in it."""

    text: str
    key: str = ""
    place: str = ""

    def line(self) -> str:
        """Return the one line for the user."""
        return self.place + self.text.replace("{key}", self.key)

    def under(self, parent: str) -> Mistake:
        """Return the same mistake as the parser of the enclosing key sees it."""
        key = self.key if self.key.startswith(f"{parent}.") else f"{parent}.{self.key}"
        return replace(self, key=key.strip("."))


class ParserMistakeError(OneShotError):
    """A mistake on its way out through nested parsers, which keep only an exception's text."""

    def __init__(self, mistake: Mistake) -> None:
        super().__init__(f"\u27e6{json.dumps(asdict(mistake))}\u27e7")
        self.mistake = mistake


def explain(message: str, parser: Any, arguments: Sequence[str] = ()) -> Mistake:
    """Return what a parser's error means.

    Args:
        message: The parser's text; it may hold the `ParserMistakeError` of a parser inside.
        parser: The parser, whose keys are the known ones.
        arguments: The command line, to find the config file that holds the key.
    """
    text = " ".join(message.split())
    outer = ".".join(re.findall(r'[Pp]arser key "([^"]+)"', re.sub("\u27e6.*?\u27e7", "", text)))
    if inner := re.findall("\u27e6(.*?)\u27e7", text):
        mistakes = [Mistake(**json.loads(each)) for each in inner]
        # Of several readings of a value, the one that understood its keys is meant.
        order = ("unknown key", "{key}: needs", "")
        chosen = next(m for start in order for m in mistakes if m.text.startswith(start))
        return chosen.under(outer)
    if match := re.search(r"(?:does not accept option|Option) '([^']+)'", text):
        return _unknown("key", match[1], _keys(parser), arguments).under(outer)
    if match := re.search(r"[Uu]nrecognized arguments?: (\S+)", text):
        key = match[1].split("=")[0].lstrip("-")
        return Mistake(f"unknown option '--{{key}}'{did_you_mean(key, _keys(parser))}.", key)
    if match := re.search(r"module '([^']+)' has no attribute '([^']+)'", text):
        module = sys.modules.get(match[1])
        known = [] if module is None else [f"{match[1]}.{name}" for name in dir(module)]
        return _unknown("class", f"{match[1]}.{match[2]}", known, arguments)
    if match := re.search(r"Expected a dot import path string: (\S+)", text):
        return _unknown("class", match[1], [c.__qualname__ for c in _classes()], arguments)
    if match := re.search(r"arguments are required: (.*)", text):
        keys = match[1].replace("fit.", "").replace("test.", "")
        return Mistake(f"{keys} missing; give a --config file (see configs/) or --KEY VALUE.")
    wanted = re.findall(r"Expected an? <class '([^']+)'>", text)
    given = re.search(r"(?:Given|Got) value: (.*?)(?: - Expected|$)", text)
    value = given[1].strip("'\"") if given else ""
    if outer and re.fullmatch(r"\S+\.(ya?ml|json)", value) and not Path(value).exists():
        return Mistake(f"{{key}}: {value}: file not found.", outer, _place(outer, arguments))
    if outer and re.fullmatch(r"([A-Za-z_]\w*\.)+[A-Z]\w*", value):
        problem = f"{{key}}: cannot import {value}; check its spelling, and that its package is "
        place = _place(outer, arguments)
        return Mistake(f"{problem}installed or in the working folder.", outer, place)
    if outer and given and (choices := re.search(r"Expected an? typing\.Literal\[([^]]*)\]", text)):
        allowed = choices[1].replace("'", "")
        problem = f"{{key}}: needs one of {allowed}, not {_short(given[1])}."
        return Mistake(problem, outer, _place(outer, arguments))
    if outer and wanted and given:
        kind = wanted[0].rsplit(".", 1)[-1]
        place = _place(outer, arguments)
        return Mistake(f"{{key}}: needs {kind}, not {_short(given[1])}.", outer, place)
    return Mistake(_short(text.removeprefix("error: ")))


def _unknown(what: str, name: str, known: Iterable[str], arguments: Sequence[str]) -> Mistake:
    place = _place(name, arguments)
    hint = did_you_mean(name, known) or did_you_mean(name.split(".", 1)[0], known)
    # A class is named by its own path, a key by where it stands.
    return Mistake(f"unknown {what} '{'{key}' if what == 'key' else name}'{hint}.", name, place)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " ..."


def _place(key: str, arguments: Sequence[str]) -> str:
    """Return 'FILE line N: ' for the config file that holds a key or value, or ''."""
    last = key.rsplit(".", 1)[-1]
    words = [word.split("=")[0] for word in arguments if word.startswith("--")]
    if any(word == f"--{last}" or word.endswith(f".{last}") for word in words):
        return ""
    for path in reversed(config_files(arguments)):
        try:
            lines = read_text(path).splitlines()
        except (OSError, OneShotError):
            continue
        for number, line in enumerate(lines, start=1):
            if re.search(rf"(?<![\w.]){re.escape(last)}\b", line.split("#")[0]):
                return f"{path} line {number}: "
    return ""


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
    from oneshot_lit.judges import AnswerFormat, Judge, Rubric

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
