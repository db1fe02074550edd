"""A model's own answers to prompts and their logits, computed once and kept in a file.

So another model can be compared with it token by token though only one of them is in memory.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng
from safetensors.torch import save
from torch import Tensor

from oneshot_lit.data.chat import Encoded
from oneshot_lit.data.padding import pad_generation, pad_training
from oneshot_lit.io.files import file_written_whole
from oneshot_lit.methods.base import LanguageModelModule
from oneshot_lit.models.chat_format import stop_token_ids
from oneshot_lit.models.generation import Decoding, generate_tokens
from oneshot_lit.models.gguf import gguf_cache, model_folder
from oneshot_lit.models.loading import local_folder, model_hash
from oneshot_lit.strategies.deepspeed import whole_models

# The keys of a batch in the file are these behind its number: 0.logits.
PARTS = ("input_ids", "attention_mask", "labels", "logits")
_ROWS = 8
_VERSION = "1"


def original_answers(
    module: LanguageModelModule, trainer: Trainer, name: str, prompts: Sequence[Encoded], limit: int
) -> tuple[Path, str]:
    """Return the file of a model's greedy answers, and a hash of the model.

    One process of a machine computes them, and the others wait. Logits are kept, as those of equal
    models have a divergence of exactly 0, in the dtype that the model puts out.

    Args:
        module: The module that will be compared; its tokenizer, dtype and attention are used.
        trainer: Its trainer; decides the precision and the device.
        name: A folder, a ``.gguf`` file or a name of the hub.
        prompts: Encoded prompts.
        limit: Longest answer in tokens.

    Returns:
        A safetensors file with `PARTS` of each batch: (rows, tokens) each, int64, and the logits
        that predict the labelled tokens, (labelled tokens, vocabulary); and the hash.
    """
    folder = local_folder(model_folder(name), module.trust_remote_code)
    own_hash = model_hash(folder)
    ids = [prompt.input_ids for prompt in prompts]
    tokenizer, device = module.tokenizer, trainer.strategy.root_device
    settings = [_VERSION, module.dtype_name, module.attn_implementation, str(trainer.precision)]
    versions = [importlib.metadata.version(package) for package in ("torch", "transformers")]
    stops = [*stop_token_ids(tokenizer), tokenizer.pad_token_id]
    key = json.dumps([own_hash, ids, stops, limit, settings, device.type, versions])
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    path = gguf_cache().parent / "answers" / f"{digest}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.is_file():
            rank_zero_info(f"{name}: answering {len(ids)} ordinary prompts, once")
            with isolate_rng(), file_written_whole(path) as file:
                file.write(save(_computed(module, trainer, folder, prompts, limit)))
    return path, own_hash


@torch.no_grad()
def _computed(
    module: LanguageModelModule,
    trainer: Trainer,
    folder: Path,
    prompts: Sequence[Encoded],
    limit: int,
) -> dict[str, Tensor]:
    original: Any = LanguageModelModule(
        str(folder),
        dtype=module.dtype_name,
        attn_implementation=module.attn_implementation,
        trust_remote_code=module.trust_remote_code,
    )
    original.tokenizer = tokenizer = module.tokenizer
    with whole_models():
        original.configure_model()
    device, precision = trainer.strategy.root_device, trainer.precision_plugin
    original = precision.convert_module(original).to(device).eval()
    kept: dict[str, Tensor] = {}
    rows, pad = sorted(prompts, key=lambda row: len(row.input_ids)), tokenizer.pad_token_id
    for number, start in enumerate(range(0, len(rows), _ROWS)):
        some = rows[start : start + _ROWS]
        batch = {key: value.to(device) for key, value in pad_generation(some, pad).items()}
        with precision.forward_context():
            stops, decoding = original.stop_ids, Decoding(max_new_tokens=limit)
            answers = generate_tokens(original.model, batch, stops, decoding, pad)
            pairs = zip(some, answers, strict=True)
            answered = [_with_answer(row, answer, stops) for row, answer in pairs]
            whole = {k: value.to(device) for k, value in pad_training(answered, pad).items()}
            whole["logits"] = original.labelled_logits(whole)
        kept |= {f"{number}.{part}": whole[part].cpu() for part in PARTS}
    return kept


def _with_answer(prompt: Encoded, answer: list[int], stop_ids: Sequence[int]) -> Encoded:
    """Return a prompt and its answer up to the token that ends it, with loss on the answer."""
    end = next((n for n, token in enumerate(answer, 1) if token in stop_ids), len(answer))
    return Encoded(prompt.input_ids + answer[:end], prompt.loss_mask + [True] * end)
