"""The vLLM backend against a stand-in that takes the arguments of vLLM 0.10, and no others.

vLLM itself needs a GPU: what is tested here is what we hand over and what we make of its answers.
"""

from __future__ import annotations

import importlib.machinery
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
from lightning.pytorch import Callback
from models import in_batches
from test_evaluation import COUNTS, build, predicted, scored, sets

from oneshot_lit.data import Microworld, SafetyDataModule
from oneshot_lit.errors import OneShotError
from oneshot_lit.methods import Decoding, HarmfulFineTuningModule, LanguageModelModule
from quiet_trainer import quiet_trainer


class SamplingParams:
    """The arguments of ``vllm.SamplingParams`` that bear on us, with its checks."""

    def __init__(
        self,
        *,
        n: int = 1,
        repetition_penalty: float = 1.0,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        seed: int | None = None,
        stop: Any = None,
        stop_token_ids: list[int] | None = None,
        ignore_eos: bool = False,
        max_tokens: int | None = 16,
        min_tokens: int = 0,
        logprobs: int | None = None,
        detokenize: bool = True,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
    ) -> None:
        assert temperature >= 0
        assert 0 < top_p <= 1
        assert max_tokens is None or max_tokens >= 1
        assert stop_token_ids is None or all(type(token) is int for token in stop_token_ids)
        # Texts that end an answer need the tokenizer.
        assert not (stop and not detokenize)
        self.temperature, self.top_p = temperature, top_p
        self.max_tokens, self.stop_token_ids = max_tokens, stop_token_ids
        self.detokenize = detokenize


class LLM:
    """The call of ``vllm.LLM``, answered by the Hugging Face model."""

    started: ClassVar[list[LLM]] = []

    def __init__(
        self,
        model: str,
        *,
        tokenizer: str | None = None,
        tokenizer_mode: str = "auto",
        skip_tokenizer_init: bool = False,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        quantization: str | None = None,
        revision: str | None = None,
        seed: int | None = None,
        gpu_memory_utilization: float = 0.9,
        enforce_eager: bool = False,
        **kwargs: Any,
    ) -> None:
        # The rest goes to `EngineArgs`, which refuses what it does not know.
        unknown = set(kwargs) - {"max_model_len", "max_num_seqs"}
        if unknown:
            raise TypeError(f"EngineArgs got an unexpected keyword argument '{min(unknown)}'")
        assert dtype in ("auto", "half", "float16", "bfloat16", "float", "float32")
        self.options = {"model": model, "dtype": dtype, "skip": skip_tokenizer_init, **kwargs}
        self.options["memory"] = gpu_memory_utilization
        self.calls: list[tuple[Any, ...]] = []
        self.inner = LanguageModelModule(model, decoding=Decoding(max_new_tokens=12))
        self.inner.configure_model()
        self.inner.eval()
        LLM.started.append(self)

    def generate(
        self,
        prompts: list[dict[str, list[int]]],
        sampling_params: SamplingParams | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[Any]:
        assert isinstance(sampling_params, SamplingParams)
        # Without a tokenizer there are no texts, neither in nor out.
        assert not (self.options["skip"] and sampling_params.detokenize)
        self.calls.append((len(prompts), sampling_params))
        stops = sampling_params.stop_token_ids
        assert all(set(prompt) == {"prompt_token_ids"} for prompt in prompts)
        rows = [prompt["prompt_token_ids"] for prompt in prompts]
        answers = in_batches(self.inner.model, rows, 8, sampling_params.max_tokens, stops)
        # vLLM leaves the token that has ended an answer at its end.
        return [
            SimpleNamespace(
                prompt_token_ids=prompt["prompt_token_ids"],
                outputs=[
                    SimpleNamespace(
                        text="",
                        token_ids=(
                            tokens
                            if len(tokens) == sampling_params.max_tokens
                            else [*tokens, stops[0]]
                        ),
                    )
                ],
                finished=True,
            )
            for prompt, tokens in zip(prompts, answers, strict=True)
        ]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[LLM]:
    package = ModuleType("vllm")
    package.__spec__ = importlib.machinery.ModuleSpec("vllm", None)
    package.LLM, package.SamplingParams = LLM, SamplingParams  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", package)
    LLM.started = []
    return LLM


def test_scores_and_rows_are_the_same(stand_in: type[LLM], tmp_path: Path) -> None:
    module = scored(tmp_path, build("vllm"), 16)
    ours = scored(tmp_path, build(), 16)
    assert module.scores == ours.scores
    assert module.counts["samples"] == COUNTS
    # The model is vLLM's alone.
    assert not list(module.parameters())
    (engine,) = stand_in.started
    # Two batches of the largest set, one of each other; no prompt that fills one up.
    assert [count for count, _ in engine.calls] == [16, 5, 1, 9, 14]
    _, parameters = engine.calls[0]
    assert (parameters.temperature, parameters.max_tokens) == (0.0, 12)
    assert set(parameters.stop_token_ids) == set(ours.stop_ids)
    assert engine.options["dtype"] == "float32"
    assert predicted(tmp_path, build("vllm"), 16) == predicted(tmp_path, build(), 16)


def test_sampling_and_more_arguments_are_handed_over(stand_in: type[LLM], tmp_path: Path) -> None:
    decoding = Decoding(12, True, 0.7, 0.9, backend="vllm", vllm={"gpu_memory_utilization": 0.5})
    scored(tmp_path, LanguageModelModule("checkpoints/small", decoding=decoding), 16)
    (engine,) = stand_in.started
    (_, parameters) = engine.calls[0]
    assert (parameters.temperature, parameters.top_p) == (0.7, 0.9)
    assert engine.options["memory"] == 0.5
    decoding = Decoding(backend="vllm", vllm={"gpu_memory": 0.5})
    with pytest.raises(OneShotError, match=r"model\.decoding\.vllm: .*'gpu_memory'"):
        scored(tmp_path, LanguageModelModule("checkpoints/small", decoding=decoding), 16)


def test_what_vllm_cannot_do_is_one_line(stand_in: type[LLM], tmp_path: Path) -> None:
    data = SafetyDataModule(Microworld("harmful_examples", size=4), val_sets=sets())
    trainer = quiet_trainer(tmp_path, Callback(), max_epochs=1)
    with pytest.raises(OneShotError, match=r"backend: vllm answers in test.*choose transformers"):
        trainer.fit(build("vllm", HarmfulFineTuningModule), data)
    with pytest.raises(OneShotError, match=r"model\.decoding\.backend: .*without peft"):
        scored(tmp_path, build("vllm", peft={"r": 2}), 4)
    (tmp_path / "adapter_config.json").write_text("{}")
    adapted = LanguageModelModule(
        str(tmp_path), tokenizer_name_or_path="checkpoints/small", decoding=Decoding(backend="vllm")
    )
    with pytest.raises(OneShotError, match=r"takes no adapter.*--export\.merge_adapter true"):
        scored(tmp_path, adapted, 4)
    with pytest.raises(OneShotError, match=r"model\.decoding\.vllm: .*without backend vllm"):
        Decoding(vllm={"seed": 0})


def test_without_vllm_the_line_says_what_to_install(command, test_words: list[str]) -> None:
    done = command(*test_words, "--model.decoding.backend", "vllm")
    assert done.code == 2
    assert "vllm is not installed; run pip install 'oneshot-lit[vllm]'" in done.error


def test_unknown_backends_are_refused(command, test_words: list[str]) -> None:
    done = command(*test_words, "--model.decoding.backend", "triton")
    assert done.code == 2
    assert "backend" in done.error
