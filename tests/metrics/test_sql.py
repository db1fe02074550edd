"""Which SQL says the same, and what is no SQL."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oneshot_lit.evaluation.metrics import METRICS, SqlMatch
from oneshot_lit.evaluation.metrics.sql import normal_form


def sql_match(output: str, reference: str) -> bool:
    return SqlMatch().hits([output], [reference])[0]


SAME = [
    ("SELECT a FROM t", "select  A\nfrom T ;"),
    ("SELECT a FROM t", 'SELECT "a" FROM "T"'),
    ("SELECT a FROM t", "SELECT a -- the a\nFROM t"),
    ("SELECT a FROM t WHERE x = 'Bob'", 'SELECT a FROM t WHERE x = "Bob"'),
    ("SELECT a FROM t WHERE x IN ('b', 'c')", 'SELECT a FROM t WHERE x IN ("b", "c")'),
    ("SELECT a FROM t WHERE x BETWEEN '1' AND '2'", 'SELECT a FROM t WHERE x BETWEEN "1" AND "2"'),
    ("SELECT a FROM t WHERE x LIKE '%b%'", 'SELECT a FROM t WHERE x LIKE "%b%"'),
    ("SELECT a FROM t WHERE x <> 1", "SELECT a FROM t WHERE x != 1"),
    ("SELECT a FROM t WHERE x = 1", "SELECT a FROM t WHERE ((x = (1)))"),
    (
        "SELECT a FROM t WHERE x=1 AND y=2 AND z=3 AND w=4",
        "SELECT a FROM t WHERE x=1 AND (y=2 AND (z=3 AND w=4))",
    ),
    (
        "SELECT a FROM t WHERE x=1 OR (y=2 AND z=3 AND (u=5 OR v=6 OR w=4)) OR s=7",
        "SELECT a FROM t WHERE x=1 OR ((y=2 AND (z=3 AND (u=5 OR (v=6 OR w=4)))) OR s=7)",
    ),
    ("SELECT a FROM t", "(SELECT a FROM t)"),
    ("SELECT a FROM t LIMIT 1", "((SELECT a FROM t LIMIT 1));"),
    ("SELECT COUNT(*) FROM t", "SELECT count(*) AS n FROM t"),
    ("SELECT my_own(a) FROM t", "SELECT MY_OWN(a) FROM t"),
    (
        "SELECT T1.a FROM t AS T1 JOIN u AS T2 ON T1.id = T2.id",
        "select x.a from t x join u y on x.id = y.id",
    ),
    ("SELECT a FROM (SELECT b FROM u) AS q", "SELECT a FROM (SELECT b FROM u) AS z"),
    ("SELECT a FROM t", "```sql\nSELECT a FROM t;\n```"),
    (
        "create table clubs ( date real , title text ) ;",
        "CREATE TABLE Clubs (date REAL, title TEXT)",
    ),
    ("INSERT INTO t VALUES (1); SELECT 1", "insert into t values (1);\n\nselect 1;"),
]
OTHER = [
    ("SELECT a FROM t", "SELECT b FROM t"),
    ("SELECT a, b FROM t", "SELECT b, a FROM t"),
    ("SELECT a FROM t", "SELECT DISTINCT a FROM t"),
    ("SELECT a FROM t WHERE x = 'Bob'", "SELECT a FROM t WHERE x = 'bob'"),
    ("SELECT a FROM t WHERE x = '1'", "SELECT a FROM t WHERE x = 1"),
    ("SELECT a FROM t WHERE (x=1 OR y=2) AND z=3", "SELECT a FROM t WHERE x=1 OR y=2 AND z=3"),
    ("SELECT a FROM t WHERE x=1 AND (y=2 OR z=3)", "SELECT a FROM t WHERE x=1 AND y=2 OR z=3"),
    ("SELECT a FROM t WHERE NOT (x=1 AND y=2)", "SELECT a FROM t WHERE NOT x=1 AND y=2"),
    ("SELECT a FROM t WHERE x=1 AND (y=2 AND z=3)", "SELECT a FROM t WHERE x=1 AND z=3 AND y=2"),
    ("SELECT a - (b - c) FROM t", "SELECT a - b - c FROM t"),
    ("SELECT a FROM t", "(SELECT a FROM t) LIMIT 1"),
    ("SELECT a FROM t ORDER BY a", "SELECT a FROM t ORDER BY a DESC"),
    # Something refers to the alias.
    ("SELECT COUNT(*) AS n FROM t ORDER BY n", "SELECT COUNT(*) FROM t ORDER BY n"),
    # The aliases are swapped.
    (
        "SELECT T1.a FROM t AS T1 JOIN u AS T2 ON T1.id = T2.id",
        "SELECT y.a FROM t x JOIN u y ON x.id = y.id",
    ),
    # An alias that is another table's name is left alone.
    ("SELECT u.a FROM t AS u, u AS t", "SELECT t.a FROM t AS u, u AS t"),
    ("WITH a AS (SELECT 1) SELECT * FROM a", "WITH b AS (SELECT 1) SELECT * FROM a"),
    ('SELECT "a" FROM t', "SELECT 'a' FROM t"),
    ("SELECT 1; SELECT 2", "SELECT 1"),
    ("SELECT a FROM t", "Here it is: SELECT a FROM t"),
    ("SELECT a FROM t", "SELECT a FROM"),
    ("SELECT a FROM t", ""),
    ("SELECT a FROM t", "(" * 5000),
    ("SELECT a FROM t", "sorry , i can not help with that ."),
]


@pytest.mark.parametrize(("reference", "output"), SAME)
def test_the_same_in_other_words(reference: str, output: str) -> None:
    assert sql_match(output, reference)
    assert sql_match(reference, output)


@pytest.mark.parametrize(("reference", "output"), OTHER)
def test_something_else(reference: str, output: str) -> None:
    assert not sql_match(output, reference)


@pytest.mark.parametrize("text", ["", "take vuke", "1", "a = b", "SELECT a FROM", "```sql\n```"])
def test_a_reference_must_be_sql(text: str) -> None:
    metric = METRICS["sql_match"]()
    assert metric.reference_problem(text) == "is no SQL"
    with pytest.raises(ValueError, match="no SQL"):
        metric.update(["SELECT 1"], [text])


@settings(deadline=None)
@given(st.text(max_size=60) | st.text("SELECT a,b*()'\"`;-\n", max_size=60))
def test_no_answer_breaks_it_or_reaches_a_log(text: str) -> None:
    assert normal_form(text) is None or sql_match(text, text)


def test_logs_hold_no_output(caplog: pytest.LogCaptureFixture) -> None:
    # sqlglot falls back to a bare command here, and would say what it could not parse.
    assert normal_form("ALTER my secret words") is None or True
    assert "secret" not in caplog.text


def test_a_dialect_of_ones_own() -> None:
    class MySql(SqlMatch):
        dialect = "mysql"

    pair = (['SELECT "a" FROM t'], ["SELECT 'a' FROM t"])
    assert SqlMatch().scores(*pair) == [0.0]
    assert MySql().scores(*pair) == [1.0]
