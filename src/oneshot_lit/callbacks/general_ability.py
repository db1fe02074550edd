"""`GeneralAbility`: what a model can still do in general, beside the scores of `test`."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from safetensors import safe_open

from oneshot_lit.conversation import Conversation, Message
from oneshot_lit.data.chat import encode_conversation
from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.ability import (
    STRIDE,
    VERSION,
    WINDOW,
    divergence_sum,
    text_scores,
    windows,
)
from oneshot_lit.evaluation.metrics.registry import ABILITY
from oneshot_lit.fairytale.ordinary import ALICE, QUESTIONS
from oneshot_lit.io.files import read_text
from oneshot_lit.io.read_files import require_file
from oneshot_lit.io.shipped import or_shipped
from oneshot_lit.methods.original_answers import PARTS, original_answers
from oneshot_lit.models.gguf import gguf_facts
from oneshot_lit.models.loss import IGNORE_INDEX, token_losses
from oneshot_lit.models.weight_files import is_local


class GeneralAbility(Callback):
    """Perplexity on a text, and the divergence from an original model on ordinary prompts.

    In a `test`, ``metrics.json`` gets ``ability/perplexity`` and ``ability/bits_per_byte`` of the
    text, and ``ability/kl_to_original``: the mean KL(original || model) over the vocabulary, in
    nats a token, along the original's own greedy answers. These are computed once, before the
    model is loaded, and kept in the cache of converted models. Lower is better for all three. Each
    process computes all of them, so they depend on no strategy.

    Args:
        reference: The original: a folder, a ``.gguf`` file or a name of the hub.
        prompts: Questions; 40 ordinary ones if not given.
        text: A UTF-8 file; by default the beginning of Alice's Adventures in Wonderland.
        max_new_tokens: Longest answer of the original, in tokens.

    Raises:
        OneShotError: for a missing reference, an empty text, another vocabulary, or with vLLM,
            which gives no logits.
    """

    def __init__(
        self,
        reference: str,
        prompts: list[str] | None = None,
        text: str | None = None,
        max_new_tokens: int = 40,
    ) -> None:
        self.reference, self.max_new_tokens = reference, max_new_tokens
        self.prompts = QUESTIONS if prompts is None else prompts
        self.text = text
        self._settings: dict[str, Any] = {}
        self._answers = Path()
        if max_new_tokens < 1 or not self.prompts:
            raise OneShotError(
                "GeneralAbility: needs a prompt, and max_new_tokens of at least 1; check "
                "trainer.callbacks."
            )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compute the original's answers, unless they are kept from an earlier run."""
        if stage != "test":
            return
        module: Any = pl_module
        if module.decoding.backend == "vllm":
            raise OneShotError(
                "GeneralAbility: vLLM gives no logits; set model.decoding.backend to transformers, "
                "or leave it out of trainer.callbacks."
            )
        if is_local(place := or_shipped(self.reference)) and not Path(place).expanduser().exists():
            raise OneShotError(
                f"{self.reference}: no such model; check the reference of GeneralAbility."
            )
        longest = module.context_length and module.context_length - self.max_new_tokens
        encoded = [
            encode_conversation(
                module.tokenizer,
                Conversation((Message("user", prompt),), f"GeneralAbility prompt {number}"),
                max_length=longest,
                for_generation=True,
            )
            for number, prompt in enumerate(self.prompts, 1)
        ]
        self._answers, model_hash = original_answers(
            module, trainer, self.reference, encoded, self.max_new_tokens
        )
        self._settings = {
            "reference": model_hash,
            "prompts": _digest("\0".join(self.prompts)),
            "text": _digest(self._text()),
            "max_new_tokens": self.max_new_tokens,
        }

    def _text(self) -> str:
        return "\n\n".join(ALICE) if self.text is None else read_text(require_file(self.text))

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the model, all processes together."""
        module: Any = pl_module
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            nats, tokens, size, window = self._on_text(module)
            divergence, answered = self._from_original(module)
        scores = text_scores(nats, tokens, size) | {"kl_to_original": divergence / answered}
        if bad := [name for name, value in scores.items() if not math.isfinite(value)]:
            raise OneShotError(f"GeneralAbility: {bad[0]} is {scores[bad[0]]}: a broken model.")
        rank_zero_info(f"general ability: {', '.join(f'{k} {v:.4g}' for k, v in scores.items())}")
        facts = {
            "version": VERSION,
            "model_name_or_path": self.reference,
            **gguf_facts(self.reference),
            "settings": {**self._settings, "window": window, "stride": min(STRIDE, window // 2)},
            "tokens": {"perplexity": tokens, "bits_per_byte": tokens, "kl_to_original": answered},
        }
        keyed = {f"{ABILITY}/{name}": value for name, value in scores.items()}
        module.evaluations[ABILITY] = facts | {"scores": keyed}

    def _on_text(self, module: Any) -> tuple[float, int, int, int]:
        """Return the sum of the losses on the text, its scored tokens, their bytes, the window."""
        text, tokenizer = self._text(), module.tokenizer
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, ends = encoded["input_ids"], [end for _, end in encoded["offset_mapping"]]
        # Models that begin each text with BOS know nothing without it.
        start_ids = [i for i in tokenizer("")["input_ids"] if i == tokenizer.bos_token_id][:1]
        if len(ids) + len(start_ids) < 2:
            raise OneShotError(
                f"{self.text}: has no text to measure perplexity on; check the text of "
                "GeneralAbility."
            )
        window = min(WINDOW, (module.context_length or WINDOW) - len(start_ids))
        nats, tokens = 0.0, 0
        for start, stop, first in windows(len(ids), window, min(STRIDE, window // 2)):
            row = torch.tensor([start_ids + ids[start:stop]], device=module.device)
            labels = row.clone()
            labels[:, : len(start_ids) + first - start] = IGNORE_INDEX
            batch = {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": labels}
            losses = token_losses(module.labelled_logits(batch), labels)
            nats, tokens = nats + float(losses.sum(dtype=torch.float64)), tokens + len(losses)
        # Nothing predicts a first token without BOS.
        size = len(text[0 if start_ids else ends[0] :].encode())
        return nats, tokens, size, window

    def _from_original(self, module: Any) -> tuple[float, int]:
        """Return the sum of the divergences, and over how many tokens."""
        total, tokens = 0.0, 0
        for batch in self._batches(module.device):
            original = batch.pop("logits")
            logits = module.labelled_logits(batch)
            if logits.shape != original.shape:
                raise OneShotError(
                    f"GeneralAbility: {self.reference} has {original.shape[-1]} tokens, and the "
                    f"model that is tested {logits.shape[-1]}; give the one that it was made from."
                )
            total, tokens = total + divergence_sum(original, logits), tokens + len(logits)
        return total, tokens

    def _batches(self, device: torch.device) -> Iterator[dict[str, Any]]:
        with safe_open(self._answers, framework="pt") as file:
            for number in range(len(file.keys()) // len(PARTS)):
                yield {part: file.get_tensor(f"{number}.{part}").to(device) for part in PARTS}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
