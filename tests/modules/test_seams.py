"""The seams that methods are built on: alone against plain loops, and under every strategy."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parent.parent / "strategies"))

from anchoring import PAGE
from outputs import product, require_equal
from processes import in_processes
from seams import KINDS, direction, fit

from oneshot_lit.data import ChatJsonl, PromptSet, RowTransform, SafetyDataModule
from oneshot_lit.data.chat import Encoded
from oneshot_lit.data.datasets import Collate
from oneshot_lit.data.samplers import SideSampler
from oneshot_lit.errors import OneShotError
from oneshot_lit.methods import LanguageModelModule
from oneshot_lit.models.hidden_states import chosen_modules, hidden_gradients, perturbed
from oneshot_lit.models.loss import (
    next_token_loss,
    of_labelled,
    row_losses,
    token_losses,
    weighted_mean,
)
from oneshot_lit.strategies.frozen_entries import FrozenEntries

LORA = {"r": 4, "target_modules": "all-linear", "init_lora_weights": "gaussian"}


# ------------------------------------------------------------------------------ the losses


@pytest.mark.parametrize("seed", range(3))
def test_token_losses_against_a_loop(seed: int) -> None:
    torch.manual_seed(seed)
    logits = torch.randn(3, 7, 11, dtype=torch.float64)
    labels = torch.randint(0, 11, (3, 7))
    labels[torch.rand(3, 7) < 0.4] = -100
    weights = torch.rand(3, 7, dtype=torch.float64)
    each, counts = [], []
    for row in range(3):
        for place in range(1, 7):
            if labels[row, place] != -100:
                p = logits[row, place - 1].softmax(0)
                each.append(-p[labels[row, place]].log())
                counts.append(weights[row, place])
    expected, amount = torch.stack(each), torch.stack(counts)
    torch.testing.assert_close(token_losses(logits, labels), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(of_labelled(weights, labels), amount, atol=0, rtol=0)
    mean = (expected * amount).sum() / amount.sum()
    torch.testing.assert_close(next_token_loss(logits, labels, weights), mean, atol=1e-12, rtol=0)
    torch.testing.assert_close(next_token_loss(logits, labels), expected.mean())
    rows = [token_losses(logits[r : r + 1], labels[r : r + 1]) for r in range(3)]
    alone = torch.stack([row.mean() for row in rows])
    torch.testing.assert_close(row_losses(logits, labels), alone, atol=1e-12, rtol=0)


def test_weights_of_zero_leave_nothing_to_learn() -> None:
    losses = torch.rand(4, requires_grad=True)
    mean = weighted_mean(losses, torch.zeros(4))
    mean.backward()
    assert mean.item() == 0
    assert losses.grad.abs().sum() == 0


# ------------------------------------------------------------- one process, against plain loops

# Of a loss: the model, the batch and the model at the start.
Loss = Callable[[Any, dict[str, Tensor], Any], Tensor]


def plain_fit(
    folder: Path,
    rows: Path,
    loss_of: Loss,
    edit: Callable[[dict[str, Tensor], dict[str, nn.Parameter]], None] | None = None,
    decay: float = 0.0,
) -> dict[str, Tensor]:
    """Two epochs by hand, in float32; returns the weights."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    start, average = copy.deepcopy(model).eval(), copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5, weight_decay=decay)
    data = SafetyDataModule(ChatJsonl(str(rows)), batch_size=4, seed=3)
    data.use_tokenizer(AutoTokenizer.from_pretrained(folder))
    data.setup("fit")
    loader: Any = data.train_dataloader()
    beside = SafetyDataModule(ChatJsonl(str(rows), skip=4), batch_size=4, seed=3)
    beside.use_tokenizer(data.tokenizer)
    beside.setup("fit")
    # Seven rows in one order after the other, four a batch.
    stream = []
    for number in range(4):
        generator = torch.Generator().manual_seed(3 * 1_000_003 + 500_009 + number)
        stream += torch.randperm(7, generator=generator).tolist()
    named = {f"model.{n}": p for n, p in model.named_parameters()}
    steps = 0
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            items = [beside.training[i] for i in stream[4 * steps : 4 * steps + 4]]
            side = Collate(data.tokenizer.pad_token_id, generation=False)(items)
            steps += 1
            loss_of(model, {**batch, "side": side}, start).backward()
            if edit is not None:
                edit({n: p.grad for n, p in named.items()}, named)
            optimizer.step()
            if edit is frozen_gradients:
                with torch.no_grad():
                    for name, begun in start.named_parameters():
                        mask = direction(f"model.{name}", begun.shape) > 0
                        named[f"model.{name}"][mask] = begun[mask]
            optimizer.zero_grad()
            with torch.no_grad():
                for mean, now in zip(average.parameters(), model.parameters(), strict=True):
                    mean.copy_(now if steps == 1 else mean.lerp(now, 0.5))
    return dict((average if edit is averaged_weights else model).state_dict())


