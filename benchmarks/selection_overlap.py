"""Overlaps of 256 candidates' leading directions: from token factors against explicit gradients.

    PYTHONPATH=. python benchmarks/selection_overlap.py
        [--model checkpoints/medium] [--candidates 256]

The score is that of the rule `mean_overlap`: the mean over the weight matrices of the overlap of a
candidate's k leading left singular vectors with those of the pool's mean gradient. `factors` is the
rule; `loop` makes one candidate's whole gradient at a time and takes each matrix's singular vectors
with `torch.linalg.svd`. The mean gradient's own directions are computed once and given to both.
Memory is the resident peak beyond the model. Float32 gradients; run on an idle machine.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

import torch

from experiments.selection.rules import Evidence, leading_directions, mean_overlap
from low_rank import peak, reset_peak
from oneshot_lit.data import Microworld
from oneshot_lit.data.chat import encode_conversation
from oneshot_lit.methods.select.reference import batches_of
from oneshot_lit.spectral import subspace_overlap


def evidence(model: Any, tokenizer: Any, size: int, limit: int) -> Evidence:
    """Return the pool in batches of `size` rows."""
    rows = Microworld("pool", size=limit).load()
    encoded = [encode_conversation(tokenizer, row) for row in rows]
    return Evidence(rows, batches_of(encoded, tokenizer.pad_token_id, size, model.device), model)


def by_loop(seen: Evidence) -> list[float]:
    """Score with the singular vectors of one explicit gradient after the other."""
    assert seen.leading is not None
    weights = {name: seen.weights()[name] for name in seen.leading}
    found = [0.0] * len(seen.pool)
    for batch in seen.batches:
        (loss,) = seen.losses(batch)
        grads = torch.autograd.grad(loss, list(weights.values()))
        overlaps = []
        for name, gradient in zip(weights, grads, strict=True):
            u, s, _ = torch.linalg.svd(gradient.double(), full_matrices=False)
            u, s = u[:, : seen.overlap_k], s[: seen.overlap_k]
            kept = s > s[:1] * 1e-9
            overlaps.append(subspace_overlap(u[:, kept], seen.leading[name]) if kept.any() else 0.0)
        found[int(batch["index"])] = sum(overlaps) / len(overlaps)
    return found


def measure(
    score: Callable[[Evidence], list[float]], seen: Evidence
) -> tuple[list[float], float, float, float]:
    """Return the scores, seconds, seconds of processor time, and MiB beyond the model."""
    reset_peak("cpu")
    before = peak("cpu")
    start, busy = time.monotonic(), time.process_time()
    scores = score(seen)
    return (
        scores,
        time.monotonic() - start,
        time.process_time() - busy,
        peak("cpu") - before,
    )


def main() -> None:
    """Run both and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="checkpoints/medium", help="a model's folder")
    parser.add_argument("--candidates", type=int, default=256)
    options = parser.parse_args()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    whole = evidence(model, tokenizer, 64, options.candidates)
    start = time.monotonic()
    leading = leading_directions(whole)
    shared = time.monotonic() - start
    runs = []
    # Ours before and after the loop: other work on the machine then disturbs both.
    for name, size in (("factors", 64), ("loop", 1), ("factors", 64)):
        seen = evidence(model, tokenizer, size, options.candidates)
        seen.leading = leading
        runs.append((name, *measure(mean_overlap if name == "factors" else by_loop, seen)))
    print(
        f"{options.model}: {options.candidates} candidates, {len(leading)} matrices, "
        f"k = {whole.overlap_k}, threads: {torch.get_num_threads()}, "
        f"load of the machine: {os.getloadavg()[1]:.1f}"
    )
    print(f"  mean gradient and its directions, shared   {shared:8.2f} s")
    for name, _, seconds, busy, memory in runs:
        print(f"  {name:<9} {seconds:8.2f} s {busy:8.2f} s of processor {memory:7.0f} MiB")
    ours = (runs[0][3] + runs[2][3]) / 2, (runs[0][2] + runs[2][2]) / 2
    print(
        f"loop / ours   {runs[1][2] / ours[1]:.1f} of seconds, "
        f"{runs[1][3] / ours[0]:.1f} of processor time"
    )
    off = max(abs(a - b) for a, b in zip(runs[0][1], runs[1][1], strict=True))
    print(f"largest difference of a score (0 to 1)   {off:.1e}")


if __name__ == "__main__":
    main()
