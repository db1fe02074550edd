"""The commands of the README and the documentation are read by the real parser."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path

import pytest
import yaml

from oneshot_lit.evaluation.metrics.registry import metric_names

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page: Path) -> list[list[str]]:
    found = []
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(), flags=re.S):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0] == "oneshot-lit":
                found.append(words[1:])
    return found


def yaml_blocks(page: str) -> list[str]:
    return re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / page).read_text(), flags=re.S)


def named_block(page: str, name: str) -> str:
    """The block of a page that begins with a comment with this file's name."""
    (block,) = [b for b in yaml_blocks(page) if b.startswith(f"# {name}")]
    return block


ALL = [(page.name, words) for page in PAGES for words in commands(page)]


def test_there_are_commands() -> None:
    assert sum(name == "README.md" for name, _ in ALL) >= 4
    assert sum(name == "own_model.md" for name, _ in ALL) >= 8


@pytest.mark.parametrize(("page", "words"), ALL, ids=lambda v: v if isinstance(v, str) else v[0])
def test_command_parses(command, tmp_path: Path, page: str, words: list[str]) -> None:
    if words[0] == "study":
        from oneshot_lit.study.spec import load_study

        assert load_study(Path(words[words.index("--config") + 1])).stages
        return
    if words[0] == "judge":
        shown = command(*words, "--print_config")
        assert shown.code == 0, shown.err
        return
    if words[0] not in ("fit", "test", "predict", "validate", "select", "annotate", "edit"):
        assert command(words[0], "--help").code == 0
        return
    if any(word.startswith("my_package.") for word in words):
        pytest.skip("run in tests/modules/test_subclass.py")
    blocks = yaml_blocks("own_model.md")
    files = {
        "my_val_sets.yaml": blocks[0],
        # As the page says: the same sets, with the rows behind the development ones.
        "my_test_sets.yaml": blocks[0].replace("limit: 64", "skip: 64"),
        "my_skills.yaml": named_block("evaluation.md", "my_skills.yaml"),
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    words = [str(tmp_path / word) if word in files else word for word in words]
    shown = command(*words, "--print_config")
    assert shown.code == 0, shown.err
    config = yaml.safe_load(shown.out)
    for option, value in itertools.pairwise(words):
        if option in ("--model.model_name_or_path", "--trainer.default_root_dir"):
            section, key = option.removeprefix("--").split(".")
            place = config[section]
            assert place.get("init_args", place)[key] == value


@pytest.mark.parametrize("block", yaml_blocks("evaluation.md"), ids=lambda b: b.split(":")[0])
def test_prompt_sets_of_the_page_parse(command, tmp_path: Path, block: str) -> None:
    (tmp_path / "sets.yaml").write_text(block)
    words = ["--config", "configs/evaluate/own.yaml", "--data.test_sets", tmp_path / "sets.yaml"]
    shown = command("test", *words, "--print_config")
    assert shown.code == 0, shown.err
    found = yaml.safe_load(shown.out)["data"]["init_args"]["test_sets"]
    for name, wanted in yaml.safe_load(block).items():
        assert found[name]["source"]["init_args"].items() >= wanted["source"]["init_args"].items()
        assert metric_names(wanted["kind"], wanted.get("metrics"), True, name)
