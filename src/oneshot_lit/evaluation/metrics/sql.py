"""Whether two SQL statements say the same, spelling apart; parsed by sqlglot."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from functools import reduce
from typing import Any, ClassVar

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from oneshot_lit.evaluation.metrics.base import TextRate, known

# Anything else that sqlglot accepts, such as two bare words, is not a statement.
_STATEMENTS = (
    exp.Query,
    exp.Create,
    exp.Drop,
    exp.Alter,
    exp.Insert,
    exp.Update,
    exp.Delete,
    exp.Merge,
)
_FENCE = re.compile(r"\s*```[a-z]*[ \t]*\n(.*?)\n?\s*```\s*", flags=re.S | re.I)


def normal_form(text: str, dialect: str | None = None) -> list[exp.Expression] | None:
    """Return the statements of a text in one spelling; None if it is not SQL.

    What does not change the result is made equal: white space, comments, a closing semicolon, the
    case of keywords, functions and names, quotes around names, redundant brackets (also within a
    chain of AND or of OR, and around the whole), ``<>`` and ``!=``, table aliases, and a column
    alias of the outermost select that nothing refers to. The order of columns, conditions and
    tables counts, and so does the case of strings. A value in double quotes that something is
    compared with is a string, as public sets write them. A code fence around the whole text is
    taken off.

    Args:
        text: One or more statements.
        dialect: A dialect of sqlglot, such as ``mysql``; its own mixture if not given.
    """
    fenced = _FENCE.fullmatch(text)
    # Its warnings quote what it parses; logs never hold model outputs.
    logging.getLogger("sqlglot").setLevel(logging.ERROR)
    try:
        parsed = sqlglot.parse(text if fenced is None else fenced[1], dialect=dialect)
        statements: list[Any] = [each for each in parsed if each is not None]
        if not statements or not all(isinstance(each, _STATEMENTS) for each in statements):
            return None
        return [_normalised(each) for each in statements]
    # An answer may be anything, such as ten thousand brackets.
    except (SqlglotError, RecursionError, ValueError):
        return None


def _normalised(statement: Any) -> Any:
    # Brackets around the whole statement; with a LIMIT after them they mean something.
    while isinstance(statement, exp.Subquery) and statement.is_wrapper:
        statement = statement.this.pop()
    for bracket in list(statement.find_all(exp.Paren)):
        bracket.replace(bracket.this)
    # Every chain of AND, and of OR, in one shape: ``a AND (b AND c)`` is ``(a AND b) AND c``.
    for top in list(statement.find_all(exp.Connector)):
        kind = type(top)
        if not isinstance(top.parent, kind):
            *first, last = top.flatten()
            top.set("this", reduce(lambda left, right: kind(this=left, expression=right), first))
            top.set("expression", last)
    for column in list(statement.find_all(exp.Column)):
        quoted = column.this.args.get("quoted") and not column.table
        # What something is compared with is a value.
        if quoted and isinstance(column.parent, exp.Predicate) and column.arg_key != "this":
            column.replace(exp.Literal.string(column.name))
    for name in list(statement.find_all(exp.Identifier, exp.Anonymous)):
        name.set("this", name.name.lower())
        name.set("quoted", False)
    _rename_tables(statement)
    if isinstance(statement, exp.Select):
        used = {column.name for column in statement.find_all(exp.Column)}
        for column in statement.expressions:
            if isinstance(column, exp.Alias) and column.alias not in used:
                column.replace(column.this)
    return statement


def _rename_tables(statement: exp.Expression) -> None:
    """Number the table aliases in their order; not where one is also the name of a table."""
    aliases = [a.this for a in statement.find_all(exp.TableAlias) if a.this is not None]
    numbers = {alias.name: f"alias {i}" for i, alias in enumerate(aliases)}
    if any(table.name in numbers for table in statement.find_all(exp.Table)):
        return
    for column in statement.find_all(exp.Column):
        if column.table in numbers:
            column.set("table", exp.to_identifier(numbers[column.table], quoted=False))
    for alias in aliases:
        alias.set("this", numbers[alias.name])


class SqlMatch(TextRate):
    """Share of answers that say the same as the reference's SQL; one that is not SQL is wrong.

    Statements are compared, not results: another way to the same rows is wrong, too.

    Attributes:
        dialect: A dialect of sqlglot, such as ``mysql``; a subclass may name one.
    """

    higher_is_better = True
    needs_references = True
    skill = True
    dialect: ClassVar[str | None] = None

    def reference_problem(self, reference: str) -> str | None:
        """A reference must be SQL."""
        return None if normal_form(reference, self.dialect) else "is no SQL"

    def hits(self, outputs: Sequence[str], references: Sequence[str | None]) -> list[bool]:
        """True where both say the same, in the sense of `normal_form`."""
        forms = [[normal_form(t, self.dialect) for t in of] for of in (outputs, known(references))]
        if None in forms[1]:
            raise ValueError("a reference is no SQL")
        return [one == other for one, other in zip(*forms, strict=True)]
