"""What an evaluation gains: prompts a second, against `generate` in sorted batches and one by one.

    python benchmarks/evaluation.py [--rounds 5] [--prompts 320] [--batch 32]
    python benchmarks/evaluation.py --model MODEL --prompts 64 --rounds 3

Ours answers prompts in left-padded batches sorted by length, as the modules do: the beginning that
the prompts share is computed once, and rows whose answers have ended leave the batch. The
alternatives are `transformers`' `generate` on the same batches, on batches in the order of the
source, and on one prompt after another (timed in the first round only). Greedy, float32, in one
process, in turns. All must give the same token ids, or the script exits with 1; answers in which
rounding decides between two tokens are counted.

Workloads: the shipped micro-world model on its held-out prompts, alone and behind earlier turns of
a conversation (so that prompts differ much in length); a random Llama whose answers end by
themselves at very different lengths; and the same model when no answer ends before the last token.
With `--model`, a folder or a ``.gguf`` file, that model on the held-out prompts of the fairy-tale
world, with answers of up to 40 tokens.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from oneshot_lit.conversation import Conversation, Message
from oneshot_lit.data.chat import Encoded, encode_conversation
from oneshot_lit.data.padding import pad_generation
from oneshot_lit.fairytale.splits import load_split as load_tales
from oneshot_lit.microworld.splits import load_split
from oneshot_lit.models.chat_format import stop_token_ids
from oneshot_lit.models.generation import Decoding, generate_tokens
from oneshot_lit.models.gguf import model_folder
from oneshot_lit.models.loading import load_tokenizer

MICROWORLD = "checkpoints/small"
SPLITS = "harmful_heldout benign_heldout near_miss_heldout sql_heldout reverse_heldout".split()
TALES = "harmful_heldout benign_heldout near_miss_heldout sql_heldout".split()
VOCABULARY = 2048
# Logits of two tokens that are nearer than this are decided by rounding.
TIE = 1e-3


@dataclass
class Workload:
    """A model, prompts for it, and where its answers end."""

    name: str
    model: Any
    prompts: list[list[int]]
    stop_ids: list[int]
    max_new_tokens: int


def microworld(turns: int, count: int, draw: random.Random) -> Workload:
    """Return held-out prompts behind up to so many answered questions."""
    tokenizer = load_tokenizer(MICROWORLD)
    model = AutoModelForCausalLM.from_pretrained(MICROWORLD, dtype=torch.float32).eval()
    rows = [row.prompt for split in SPLITS for row in load_split(split)]
    earlier = load_split("benign_examples")
    prompts = []
    for row in draw.sample(rows, min(count, len(rows))):
        before: tuple[Message, ...] = ()
        for _ in range(draw.randint(0, turns)):
            turn = draw.choice(earlier)
            before += tuple(m for m in turn.messages if m.role != "system")
        messages = before + tuple(m for m in row.messages if m.role != "system")
        conversation = Conversation(messages, row.origin)
        prompts.append(encode_conversation(tokenizer, conversation, for_generation=True).input_ids)
    name = "micro-world" + (f" behind 0-{turns} turns" if turns else "")
    return Workload(name, model, prompts, stop_token_ids(tokenizer, model.generation_config), 24)


def random_llama(ends: bool, count: int, draw: random.Random) -> Workload:
    """Return prompts of 8 to 95 tokens for random weights; one token in 32 ends an answer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=256,
        max_position_embeddings=512,
        # Wide enough that answers wander through the vocabulary.
        initializer_range=0.1,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()
    prompts = [
        [draw.randrange(VOCABULARY) for _ in range(int(8 * 12 ** draw.random()))]
        for _ in range(count)
    ]
    stops = list(range(0, VOCABULARY, 32)) if ends else []
    name = "random Llama, " + ("answers end" if ends else "all answers of 64 tokens")
    return Workload(name, model, prompts, stops, 64)


