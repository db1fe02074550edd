"""Every format under names, categories and outputs that try to break it."""

from __future__ import annotations

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneshot_lit.cli.report import named_folders
from oneshot_lit.report.content import build_report
from oneshot_lit.report.page import write_report
from oneshot_lit.report.runs import read_run
from oneshot_lit.report.text import (
    markdown,
    markdown_block,
    visible,
    without_machine_paths,
)
from report_folders import add_judge, add_predictions, answer_text, make_run, report_of

HOSTILE = [
    "<script>alert(1)</script>",
    "a|b\nc",
    "=cmd('x')&%_#$~^{}\\",
    "\x1b[31mred\u202e",
    "[v2](http://x)`*",
    "_hidden $\\frac{1}$",
    "  +1",
]


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A report of two runs whose every name is hostile, with outputs shown."""
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        name = "set " + "".join(HOSTILE)
        make_run(folder, {name: {"asr_keyword": [1.0, 0.0] * 10}}, categories=HOSTILE)
        add_judge(folder, "guard", name, "flagged_rate", [1.0, None] * 10, version=HOSTILE[0])
        add_predictions(folder, name, "harmful", [text + "```\n````" for text in HOSTILE] * 2)
    names = ("".join(HOSTILE[:4]), "".join(HOSTILE[4:]))
    words = [
        f"{visible(n)}={folder}".replace("=cmd", "cmd")
        for n, folder in zip(names, folders, strict=True)
    ]
    runs = [read_run(name, folder) for name, folder in named_folders(words).items()]
    report = build_report(runs, HOSTILE[0], 20, show_outputs=True)
    write_report(report, tmp_path / "out")
    return tmp_path / "out"


class _Tags(HTMLParser):
    """Collects what a browser would see."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str | None] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value for key, value in attrs if key in ("href", "src")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_stays_whole(hostile: Path) -> None:
    text = (hostile / "report.html").read_text()
    page = _Tags()
    page.feed(text)
    assert not page.open
    assert page.tags & {"script", "a", "link", "iframe"} == set()
    assert all(link and link.startswith("data:image/png;base64,") for link in page.links)
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_markdown_tables_keep_their_columns(hostile: Path) -> None:
    text = (hostile / "report.md").read_text()
    assert "\x1b" not in text
    # Fenced text may hold anything.
    outside = re.sub(r"^(`{3,})text\n.*?\n\1$", "", text, flags=re.S | re.M)
    assert "<script" not in outside
    blocks = [block.splitlines() for block in outside.split("\n\n") if block.startswith("|")]
    assert len(blocks) >= 4
    for block in blocks:
        widths = {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in block}
        assert len(widths) == 1, block[0]


def test_csv_has_a_row_for_each_score(hostile: Path) -> None:
    rows = list(csv.DictReader(io.StringIO((hostile / "table.csv").read_text())))
    assert len(rows) == 4
    for row in rows:
        float(row["value"]), int(row["n"])


def test_tex_is_balanced(hostile: Path) -> None:
    text = (hostile / "table.tex").read_text()
    lines = text.splitlines()
    body = [line for line in lines if line.endswith(r"\\")]
    assert len(body) == 3
    for line in body:
        bare = line.replace(r"\&", "").replace(r"\{", "").replace(r"\}", "")
        assert bare.count("&") == 3
        assert bare.count("{") == bare.count("}")
        assert not re.search(r"(?<!\\)[%#$_]|\^(?!\{)|~", bare.replace(r"\textasciicircum{}", ""))
    assert text.isascii()


def test_json_holds_everything(hostile: Path) -> None:
    content = json.loads((hostile / "report.json").read_text())
    assert {"scores", "categories", "agreement", "changes", "runs"} <= content.keys()


def test_no_machine_path_is_left(hostile: Path) -> None:
    for file in hostile.glob("*.*"):
        assert "/home/somebody" not in file.read_text(), file
        assert str(hostile.parent) not in file.read_text(), file


