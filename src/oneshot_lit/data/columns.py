"""Column maps: how the tables of the public research sets become prompts and answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from oneshot_lit.conversation import (
    Conversation,
    Message,
    conversation_from_pair,
    parse_messages,
)
from oneshot_lit.errors import OneShotError, RowError, did_you_mean
from oneshot_lit.io.read_files import in_short

# What a column may hold. The context is put before the prompt, as in HarmBench's contextual
# behaviours, and the input behind it, as in Alpaca.
FIELDS = (
    *("prompt", "response", "context", "input", "system", "id", "category", "reference"),
    "messages",
)

# The columns that a table of each shape must have; column=field where one is read. When two shapes
# have equally many columns, the earlier one wins, so shapes with answers come first.
PRESETS = {
    "chat": "messages=messages",
    # What `oneshot-lit predict` writes; only by name, as its prompts alone may be meant.
    "predictions": "messages=messages output=response",
    "advbench": "goal=prompt target=response",
    "prompt_target": "prompt=prompt target=response",
    "alpaca": "instruction=prompt input=input output=response",
    "dolly": "instruction=prompt context=input response=response category=category",
    "question_context_answer": "question=prompt context=context answer=response",
    "prompt_response": "prompt=prompt response=response",
    "prompt_completion": "prompt=prompt completion=response",
    "instruction_output": "instruction=prompt output=response",
    "instruction_response": "instruction=prompt response=response",
    "question_answer": "question=prompt answer=response",
    "instruction_category": "instruction=prompt category=category",
    "or_bench": "prompt=prompt category=category",
    "prompt_category": "prompt=prompt category=category category_id",
    "harmbench": "Behavior=prompt FunctionalCategory SemanticCategory=category Tags "
    "ContextString=context BehaviorID=id",
    "strongreject": "category=category source forbidden_prompt=prompt",
    "xstest": "id=id prompt=prompt type=category label focus note",
    "xstest_v2": "prompt=prompt focus type=category note label",
    # The second version's own file, which has no label: the unsafe types begin with "contrast_".
    "xstest_v2_prompts": "id_v1 id_v2=id type=category prompt=prompt focus note",
    "refusal_pairs": "instruction=prompt refusal=response harmful",
    "jailbreakbench": "Index=id Goal=prompt Target=response Behavior Category=category Source",
    "prompt_set": "id=id prompt=prompt category=category reference=reference",
    "prompts": "prompt=prompt",
    "goals": "goal=prompt",
}

# Names that chat data use for a column with the system turn.
_SYSTEM = ("system", "system_prompt", "system_message")
# These columns change what is asked, learned or scored, so none is ignored without being told to.
_WEIGHTY = ("response", "context", "input", "system", "reference")
# Shapes of common words. A table that has more of these words may mean something else.
_COMMON = (
    *("alpaca", "dolly", "question_context_answer", "prompt_response", "prompt_completion"),
    *("instruction_output", "instruction_response", "question_answer"),
)
_COMMON_WORDS = {
    *("prompt", "instruction", "question", "goal", "passage", "history", "choices", "options"),
    *("response", "output", "completion", "answer", "target"),
}


def shape(preset: str) -> list[str]:
    """Return the columns that a table of a shape has."""
    return [part.partition("=")[0] for part in PRESETS[preset].split()]


def _map_of(preset: str, header: Sequence[str]) -> dict[str, str]:
    """Return field -> column, as a table of a shape is read."""
    pairs = [part.split("=") for part in PRESETS[preset].split() if "=" in part]
    fields = {field: column for column, field in pairs}
    if preset in ("chat", "predictions", *_COMMON):
        # What the rows may bring beside their turns.
        fields |= {f: f for f in ("id", "category", "reference") if f in header}
        system = [column for column in header if column.lower() in _SYSTEM]
        fields |= {"system": system[0]} if system else {}
    return fields


def find_preset(header: Sequence[str]) -> str | None:
    """Return the name of the shape that a header has, or None.

    A header has a shape if it holds all of the shape's columns, in any order; further columns and
    the row numbers of pandas do not matter. Of several shapes:

    - a table with ``messages`` is a chat, whatever else it holds;
    - else the shape with the most columns wins, and of equally long ones the first in `PRESETS`;
    - a single ``prompt`` or ``goal`` is too little to go by, so these need a table without further
      columns.
    """
    names = {c for c in header if c.strip() and not c.startswith(("Unnamed: 0", "__index_level_"))}
    if "messages" in names:
        return "chat"
    sizes = {
        name: len(columns)
        for name in PRESETS
        if names.issuperset(columns := shape(name)) and (len(columns) > 1 or len(names) == 1)
    }
    # max keeps the first of equals.
    return max(sizes, key=lambda name: sizes[name], default=None)


def resolve_columns(
    preset: str | None, columns: Mapping[str, str] | None, header: Sequence[str], origin: str
) -> dict[str, str]:
    """Return field -> column for a table with this header.

    Args:
        preset: Name of a known shape, or None to find it from the header (see `find_preset`).
        columns: Field -> column, replacing the preset's fields, or the whole map without a preset.
        header: The table's columns.
        origin: File and row, for errors.

    Raises:
        OneShotError: for an unknown preset or field, or a map without a prompt.
        RowError: for an unknown column, a header of no known shape, or a response, context,
            input, system or reference column that the shape would leave out.
    """
    for name, known in ((preset, PRESETS), *((field, FIELDS) for field in columns or {})):
        if name is not None and name not in known:
            what = f"preset '{name}'" if known is PRESETS else f"field '{name}' in columns"
            raise OneShotError(
                f"{origin}: unknown {what}{did_you_mean(name, known)}; known: {', '.join(known)}."
            )
    if preset is not None or columns:
        # Columns that the user did not name, such as the answers, are not added silently.
        fields = ({} if preset is None else _map_of(preset, header)) | dict(columns or {})
    else:
        fields = _guess(header, origin)
    for column in fields.values():
        if column not in header:
            hint = did_you_mean(column, header)
            advice = f"{hint}; the columns are {in_short(header) or '(none)'}."
            raise RowError(origin, f"unknown column '{column}'", advice)
    if "prompt" not in fields and "messages" not in fields:
        raise OneShotError(f"{origin}: no column holds the prompt; set columns.prompt.")
    return fields


def _guess(header: Sequence[str], origin: str) -> dict[str, str]:
    """Return the map of the shape that the header has; an error if it has none."""
    advice = (
        "; name them, such as columns: {prompt: text}, or set preset, or header if the file has "
        "no header line."
    )
    preset = find_preset(header)
    if preset is None:
        reason = "the columns are no known shape"
        raise RowError(origin, reason, f" ({in_short(header) or 'none'}){advice}")
    fields = _map_of(preset, header)
    # The rows of a chat bring their own reference, and a system turn.
    weighty = {"response", "context"} if preset == "chat" else {*_WEIGHTY}
    weighty |= _COMMON_WORDS if preset in _COMMON else set()
    unread = [c for c in header if c.lower() in weighty and c not in fields.values()]
    if unread:
        reason = f"the columns have the shape {preset}, which leaves out {in_short(unread)}"
        raise RowError(origin, reason, advice)
    return fields


def selected(
    row: Mapping[str, Any], where: Mapping[str, str | list[str]] | None, origin: str
) -> bool:
    """Whether a row's columns equal the values of `where`; one value of a list is enough."""
    for column, wanted in (where or {}).items():
        if column not in row:
            advice = f"{did_you_mean(column, row)}; the columns are {in_short(row)}."
            raise RowError(origin, f"unknown column '{column}' in where", advice)
        value = row[column]
        values = {str(each) for each in (wanted if isinstance(wanted, list) else [wanted])}
        # JSON and YAML write true, Python True.
        known = {str(value), str(value).lower()} if isinstance(value, bool) else {str(value)}
        if not known & values:
            return False
    return True


