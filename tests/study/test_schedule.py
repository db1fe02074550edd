"""Commands run side by side only where none needs another's product."""

from __future__ import annotations

from pathlib import Path

from oneshot_lit.study.schedule import Schedule, needs, total
from oneshot_lit.study.spec import Command, Stage, Study

FIT, TEST = Command(("f.yaml",)), Command(("t.yaml",))


def study(*stages: Stage) -> Study:
    return Study("s", "s", Path("out"), 0, stages, Path("s.yaml"))


BROKEN = Stage("broken", "checkpoints/medium", FIT, TEST)
CHOICE = Stage("choice", "broken", None, None, select=FIT)
PICK = Stage(
    "pick", "broken", Command(("f.yaml",), {"a": {"b": ["x", "out/choice/selection.json"]}}), TEST
)
ALIKE = Stage("alike", "broken", Command(("f.yaml",), {"path": "out/choices/x"}), TEST)


def test_a_stage_needs_its_model_and_what_its_settings_name() -> None:
    found = needs(study(BROKEN, CHOICE, PICK, ALIKE))
    assert found == {
        "broken": set(),
        "choice": {"broken"},
        "pick": {"broken", "choice"},
        # A folder whose name starts like a stage's is another.
        "alike": {"broken"},
    }


def test_the_order_is_the_studys_as_far_as_products_allow() -> None:
    schedule = Schedule(study(BROKEN, CHOICE, PICK))
    assert schedule.take() == (BROKEN, "fit")
    assert schedule.take() is None
    schedule.end("broken")
    # The model is there; its test may go on beside what uses it.
    assert schedule.take() == (BROKEN, "test")
    assert schedule.take() == (CHOICE, "select")
    assert schedule.take() is None
    schedule.end("choice")
    assert schedule.take() == (PICK, "fit")
    schedule.end("broken")
    schedule.end("pick")
    assert schedule.take() == (PICK, "test")
    assert schedule
    schedule.end("pick")
    assert not schedule


def test_total_counts_commands() -> None:
    assert total([BROKEN, CHOICE, PICK]) == 5