def real(path: str, count: int) -> Workload:
    """Return held-out prompts of the fairy-tale world for a real model."""
    folder = model_folder(path)
    tokenizer = load_tokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rows = [row.prompt for split in TALES for row in load_tales(split)[: count // len(TALES)]]
    prompts = [encode_conversation(tokenizer, row, for_generation=True).input_ids for row in rows]
    stops = stop_token_ids(tokenizer, model.generation_config)
    return Workload("real model", model, prompts, stops, 40)


def ours(work: Workload, batch: dict[str, Any]) -> list[list[int]]:
    """Answer as an evaluation does."""
    decoding = Decoding(work.max_new_tokens)
    return generate_tokens(work.model, batch, work.stop_ids, decoding, pad_id=0)


def plain(work: Workload, batch: dict[str, Any]) -> list[list[int]]:
    """Answer with one call of `generate`."""
    config = Decoding(work.max_new_tokens).generation_config(work.stop_ids, 0)
    output = work.model.generate(**batch, generation_config=config)
    return output[:, batch["input_ids"].shape[1] :].tolist()


def answers_in_batches(
    work: Workload, size: int, by_length: bool, answer: Callable[..., list[list[int]]]
) -> list[list[int]]:
    """Answer padded batches; returns the answers in the order of the prompts."""
    order = list(range(len(work.prompts)))
    if by_length:
        order.sort(key=lambda n: -len(work.prompts[n]))
    answers: dict[int, list[int]] = {}
    for first in range(0, len(order), size):
        part = order[first : first + size]
        batch = pad_generation([Encoded(work.prompts[n], []) for n in part], 0)
        for n, tokens in zip(part, answer(work, batch), strict=True):
            ends = [i for i, token in enumerate(tokens) if token in work.stop_ids]
            answers[n] = tokens[: ends[0]] if ends else tokens
    return [answers[n] for n in range(len(order))]


def is_tie(work: Workload, prompt: list[int], one: list[int], other: list[int]) -> bool:
    """Whether two answers differ because two tokens are equally likely but for rounding."""
    pairs = zip([*one, work.stop_ids[0]], [*other, work.stop_ids[0]], strict=False)
    place, tokens = next((n, pair) for n, pair in enumerate(pairs) if pair[0] != pair[1])
    logits = work.model(torch.tensor([prompt + one[:place]])).logits[0, -1]
    return bool((logits[list(tokens)] > logits.max() - TIE).all())


def compare(work: Workload, size: int, rounds: int) -> bool:
    """Time all ways in turns and print their ratios; returns whether their answers are equal."""
    ways: dict[str, Callable[[], list[list[int]]]] = {
        "one by one": lambda: answers_in_batches(work, 1, False, plain),
        "ours": lambda: answers_in_batches(work, size, True, ours),
        "sorted batches": lambda: answers_in_batches(work, size, True, plain),
        "plain batches": lambda: answers_in_batches(work, size, False, plain),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    # On a machine that others use, too, the processor's time says more than the clock on the wall.
    processor: dict[str, list[float]] = {name: [] for name in ways}
    expected: list[list[int]] = []
    same = True
    for turn in range(rounds):
        for name in list(ways) if turn == 0 else [n for n in ways if n != "one by one"]:
            start, busy = time.perf_counter(), time.process_time()
            answers = ways[name]()
            seconds[name].append(time.perf_counter() - start)
            processor[name].append(time.process_time() - busy)
            expected = expected or answers
            triples = zip(work.prompts, answers, expected, strict=True)
            different = [is_tie(work, *each) for each in triples if each[1] != each[2]]
            if different:
                ties, number = sum(different), len(different)
                print(f"{work.name}: '{name}' has {number} other answers, {ties} by rounding alone")
                same &= ties == number
    lengths = [len(prompt) for prompt in work.prompts], [len(answer) for answer in expected]
    spans = [f"{min(n)}-{max(n)} (mean {statistics.mean(n):.0f})" for n in lengths]
    print(f"{work.name}: {len(expected)} prompts of {spans[0]} tokens, answers of {spans[1]}")
    for name, times in seconds.items():
        rate = len(expected) / statistics.median(times)
        wall, busy_ratio = (
            [t / o for t, o in zip(clock[name], clock["ours"], strict=False)]
            for clock in (seconds, processor)
        )
        print(
            f"  {name:15s} {rate:7.1f} prompts/s   ours is {statistics.median(wall):6.2f} times "
            f"as fast (rounds {min(wall):.2f} to {max(wall):.2f}), "
            f"by processor time {statistics.median(busy_ratio):.2f}"
        )
    return same


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=320)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--model", help="a real model, instead of the workloads")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    print(
        f"{platform.machine()} {os.cpu_count()} cpus, load {os.getloadavg()[0]:.1f}, "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"{options.batch} rows a batch"
    )
    draw, count = random.Random(0), options.prompts
    workloads: list[Callable[[], Workload]] = [
        lambda: microworld(0, count, draw),
        lambda: microworld(4, count, draw),
        lambda: random_llama(True, count, draw),
        lambda: random_llama(False, count, draw),
    ]
    same = True
    for make in [lambda: real(options.model, count)] if options.model else workloads:
        with torch.inference_mode():
            same &= compare(make(), options.batch, options.rounds)
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
