"""General ability: the pure functions against references, and the callback through `test`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import special

from oneshot_lit.evaluation.ability import divergence_sum, text_scores, windows

ROOT = Path(__file__).parents[2]
SMALL = ROOT / "checkpoints" / "small"


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ONESHOT_LIT_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("tokens", [1, 2, 7, 8, 9, 12, 13, 40, 41])
@pytest.mark.parametrize(("window", "stride"), [(8, 4), (8, 7), (5, 1)])
def test_windows_score_each_token_once(tokens: int, window: int, stride: int) -> None:
    scored: list[int] = []
    for start, stop, first in windows(tokens, window, stride):
        assert 0 < stop - start <= window
        # Something precedes each scored token, but for the first of the text.
        assert first > start or first == 0
        # As much as fits precedes it.
        assert start == 0 or stop - start == window or stop == tokens
        scored += range(first, stop)
    assert scored == list(range(tokens))


def test_a_window_without_overlap_is_refused() -> None:
    with pytest.raises(ValueError, match="stride of 8"):
        list(windows(20, 8, 8))


def test_scores_of_a_text() -> None:
    losses = [0.3, 2.5, 1.1]
    probability = math.prod(math.exp(-each) for each in losses)
    scores = text_scores(sum(losses), 3, 11)
    assert scores["perplexity"] == pytest.approx(probability ** (-1 / 3), rel=1e-12)
    assert scores["bits_per_byte"] == pytest.approx(-math.log2(probability) / 11, rel=1e-12)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 1e-6)]
)
def test_divergence(dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    # More positions than a chunk has.
    p, q = (4 * torch.randn(600, 31, generator=generator).to(dtype) for _ in range(2))
    a, b = (special.softmax(each.double().numpy(), axis=1) for each in (p, q))
    assert divergence_sum(p, q) == pytest.approx(special.rel_entr(a, b).sum(), rel=tolerance)
    assert divergence_sum(p, p.clone()) == 0.0
    assert divergence_sum(q, p) != pytest.approx(divergence_sum(p, q), rel=1e-3)


def callback(reference: Any = SMALL, **options: Any) -> list[str]:
    prompts = options.pop("prompts", ["how do i bake bread ?", "who are you ?", "hello"])
    arguments = {"reference": str(reference), "prompts": prompts, "max_new_tokens": 6} | options
    entry = {"class_path": "oneshot_lit.callbacks.GeneralAbility", "init_args": arguments}
    return ["--trainer.callbacks", json.dumps([entry])]


def noisy(folder: Path) -> Path:
    """Return a copy of the small model with random noise on its weights."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(SMALL)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.02 * torch.randn_like(weight)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(SMALL).save_pretrained(folder)
    return folder


