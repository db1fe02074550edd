"""Column maps: how the tables of the public research sets become prompts and answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from oneshot_lit.errors import OneShotError, RowError, did_you_mean
from oneshot_lit.io.read_files import in_short


def cell_text(value: Any, what: str, origin: str) -> str | None:
    """Return a cell as text; None if it is missing, empty or not a number (NaN).

    Args:
        value: The cell.
        what: What holds it, such as ``column 'goal'``, for errors.
        origin: File and row, for errors.

    Raises:
        OneShotError: if the value is a list, an object or anything else that is not plain text.
    """
    if value is None:
        return None
    if not isinstance(value, (str, int, float, bool)):
        raise RowError(
            origin,
            f"{what} holds a {type(value).__name__}",
            ", not text or a number; write it as text or name another column.",
        )
    # Tables that went through pandas hold NaN where a cell is missing.
    if value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    return str(value)


@dataclass(frozen=True)
class ColumnMap:
    """Which column holds each field of a conversation; None if there is no such column.

    ``context`` is text that the prompt refers to; it is put before the prompt, as in HarmBench's
    contextual behaviours.
    """

    prompt: str | None = None
    response: str | None = None
    context: str | None = None
    system: str | None = None
    id: str | None = None
    category: str | None = None
    reference: str | None = None
    messages: str | None = None

    def columns(self) -> list[str]:
        """Return every column that the map reads."""
        return [getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None]

    def get(self, row: Mapping[str, Any], name: str, origin: str) -> str | None:
        """Return the text of a field, or None if it has no column or is empty."""
        column = getattr(self, name)
        return None if column is None else cell_text(row[column], f"column '{column}'", origin)

    def prompt_of(self, row: Mapping[str, Any], origin: str) -> str:
        """Return the prompt with its context; an empty prompt is an error."""
        prompt = self.get(row, "prompt", origin)
        if prompt is None or not prompt.strip():
            raise RowError(origin, f"column '{self.prompt}' is empty", "; fill it or drop the row.")
        context = self.get(row, "context", origin)
        return f"{context}\n\n---\n\n{prompt}" if context else prompt

    def selects(
        self, row: Mapping[str, Any], where: Mapping[str, str | list[str]] | None, origin: str
    ) -> bool:
        """Whether the row's columns equal the values of `where`; one value of a list is enough."""
        for column in where or {}:
            if column not in row:
                raise OneShotError(
                    f"{origin}: unknown column '{column}' in where{did_you_mean(column, row)}; "
                    f"the columns are {in_short(row)}."
                )
        for column, wanted in (where or {}).items():
            values = wanted if isinstance(wanted, list) else [wanted]
            if not any(_equal(row[column], value) for value in values):
                return False
        return True


def _equal(value: Any, wanted: Any) -> bool:
    # JSON and YAML write true, Python True.
    if isinstance(value, bool):
        return str(value).lower() == str(wanted).lower()
    return str(value) == str(wanted)


def _shape(columns: str, **fields: str) -> tuple[tuple[str, ...], ColumnMap]:
    return tuple(columns.split()), ColumnMap(**fields)


# The columns that a table of this shape must have, and how they are read. When two shapes have
# equally many columns, the earlier one wins, so shapes with answers come first.
PRESETS: dict[str, tuple[tuple[str, ...], ColumnMap]] = {
    "chat": _shape("messages", messages="messages"),
    "advbench": _shape("goal target", prompt="goal", response="target"),
    "prompt_target": _shape("prompt target", prompt="prompt", response="target"),
    "instruction_category": _shape(
        "instruction category", prompt="instruction", category="category"
    ),
    "or_bench": _shape("prompt category", prompt="prompt", category="category"),
    "prompt_category": _shape("prompt category category_id", prompt="prompt", category="category"),
    "harmbench": _shape(
        "Behavior FunctionalCategory SemanticCategory Tags ContextString BehaviorID",
        prompt="Behavior",
        context="ContextString",
        category="SemanticCategory",
        id="BehaviorID",
    ),
    "strongreject": _shape(
        "category source forbidden_prompt", prompt="forbidden_prompt", category="category"
    ),
    "xstest": _shape("id prompt type label focus note", prompt="prompt", id="id", category="type"),
    "xstest_v2": _shape("prompt focus type note label", prompt="prompt", category="type"),
    # The second version's own file, which has no label: the unsafe types begin with "contrast_".
    "xstest_v2_prompts": _shape(
        "id_v1 id_v2 type prompt focus note", prompt="prompt", id="id_v2", category="type"
    ),
    "refusal_pairs": _shape(
        "instruction refusal harmful", prompt="instruction", response="refusal"
    ),
    "jailbreakbench": _shape(
        "Index Goal Target Behavior Category Source",
        prompt="Goal",
        response="Target",
        category="Category",
        id="Index",
    ),
    "prompt_set": _shape(
        "id prompt category reference",
        prompt="prompt",
        id="id",
        category="category",
        reference="reference",
    ),
    "prompts": _shape("prompt", prompt="prompt"),
    "goals": _shape("goal", prompt="goal"),
}

