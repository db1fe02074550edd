"""Reading the command line of every command with config files and classes."""

from __future__ import annotations

import inspect
import os
import pydoc
import sys
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Any

import yaml
from jsonargparse import Namespace, _typehints, get_loader, set_loader
from jsonargparse.typing import class_from_function

from oneshot_lit.errors import OneShotError, did_you_mean
from oneshot_lit.io.config_files import check_config_files, split_configs
from oneshot_lit.io.provenance import users_error

# Where the classes of this package are.
_PLACES = (
    "methods",
    "methods.select",
    "evaluation.judges",
    "evaluation.metrics",
    "callbacks",
    "data",
)

_load_yaml: Any = get_loader("yaml")
_import_object: Any = vars(_typehints)["import_object"]
_discard: Any = vars(_typehints)["discard_init_args_on_class_path_change"]


class MistakeError(OneShotError, ImportError, TypeError, ValueError):
    """A mistake in a config; of the other types, too, so that other readings are tried first."""


def begin_parsing(arguments: Sequence[str]) -> list[str]:
    """Check the config files of a command, set up the parser, and return the words in its order.

    Args:
        arguments: The command line, with the command as its first word.

    Raises:
        OneShotError: naming a config file that is missing or not YAML.
    """
    check_config_files(arguments)
    _let_text_be_text(arguments)
    setattr(_typehints, "discard_init_args_on_class_path_change", _start_anew)  # noqa: B010
    setattr(_typehints, "import_object", _import)  # noqa: B010
    # A user's package in the working folder can be imported, as under `python -m`. It comes last,
    # so that it hides no other.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return typed_last(arguments)


def typed_last(arguments: Sequence[str]) -> list[str]:
    """Return a command with its config files first, and each class before its arguments.

    The parser lets later words win. With this order, what the user typed wins over every file,
    wherever they were on the line. A class starts from its own defaults, so arguments before it
    would be lost.
    """
    files, others = split_configs(arguments)
    words: list[list[str]] = []
    for word in others[1:]:
        if not words or word.startswith("--"):
            words.append([])
        words[-1].append(word)
    options: list[tuple[str, list[str]]] = []
    for option in words:
        name, _, value = " ".join(option).replace(" ", "=", 1).partition("=")
        again = not name.endswith("+") and any(name == other for other, _ in options)
        if value == "null" or again:
            # Drop what was typed before for this key, and the arguments of an earlier class.
            options = [each for each in options if not f"{each[0]}.".startswith(f"{name}.")]
        options.append((name, option))
    options.sort(key=lambda each: each[0].count("."))
    configs = [word for file in files for word in ("--config", file)]
    return [*others[:1], *configs, *(word for _, option in options for word in option)]


def _let_text_be_text(arguments: Sequence[str]) -> None:
    """Read a typed line such as ``Note: be kind`` or ``- milk`` as text.

    The parser reads every value as YAML before it knows its type, so a prompt with a colon would
    become a mapping. Mappings and lists are typed as ``{a: b}`` and ``[a, b]``.
    """
    typed = {w.partition("=")[2] if w.startswith("--") and "=" in w else w for w in arguments}

    def load(text: str) -> Any:
        value = _load_yaml(text)
        block = isinstance(value, (dict, list)) and text.lstrip()[:1] not in ("{", "[")
        return text if block and text in typed else value

    set_loader("yaml", load, exceptions=(yaml.YAMLError,))


def _start_anew(parser_or_action: Any, former: Any, value: Any) -> None:
    """Let a class that replaces another start from its own defaults.

    jsonargparse passes on the former class's arguments if both have the name, even mere defaults:
    SGD instead of AdamW would get AdamW's `weight_decay`. Modules and data modules keep the given
    arguments, so that one config serves several, as in ``--config FILE --model Mine``.
    """
    if not former or "init_args" not in former or former["class_path"] == value["class_path"]:
        return
    if not _is_module(value["class_path"]):
        former["init_args"] = type(former["init_args"])()
        return
    for name, each in list(vars(former["init_args"]).items()):
        # Left by jsonargparse from the base class's default; the new class has its own.
        if isinstance(each, Namespace) and "init_args" in each and "class_path" not in each:
            former["init_args"].pop(name)
    _discard(parser_or_action, former, value)


def _is_module(path: str) -> bool:
    from lightning.pytorch import LightningDataModule, LightningModule

    target = pydoc.locate(path)
    return isinstance(target, type) and issubclass(target, (LightningModule, LightningDataModule))


def _import(name: str, *args: Any, **kwargs: Any) -> Any:
    """Import a class; name the nearest one if there is none."""
    try:
        return _scheduler_class(_import_object(name, *args, **kwargs))
    except (ImportError, AttributeError, ValueError) as error:
        # Other words, such as the name of a strategy, are tried as a class, too.
        if users_error(error) is not None or not ("." in name or name[:1].isupper()):
            raise
        raise MistakeError(_unknown_class(name)) from error


# The parser asks several times, and transformers has thousands of names.
@cache
def _unknown_class(path: str) -> str:
    module, _, name = path.rpartition(".")
    ours = {
        each: f"oneshot_lit.{place}.{each}"
        for place in _PLACES
        for each in dir(import_module(f"oneshot_lit.{place}"))
    }
    if not module:
        return f"unknown class '{path}'{did_you_mean(name, ours)}."
    if module.startswith("oneshot_lit.") and name in ours:
        return f"{path} is now {ours[name]}."
    try:
        holder = import_module(module)
    except ImportError:
        return (
            f"cannot import {path}; check its spelling, and that its package is installed or in "
            "the working folder."
        )
    near = did_you_mean(path, [f"{module}.{each}" for each in dir(holder)])
    return f"unknown class '{path}'{near}."


def _scheduler_class(target: Any) -> Any:
    """Return a function that makes a scheduler as a class, and anything else unchanged.

    jsonargparse would call such a function, for example one of `transformers`, before there is an
    optimiser.
    """
    if inspect.isfunction(target) and next(iter(inspect.signature(target).parameters), "") == (
        "optimizer"
    ):
        return _class_of(target)
    return target


@cache
def _class_of(function: Any) -> type:
    from torch.optim.lr_scheduler import LRScheduler

    made = class_from_function(function, LRScheduler, f"{function.__module__}:{function.__name__}")
    # So that saved configs name the function.
    made.__name__, made.__module__ = function.__name__, function.__module__
    made.__qualname__ = function.__qualname__
    return made
