"""`QRealign`: round a fine-tuned model to 8 bits so that harmful prompts look harmful again.

Source: Q-realign (arXiv 2601.08089); see `q_realign_run` for the arithmetic, `fake_quant` for the
rounding. The release has no code for the probes; ours are described in `layer_probes`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from packaging.version import Version
from torch import Tensor

from oneshot_lit.conversation import Conversation, Message
from oneshot_lit.data.chat import encode_conversation
from oneshot_lit.data.sources import ConversationSource
from oneshot_lit.errors import OneShotError
from oneshot_lit.methods.about import About
from oneshot_lit.methods.base import LanguageModelModule
from oneshot_lit.methods.job import Job
from oneshot_lit.methods.posttuning.edit_record import EditRecord
from oneshot_lit.methods.posttuning.q_realign_run import (
    Probe,
    Prompt,
    QuantOptions,
    first_inputs,
    input_peaks,
    realign_layer,
)
from oneshot_lit.methods.posttuning.weight_edit import Repair, given, write_record

ABOUT = About(
    name="Q-realign",
    stage="after fine-tuning",
    needs="the aligned model, harmful and harmless prompts",
    paper="2601.08089",
    agreement="exact with the release, but for the probes, which it does not have",
    config="defence/q_realign.yaml",
)


@torch.no_grad()
def layer_probes(model: Any, prompts: Sequence[Prompt], penalty: float = 1.0) -> list[Probe]:
    """Return a probe of each layer: a sparse logistic regression on the last token's output.

    The outputs are the layers' own, before the final norm. L1 penalty, liblinear; positive means
    harmful.

    Args:
        model: The aligned model.
        prompts: Harmful and harmless ones.
        penalty: The inverse strength C.

    Raises:
        OneShotError: without scikit-learn.
    """
    try:
        import sklearn
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise OneShotError(
            "Q-realign trains its probes with scikit-learn; pip install 'oneshot-lit[probes]'."
        ) from error
    # The name of the L1 penalty has changed.
    new = Version(sklearn.__version__) >= Version("1.8")
    sparse: dict[str, Any] = {"l1_ratio": 1.0} if new else {"penalty": "l1"}
    starts = first_inputs(model, prompts)
    hidden, labels = [x for x, _ in starts], [int(prompt.harmful) for prompt in prompts]
    probes = []
    for layer in model.get_decoder().layers:
        for number, (_, call) in enumerate(starts):
            output = layer(hidden[number], **call)
            hidden[number] = output[0] if isinstance(output, tuple) else output
        rows = [x[0, prompt.last] for x, prompt in zip(hidden, prompts, strict=True)]
        states = torch.stack(rows).float().cpu().numpy()
        fitted = LogisticRegression(solver="liblinear", C=penalty, random_state=0, **sparse)
        fitted.fit(states, labels)
        probes.append((torch.tensor(fitted.coef_[0]).float(), float(fitted.intercept_[0])))
    return probes


class QRealign(Repair, Job):
    """Q-realign (arXiv 2601.08089): rounding to a few bits that brings the refusals back.

    Layer by layer, ranges and scales of the rounding are learned: on harmless prompts a layer has
    to do what the unrounded one does, on harmful ones the last token's output has to look harmful
    to a probe of the aligned model. The harmful prompts are those of `data.train`; their answers do
    not matter. The folder holds the rounded weights in the model's dtype; the
    inputs, which the method rounds too, are not rounded when the folder is loaded elsewhere.

    Args:
        aligned: The model before fine-tuning, on which the probes are trained.
        harmless: Harmless requests; the release has 50 of them beside 150 harmful ones.
        weight_bits: Of the matrices.
        input_bits: Of their inputs.
        epochs: Over the prompts; five fewer in the first half of the layers, five more after it.
        scale_lr: Rate of the scales.
        range_lr: Rate of the ranges.
        alpha: How much of an input's range moves to the weights at first.
        max_tokens: Prompts are padded or cut to so many tokens.
        system: System message of the prompts; none if empty.
    """

    def __init__(
        self,
        *args: Any,
        aligned: str | None = None,
        harmless: ConversationSource | None = None,
        weight_bits: int = 8,
        input_bits: int = 8,
        epochs: int = 10,
        scale_lr: float = 1e-3,
        range_lr: float = 1e-2,
        alpha: float = 0.5,
        max_tokens: int = 128,
        system: str = "You are a helpful, honest, and safe assistant.",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if not 2 <= min(weight_bits, input_bits) <= max(weight_bits, input_bits) <= 16:
            raise OneShotError("model.weight_bits, input_bits: must be 2 to 16.")
        self.aligned = given("aligned", aligned)
        self.options = QuantOptions(weight_bits, input_bits, epochs, scale_lr, range_lr, alpha)
        self.max_tokens, self.system = max_tokens, system
        self.sources = {"model.harmless": given("harmless", harmless)}
        self.losses: dict[int, list[float]] = {}
        self._resumed: dict[str, Any] = {}

    def prepare(self) -> None:
        """Encode the prompts, and train the probes on the aligned model."""
        self.eval()
        self.model.requires_grad_(False)
        self._prompts = self._encoded()
        teacher = LanguageModelModule(self.aligned, dtype="float32")
        teacher.configure_model()
        teacher.to(self.device).eval()
        probes = layer_probes(teacher.model, self._prompts)
        del teacher
        used = [int((w != 0).sum()) for w, _ in probes]
        rank_zero_info(f"probes: {min(used)} to {max(used)} weights of a layer's are not zero")
        self._probes = [(w.to(self.device), b) for w, b in probes]
        self._peaks = input_peaks(self.model, self._prompts)
        starts = first_inputs(self.model, self._prompts)
        self._calls = [call for _, call in starts]
        self._exact = self._rounded = [x for x, _ in starts]
        self._tuned = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        if self._resumed:
            self._take_up(self._resumed)

    def _encoded(self) -> list[Prompt]:
        """Return the prompts, harmful and harmless by turns as far as both go."""
        prompts = []
        pad = self.tokenizer.pad_token_id
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        harmless = self.sources["model.harmless"].load()
        if not harmless:
            raise OneShotError("model.harmless: has no rows.")
        for harmful, rows in ((True, data.training.conversations), (False, harmless)):
            for number, row in enumerate(rows):
                encoded = encode_conversation(
                    self.tokenizer, self._with_system(row.prompt), for_generation=True
                )
                ids = encoded.input_ids[-self.max_tokens :]
                more = self.max_tokens - len(ids)
                mask = torch.tensor([[1] * len(ids) + [0] * more], device=self.device)
                padded = torch.tensor([ids + [pad] * more], device=self.device)
                place = (number + 0.5) / len(rows)
                prompts.append((place, Prompt(padded, mask, harmful)))
        return [prompt for _, prompt in sorted(prompts, key=lambda each: each[0])]

    def _with_system(self, prompt: Conversation) -> Conversation:
        if not self.system or prompt.messages[0].role == "system":
            return prompt
        return replace(prompt, messages=(Message("system", self.system), *prompt.messages))

    # ------------------------------------------------------------- a killed job

    def job_state(self) -> dict[str, Any]:
        """Return the rounded layers, and what the next one gets."""
        layers = [layer.state_dict() for layer in self._layers[: len(self.losses)]]
        hidden = {"exact": self._exact, "rounded": self._rounded}
        return {"layers": layers, "losses": self.losses, **hidden}

    def load_job_state(self, state: dict[str, Any]) -> None:
        """Remember what `prepare` will take up."""
        self._resumed = state

    def _take_up(self, state: dict[str, Any]) -> None:
        for layer, weights in zip(self._layers, state["layers"], strict=False):
            layer.load_state_dict(weights)
        self.losses = state["losses"]
        self._exact = [x.to(self.device) for x in state["exact"]]
        self._rounded = [x.to(self.device) for x in state["rounded"]]
        self._resumed = {}

    # ------------------------------------------------------------------- steps

    @property
    def _layers(self) -> Any:
        return self.model.get_decoder().layers

    def steps(self) -> tuple[int, int]:
        """Return how many layers are rounded, and how many there are."""
        return len(self.losses), len(self._layers)

    def progress_text(self) -> str:
        """Return the last loss of the layer that was rounded last."""
        last = self.losses[len(self.losses) - 1]
        return f"loss {last[-1]:.4g}" if last else ""

    def step(self) -> bool:
        """Round the next layer; return whether it was the last."""
        number = len(self.losses)
        try:
            with torch.enable_grad():
                self._exact, self._rounded, self.losses[number] = realign_layer(
                    self.model,
                    number,
                    self._exact,
                    self._rounded,
                    self._calls,
                    self._prompts,
                    self._probes[number],
                    self._peaks[number],
                    self.options,
                )
        except FloatingPointError as error:
            raise OneShotError(f"{error}; lower model.scale_lr and model.range_lr.") from error
        return len(self.losses) == len(self._layers)

    def finish(self, root: Path) -> None:
        """Write ``edit.json``; the export writes the weights."""
        if not self.trainer.is_global_zero:
            return
        record = EditRecord()
        for name, parameter in self.model.named_parameters():
            before: Tensor = self._tuned[name]
            after = before if torch.equal(parameter, before) else parameter.detach()
            if after is not before:
                error = float((after - before).norm())
                size = max(float(before.norm()), math.ulp(0.0))
                record.note(decision="rounded", relative_change=error / size)
            record.tensor(name, {"tuned": before}, after)
        settings: dict[str, Any] = {**vars(self.options), "max_tokens": self.max_tokens}
        settings |= {"system": self.system, "losses": self.losses}
        write_record(record, self, root, settings)