@given(st.text())
def test_any_text_is_one_markdown_cell(text: str) -> None:
    cell = markdown(text)
    assert "\n" not in cell
    assert not re.search(r"(?<!\\)(?:\\\\)*\|", cell)
    assert "<" not in cell


@given(st.text(alphabet="`a\n"))
def test_any_text_stays_in_its_block(text: str) -> None:
    lines = markdown_block(text).splitlines()
    fence = lines[0].removesuffix("text")
    assert [line for line in lines[1:] if line.startswith(fence)] == [lines[-1]]


def test_names_that_differ_in_hidden_characters_stay_apart() -> None:
    names = ["ab", "a\u200bb", "a\u200cb", "a\u202eb", "a\x1bb", "a\ufffdb", "a\U000e0001b"]
    assert len({visible(name) for name in names}) == len(names)
    assert visible(names[1]) == "a<U+200B>b"
    assert all(visible(visible(name)) == visible(name) for name in names)


def test_sets_that_differ_in_hidden_characters_stay_two(tmp_path: Path) -> None:
    sets = {"s\u200b": {"asr_keyword": [1.0]}, "s\u200c": {"asr_keyword": [0.0, 0.0]}}
    run = read_run("a", make_run(tmp_path / "a", sets))
    assert run.samples == {"s<U+200B>": 1, "s<U+200C>": 2}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/me/runs/a/model", "…/a/model"),
        ("harmbench-1:/data/models/hb", "harmbench-1:…/models/hb"),
        ("~/runs/a/model", "…/a/model"),
        ("C:\\Users\\me\\model", "…/me/model"),
        ("meta-llama/Llama-2-7b-chat-hf", "meta-llama/Llama-2-7b-chat-hf"),
        ("runs/a/model", "runs/a/model"),
        ("http://localhost:8000/v1/x", "http://localhost:8000/v1/x"),
    ],
)
def test_machine_paths(text: str, expected: str) -> None:
    assert without_machine_paths({"a": [text]}) == {"a": [expected]}
    assert without_machine_paths(expected) == expected


def _examples(story: list[Path], number: int, show_outputs: bool) -> list[dict[str, Any]]:
    options = {"examples": number, "show_outputs": show_outputs}
    return report_of(*story, **options)["examples"]


def test_examples_are_hidden(story: list[Path]) -> None:
    examples = _examples(story, number=2, show_outputs=False)
    assert [e["set"] for e in examples] == ["harmful", "harmful", "near_miss", "near_miss"]
    text = json.dumps(examples)
    assert "SECRET-OUTPUT" not in text
    assert "harmful prompt" not in text
    # A harmless prompt may be read.
    assert "near_miss prompt" in text
    assert examples[0]["answers"][1]["run"] == "attacked"
    assert examples[0]["answers"][1]["verdicts"]["asr_keyword"] == 1.0
    assert examples[0]["answers"][1]["length"] == len(answer_text(0))


def test_examples_are_shown_when_asked_for(story: list[Path]) -> None:
    text = json.dumps(_examples(story, number=1, show_outputs=True))
    assert answer_text(0) in text
    assert "harmful prompt 0" in text


def test_examples_that_differ_come_first(tmp_path: Path) -> None:
    folders = []
    for name, last in (("a", 0.0), ("b", 1.0)):
        folder = make_run(tmp_path / name, {"harmful": {"asr_keyword": [0.0, 0.0, last]}})
        add_predictions(folder, "harmful", "harmful", [answer_text(i) for i in range(3)])
        folders.append(folder)
    assert _examples(folders, number=1, show_outputs=False)[0]["index"] == 2


def test_no_file_of_a_report_holds_outputs(story: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    runs = [read_run(folder.name, folder) for folder in story]
    write_report(build_report(runs, "t"), out)
    for file in out.glob("*.*"):
        text = file.read_text()
        assert "SECRET-OUTPUT" not in text
        assert "harmful prompt 0" not in text