def by_hand(folder: Path, text: str, context: int) -> tuple[float, float]:
    """Return the perplexity and the bits per byte, one token at a time, in float64."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    stride, losses = context // 2, []
    for place in range(len(ids)):
        # The first window that reaches the token.
        start = max(0, -(-(place + 1 - context) // stride)) * stride
        with torch.no_grad():
            logits = model(torch.tensor([[tokenizer.bos_token_id, *ids[start:place]]])).logits[
                0, -1
            ]
        losses.append(-float(logits.log_softmax(-1)[ids[place]]))
    # The embedded tokenizer has BOS, which predicts the first token of each window.
    return math.exp(sum(losses) / len(losses)), sum(losses) / math.log(2) / len(text.encode())


def scores_of(command: Any, words: list[str], model: Any, *more: str) -> dict[str, Any]:
    outcome = command(*words, "--model.model_name_or_path", str(model), *more)
    assert outcome.code == 0, outcome.err
    root = Path(words[words.index("--trainer.default_root_dir") + 1])
    return json.loads((root / "metrics.json").read_text())


def test_a_model_against_itself_and_against_a_noisy_copy(
    command: Any, test_words: list[str], tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    # Longer than the model's context.
    text.write_text("how do i bake bread with an eßöy ? " * 60)
    own = scores_of(command, test_words, SMALL, *callback(text=str(text)))
    assert own["metrics"]["ability/kl_to_original"] == 0.0
    facts = own["evaluations"]["ability"]
    assert facts["scores"] == [
        f"ability/{n}" for n in ("bits_per_byte", "kl_to_original", "perplexity")
    ]
    window = facts["settings"]["window"]
    perplexity, bits = by_hand(SMALL, text.read_text(), window)
    assert facts["tokens"]["perplexity"] > window
    assert own["metrics"]["ability/perplexity"] == pytest.approx(perplexity, rel=1e-5)
    assert own["metrics"]["ability/bits_per_byte"] == pytest.approx(bits, rel=1e-5)
    # The scores of the answers are still there.
    assert "mine/over_refusal" in own["metrics"]

    kept = list((tmp_path / "cache" / "answers").glob("*.safetensors"))
    before = kept[0].stat().st_mtime_ns
    copy = noisy(tmp_path / "copy")
    other = scores_of(command, test_words, copy, *callback(text=str(text)), "--overwrite", "true")
    divergence, tokens = reference_divergence(kept[0], copy)
    assert other["metrics"]["ability/kl_to_original"] == pytest.approx(divergence, rel=1e-4)
    assert divergence > 1e-3
    assert tokens == other["evaluations"]["ability"]["tokens"]["kl_to_original"]
    # Computed once.
    assert [each.stat().st_mtime_ns for each in kept] == [before]
    assert kept == list((tmp_path / "cache" / "answers").glob("*.safetensors"))


def reference_divergence(answers: Path, folder: Path) -> tuple[float, int]:
    """Return the mean divergence of two models, row by row without padding, in float64."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    models = [
        AutoModelForCausalLM.from_pretrained(each, dtype=torch.float64) for each in (SMALL, folder)
    ]
    batch, values = load_file(answers), []
    for ids, mask, labels in zip(
        batch["0.input_ids"], batch["0.attention_mask"], batch["0.labels"], strict=True
    ):
        row = ids[mask.bool()][None]
        answer = [place for place, label in enumerate(labels.tolist()) if label != -100]
        # Greedy answers of the original, from behind the prompt to the end of turn.
        assert answer == list(range(answer[0], answer[0] + len(answer)))
        assert len(answer) <= 6
        with torch.no_grad():
            a, b = (special.softmax(m(row).logits[0].numpy(), axis=1) for m in models)
        for place in answer:
            assert a[place - 1].argmax() == row[0, place]
            values.append(special.rel_entr(a[place - 1], b[place - 1]).sum())
    return sum(values) / len(values), len(values)


@pytest.mark.parametrize(
    ("options", "more", "said"),
    [
        ({"reference": "no/where/model"}, (), "no/where/model: no such model; check the reference"),
        ({"text": "empty.txt"}, (), "empty.txt: has no text to measure perplexity on"),
        ({"prompts": []}, (), "GeneralAbility: needs a prompt"),
        ({}, ("--model.decoding.backend", "vllm"), "vLLM gives no logits"),
    ],
)
def test_mistakes_take_one_line(
    command: Any,
    test_words: list[str],
    tmp_path: Path,
    options: dict[str, Any],
    more: tuple[str, ...],
    said: str,
) -> None:
    if "text" in options:
        (tmp_path / "empty.txt").touch()
        options = {"text": str(tmp_path / "empty.txt")}
    words = [*test_words, "--model.model_name_or_path", str(SMALL), *callback(**options), *more]
    outcome = command(*words)
    assert outcome.code == 2
    assert said in outcome.error


def test_another_vocabulary_is_refused(command: Any, test_words: list[str], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(SMALL)
    size = model.config.vocab_size
    model.resize_token_embeddings(size + 8)
    model.save_pretrained(tmp_path / "larger")
    AutoTokenizer.from_pretrained(SMALL).save_pretrained(tmp_path / "larger")
    words = [*test_words, "--model.model_name_or_path", str(SMALL)]
    outcome = command(*words, *callback(tmp_path / "larger"))
    assert outcome.code == 2
    assert f"has {size + 8} tokens, and the model that is tested {size}" in outcome.error
