"""Scores of 256 candidates, `<grad l_i, G>`, from token factors against explicit gradients.

    PYTHONPATH=. python benchmarks/selection.py
        [--shape small|10m|medium|wide|100m] [--model FOLDER] [--rows-at-once 64]
        [--device cpu|cuda] [--against loop vmap jvp forward]

The candidates are the micro-world's pool; G is the gradient of an upper objective, computed once,
timed apart and given to all methods. The weights are random, or a model's with --model. Float32.
`factors` is the rule `gradient_match`; `loop` makes one row's whole gradient at a time and takes
its inner product with G; `vmap` makes those of a few rows at once with `torch.func`; `jvp` takes
the derivative of a batch's losses along G in forward mode; `forward` takes the losses alone, in
batches, without which nothing scores by the model.

Each method runs in a process of its own, the factors once before and once after the others. Memory
is the peak beyond model and G: resident on a CPU, allocated on a GPU. Goals: a difference of at
most 1e-5 of the largest score, and 20 times as fast as the loop. Run on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from experiments.selection.rules import Evidence, gradient_match
from low_rank import SHAPES, build, peak, reset_peak
from oneshot_lit.data import Microworld
from oneshot_lit.data.chat import encode_conversation
from oneshot_lit.methods.select.reference import ReferenceRows, batches_of

RIVALS = ("loop", "vmap", "jvp", "forward")
LABELS = {
    "factors": "ours, from factors",
    "loop": "explicit gradients, row by row",
    "vmap": "torch.func, vmap of grad",
    "jvp": "torch.func, jvp along G",
    "forward": "losses alone, no scores",
}
# Rows whose gradients `vmap` holds at once: eight copies of all weights.
VMAP_ROWS = 8


class Given(Evidence):
    """Evidence whose gradient of the upper objective is known."""

    known: dict[str, Tensor]

    def upper_gradient(self, weights: Any) -> dict[str, Tensor]:
        """Return it."""
        return self.known


def load(folder: str, device: str, attention: str) -> tuple[Any, Any]:
    """Return model and tokenizer of a folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attention
    )
    return model.to(device).eval(), AutoTokenizer.from_pretrained(folder)


def evidence(model: Any, tokenizer: Any, split: str, size: int, limit: int | None) -> Given:
    """Return a split of the micro-world in batches of `size` rows."""
    rows = Microworld(split, size=limit).load()
    encoded = [encode_conversation(tokenizer, row) for row in rows]
    return Given(rows, batches_of(encoded, tokenizer.pad_token_id, size, model.device), model)


def upper_gradient(model: Any, tokenizer: Any) -> dict[str, Tensor]:
    """Return the gradient of an upper objective.

    A copy of the model with noise on its weights stands for the aligned model, which a random model
    does not have.
    """
    seen = evidence(model, tokenizer, "refusals", 32, 32)
    kept = [p.detach().clone() for p in model.parameters()]
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * p.std() * torch.randn_like(p)
        reference = ReferenceRows(seen.batches, seen.answer_logits)
        for p, old in zip(model.parameters(), kept, strict=True):
            p.copy_(old)
    seen.upper = [reference]
    return Evidence.upper_gradient(seen, seen.weights())


def by_loop(seen: Given) -> list[float]:
    """Score with one explicit gradient after the other."""
    weights = seen.weights()
    gradient = [seen.known[name].flatten() for name in weights]
    found = [0.0] * len(seen.pool)
    for batch in seen.batches:
        (loss,) = seen.losses(batch)
        grads = torch.autograd.grad(loss, list(weights.values()))
        seen.backwards += 1
        dots = [torch.dot(g.flatten(), whole) for g, whole in zip(grads, gradient, strict=True)]
        found[int(batch["index"])] = float(torch.stack(dots).double().sum())
    return found


@torch.no_grad()
def by_forward(seen: Given) -> list[float]:
    """Return the losses: what a score cannot do without."""
    found = [0.0] * len(seen.pool)
    for batch in seen.batches:
        put(found, batch["index"], seen.losses(batch))
    return found


def losses_of(model: Any, ids: Tensor, labels: Tensor) -> Callable[[dict[str, Tensor]], Tensor]:
    """Return weights -> each row's loss.

    Without a mask of the padding: no token looks behind itself, and padding carries no loss.
    """

    def losses(weights: dict[str, Tensor]) -> Tensor:
        inputs = {"input_ids": ids, "use_cache": False}
        logits = torch.func.functional_call(model, weights, (), inputs).logits
        targets = labels[:, 1:]
        each = cross_entropy(logits[:, :-1].float().mT, targets, reduction="none")
        kept = targets != -100
        return (each * kept).sum(1) / kept.sum(1).clamp_min(1)

    return losses


def by_vmap(seen: Given) -> list[float]:
    """Score with explicit gradients of several rows at once."""
    weights = {name: p.detach() for name, p in seen.weights().items()}

    def one(weights: dict[str, Tensor], ids: Tensor, labels: Tensor) -> Tensor:
        return losses_of(seen.model, ids[None], labels[None])(weights)[0]

    each = torch.func.vmap(torch.func.grad(one), in_dims=(None, 0, 0))
    found = [0.0] * len(seen.pool)
    for batch in seen.batches:
        grads = each(weights, batch["input_ids"], batch["labels"])
        seen.forwards += len(batch["index"])
        seen.backwards += len(batch["index"])
        dots = [g.flatten(1) @ seen.known[name].flatten() for name, g in grads.items()]
        put(found, batch["index"], torch.stack(dots).double().sum(0))
    return found


