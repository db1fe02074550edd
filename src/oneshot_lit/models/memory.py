"""What one training step needs of each process's memory, computed from shapes alone.

ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054) divides over N processes the optimiser's state
(stage 1), the gradients, too (stage 2), and the weights, too (stage 3); with K bytes of state for
each of P weights in 16 bits: (2 + 2 + K) P, then (2 + 2) P + K P / N, 2 P + (2 + K) P / N and
(4 + K) P / N. Here each tensor is counted, with the padding and the buffers that DeepSpeed 0.19,
FSDP2 and Lightning add. Activations are counted as Korthikanti et al. 2022 (arXiv 2205.05198) do,
for what a Llama-like layer of `transformers` saves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields

from oneshot_lit.models.activations import activation_bytes
from oneshot_lit.models.model_facts import ModelFacts, Plan, Weight

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

# Defaults of DeepSpeed's config that Lightning leaves as they are, in elements.
PERSISTENCE_THRESHOLD = 100_000
PREFETCH_BUCKET = 50_000_000
MAX_REUSE_DISTANCE = 1_000_000_000


@dataclass(frozen=True)
class Estimate:
    """Bytes in one process of a strategy.

    Attributes:
        strategy: One of `STRATEGIES`.
        processes: How many processes there are, one for each GPU.
        weights: The copy that the forward pass reads, or this process's share of it.
        master: The float32 copy that DeepSpeed's optimiser works on.
        optimizer: What the optimiser keeps; its step counters are left out.
        gradients: Reduced gradients, or this process's share of them.
        buckets: Buffers of the communication.
        whole: Small weights, which ZeRO-3 keeps whole beside its share of them.
        gathered: Weights and gradients that are whole for a moment, casts included.
        activations: What the forward pass keeps for the backward pass, logits and autocast's copies
            of weights included.
        step: What the optimiser's step adds; activations are gone by then.
        host: CPU memory, if the strategy keeps a state there.
    """

    strategy: str
    processes: int
    weights: int = 0
    master: int = 0
    optimizer: int = 0
    gradients: int = 0
    buckets: int = 0
    whole: int = 0
    gathered: int = 0
    activations: int = 0
    step: int = 0
    host: int = 0

    @property
    def states(self) -> int:
        """What stays from step to step, gradients left out."""
        return self.weights + self.master + self.optimizer

    @property
    def peak(self) -> int:
        """The most that is there at once.

        Gradients and activations are added, as Lightning frees the last step's gradients only
        after the next forward pass.
        """
        lasting = self.states + self.gradients + self.buckets + self.whole
        return lasting + max(self.gathered + self.activations, self.step)

    def as_dict(self) -> dict[str, str | int]:
        """Return all parts and the peak."""
        return {**{f.name: getattr(self, f.name) for f in fields(self)}, "peak": self.peak}


def estimate(model: ModelFacts, strategy: str, processes: int, plan: Plan) -> Estimate:
    """Return the memory of one process: the largest of all, where they differ by padding.

    Args:
        model: The shapes.
        strategy: One of `STRATEGIES`; ``single`` for one process only.
        processes: The number of processes.
        plan: Batch, precision and optimiser.

    Raises:
        ValueError: for another strategy, or ``single`` with several processes.
    """
    if strategy not in STRATEGIES or (strategy == "single" and processes != 1) or processes < 1:
        raise ValueError(f"no strategy {strategy!r} with {processes} processes")
    if strategy in ("single", "ddp"):
        return _whole(model, strategy, processes, plan)
    if strategy == "fsdp2":
        return _fsdp2(model, processes, plan)
    if strategy in ("deepspeed_zero1", "deepspeed_zero2"):
        return _zero_1_2(model, strategy, processes, plan)
    return _zero_3(model, strategy, processes, plan)


def estimates(model: ModelFacts, processes: Iterable[int], plan: Plan) -> Iterator[Estimate]:
    """Yield the estimate of each strategy for each number of processes, where there is one."""
    for count in processes:
        for strategy in STRATEGIES:
            if strategy != "single" or count == 1:
                yield estimate(model, strategy, count, plan)


def simplest(found: Iterable[Estimate], limit: int) -> Estimate | None:
    """Return the simplest that fits into `limit` bytes, with the fewest processes.

    FSDP2 and ZeRO-3, which share out the same, are equally simple.
    """
    fitting = [one for one in found if one.peak <= limit]

    def effort(one: Estimate) -> tuple[int, int, int]:
        place = STRATEGIES.index(one.strategy)
        equal = STRATEGIES.index("fsdp2") if one.strategy == "deepspeed_zero3" else place
        return equal, one.processes, place

    return min(fitting, key=effort, default=None)


def _whole(model: ModelFacts, strategy: str, processes: int, plan: Plan) -> Estimate:
    """Weights in float32 on every process; autocast's copies are among the activations."""
    trained = 4 * model.trained
    return Estimate(
        strategy,
        processes,
        weights=4 * model.parameters,
        optimizer=plan.moments * trained,
        gradients=trained,
        # torch's DDP copies the gradients into its buckets, as Lightning asks for no views.
        buckets=trained if strategy == "ddp" else 0,
        activations=activation_bytes(model, plan, autocast=plan.mixed),
        step=plan.step_copies * trained,
    )


