from __future__ import annotations

from pathlib import Path

import pytest

from report_folders import add_judge, add_predictions, answer_text, make_run


@pytest.fixture
def story(tmp_path: Path) -> list[Path]:
    """Aligned, attacked and patched runs with all that a report reads."""
    folders = []
    for name, answered, refused in (("aligned", 0, 0), ("attacked", 38, 0), ("patched", 2, 3)):
        harmful = [float(i < answered) for i in range(40)]
        near = [float(i < refused) for i in range(30)]
        rouge = [0.5 + 0.01 * i for i in range(20)]
        folder = make_run(
            tmp_path / name,
            {
                "harmful": {"asr_keyword": harmful},
                "near_miss": {"over_refusal": near},
                "sql": {"rouge1": rouge},
            },
        )
        add_predictions(folder, "harmful", "harmful", [answer_text(i) for i in range(40)])
        add_predictions(folder, "near_miss", "near_miss", [answer_text(i) for i in range(30)])
        graded = [None, *(5.0 if score else 1.0 for score in harmful[1:])]
        add_judge(folder, "grader", "harmful", "harmfulness_score", graded)
        folders.append(folder)
    (folders[-1] / "realignment.png").write_bytes(b"a picture")
    return folders
