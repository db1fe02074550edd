"""Start two processes that run the same cases, with a hard limit on their time."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

WORKER = """
import json, sys, traceback, warnings
warnings.filterwarnings("ignore")
from pathlib import Path
from oneshot_lit.errors import OneShotError
from strategies.{module} import {function} as run

for case in json.load(open(sys.argv[1])):
    try:
        run(**case)
    except OneShotError as error:
        Path(case["root"]).mkdir(exist_ok=True)
        Path(case["root"], "error").write_text(str(error))
"""


def in_two_processes(
    folder: Path, module: str, function: str, cases: list[dict[str, Any]], seconds: float = 240
) -> None:
    """Call `strategies.<module>.<function>(**case)` for each case, one after another.

    Writes the message of an `OneShotError` to the file `error` in the case's `root`.
    """
    (folder / "cases.json").write_text(json.dumps(cases))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    tests = str(Path(__file__).parent.parent)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")]),
    }
    logs = [folder / f"log{rank}" for rank in range(2)]
    code = WORKER.format(module=module, function=function)
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(folder / "cases.json")],
            env={**environment, "LOCAL_RANK": str(rank), "RANK": str(rank), "NODE_RANK": "0"},
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
        )
        for rank, log in enumerate(logs)
    ]
    try:
        for worker, log in zip(workers, logs, strict=True):
            try:
                code_ = worker.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                raise AssertionError(f"hung: {log.read_text()[-4000:]}") from None
            assert code_ == 0, log.read_text()[-6000:]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