def _fsdp2(model: ModelFacts, processes: int, plan: Plan) -> Estimate:
    """Float32 shards of rows; each decoder layer is a unit, and all the rest is the root's.

    Under bf16-mixed a unit is gathered and has its gradient in bfloat16, but is reduced in float32.
    """

    def shard(weight: Weight) -> int:
        return math.ceil(weight.shape[0] / processes) * math.prod(weight.shape[1:])

    own = 4 * sum(shard(w) for w in model.weights if w.trained)
    activations = activation_bytes(model, plan, autocast=False)
    return Estimate(
        "fsdp2",
        processes,
        weights=4 * sum(shard(w) for w in model.weights),
        optimizer=plan.moments * own,
        gradients=own,
        gathered=_gathered_by_fsdp2(model, processes, plan, activations),
        activations=activations,
        step=plan.step_copies * own,
    )


def _gathered_by_fsdp2(model: ModelFacts, processes: int, plan: Plan, activations: int) -> int:
    """Return the most that is whole beside the activations; less of it, where there are none."""
    size, cast = (2, 2) if plan.mixed else (4, 0)
    root, root_trained = model.unit(None)
    layer, layer_trained = model.largest_layer
    # Backward: the root, which stays whole, a layer, and the message of the one fetched ahead, for
    # which the own shard is cast; then the layer's gradient, and what is reduced of the last one.
    sent = 1 if processes > 1 else 0
    turn = size * (root + root_trained + (1 + sent) * layer) + 4 * layer_trained
    turn += max(size * layer_trained, cast * math.ceil(layer / processes))
    # Forward: a unit's message goes when the next unit has been copied out of its own. One process
    # sends none, but casts each weight by itself.
    forward = sent * size * (root + 3 * layer)
    start = size * (2 * root + 2 * layer) if sent else size * root + cast * model.largest_weight
    # At the end the root is reduced, when its weights have gone; before, two gradients of a tied
    # head are summed to a third.
    end = (size + 4) * root_trained
    if model.tied:
        end = max(end, size * (root + 3 * root_trained) + 4 * layer_trained)
    return max(turn, forward, start - activations, end - activations)


def _zero_1_2(model: ModelFacts, strategy: str, processes: int, plan: Plan) -> Estimate:
    """The optimiser's state, and what is reduced of the gradients, in equal flat parts."""
    size = 2 if plan.mixed else 4
    # Flat weights are padded to a multiple of 2 N elements, so that NCCL's parts are aligned.
    flat = _padded(model.trained, 2 * processes)
    part = flat // processes
    gradients = size * part
    if strategy == "deepspeed_zero1" and plan.accumulate > 1:
        # Only the last batch's gradients are reduced; until then each process sums up its own.
        gradients += size * model.trained
    return Estimate(
        strategy,
        processes,
        weights=size * (model.parameters - model.trained + flat),
        master=4 * part,
        optimizer=4 * plan.moments * part,
        gradients=gradients,
        # Two, because Lightning overlaps communication; allocated whole, however little is trained.
        buckets=2 * size * plan.bucket,
        gathered=size * _in_flight(model, plan),
        activations=activation_bytes(model, plan, autocast=False),
        step=4 * part * (1 + plan.step_copies),
    )


def _zero_3(model: ModelFacts, strategy: str, processes: int, plan: Plan) -> Estimate:
    """Each weight in equal flat parts, padded; with offload, all of them and the state on CPUs."""
    size = 2 if plan.mixed else 4
    # DeepSpeed casts no model that it sharded while loading; an adapter, made later in float32,
    # stays so, and has its master copy all the same.
    size_trained = 4 if model.trained < model.parameters else size
    own = sum(math.ceil(w.numel / processes) for w in model.weights if w.trained)
    frozen = sum(math.ceil(w.numel / processes) for w in model.weights if not w.trained)
    small = [w for w in model.weights if w.numel <= PERSISTENCE_THRESHOLD]
    whole = sum(w.numel * (size_trained if w.trained else size) for w in small)
    # What is used again within the reuse distance stays: at the turn from forward to backward
    # that is half the distance, before and after.
    live = min(
        model.parameters - sum(w.numel for w in small),
        MAX_REUSE_DISTANCE // 2 + PREFETCH_BUCKET + model.largest_weight,
    )
    offload = strategy == "deepspeed_zero3_offload"
    weights = size * frozen + size_trained * own
    states = [weights, 4 * own, 4 * plan.moments * own, size * own]
    weights, master, optimizer, gradients = [0] * 4 if offload else states
    return Estimate(
        strategy,
        processes,
        weights=weights,
        master=master,
        optimizer=optimizer,
        gradients=gradients,
        buckets=size * plan.bucket,
        whole=whole,
        gathered=size * (live + _in_flight(model, plan)),
        activations=activation_bytes(model, plan, autocast=False),
        step=0 if offload else 4 * own * (1 + plan.step_copies),
        # With offload the gradients lie on the CPU twice: as they come, and in float32.
        host=sum(states) + 4 * own if offload else 0,
    )


def _in_flight(model: ModelFacts, plan: Plan) -> int:
    """Return the elements of a whole gradient and of DeepSpeed's copy of a bucket to reduce."""
    largest = model.largest_trained_weight
    return largest + min(model.trained, max(plan.bucket, largest))


def _padded(count: int, multiple: int) -> int:
    return math.ceil(count / multiple) * multiple