def _cell(row: Mapping[str, Any], column: str | None, origin: str) -> str | None:
    """Return a cell as text; None if it is missing, empty or not a number (NaN)."""
    value = None if column is None else row[column]
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    if not isinstance(value, (str, int, float, bool)):
        reason = f"column '{column}' holds a {type(value).__name__}"
        advice = ", not text or a number; write it as text or name another column."
        raise RowError(origin, reason, advice)
    return str(value)


def conversation_of(
    fields: Mapping[str, str], row: Mapping[str, Any], origin: str, system: str | None = None
) -> Conversation:
    """Return the conversation of a row.

    Args:
        fields: Field -> column, from `resolve_columns`.
        row: Column -> cell.
        origin: File and row, for errors.
        system: A system prompt for a row that has none.

    Raises:
        RowError: for an empty prompt, cells that are not text, and turns that are not supported.
    """
    cells = {f: _cell(row, column, origin) for f, column in fields.items() if f != "messages"}
    more = {f: cells.get(f) for f in ("id", "category", "reference")}
    own = cells.get("system")
    if "messages" not in fields:
        prompt, context = cells["prompt"], cells.get("context")
        if prompt is None or not prompt.strip():
            reason = f"column '{fields['prompt']}' is empty"
            raise RowError(origin, reason, "; fill it or drop the row.")
        prompt = f"{context}\n\n---\n\n{prompt}" if context else prompt
        more_asked = (cells.get("input") or "").strip("\n")
        prompt = f"{prompt}\n\n{more_asked}" if more_asked.strip() else prompt
        return conversation_from_pair(
            prompt, cells.get("response"), system=own or system, origin=origin, **more
        )
    for key in ("tools", "functions", "weight", "train"):
        # Tables write an empty list as text.
        if row.get(key) not in (None, 1, [], "", "[]", "null"):
            reason = f"'{key}' of a whole row is not supported"
            raise RowError(origin, reason, "; remove it or drop the row.")
    messages = parse_messages(row[fields["messages"]], origin)
    if messages[0].role == "system":
        if own is not None and messages[0].content != own:
            reason = f"'{fields['system']}' and the system turn of the messages differ"
            raise RowError(origin, reason, "; keep one.")
    elif text := own or system:
        messages = (Message("system", text), *messages)
    if (answer := cells.get("response")) is not None:
        if messages[-1].role == "assistant":
            reason = f"the messages end with an answer, and column '{fields['response']}' has one"
            raise RowError(origin, reason, "; name one of them.")
        messages = (*messages, Message("assistant", answer))
    return Conversation(messages, origin, **more)
