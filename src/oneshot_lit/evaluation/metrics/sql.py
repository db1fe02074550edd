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
_COMPARISONS = (exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.Like, exp.ILike)
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
    _flatten_chains(statement)
    # From the top: a value in quotes is taken before its case is lost.
    for node in list(statement.walk()):
        _respell(node)
    _rename_tables(statement)
    if isinstance(statement, exp.Select):
        used = {column.name for column in statement.find_all(exp.Column)}
        plain = [_without_alias(each, used) for each in statement.expressions]
        statement.set("expressions", plain)
    return statement


def _flatten_chains(statement: exp.Expression) -> None:
    """Give every chain of AND, and of OR, one shape: ``a AND (b AND c)`` is ``(a AND b) AND c``."""
    for node in list(statement.find_all(exp.And, exp.Or)):
        kind = type(node)
        # The top of a chain takes all of it along.
        if isinstance(node.parent, kind):
            continue
        waiting: list[Any] = [node]
        members: list[Any] = []
        while waiting:
            each = waiting.pop()
            if isinstance(each, kind):
                waiting += [each.right, each.left]
            else:
                members.append(each)
        *first, last = members
        node.set("this", reduce(lambda left, right: kind(this=left, expression=right), first))
        node.set("expression", last)


def _without_alias(column: exp.Expression, used: set[str]) -> exp.Expression:
    return column.this if isinstance(column, exp.Alias) and column.alias not in used else column


def _respell(node: exp.Expression) -> None:
    if isinstance(node, _COMPARISONS):
        node.set("expression", _as_value(node.expression))
    elif isinstance(node, exp.In):
        node.set("expressions", [_as_value(value) for value in node.expressions])
    elif isinstance(node, exp.Between):
        node.set("low", _as_value(node.args["low"]))
        node.set("high", _as_value(node.args["high"]))
    elif isinstance(node, exp.Identifier):
        node.set("this", node.name.lower())
        node.set("quoted", False)
    elif isinstance(node, exp.Anonymous) and isinstance(node.this, str):
        node.set("this", node.this.lower())


def _as_value(node: exp.Expression) -> exp.Expression:
    """Return the string that a double-quoted name without a table stands for; else the node."""
    quoted = isinstance(node, exp.Column) and not node.table and node.this.args.get("quoted")
    return exp.Literal.string(node.name) if quoted else node


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


def sql_match(output: str, reference: str, dialect: str | None = None) -> bool:
    """Whether an answer is the reference's SQL, in the sense of `normal_form`.

    Raises:
        ValueError: if the reference is not SQL.
    """
    expected = normal_form(reference, dialect)
    if expected is None:
        raise ValueError("a reference is no SQL")
    return normal_form(output, dialect) == expected


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
        """True where both say the same."""
        pairs = zip(outputs, known(references), strict=True)
        return [sql_match(o, r, self.dialect) for o, r in pairs]