def logits_of(model: Any, batch: dict[str, Tensor]) -> Tensor:
    return model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def plain_loss(model: Any, batch: dict[str, Tensor], start: Any) -> Tensor:
    logits, targets = logits_of(model, batch)[:, :-1], batch["labels"][:, 1:]
    return nn.functional.cross_entropy(logits.mT, targets, ignore_index=-100)


def weighted_loss(model: Any, batch: dict[str, Tensor], start: Any) -> Tensor:
    logits, targets = logits_of(model, batch)[:, :-1], batch["labels"][:, 1:]
    each = nn.functional.cross_entropy(logits.mT, targets, ignore_index=-100, reduction="none")
    weights = (torch.arange(1, targets.shape[1] + 1) % 3) * (targets != -100)
    return (each * weights).sum() / weights.sum()


def referred_loss(model: Any, batch: dict[str, Tensor], start: Any) -> Tensor:
    chosen = batch["labels"][:, 1:] != -100
    with torch.no_grad():
        p = logits_of(start, batch)[:, :-1][chosen].log_softmax(-1)
    q = logits_of(model, batch)[:, :-1][chosen].log_softmax(-1)
    divergence = nn.functional.kl_div(q, p, log_target=True, reduction="sum") / len(q)
    return plain_loss(model, batch, start) + 5.0 * divergence


def projected_gradients(gradients: dict[str, Tensor], named: dict[str, nn.Parameter]) -> None:
    for name, gradient in gradients.items():
        d = direction(name, gradient.shape)
        gradient -= (gradient * d).sum() / d.square().sum() * d


def frozen_gradients(gradients: dict[str, Tensor], named: dict[str, nn.Parameter]) -> None:
    for name, gradient in gradients.items():
        gradient[direction(name, gradient.shape) > 0] = 0


def averaged_weights(gradients: dict[str, Tensor], named: dict[str, nn.Parameter]) -> None:
    """Mark a plain fit whose weights are averaged."""


def two_pass_loss(model: Any, batch: dict[str, Tensor], start: Any) -> Tensor:
    layers = [layer.self_attn for layer in model.model.layers]
    deltas: list[Tensor] = []

    def run(add: bool) -> tuple[Tensor, list[Tensor]]:
        outputs: list[Tensor] = []

        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            hidden = output[0] + (deltas[len(outputs)] if add else 0)
            outputs.append(hidden)
            return (hidden, *output[1:])

        handles = [layer.register_forward_hook(hook) for layer in layers]
        loss = plain_loss(model, batch, start)
        for handle in handles:
            handle.remove()
        return loss, outputs

    loss, outputs = run(add=False)
    for gradient in torch.autograd.grad(loss, outputs):
        deltas.append(0.5 * gradient / gradient.norm(dim=-1, keepdim=True).clamp_min(1e-12))
    return run(add=True)[0]


def replayed_loss(model: Any, batch: dict[str, Tensor], start: Any) -> Tensor:
    own, beside = batch, batch["side"]
    counts = [(b["labels"][:, 1:] != -100).sum() for b in (own, beside)]
    loss = counts[0] * plain_loss(model, own, start)
    loss = loss + 0.5 * counts[1] * plain_loss(model, beside, start)
    return loss / (counts[0] + 0.5 * counts[1])


