"""A class given in place of another starts from its own defaults.

jsonargparse hands the arguments of the former class to the new one wherever both have a name in
common, also those that are only the former's defaults: `torch.optim.SGD` in place of the default
AdamW would get AdamW's `weight_decay`.
"""

from __future__ import annotations

import inspect
import pydoc
from collections.abc import Iterator
from typing import Any

from jsonargparse import Namespace, _typehints

_ORIGINAL = _typehints.discard_init_args_on_class_path_change
# New class -> former class -> the former's arguments.
_dropped: dict[str, dict[str, dict[str, Any]]] = {}


def keep_classes_apart() -> None:
    """Let a class take no arguments of the one that it replaces, from now on.

    A module or data module keeps those that were given: one config serves several modules, as in
    ``--config FILE --model my_package.Mine``, and all have their base's arguments.
    """
    _dropped.clear()
    setattr(_typehints, "discard_init_args_on_class_path_change", _discard)  # noqa: B010


def _discard(parser_or_action: Any, former: Any, value: Any) -> None:
    """Take the former class's arguments away where the class has changed.

    Args:
        parser_or_action: Where jsonargparse itself looks up which arguments both classes have.
        former: The value so far: a class and its arguments, or nothing of the kind.
        value: The new value: a class, perhaps with arguments.
    """
    if not former or "init_args" not in former or former["class_path"] == value["class_path"]:
        return
    arguments = former["init_args"]
    given = dict(vars(arguments)) if isinstance(arguments, Namespace) else {}
    if _is_module(value["class_path"]):
        for name, each in given.items():
            # What jsonargparse leaves of the base's default, where another class has its own.
            if isinstance(each, Namespace) and "init_args" in each and "class_path" not in each:
                arguments.pop(name)
        _ORIGINAL(parser_or_action, former, value)  # type: ignore[no-untyped-call]
        return
    noted = _dropped.setdefault(value["class_path"], {}).setdefault(former["class_path"], {})
    for name in given:
        # The parser comes here again with the former's defaults.
        noted.setdefault(name, arguments.pop(name))


def dropped_arguments(config: Namespace) -> Iterator[str]:
    """Yield a line for each class of a config that could have had its predecessor's arguments.

    Only what was chosen for the predecessor, and not chosen again, is worth a line.
    """
    for key, spec in config.items(branches=True):
        if not isinstance(spec, Namespace) or spec.get("class_path") not in _dropped:
            continue
        new, arguments = spec["class_path"], spec.get("init_args") or {}
        for former, given in _dropped[new].items():
            own, before = _defaults(new), _defaults(former)
            lost = {
                name: value
                for name, value in given.items()
                if name in own and name in before and value != before[name]
                if arguments.get(name) == own[name] != value
            }
            if lost:
                listed = ", ".join(f"{name}={value}" for name, value in lost.items())
                yield (
                    f"{key.replace('.init_args', '')}: {listed} of {former} does not apply to {new}"
                )


def _defaults(path: str) -> dict[str, Any]:
    target = pydoc.locate(path)
    parameters = inspect.signature(target).parameters if callable(target) else {}
    return {name: each.default for name, each in parameters.items()}


def _is_module(path: str) -> bool:
    from lightning.pytorch import LightningDataModule, LightningModule

    target = pydoc.locate(path)
    return isinstance(target, type) and issubclass(target, (LightningModule, LightningDataModule))
