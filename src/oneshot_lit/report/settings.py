"""The settings that decide an answer, and whether `test` and `predict` of a run shared them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from oneshot_lit.report.runs import Run
from oneshot_lit.report.text import without_machine_paths

_OF_SAMPLING = ("temperature", "top_p")
_OF_SPEED = ("backend", "vllm")
_OF_MODEL = (
    *("model_name_or_path", "model_config", "tokenizer_name_or_path", "chat_template"),
    *("system_turn", "stop_tokens", "dtype", "peft"),
)
_PATHS = ("model_name_or_path", "tokenizer_name_or_path", "ckpt_path")


def deciding(decoding: Any) -> dict[str, Any] | None:
    """Return what of a decoding decides an answer; None where it is not known.

    All backends give the same greedy answers in float32, and greedy answers need no temperature.
    """
    if not isinstance(decoding, Mapping):
        return None
    unseen = _OF_SPEED if decoding.get("do_sample") else (*_OF_SPEED, *_OF_SAMPLING)
    return {key: value for key, value in decoding.items() if key not in unseen}


def other_settings(run: Run) -> list[str] | None:
    """Return how `predict` differed from `test`; [] if in nothing, None if that is not known."""
    if "test" not in run.made_by or "predict" not in run.made_by:
        return None
    test, predict = (_settings(run.made_by[command]) for command in ("test", "predict"))
    keys = [key for key in dict.fromkeys([*test, *predict]) if not _same(key, test, predict)]
    return [f"{key}: {_shown(test.get(key))} and {_shown(predict.get(key))}" for key in keys]


def notes_on_answers(run: Run) -> list[str]:
    """Return sentences on answers in a run's folder that may not be those that its test scored."""
    return [*_notes_on_predictions(run), *_notes_on_judged(run)]


def _notes_on_predictions(run: Run) -> list[str]:
    judges = ", ".join(f"'{judge}'" for judge in run.judgments)
    if not run.content.get("samples") or not (run.predictions or judges):
        return []
    differ = other_settings(run)
    if differ is None:
        return [
            f"{run.name}: run.json does not say with which settings both test and predict ran, so "
            "whether predictions and judgments are of the tested model is not checked."
        ]
    if not differ:
        return []
    judged = f", which {judges} judged," if judges else ""
    return [
        f"{run.name}: predictions.jsonl{judged} holds answers of another model or decoding than "
        f"the test's ({'; '.join(differ)}); they are not joined with the test. Run oneshot-lit "
        "predict, and judge, with the settings of the test."
    ]


def _notes_on_judged(run: Run) -> list[str]:
    said = []
    answers = {(row.set, row.index): row.answer.digest() for row in run.predictions}
    prompts = {(row.set, row.index): row.prompt for of in run.outcomes.values() for row in of}
    judged = [(judge, *item) for judge, of in run.judgments.items() for item in of.items()]
    for judge, name, rows in judged:
        where = f"in '{name}' that judge '{judge}' judged"
        places = [(row.set, row.index) for row in rows]
        pairs = [*zip(places, rows, strict=True)]
        unknown = sum(row.prompt is None for row in rows)
        other = sum(answers.get(place) != row.digest for place, row in pairs)
        moved = sum(row.prompt not in (None, prompts.get(place)) for place, row in pairs)
        if unknown:
            said.append(
                f"{run.name}: of {unknown} of {len(rows)} answers {where} the prompt is not known; "
                "they are in no pair. Judge again."
            )
        if other and answers:
            said.append(
                f"{run.name}: {other} of {len(rows)} answers {where} are not those in "
                "predictions.jsonl; whose they are is not known. Judge again."
            )
        if moved and name in run.outcomes:
            said.append(
                f"{run.name}: {moved} of {len(rows)} prompts {where} are not those that the test "
                "has at their place."
            )
    return said


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a resolved config that decide an answer."""
    model, trainer = _object(config.get("model")), _object(config.get("trainer"))
    own = _object(model.get("init_args"))
    module = model.get("class_path")
    return {
        # Modules of our own all answer alike; others may answer in their own way.
        "class_path": None if str(module).startswith("oneshot_lit.") else module,
        **{key: own.get(key) for key in _OF_MODEL},
        "precision": trainer.get("precision"),
        "ckpt_path": config.get("ckpt_path"),
        **_decoding(own.get("decoding")),
    }


def _decoding(value: Any) -> dict[str, Any]:
    if value is None:
        # Imported where it is needed, as transformers comes with it.
        from oneshot_lit.models.generation import Decoding

        value = asdict(Decoding())
    return deciding(value) or {}


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _same(key: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    first, second = a.get(key), b.get(key)
    if first == second:
        return True
    # One folder may be named in several ways.
    if key not in _PATHS or not isinstance(first, str) or not isinstance(second, str):
        return False
    return Path(first).resolve() == Path(second).resolve()


def _shown(value: Any) -> str:
    text = str(without_machine_paths(value))
    return text if len(text) <= 60 else f"{text[:60]}…"