PLAIN: dict[str, tuple[Any, ...]] = {
    "Replayed": (replayed_loss,),
    "Weighted": (weighted_loss,),
    "Referred": (referred_loss,),
    "Projected": (plain_loss, projected_gradients),
    "Frozen": (plain_loss, frozen_gradients, 0.1),
    "TwoPasses": (two_pass_loss,),
    "Averaged": (plain_loss, averaged_weights),
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_fit_equals_the_plain_loop(
    tiny_folder: Path, uneven_rows: Path, tmp_path: Path, kind: str
) -> None:
    fit(kind, "single", str(tmp_path), str(tiny_folder), str(uneven_rows))
    expected = plain_fit(tiny_folder, uneven_rows, *PLAIN[kind])
    for name, weight in product(tmp_path).items():
        torch.testing.assert_close(weight, expected[name], atol=2e-6, rtol=0, msg=name)


@pytest.mark.parametrize("kind", list(KINDS))
def test_accumulated_batches_make_the_same_step(
    tiny_folder: Path, uneven_rows: Path, tmp_path: Path, kind: str
) -> None:
    words = (str(tiny_folder), str(uneven_rows))
    fit(kind, "single", str(tmp_path / "one"), *words)
    fit(kind, "single", str(tmp_path / "two"), *words, accumulate=2)
    if kind in ("Referred", "TwoPasses"):
        # Their further terms are means of each batch.
        return
    require_equal(tmp_path / "two", tmp_path / "one", 2e-6)


OPTIONS: dict[str, Any] = {
    "start": {},
    "adapter off": {"peft": LORA},
    "second model": {"reference_name_or_path": "FOLDER"},
}


def filled(options: dict[str, Any], folder: Path) -> dict[str, Any]:
    return {k: str(folder) if v == "FOLDER" else v for k, v in options.items()}


@pytest.mark.parametrize("kind", [*KINDS, "adapter off", "second model"])
def test_a_killed_fit_ends_bit_for_bit_the_same(
    tiny_folder: Path, uneven_rows: Path, tmp_path: Path, kind: str
) -> None:
    options = filled(OPTIONS.get(kind, {}), tiny_folder)
    words = {
        "kind": kind if kind in KINDS else "Referred",
        "name": "single",
        "folder": str(tiny_folder),
        "rows": str(uneven_rows),
        "options": options,
    }
    fit(root=str(tmp_path / "whole"), **words)
    fit(root=str(tmp_path / "cut"), max_steps=2, **words)
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    saved = torch.load(last, weights_only=True)
    assert not any("reference_model" in name for name in saved["state_dict"])
    fit(root=str(tmp_path / "cut"), ckpt_path=str(last), **words)
    require_equal(tmp_path / "cut", tmp_path / "whole")


def test_all_references_say_the_same(tiny_folder: Path, uneven_rows: Path, tmp_path: Path) -> None:
    """With an adapter that is yet zero, all three are the model as it was loaded."""
    from oneshot_lit.methods import ReferenceModule

    says = []
    for options in OPTIONS.values():
        module = ReferenceModule(str(tiny_folder), **filled(options, tiny_folder))
        module.configure_model()
        if module.keeps_start_weights:
            from oneshot_lit.strategies.weights import own_weights

            module._start_weights = own_weights(module)
        data = SafetyDataModule(ChatJsonl(str(uneven_rows)), batch_size=4, seed=3)
        data.use_tokenizer(module.tokenizer)
        data.setup("fit")
        says.append(module.reference(next(iter(data.train_dataloader()))))
        assert module.training
    torch.testing.assert_close(says[1], says[0])
    torch.testing.assert_close(says[2], says[0])
    torch.testing.assert_close(says[0].exp().sum(-1), torch.ones(len(says[0])))


def test_a_reference_of_another_vocabulary_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from oneshot_lit.methods import ReferenceModule

    other = AutoModelForCausalLM.from_pretrained(tiny_folder)
    other.resize_token_embeddings(other.config.vocab_size + 8)
    other.save_pretrained(tmp_path)
    module = ReferenceModule(str(tiny_folder), reference_name_or_path=str(tmp_path))
    with pytest.raises(OneShotError, match=r"reference_name_or_path: .* give one of the same"):
        module.configure_model()


# ------------------------------------------------------------------------- the data


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("size", [3, 7, 40])
def test_the_second_stream_in_any_number_of_processes(world_size: int, size: int) -> None:
    """Each batch of all processes has the same rows, and no row comes twice in a pass."""
    given = {"batches": 5, "batch_size": 4 // world_size, "seed": 9, "world_size": world_size}
    samplers = [SideSampler(size, rank=rank, **given) for rank in range(world_size)]
    alone = SideSampler(size, batches=5, batch_size=4, seed=9)
    seen: list[int] = []
    for epoch in range(3):
        for each in [*samplers, alone]:
            each.set_epoch(epoch)
        own = [list(each) for each in samplers]
        assert all(len(rows) == len(each) for rows, each in zip(own, samplers, strict=True))
        whole = [rows[i] for i in range(len(own[0])) for rows in own]
        assert whole == list(alone)
        seen += whole
    for start in range(0, len(seen) - size, size):
        assert sorted(seen[start : start + size]) == list(range(size))


def test_a_resumed_second_stream_goes_on_where_it_was() -> None:
    whole = SideSampler(7, batches=5, batch_size=2, seed=1)
    rows = []
    for epoch in range(3):
        whole.set_epoch(epoch)
        rows += list(whole)
    resumed = SideSampler(7, batches=5, batch_size=2, seed=1, start_epoch=1, skip=3)
    again = list(resumed)
    resumed.set_epoch(2)
    assert again + list(resumed) == rows[5 * 2 + 3 * 2 :]


class Prefixed(RowTransform):
    """Puts words before every prompt."""

    def __init__(self, words: str) -> None:
        self.words = words

    def text(self, row: Any) -> Any:
        first, *rest = row.messages
        return replace(row, messages=(replace(first, content=self.words + first.content), *rest))


class HalfWeights(RowTransform):
    """Halves the weight of each token, once more each time."""

    def tokens(self, row: Encoded, tokenizer: Any) -> Encoded:
        before = row.token_weights or [1.0] * len(row.input_ids)
        return replace(row, token_weights=[w / 2 for w in before])


def test_transforms_compose_and_change_no_prompt(tiny_folder: Path, rows_file: Path) -> None:
    from transformers import AutoTokenizer

    source = ChatJsonl(str(rows_file))
    transforms = [Prefixed("now "), HalfWeights(), Prefixed("and "), HalfWeights()]
    sets = {"val": PromptSet(source, "benign", metrics=["over_refusal"])}
    data = SafetyDataModule(source, batch_size=4, transforms=transforms, val_sets=sets)
    data.use_tokenizer(AutoTokenizer.from_pretrained(tiny_folder))
    data.setup("fit")
    assert all("and now how" in row.prompt_text for row in data.training.conversations)
    assert all("now" not in row.prompt_text for row in data.prompt_sets("val")[0].conversations)
    batch = next(iter(data.train_dataloader()))
    assert batch["token_weights"].dtype == torch.float32
    assert set(batch["token_weights"].unique().tolist()) <= {0.0, 0.25}
    # All alike are as if there were none.
    logits = torch.randn(*batch["labels"].shape, 11)
    labels = batch["labels"].clamp(max=10)
    weighted = next_token_loss(logits, labels, batch["token_weights"])
    torch.testing.assert_close(weighted, next_token_loss(logits, labels))


class LastTokenOnly(RowTransform):
    """Lets the last token of a row count alone."""

    def tokens(self, row: Encoded, tokenizer: Any) -> Encoded:
        return replace(row, token_weights=[0.0] * (len(row.input_ids) - 1) + [1.0])


def test_weights_of_the_data_reach_the_loss(tiny_folder: Path, rows_file: Path) -> None:
    module = LanguageModelModule(str(tiny_folder))
    module.configure_model()
    source = ChatJsonl(str(rows_file), limit=1)
    data = SafetyDataModule(source, batch_size=1, transforms=[LastTokenOnly()])
    data.use_tokenizer(module.tokenizer)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert (batch["labels"] != -100).sum() > 1
    logits = module(batch["input_ids"], batch["attention_mask"])
    last = -logits[0, -2].log_softmax(-1)[batch["input_ids"][0, -1]]
    torch.testing.assert_close(module.compute_loss(batch), last)
    assert module.loss_weight(batch) == 1


def test_the_documented_transform_and_stream_from_the_command_line(
    command: Any, fit_words: list[str], rows_file: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    blocks = PAGE.read_text().split("```python\n")
    for name in ("ReplayedFineTuning", "FirstTokensCountMore"):
        code = next(block for block in blocks if f"class {name}" in block).split("```")[0]
        (tmp_path / f"my_{name.lower()}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    side = {"class_path": "oneshot_lit.data.ChatJsonl", "init_args": {"path": str(rows_file)}}
    words = [
        *[*fit_words, "--model", "my_replayedfinetuning.ReplayedFineTuning"],
        *["--data.side", json.dumps({"alignment": side})],
        *["--data.transforms", '[{"class_path": "my_firsttokenscountmore.FirstTokensCountMore"}]'],
    ]
    done = command(*words)
    assert done.code == 0, done.err
    assert (tmp_path / "run" / "model").is_dir()
    report = json.loads((tmp_path / "run" / "data.json").read_text())["fit"]
    assert report["side/alignment"]["rows"] == 12


# ------------------------------------------------------------------------- small parts


def test_frozen_entries_of_no_parameter_or_another_shape() -> None:
    layer = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="bias2 is no trained parameter"):
        FrozenEntries(layer, {"bias2": torch.zeros(2, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"the mask of weight is \(3, 2\), not \(2, 3\)"):
        FrozenEntries(layer, {"weight": torch.zeros(3, 2, dtype=torch.bool)})


def test_hidden_gradients_against_finite_differences() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x = torch.randn(2, 3, dtype=torch.float64)
    modules = chosen_modules(model, "0")
    gradients = hidden_gradients(modules, lambda: model(x).sum())
    assert all(p.grad is None for p in model.parameters())
    for index in [(0, 0), (1, 3)]:
        delta = torch.zeros(2, 4, dtype=torch.float64)
        delta[index] = 1e-6
        with perturbed(modules, {"0": delta}):
            up = model(x).sum()
        with perturbed(modules, {"0": -delta}):
            down = model(x).sum()
        assert ((up - down) / 2e-6).item() == pytest.approx(gradients["0"][index].item(), abs=1e-8)
    assert not model[0]._forward_hooks
    with pytest.raises(OneShotError, match="no part of Sequential matches"):
        chosen_modules(model, "*.self_attn")


# ------------------------------------------------------------------------- two processes

STRATEGIES = ("ddp", "fsdp2", "zero2", "zero3")
CASES = {**{kind: (kind, {}) for kind in KINDS}}
CASES |= {name: ("Referred", options) for name, options in OPTIONS.items() if options}


# Lightning averages whole models only.
PAIRS = [(n, label) for label in CASES for n in STRATEGIES if label != "Averaged" or n == "ddp"]


@pytest.fixture(scope="module")
def runs(tiny_folder: Path, uneven_rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("seams")
    paths = {"folder": str(tiny_folder), "rows": str(uneven_rows)}
    cases: list[dict[str, Any]] = []
    for label, (kind, options) in CASES.items():
        more = {"kind": kind, "options": filled(options, tiny_folder), **paths}
        for name in [n for n, each in PAIRS if each == label]:
            place = f"{root}/{name}, {label}"
            two = {"name": name, "processes": 2, **more}
            cases += [
                {"root": place, **two},
                {"root": f"{place}, cut", "max_steps": 2, **two},
                {
                    "root": f"{place}, cut",
                    "ckpt_path": f"{place}, cut/checkpoints/last.ckpt",
                    **two,
                },
            ]
        fit(root=f"{root}/single, {label}", name="single", **more)
    in_processes(root, "seams", "fit", cases, seconds=900)
    return root


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(("name", "label"), PAIRS)
def test_every_strategy_makes_the_same_model(name: str, label: str, runs: Path) -> None:
    whole = runs / f"{name}, {label}"
    require_equal(runs / f"{name}, {label}, cut", whole)
    require_equal(whole, runs / f"single, {label}", 2e-5)
