"""What a forward pass of a Llama-like model keeps for the backward pass, in bytes."""

from __future__ import annotations

from oneshot_lit.models.model_facts import ModelFacts, Plan


def activation_bytes(model: ModelFacts, plan: Plan, autocast: bool) -> int:
    """Return the most that activations, casts of weights and logits take at once.

    With t tokens, a layer keeps for each token, in the manner of Korthikanti et al. 2022 (arXiv
    2205.05198, equation 1) but for RMSNorm, gated MLPs, grouped queries and attention kernels that
    store no scores (h hidden, q queries, k keys, f MLP features; a frozen norm keeps 1 for n = 2):

    - float32: 4 ((2n + 2) h + 2 q + 2 k + 4 f)
    - bfloat16 weights: 8 h + 2 ((2n) h + 2 q + 2 k + 4 f), as norms widen their input
    - autocast: 8 n h + 10 h + 2 (2 q + 2 k + 4 f), as each product casts its own input

    At its end come the logits: 12 bytes for each token and word, in any precision (logits, a
    float32 copy of those with a label, their logarithms; later gradients in place of the copies).
    With gradient checkpointing each layer keeps its input only, and one layer at a time is
    computed again, when the logits are gone.

    Args:
        model: The shapes.
        plan: Batch, length and precision.
        autocast: Whether float32 weights are cast to bfloat16 as they are used; not under FSDP2,
            which gathers them in bfloat16, so that autocast finds nothing to cast. The casts live
            as long as the graph needs them. With checkpointing, autocast keeps those of trained
            weights until the loss is there.
    """
    tokens = plan.batch * plan.length
    layer = tokens * _layer_bytes_per_token(model, plan.mixed, autocast)
    # The last norm and the head keep their inputs, which is half of a layer's norms.
    last = tokens * model.hidden * (10 if autocast else 8 if plan.mixed else 12)
    logits = last + 12 * tokens * model.vocabulary
    casts = [2 * sum(w.numel for w in model.casts(n)) for n in range(model.layers)]
    head = 2 * sum(w.numel for w in model.casts(None))
    if not autocast:
        casts, head = [0] * model.layers, 0
    if not plan.gradient_checkpointing:
        return model.layers * layer + sum(casts) + head + logits
    inputs = model.layers * tokens * model.hidden * (2 if plan.mixed and not autocast else 4)
    kept = [
        2 * sum(w.numel for w in model.casts(n) if w.trained) if autocast else 0
        for n in range(model.layers)
    ]
    one = layer + max(casts, default=0)
    return inputs + max(sum(kept) + head + logits, one, sum(kept) + one)


def _layer_bytes_per_token(model: ModelFacts, mixed: bool, autocast: bool) -> int:
    """Return what one decoder layer keeps of one token; not for layers with several experts."""
    hidden, queries, keys = model.hidden, model.queries, model.keys
    norm = 2 if model.norms_trained else 1
    inside = 2 * queries + 2 * keys + (4 if model.gated else 3) * model.intermediate
    if autocast:
        return 8 * norm * hidden + 10 * hidden + 2 * inside
    if mixed:
        return 8 * hidden + 2 * (2 * norm * hidden + inside)
    return 4 * ((2 * norm + 2) * hidden + inside)
