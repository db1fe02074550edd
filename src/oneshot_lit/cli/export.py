"""The command ``export``: any checkpoint, sharded or not, as a Hugging Face folder."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from oneshot_lit.cli.parser import CommandParser
from oneshot_lit.errors import OneShotError
from oneshot_lit.io.files import folder_written_whole, recover

_DESCRIPTION = """\
Write the weights of a checkpoint as a Hugging Face folder, or as a PEFT adapter if only an adapter
was trained. Takes checkpoints of every strategy (a file of single and ddp, a folder of fsdp2 and
deepspeed), in one process on the CPU, whose memory must hold the whole model. The weights are those
of the checkpoint's own step; to get the best step of a stopped realignment, resume it instead. The
class of the run's module is imported, so convert only checkpoints that you trust.
"""


def run_export_command(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    parser = CommandParser(
        "export", _DESCRIPTION, "--checkpoint runs/attacked/checkpoints/last.ckpt --out runs/saved"
    )
    for name in ("checkpoint", "out"):
        parser.add_argument(f"--{name}", required=True, type=Path, metavar="PATH")
    parser.add_argument(
        "--save-dtype", metavar="DTYPE", help="cast the weights: float32, bfloat16 or float16"
    )
    parser.add_argument(
        "--merge-adapter", action="store_true", help="write the merged model, not the adapter"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the folder")
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="allow code of the base model's hub repository to run, as the run itself did",
    )
    options = parser.parse_args(arguments)
    export_checkpoint(**vars(options))
    print(f"model written to {options.out}")
    return 0


def export_checkpoint(
    checkpoint: Path,
    out: Path,
    *,
    save_dtype: str | None = None,
    merge_adapter: bool = False,
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> None:
    """Write the weights of a checkpoint as a Hugging Face folder.

    Args:
        checkpoint: A file, or a folder of FSDP2 or DeepSpeed.
        out: The folder; it appears whole or not at all.
        save_dtype: Cast the weights to it.
        merge_adapter: Merge an adapter into its base.
        overwrite: Replace an existing folder.
        trust_remote_code: Allow code of a hub repository to run, if the run did.

    Raises:
        OneShotError: if there is no checkpoint of `oneshot-lit`, or it does not fit its model.
    """
    from oneshot_lit.callbacks.checkpoint_io import AtomicCheckpointIO
    from oneshot_lit.callbacks.hf_export import HuggingFaceExport
    from oneshot_lit.cli.config_command import recorded
    from oneshot_lit.methods import LanguageModelModule
    from oneshot_lit.strategies.folders import facts_of

    recover(checkpoint)
    facts = facts_of(checkpoint)
    if out.is_file() or (out.exists() and not overwrite):
        raise OneShotError(f"{out}: exists already; give another --out or pass --overwrite.")
    export = HuggingFaceExport(save_dtype=save_dtype, merge_adapter=merge_adapter)
    if facts["kind"] == "file":
        reader = AtomicCheckpointIO()
        facts |= reader.load_checkpoint(checkpoint, map_location="cpu", weights_only=True)
    config = ((facts.get("run") or {}).get("config") or {}).get("model")
    if not config:
        raise OneShotError(
            f"{checkpoint}: does not say which model it is of; only checkpoints that the command "
            "oneshot-lit fit has saved can be converted."
        )
    module = recorded(LanguageModelModule, config, f"{checkpoint}: its module")
    # The user must allow remote code, too, whatever the checkpoint says.
    module.trust_remote_code = module.trust_remote_code and trust_remote_code
    module.configure_model()
    _fill(module, checkpoint, facts)
    with folder_written_whole(out) as folder:
        export.save(module, folder)


def _fill(module: Any, checkpoint: Path, facts: dict[str, Any]) -> None:
    """Give a module the weights of a checkpoint."""
    from oneshot_lit.callbacks.ema import AVERAGE
    from oneshot_lit.strategies.distributed_checkpoint import read_tensors
    from oneshot_lit.strategies.folders import own_state
    from oneshot_lit.strategies.weights import set_own_weights

    named = module.named_parameters()
    wanted = {name for name, p in named if p.requires_grad or module.strict_loading}
    if facts["kind"] == "file":
        module.load_state_dict(facts["state_dict"], strict=module.strict_loading)
        # Of a run that averages its weights, the average is the output.
        set_own_weights(module, own_state(facts).get(AVERAGE, {}))
    elif "ExponentialMovingAverage" in str(facts["run"]["config"].get("trainer")):
        raise OneShotError(
            f"{checkpoint}: its run averages the weights, and each process saved a part of the "
            "average; resume the run to its end instead."
        )
    elif facts["kind"] == "fsdp2":
        weights = {n: w for n, w in module.state_dict().items() if n in wanted}
        # Filled in place: these share the module's memory.
        read_tensors({"state_dict": weights}, checkpoint)
    else:
        weights = _deepspeed_weights(checkpoint, not module.strict_loading)
        if missing := sorted(wanted - set(weights)):
            raise OneShotError(f"{checkpoint}: does not fit its model: it lacks {missing[0]}.")
        module.load_state_dict(weights, strict=False)


def _deepspeed_weights(folder: Path, only_trained: bool) -> dict[str, Tensor]:
    """Return the float32 weights of a ZeRO checkpoint."""
    from oneshot_lit.strategies.deepspeed import plain_loads, require_deepspeed

    require_deepspeed()
    with plain_loads(), contextlib.redirect_stdout(io.StringIO()):
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        try:
            weights = get_fp32_state_dict_from_zero_checkpoint(
                str(folder), exclude_frozen_parameters=only_trained
            )
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise OneShotError(f"{folder}: not a whole checkpoint ({error}).") from error
    return {name: torch.as_tensor(weight) for name, weight in weights.items()}