# Names that data sets use for a column with the system turn of a chat.
_SYSTEM = ("system", "system_prompt", "system_message")


def is_system(column: str) -> bool:
    """Whether a column holds the system turn of a chat."""
    return column.lower() in _SYSTEM


# These columns change what is asked, learned or scored, so none is ignored without being told to.
_WEIGHTY = ("response", "context", "system", "reference")


def _is_index(column: str) -> bool:
    # Pandas writes its row numbers under no name, or under one of these.
    return not column.strip() or column.startswith(("Unnamed: 0", "__index_level_"))


def find_preset(header: Sequence[str]) -> str | None:
    """Return the name of the shape that a header has, or None.

    A header has a shape if it holds all of the shape's columns, in any order; further columns and
    the row numbers of pandas do not matter. Of several shapes:

    - a table with ``messages`` is a chat, whatever else it holds;
    - else the shape with the most columns wins, and of equally long ones the first in `PRESETS`;
    - a single ``prompt`` or ``goal`` is too little to go by, so these need a table without further
      columns.
    """
    names = {column for column in header if not _is_index(column)}
    if "messages" in names:
        return "chat"
    # max keeps the first of equals.
    fitting = [
        name
        for name, (shape, _) in PRESETS.items()
        if names.issuperset(shape) and (len(shape) > 1 or len(names) == 1)
    ]
    return max(fitting, key=lambda name: len(PRESETS[name][0]), default=None)


def _guess(header: Sequence[str], origin: str) -> ColumnMap:
    """Return the map of the shape that the header has; an error if it has none."""
    first = next((column for column in header if not _is_index(column)), "text")
    how = f"name them, such as columns: {{prompt: {in_short([first])}}}, or set preset"
    preset = find_preset(header)
    if preset is None:
        raise OneShotError(
            f"{origin}: the columns {in_short(header) or '(none)'} are no known shape; {how}, or "
            "header if the file has no header line."
        )
    mapping = PRESETS[preset][1]
    # The rows of a chat bring their own reference, and a system turn.
    weighty = ("response", "context") if mapping.messages else _WEIGHTY
    read = mapping.columns()
    unread = [c for c in header if c.lower() in weighty and c not in read]
    if unread:
        raise OneShotError(
            f"{origin}: the columns {in_short(header)} have the shape {preset}, which leaves out "
            f"{in_short(unread)}; {how} to go without."
        )
    return mapping


def resolve_columns(
    preset: str | None,
    columns: Mapping[str, str] | None,
    header: Sequence[str],
    origin: str,
) -> ColumnMap:
    """Return the column map for a table with this header.

    Args:
        preset: Name of a known shape, or None to find it from the header (see `find_preset`).
        columns: Field -> column, replacing the preset's fields, or the whole map without a preset.
        header: The table's columns.
        origin: File and row, for errors.

    Raises:
        OneShotError: for an unknown preset, field or column, a header of no known shape, or a
            response, context, system or reference column that the shape would leave out.
    """
    if preset is not None and preset not in PRESETS:
        raise OneShotError(
            f"{origin}: unknown preset '{preset}'{did_you_mean(preset, PRESETS)}; "
            f"known: {', '.join(PRESETS)}."
        )
    names = [f.name for f in fields(ColumnMap)]
    for field in columns or {}:
        if field not in names:
            raise OneShotError(
                f"{origin}: unknown field '{field}' in columns{did_you_mean(field, names)}; "
                f"the fields are {', '.join(names)}."
            )
    if preset is not None:
        mapping = PRESETS[preset][1]
    elif columns:
        # Columns that the user did not name, such as the answers, are not added silently.
        mapping = ColumnMap()
    else:
        mapping = _guess(header, origin)
    mapping = replace(mapping, **dict(columns or {}))
    for column in mapping.columns():
        if column not in header:
            raise OneShotError(
                f"{origin}: unknown column '{column}'{did_you_mean(column, header)}; "
                f"the columns are {in_short(header)}."
            )
    if mapping.prompt is None and mapping.messages is None:
        raise OneShotError(f"{origin}: no column holds the prompt; set columns.prompt.")
    return mapping
