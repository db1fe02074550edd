"""What a training step with AdamW needs on each GPU: one short formula for each strategy.

ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054) shards over the processes the optimiser's state
(stage 1), the gradients, too (stage 2), and the weights, too (stage 3).
"""

from __future__ import annotations

from dataclasses import dataclass

from oneshot_lit.errors import OneShotError
from oneshot_lit.models.gguf import model_folder

# From the simplest to the one that needs the least memory on the GPU.
STRATEGIES = (
    "single",
    "ddp",
    "deepspeed_zero1",
    "deepspeed_zero2",
    "fsdp2",
    "deepspeed_zero3",
    "deepspeed_zero3_offload",
)
# Elements, by DeepSpeed's defaults as Lightning sets them: a communication bucket, and what ZeRO-3
# keeps whole at the turn from the forward to the backward pass.
BUCKET, LIVE = 200_000_000, 550_000_000


@dataclass(frozen=True)
class ModelSize:
    """Numbers of elements: of all weights, the trained ones, the largest decoder layer, and so on.

    `outside` are the weights outside the decoder layers, `features` the inputs and outputs of all
    linear maps within them for one token.
    """

    parameters: int
    trained: int
    layer: int
    outside: int
    features: int
    layers: int
    hidden: int
    vocabulary: int


def model_size(name: str, lora: int = 0) -> ModelSize:
    """Build a model on the meta device, which takes no memory, and count.

    Args:
        name: A model's folder, its config.json, a ``.gguf`` file or its name on the hub; only the
            config is read.
        lora: Train LoRA of this rank on all linear layers; 0 trains all weights.

    Raises:
        OneShotError: if there is none, or its config builds no causal language model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from oneshot_lit.models.adapters import add_adapter

    try:
        with torch.device("meta"):
            config = AutoConfig.from_pretrained(model_folder(name))
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    # A config of another library's making can fail anywhere in the model's code.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise OneShotError(
            f"--model {name}: no config of a causal language model ({reason}); give its folder, "
            "its config.json or its name on the hub."
        ) from error
    kinds = set(getattr(model, "_no_split_modules", None) or ())
    layers = [module for module in model.modules() if type(module).__name__ in kinds]
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in layers] or [0]
    features = sum(sum(p.shape) for layer in layers for p in layer.parameters() if p.dim() == 2)
    vocabulary, hidden = model.get_input_embeddings().weight.shape
    outside = sum(p.numel() for p in model.parameters()) - sum(sizes)
    if lora:
        with torch.device("meta"):
            model = add_adapter(model, {"r": lora, "target_modules": "all-linear"})
    weights = list(model.parameters())
    parameters = sum(p.numel() for p in weights)
    trained = sum(p.numel() for p in weights if p.requires_grad)
    return ModelSize(
        parameters, trained, max(sizes), outside, features, len(layers), hidden, vocabulary
    )


@dataclass(frozen=True)
class Estimate:
    """Bytes in one process of a strategy.

    `states` are the weights, the gradients and what the optimiser keeps, `temporary` the casts,
    buckets and gathered weights that come and go; `host` is CPU memory.
    """

    strategy: str
    processes: int
    states: float
    temporary: float
    activations: float
    host: float = 0

    @property
    def peak(self) -> float:
        """What the GPU needs: the sum of all parts."""
        return self.states + self.temporary + self.activations


def activation_bytes(
    size: ModelSize, tokens: int, mixed: bool = False, checkpointing: bool = False
) -> float:
    """Return what `tokens` tokens take: inputs and outputs of the linear maps, and the logits.

    Of each input and output 4.5 bytes in float32 and 3 under ``bf16-mixed`` are what the graph of a
    Llama-like layer of `transformers` holds, norms and attention included. The logits take 12:
    themselves, a float32 copy, and their logarithms. With checkpointing each layer keeps its input
    only, and one layer at a time is computed again.
    """
    kept = size.features * (3 if mixed else 4.5)
    if checkpointing and size.layers:
        kept = kept / size.layers + 4 * size.hidden * size.layers
    return tokens * (kept + 12 * size.vocabulary)


def estimate(
    size: ModelSize,
    strategy: str,
    processes: int,
    tokens: int = 512,
    mixed: bool = False,
    checkpointing: bool = False,
) -> Estimate:
    """Return the memory of one process; docs/memory.md explains the terms.

    Args:
        size: The model.
        strategy: One of `STRATEGIES`.
        processes: The number of processes.
        tokens: Tokens in a batch of one process.
        mixed: ``bf16-mixed`` in place of ``32-true``.
        checkpointing: Whether layers are computed again in the backward pass.
    """
    every, trained, own = size.parameters, size.trained, size.trained / processes
    item, host = 2 if mixed else 4, 0.0
    if strategy in ("single", "ddp"):
        states = 4.0 * every + 12 * trained
        temporary = max(4.0 * trained, 2.0 * every if mixed else 0)
        temporary += 4 * trained if strategy == "ddp" else 0
    elif strategy == "fsdp2":
        states = (4.0 * every + 12 * trained) / processes
        # What is outside the layers is gathered once and its message or gradient is there, too; of
        # the layers, one is computed, one fetched and one reduced, in float32.
        whole = item * (2 * size.outside + 3 * size.layer) + 4 * size.layer * trained / every
        temporary = max(4 * own, whole)
    elif strategy in ("deepspeed_zero1", "deepspeed_zero2"):
        states = item * every + (item + 12) * own
        temporary = 8 * own + 2 * item * BUCKET
    else:
        states = item * every / processes + (item + 12) * own
        temporary = 8 * own + item * (2 * BUCKET + min(every, LIVE) + size.outside)
        if strategy == "deepspeed_zero3_offload":
            host, states, temporary = states + 4 * own, 0.0, temporary - 8 * own
    activations = activation_bytes(size, tokens, mixed, checkpointing)
    return Estimate(strategy, processes, states, temporary, activations, host)
