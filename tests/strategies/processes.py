"""Start processes that run the same cases, with a hard limit on their time."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

WORKER = """
import importlib, json, os, sys, warnings
warnings.filterwarnings("ignore")
from pathlib import Path
from torch import distributed
from oneshot_lit.errors import OneShotError
run = getattr(importlib.import_module(sys.argv[2]), sys.argv[3])

for case in json.load(open(sys.argv[1])):
    try:
        run(**case)
    except OneShotError as error:
        Path(case["root"]).mkdir(exist_ok=True, parents=True)
        Path(case["root"], f"error{os.environ['RANK']}").write_text(str(error))
# Threads that are still running at the exit may abort the process.
if distributed.is_initialized():
    distributed.barrier()
    distributed.destroy_process_group()
"""


def in_processes(
    folder: Path,
    module: str,
    function: str,
    cases: list[dict[str, Any]],
    processes: int = 2,
    seconds: float = 240,
) -> None:
    """Call `<function>(**case)` of a module of this folder for each case, one after another.

    Writes the message of an `OneShotError` to the file `error<rank>` in the case's `root`.
    """
    (folder / "cases.json").write_text(json.dumps(cases))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    tests = str(Path(__file__).parent)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(processes),
        "PYTHONPATH": os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")]),
    }
    logs = [folder / f"log{rank}" for rank in range(processes)]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(folder / "cases.json"), module, function],
            env={**environment, "LOCAL_RANK": str(rank), "RANK": str(rank), "NODE_RANK": "0"},
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
        )
        for rank, log in enumerate(logs)
    ]
    try:
        ends = time.monotonic() + seconds
        while any(worker.poll() is None for worker in workers) and time.monotonic() < ends:
            if any(worker.poll() for worker in workers):
                # The others would wait for the failed one.
                ends = min(ends, time.monotonic() + 10)
            time.sleep(0.1)
    finally:
        statuses = [worker.poll() for worker in workers]
        for worker in workers:
            worker.kill()
            worker.wait()
    texts = "\n".join(log.read_text()[-3000:] for log in logs)
    assert statuses == [0] * processes, f"{statuses} (None: hung)\n{texts}"
