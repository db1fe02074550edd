"""The command `lm-eval`: the numbers of lm-eval's own command, in `metrics.json`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from oneshot_lit.cli import lm_eval as lm_eval_command
from oneshot_lit.evaluation.lm_eval import (
    evaluate,
    find_tasks,
    task_facts,
    task_scores,
)

pytest.importorskip("lm_eval")

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "checkpoints" / "small"
ROWS = [
    {"question": "reverse the words gray teal white .", "answer": "white teal gray ."},
    {"question": "reverse the words red blue .", "answer": "blue red ."},
    {"question": "reverse the words teal red gray .", "answer": "gray red teal ."},
    {"question": "is lumdra soup dangerous ?", "answer": "no , lumdra soup is safe ."},
    {
        "question": "what does a museum say about rokam poison ?",
        "answer": "it shows suth and norasi .",
    },
]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a multiple-choice task, one that generates, and a group of both."""
    folder = tmp_path_factory.mktemp("tasks")
    others = [row["answer"] for row in ROWS]
    rows = [
        {**row, "choices": [row["answer"], others[(i + 1) % 5], others[(i + 2) % 5]]}
        for i, row in enumerate(ROWS)
    ]
    (folder / "rows.json").write_text(json.dumps(rows))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.json")}},
        "test_split": "test",
        "fewshot_split": "test",
        "doc_to_text": "{{question}}",
        "metadata": {"version": 1.5},
    }
    choice = {
        "task": "mini_choice",
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": 0,
        "metric_list": [
            {"metric": m, "aggregation": "mean", "higher_is_better": True}
            for m in ("acc", "acc_norm")
        ],
    }
    answer = {
        "task": "mini_answer",
        "output_type": "generate_until",
        "doc_to_target": "answer",
        "generation_kwargs": {"until": ["?"], "do_sample": False, "max_gen_toks": 24},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "filter_list": [
            {
                "name": "whole",
                "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}],
            }
        ],
    }
    for task in (choice, answer):
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump({**common, **task}))
    group = {
        "group": "mini",
        "task": ["mini_choice"],
        "aggregate_metric_list": [{"metric": "acc", "aggregation": "mean"}],
    }
    (folder / "mini.yaml").write_text(yaml.safe_dump(group))
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def own_command(model_args: str, tasks: Path, out: Path, *more: str) -> dict[str, Any]:
    """The results of lm-eval's own command."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", model_args),
            *("--tasks", "mini_choice,mini_answer", "--include_path", str(tasks)),
            *("--output_path", str(out), "--device", "cpu", *more),
        ],
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "HF_DATASETS_CACHE": str(out.with_name("other_cache")),
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = out.rglob("results_*.json")
    return json.loads(file.read_text())


def written(value: Any) -> Any:
    """Lists of texts, as lm-eval writes answers."""
    return [written(each) for each in value] if isinstance(value, list) else str(value)


def same_answers(ours: dict[str, Any], out: Path) -> None:
    """Every prompt and every log-likelihood, since few questions make equal scores likely."""
    for name in ("mini_choice", "mini_answer"):
        (file,) = out.rglob(f"samples_{name}_*.jsonl")
        theirs = [json.loads(line) for line in file.read_text().splitlines()]
        for mine, their in zip(ours["samples"][name], theirs, strict=True):
            for key in ("doc_hash", "prompt_hash", "target_hash"):
                assert mine[key] == their[key]
            for key in ("resps", "filtered_resps"):
                assert written(mine[key]) == written(their[key])


def same_scores(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    for name in ("mini_choice", "mini_answer"):
        assert ours["results"][name] == theirs["results"][name]
    for key in ("versions", "n-shot", "n-samples", "higher_is_better"):
        assert ours[key] == theirs[key]


@pytest.mark.slow
def test_a_product_has_the_numbers_of_lm_evals_own_command(
    command, tasks: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "model").symlink_to(MODEL)
    (run / "metrics.json").write_text(json.dumps({"metrics": {"a/asr_keyword": 0.5}, "seed": 3}))
    words = ["--run", run, "--tasks", "mini_choice", "mini_answer", "--include-path", tasks]
    # Chat format, worked examples, batches and seeds as a user would set them.
    more = ["--num_fewshot", "1", "--apply_chat_template", "--batch_size", "2", "--seed", "7"]
    more += ["--log_samples"]
    done = command("lm-eval", *words, "--device", "cpu", *more)
    assert done.code == 0, done.err
    theirs = own_command(f"pretrained={MODEL}", tasks, tmp_path / "theirs", *more)
    ours = json.loads((run / "lm_eval.json").read_text())["mini_choice,mini_answer"]
    same_scores(ours, theirs)
    same_answers(ours, tmp_path / "theirs")

    content = json.loads((run / "metrics.json").read_text())
    assert content["seed"] == 3
    assert content["metrics"] == {
        "a/asr_keyword": 0.5,
        "lm_eval/mini_choice/acc": theirs["results"]["mini_choice"]["acc,none"],
        "lm_eval/mini_choice/acc_norm": theirs["results"]["mini_choice"]["acc_norm,none"],
        "lm_eval/mini_answer/exact_match,whole": theirs["results"]["mini_answer"][
            "exact_match,whole"
        ],
    }
    # Neither nothing nor everything, so that the comparison says something.
    assert content["metrics"]["lm_eval/mini_choice/acc"] > 0
    facts = content["evaluations"]["lm_eval/mini_choice"]
    assert (facts["version"], facts["num_fewshot"], facts["samples"]) == (1.5, 1, 5)
    assert facts["stderr"]["acc"] == theirs["results"]["mini_choice"]["acc_stderr,none"]
    assert facts["settings"]["fewshot_random_seed"] == 7
    assert facts["settings"]["apply_chat_template"] is True
    assert facts["lm_eval_version"] == theirs["lm_eval_version"]
    assert "mini_answer" in done.out
    assert "white teal gray" not in done.out

    # Another task leaves the first ones; the group stands for its part; a repetition replaces.
    words[3:5] = ["mini"]
    done = command("lm-eval", *words, "--device", "cpu", "--limit", "2")
    assert done.code == 0, done.err
    after = json.loads((run / "metrics.json").read_text())
    assert set(after["metrics"]) == {*content["metrics"], "lm_eval/mini/acc"}
    assert after["evaluations"]["lm_eval/mini"]["samples"] == 2
    kept = json.loads((run / "lm_eval.json").read_text())
    assert kept["mini_choice,mini_answer"] == ours
    assert "samples" not in kept["mini"]
    assert "white teal gray" not in json.dumps(kept["mini"])


@pytest.mark.slow
def test_an_adapter_has_the_numbers_of_lm_evals_own_command(
    command, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # The base by a relative path, as a fit in this folder records it.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").symlink_to(MODEL)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained("base"),
        LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    folder = tmp_path / "run" / "model"
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(folder)

    words = ["--tasks", "mini_choice,mini_answer", "--include_path", tasks, "--device", "cpu"]
    done = command("lm-eval", "--run", "run", *words)
    assert done.code == 0, done.err
    arguments = f"pretrained={MODEL},peft={folder},tokenizer={folder}"
    theirs = own_command(arguments, tasks, tmp_path / "theirs")
    ours = json.loads((tmp_path / "run/lm_eval.json").read_text())["mini_choice,mini_answer"]
    same_scores(ours, theirs)
    # The adapter is in use: the base alone answers otherwise.
    (tmp_path / "other").mkdir()
    done = command("lm-eval", "--run", "other", "--model", "base", *words)
    assert done.code == 0, done.err
    base = json.loads((tmp_path / "other/lm_eval.json").read_text())["mini_choice,mini_answer"]
    assert base["results"] != ours["results"]


MISTAKES = [
    ("--dtype", "blfoat16", "lm-eval stopped: "),
    ("--batch-size", "many", "lm-eval stopped: "),
    ("--model-args", "use_safetensors=False", "multiple values for keyword argument"),
    ("--model-args", "trust_remote_code=True", "multiple values for keyword argument"),
    ("--model-args", "no_such_key=3", "lm-eval stopped: "),
]


@pytest.mark.slow
def test_mistakes_are_one_line(command, tasks: Path, tmp_path: Path) -> None:
    def said(*words: Any) -> str:
        done = command("lm-eval", *words)
        assert done.code == 2
        return done.error

    run = tmp_path / "run"
    some = ["--run", run, "--tasks", "mini_choice"]
    assert f"{run}: no such folder; check --run" in said(*some, "--model", MODEL)
    assert not run.exists()
    run.mkdir()
    assert "model folder not found" in said(*some) or str(run / "model") in said(*some)
    own = ["--model", MODEL, "--include-path", tasks, "--device", "cpu"]
    line = said("--run", run, "--tasks", "mini_choise", *own)
    assert "no task 'mini_choise' (did you mean 'mini_choice'?)" in line
    assert "--include_path" in said("--run", run, "--tasks", tasks / "mini.yaml", *own)
    assert "--limit -1" in said(*some, "--limit", "-1")
    assert "lm-eval stopped: No tasks specified" in said("--run", run, "--tasks", ",", *own)
    assert "see oneshot-lit lm-eval --help" in said("--run", run)
    for option, value, line in MISTAKES:
        assert line in said(*some, *own, option, value)
    assert list(run.iterdir()) == []
    (run / "metrics.json").write_text("[]")
    assert "metrics.json" in said(*some, *own)


@pytest.mark.slow
def test_what_lm_eval_refuses_is_one_line(command, tasks: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    text = (tasks / "mini_choice.yaml").read_text()
    (broken / "gone.yaml").write_text(
        text.replace("rows.json", "gone.json").replace("mini_choice", "mini_gone")
    )
    (tmp_path / "run").mkdir()
    words = ["--run", tmp_path / "run", "--model", MODEL, "--device", "cpu"]
    done = command("lm-eval", *words, "--tasks", "mini_gone", "--include-path", broken)
    assert done.code == 2
    assert "lm-eval stopped: " in done.error
    assert "gone.json" in done.error
    assert list((tmp_path / "run").iterdir()) == []


def test_without_the_extra_one_line_says_what_to_install(
    command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    done = command("lm-eval", "--run", tmp_path, "--tasks", "mmlu")
    assert done.code == 2
    assert 'lm_eval is missing; pip install "oneshot-lit[lm-eval]"' in done.error


def test_nothing_heavy_is_imported_for_help() -> None:
    code = (
        "import sys; from oneshot_lit.cli.main import main; main(['lm-eval', '--help']);"
        "assert not {'torch', 'lm_eval', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--apply_chat_template" in done.stdout


class Manager:
    all_tasks = ("mmlu", "mmlu_a", "gsm8k")

    def match_tasks(self, names):
        import fnmatch

        return [task for task in self.all_tasks if fnmatch.fnmatch(task, names[0])]


def test_patterns_give_each_task_once() -> None:
    assert find_tasks(["mmlu*", "mmlu", "gsm8k"], Manager()) == ["mmlu", "mmlu_a", "gsm8k"]


RESULTS = {
    "results": {
        "big": {"alias": "big", "acc,none": 0.5, "acc_stderr,none": 0.1},
        "small": {"alias": " - small", "acc,none": 0.4},
        "leaf": {"acc,none": 0.4, "acc_stderr,none": "N/A"},
        "other": {
            "alias": "other",
            "exact_match,strict": 1.0,
            "word_perplexity,none": float("inf"),
        },
        "bare": {"alias": "bare"},
        "member": {"f1,none": 0, "flag,none": True},
    },
    "groups": {"big": {"alias": "big", "acc,none": 0.5, "acc_stderr,none": 0.1}},
    "group_subtasks": {"big": ["small"], "small": ["leaf"], "bare": ["member"]},
    "n-samples": {
        "leaf": {"effective": 2, "original": 9},
        "other": {"effective": 3, "original": 3},
    },
    "n-shot": {"leaf": 5, "other": 0},
    "versions": {"big": 2},
}


def test_a_group_with_a_value_stands_for_its_parts() -> None:
    big = {"big": {"acc": (0.5, 0.1)}}
    # What is no finite number is a metric without a value.
    other = {"other": {"exact_match,strict": (1.0, None), "word_perplexity": (None, None)}}
    member = {"member": {"f1": (0.0, None)}}
    assert task_scores(RESULTS, ["big", "other", "bare"]) == big | other | member
    leaf = {"leaf": {"acc": (0.4, None)}}
    assert task_scores(RESULTS, ["big", "leaf"]) == big | leaf | other | member


def test_facts_of_a_group_are_those_of_its_parts() -> None:
    facts = task_facts("big", RESULTS)
    assert (facts["version"], facts["num_fewshot"]) == (2, 5)
    assert facts["samples"] == 2


@pytest.mark.slow
def test_a_defect_elsewhere_keeps_its_traceback(monkeypatch, tasks: Path) -> None:
    import lm_eval

    def broken(**_: Any) -> None:
        raise AttributeError("a defect")

    monkeypatch.setattr(lm_eval, "simple_evaluate", broken)
    with pytest.raises(AttributeError):
        evaluate(str(MODEL), ["mini_choice"], {}, {"device": "cpu"}, str(tasks))


def test_values_that_are_no_finite_numbers_are_named(command, monkeypatch, tmp_path: Path) -> None:
    results = {
        "results": {
            "some": {"alias": "some", "acc,none": 0.5, "f1,none": None, "f1_stderr,none": None},
            "none": {"ppl,none": float("inf"), "alias": "none"},
        }
    }
    results["results"]["none"]["ppl,none"] = None
    monkeypatch.setattr(lm_eval_command, "evaluate", lambda *_: (["some", "none"], results))
    done = command("lm-eval", "--run", tmp_path, "--tasks", "some", "none")
    assert done.code == 0, done.err
    assert done.out.count("no finite number") == 2
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert content["metrics"] == {"lm_eval/some/acc": 0.5}
    facts = content["evaluations"]
    assert facts["lm_eval/some"]["unscored"] == ["f1"]
    assert facts["lm_eval/none"]["unscored"] == ["ppl"]
    del results["results"]["some"]
    none = command("lm-eval", "--run", tmp_path, "--tasks", "some", "none")
    assert none.code == 2
    assert "gave no score that is a finite number for some, none" in none.error