def by_jvp(seen: Given) -> list[float]:
    """Score with the losses' derivative along G."""
    weights = {name: p.detach() for name, p in seen.weights().items()}
    known = {name: seen.known[name] for name in weights}
    found = [0.0] * len(seen.pool)
    for batch in seen.batches:
        losses = losses_of(seen.model, batch["input_ids"], batch["labels"])
        with torch.no_grad():
            _, slope = torch.func.jvp(losses, (weights,), (known,))
        seen.forwards += len(batch["index"])
        put(found, batch["index"], slope)
    return found


def put(found: list[float], index: Tensor, scores: Tensor) -> None:
    """Write a batch's scores to their places."""
    for place, score in zip(index.tolist(), scores.tolist(), strict=True):
        found[place] = score


SCORES = {
    "factors": gradient_match,
    "loop": by_loop,
    "vmap": by_vmap,
    "jvp": by_jvp,
    "forward": by_forward,
}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run one method and return what it took."""
    # vmap and jvp need attention whose every step they can differentiate.
    attention = "eager" if options.method in ("vmap", "jvp") else "sdpa"
    model, tokenizer = load(options.folder, options.device, attention)
    saved = Path(options.gradient)
    if options.method == "gradient":
        start = time.monotonic()
        torch.save(upper_gradient(model, tokenizer), saved)
        return {"seconds": time.monotonic() - start}
    size = {"loop": 1, "vmap": VMAP_ROWS}.get(options.method, options.rows_at_once)
    seen = evidence(model, tokenizer, "pool", size, options.candidates)
    seen.known = torch.load(saved, map_location=options.device)
    # A first batch reads the weights from their file and starts the threads.
    first = evidence(model, tokenizer, "pool", size, size)
    first.known = seen.known
    SCORES[options.method](first)
    wait(options.device)
    reset_peak(options.device)
    before = peak(options.device)
    start, busy = time.monotonic(), time.process_time()
    scores = SCORES[options.method](seen)
    wait(options.device)
    return {
        "seconds": time.monotonic() - start,
        "busy": time.process_time() - busy,
        "memory": peak(options.device) - before,
        "scores": scores,
        "forwards": seen.forwards,
        "backwards": seen.backwards,
        "weights": sum(p.numel() for p in seen.weights().values()),
        "tokens": int(sum(batch["attention_mask"].sum() for batch in seen.batches)),
    }


def wait(device: str) -> None:
    """Wait until a GPU is done."""
    if device == "cuda":
        torch.cuda.synchronize()


def run(method: str, folder: Path, gradient: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure a method in a process of its own."""
    words = [sys.executable, __file__, "--method", method, "--folder", str(folder)]
    words += ["--gradient", str(gradient), "--device", options.device]
    words += ["--candidates", str(options.candidates), "--rows-at-once", str(options.rows_at_once)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{method}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def report(results: dict[str, list[dict[str, Any]]]) -> None:
    """Print what every method took, over ours."""
    seconds, busy = (
        sum(r[key] for r in results["factors"]) / len(results["factors"])
        for key in ("seconds", "busy")
    )
    for method, runs in results.items():
        for one in runs:
            print(
                f"  {LABELS[method]:<31} {one['seconds']:8.2f} s {one['busy']:8.2f} s of processor "
                f"{one['memory']:7.0f} MiB {one['forwards']:4d} rows forward "
                f"{one['backwards']:4d} backward"
            )
    for method, runs in results.items():
        if method != "factors":
            ratio, work = runs[0]["seconds"] / seconds, runs[0]["busy"] / busy
            print(f"{method} / ours   {ratio:.2f} of seconds, {work:.2f} of processor time")
    if "loop" not in results:
        return
    exact = torch.tensor(results["loop"][0]["scores"]).double()
    for method, runs in results.items():
        if method not in ("loop", "forward"):
            found = torch.tensor(runs[0]["scores"]).double()
            off = float((found - exact).abs().max() / exact.abs().max())
            print(f"{method}: largest difference from the loop / largest score   {off:.1e}")


def main() -> None:
    """Run every method and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="medium")
    parser.add_argument("--model", help="a model's folder, in place of random weights")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rows-at-once", type=int, default=64, help="of ours and of jvp")
    parser.add_argument("--candidates", type=int, default=256)
    parser.add_argument("--against", nargs="+", choices=RIVALS, default=RIVALS)
    parser.add_argument("--method", choices=("gradient", *SCORES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--gradient", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.method:
        print(json.dumps(measure(options)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.model or Path(temporary) / "model").absolute()
        if options.model is None:
            build(folder, options.shape, options.device, "float32")
        gradient = Path(temporary) / "gradient.pt"
        shared = run("gradient", folder, gradient, options)["seconds"]
        results = {"factors": [run("factors", folder, gradient, options)]}
        for method in options.against:
            results[method] = [run(method, folder, gradient, options)]
        results["factors"].append(run("factors", folder, gradient, options))
    ours = results["factors"][0]
    print(
        f"{options.model or options.shape}: {ours['weights'] / 1e6:.1f} million weights, "
        f"{len(ours['scores'])} candidates of {ours['tokens'] / len(ours['scores']):.1f} tokens, "
        f"{options.rows_at_once} at once, {options.device}"
    )
    print(f"  threads: {torch.get_num_threads()}, load of the machine: {os.getloadavg()[1]:.1f}")
    print(f"  {'G, shared by all':<31} {shared:8.2f} s")
    report(results)


if __name__ == "__main__":
    main()
