"""The metrics in two real processes: what each computes is the value of all answers together."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from oneshot_lit.evaluation.metrics import METRICS

WORKER = """
import json, sys
import torch.distributed as dist
from oneshot_lit.evaluation.metrics import METRICS

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
rows = json.load(open(f"{folder}/rows.json"))[rank]
values = {}
for name, kind in METRICS.items():
    metric = kind()
    for outputs, references in rows[name]:
        metric.update(outputs, references)
    values[name] = float(metric.compute())
    # The own share is given back after the computation, so that an epoch can go on.
    values[name + " own"] = [metric.sums.tolist(), int(metric.total), int(metric.unscored)]
json.dump(values, open(f"{folder}/values{rank}.json", "w"))
dist.destroy_process_group()
"""

ANSWERS = ["sure . take vuke .", "sorry , no .", "take vuke .", "take vuke . sorry", "blue red ."]
NUMBERS = ["#### 4", "it is 5", "#### 5", "none"]
QUERIES = ["select a from t", "SELECT A FROM T;", "select b from t", "no sql ."]
# Answers and references of each metric that needs others than these.
OTHERS = {
    "gsm8k_strict": (NUMBERS, ["#### 4", "#### 5"]),
    "gsm8k_flexible": (NUMBERS, ["#### 4", "#### 5"]),
    "sql_match": (QUERIES, QUERIES[1:3]),
    # A reference without a word cannot be scored.
    "rouge1": (ANSWERS, ["take vuke .", "blue red and green .", "."]),
    "rougeL": (ANSWERS, ["take vuke .", "blue red and green .", "."]),
}


def random_batches(rng: random.Random, name: str, sizes: list[int]) -> list[list[list[str]]]:
    answers, references = OTHERS.get(name, (ANSWERS, ["take vuke .", "blue red ."]))
    return [[rng.choices(answers, k=size), rng.choices(references, k=size)] for size in sizes]


@pytest.mark.slow
def test_synced_rates_equal_those_of_one_process(tmp_path: Path) -> None:
    rng = random.Random(0)
    # Unequal shares: the mean of two rates would be wrong.
    shares = [
        {name: random_batches(rng, name, sizes) for name in METRICS} for sizes in ([3, 1, 7], [2])
    ]
    (tmp_path / "rows.json").write_text(json.dumps(shares))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(tmp_path)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for worker in workers:
            _, errors = worker.communicate(timeout=120)
            assert worker.returncode == 0, errors
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()

    values = [json.loads((tmp_path / f"values{rank}.json").read_text()) for rank in range(2)]
    for name, kind in METRICS.items():
        alone, shares_alone = kind(), [kind(), kind()]
        for share, own in zip(shares, shares_alone, strict=True):
            for outputs, references in share[name]:
                alone.update(outputs, references)
                own.update(outputs, references)
        expected = float(alone.compute())
        assert values[0][name] == values[1][name] == expected
        # Otherwise a metric that never synced would pass.
        assert float(shares_alone[0].compute()) != expected
        for rank, own in enumerate(shares_alone):
            mine = [own.sums.tolist(), int(own.total), int(own.unscored)]
            assert values[rank][f"{name} own"] == mine
