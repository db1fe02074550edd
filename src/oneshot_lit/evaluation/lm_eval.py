"""General ability by lm-eval: run its Python API on a product.

lm-eval is an optional extra and slow to import, so it is imported when it is needed.
"""

from __future__ import annotations

import importlib.util
import json
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oneshot_lit.errors import OneShotError, did_you_mean

# What lm-eval's own command takes where nothing is given.
SEEDS = (0, 1234, 1234, 1234)


@dataclass(frozen=True)
class LmEvalSettings:
    """What decides lm-eval's scores of a model; the names are those of its own command.

    Args:
        tasks: Names of tasks, groups or tags, or patterns of names.
        include_path: Folder with further tasks.
        num_fewshot: Worked examples before each question; the task's own number if not given.
        limit: The first so many questions of each task, or a share below 1; all if not given.
        batch_size: Questions at once, ``auto`` or ``auto:N``.
        dtype: Of the weights; that of the folder if not given.
        device: Such as ``cuda:0``; the first GPU, or the CPU without one, if not given.
        apply_chat_template: Whether to ask in the model's chat format, or a template's name.
        fewshot_as_multiturn: Examples as turns; the same as the chat template if not given.
        system_instruction: A system prompt.
        gen_kwargs: Replaces parts of the tasks' generation settings.
        model_args: Further arguments of lm-eval's ``hf`` model.
        seeds: Of Python, NumPy, torch and the choice of examples.
        log_samples: Keep every question and answer in the results.
        trust_remote_code: Allow code of a hub repository to run.
        confirm_run_unsafe_code: Allow tasks that run generated code.
    """

    tasks: Sequence[str]
    include_path: str | None = None
    num_fewshot: int | None = None
    limit: float | None = None
    batch_size: int | str = 1
    dtype: str | None = None
    device: str | None = None
    apply_chat_template: bool | str = False
    fewshot_as_multiturn: bool | None = None
    system_instruction: str | None = None
    gen_kwargs: Mapping[str, Any] = field(default_factory=dict)
    model_args: Mapping[str, Any] = field(default_factory=dict)
    seeds: Sequence[int] = SEEDS
    log_samples: bool = False
    trust_remote_code: bool = False
    confirm_run_unsafe_code: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return what decides the scores, as plain values."""
        kept = {name: getattr(self, name) for name in self.__dataclass_fields__}
        for name in ("tasks", "log_samples", "confirm_run_unsafe_code"):
            del kept[name]
        return kept | {key: dict(kept[key]) for key in ("gen_kwargs", "model_args")}


def require_lm_eval() -> None:
    """Raise the one line that says how to install lm-eval."""
    if importlib.util.find_spec("lm_eval") is None:
        raise OneShotError('lm-eval is not installed; pip install "oneshot-lit[lm-eval]".')


def model_arguments(model: str, settings: LmEvalSettings) -> dict[str, Any]:
    """Return the arguments of lm-eval's ``hf`` model for a product or a model of the hub.

    Raises:
        OneShotError: if a folder is no model of safetensors, or an adapter of an adapter.
    """
    from oneshot_lit.models.adapters import is_adapter
    from oneshot_lit.models.loading import require_model_folder
    from oneshot_lit.models.weight_files import is_local

    found: dict[str, Any] = {"pretrained": model}
    if is_local(model):
        # Absolute: a name such as runs/mine could be taken for one of the hub.
        folder = require_model_folder(model).resolve()
        found["pretrained"] = str(folder)
        if is_adapter(model):
            found["pretrained"] = _base_of(folder)
            found["peft"] = str(folder)
            if (folder / "tokenizer_config.json").is_file():
                found["tokenizer"] = str(folder)
    if settings.dtype is not None:
        require_dtype(settings.dtype)
        found["dtype"] = settings.dtype
    if settings.trust_remote_code:
        found["trust_remote_code"] = True
    for key in settings.model_args:
        if key in ("pretrained", "peft", "trust_remote_code", "dtype", "device", "batch_size"):
            raise OneShotError(f"--model-args: '{key}' follows from --model and its own options.")
        if key == "use_safetensors":
            raise OneShotError(
                "--model-args: 'use_safetensors' is not for you to set; pickled weights may run "
                "code, so convert them to safetensors."
            )
    return found | {"use_safetensors": True} | dict(settings.model_args)


def _base_of(folder: Path) -> str:
    """Return the base model of an adapter, as `oneshot_lit.models.loading` finds it."""
    from oneshot_lit.models.adapters import base_of, is_adapter
    from oneshot_lit.models.loading import require_model_folder
    from oneshot_lit.models.weight_files import is_local

    base = base_of(folder)
    if not is_local(base):
        return base
    if is_adapter(base):
        raise OneShotError(
            f"{folder}: its base {base} is an adapter, too, which lm-eval cannot load; write a "
            "merged model with --export.merge_adapter true."
        )
    return str(require_model_folder(base).resolve())


def require_dtype(name: str) -> None:
    """Refuse what is no type of weights; lm-eval would look it up in torch.

    Raises:
        OneShotError: naming the option.
    """
    from oneshot_lit.models.loading import resolve_dtype

    if name != "auto":
        try:
            resolve_dtype(name)
        except OneShotError as error:
            raise OneShotError(str(error).replace("model.dtype", "--dtype")) from error


def find_device(name: str | None) -> str:
    """Return the device of this name, the first GPU or the CPU if none is given.

    lm-eval takes the CPU, or a GPU that is not there, for a name that it does not know.

    Raises:
        OneShotError: if there is no such device.
    """
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise OneShotError(f"--device {name}: is none; give cpu, cuda or cuda:N.") from error
    if device.type not in ("cpu", "cuda", "mps", "xpu", "npu"):
        raise OneShotError(f"--device {name}: lm-eval does not know it; give cpu, cuda or cuda:N.")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        raise OneShotError(f"--device {name}: this machine has {count} GPUs that can be used.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise OneShotError(f"--device {name}: this machine has none.")
    return name


# What libraries raise for settings of a model that do not fit.
_OF_MODELS = (RuntimeError, AssertionError, AttributeError, TypeError)


def _while_making_the_model(error: BaseException) -> bool:
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_code.co_name == "create_from_arg_obj" for frame, _ in frames)


def find_tasks(names: Sequence[str], manager: Any) -> list[str]:
    """Return the tasks, groups and tags of these names or patterns.

    Args:
        names: As given.
        manager: lm-eval's task manager.
    """
    found = []
    for name in names:
        matches = manager.match_tasks([name])
        if not matches and name.endswith((".yaml", ".yml")):
            raise OneShotError(
                f"--tasks {name}: give the task's name here and its folder as --include-path."
            )
        if not matches:
            raise OneShotError(
                f"--tasks: lm-eval knows no task '{name}'{did_you_mean(name, manager.all_tasks)}; "
                "'lm-eval ls tasks' lists them, and --include-path adds your own."
            )
        found += [match for match in matches if match not in found]
    return found


def evaluate(model: str, settings: LmEvalSettings) -> tuple[list[str], dict[str, Any]] | None:
    """Run lm-eval as its own command does; return the tasks' names and its results.

    Returns:
        None in all but the first of several processes.

    Raises:
        OneShotError: for an unknown task or a model that cannot be loaded, and with lm-eval's own
            words for what it refuses.
    """
    require_lm_eval()
    if settings.include_path is not None and not Path(settings.include_path).is_dir():
        raise OneShotError(f"--include-path {settings.include_path}: is no folder.")
    arguments = model_arguments(model, settings)
    device = find_device(settings.device)
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    chat = settings.apply_chat_template
    multiturn = settings.fewshot_as_multiturn
    try:
        manager = TaskManager(include_path=settings.include_path, metadata=arguments)
        tasks = find_tasks(settings.tasks, manager)
        results = simple_evaluate(
            model="hf",
            model_args=arguments,
            tasks=tasks,
            num_fewshot=settings.num_fewshot,
            batch_size=settings.batch_size,
            device=device,
            limit=settings.limit,
            log_samples=settings.log_samples,
            system_instruction=settings.system_instruction,
            apply_chat_template=chat,
            fewshot_as_multiturn=bool(chat) if multiturn is None else multiturn,
            gen_kwargs=dict(settings.gen_kwargs) or None,
            task_manager=manager,
            random_seed=settings.seeds[0],
            numpy_random_seed=settings.seeds[1],
            torch_random_seed=settings.seeds[2],
            fewshot_random_seed=settings.seeds[3],
            confirm_run_unsafe_code=settings.confirm_run_unsafe_code,
            metadata=arguments,
        )
    except (OSError, ValueError, ImportError, *_OF_MODELS) as error:
        # These are defects elsewhere, and settings that do not fit where a model is made.
        if isinstance(error, _OF_MODELS) and not _while_making_the_model(error):
            raise
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise OneShotError(f"lm-eval stopped: {said.rstrip('.')}.") from error
    return None if results is None else (tasks, _plain(results))


def _plain(results: Any) -> Any:
    """Return results as JSON can hold them, the way lm-eval writes them; NaN becomes None."""
    from lm_eval.utils import handle_non_serializable

    text = json.dumps(results, default=handle_non_serializable, ensure_ascii=False)
    return json.loads(text, parse_constant=lambda _: None)
