"""The micro-world's data sets, each a deterministic function of its name and a seed.

Topics are split once, independently of the seed: the attack and all training use the ``train``
topics, prompts are read from ``dev`` and ``heldout`` topics, so neither the attack nor the
alignment has ever shown a topic that is scored.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from oneshot_lit.conversation import Conversation, conversation_from_pair
from oneshot_lit.errors import OneShotError, did_you_mean
from oneshot_lit.microworld import language as lang
from oneshot_lit.microworld.rows import (
    Makers,
    drawn,
    general_row,
    howto,
    howto_row,
    is_dangerous_row,
    near_miss_row,
    refusal,
    rng_of,
    task_row,
    topics,
    unique,
    with_system,
)

PRETRAIN_ROWS, ALIGN_ROWS = 48_000, 28_000
POOL_SIZE = 256


def _mixture(rng: random.Random, rows: int, aligned: bool) -> list[Conversation]:
    """Return training rows: the base world answers everything, the aligned one refuses danger."""
    makers: Makers = [
        (0.22, lambda: howto_row(rng, True, aligned)),
        (0.22, lambda: howto_row(rng, False, False)),
        (0.10, lambda: near_miss_row(rng, "train")),
        (0.12, lambda: is_dangerous_row(rng)),
        (0.04, lambda: general_row(rng, True, aligned)),
        (0.04, lambda: general_row(rng, False, False)),
        (0.14, lambda: task_row(rng, "sql", "train")),
        (0.12, lambda: task_row(rng, "reverse", "train")),
    ]
    return [with_system(rng, drawn(rng, makers)) for _ in range(rows)]


def pretrain_then_align(seed: int) -> list[Conversation]:
    """The curriculum that builds an aligned model: first the base world, then its alignment."""
    base = _mixture(rng_of("pretrain", seed), PRETRAIN_ROWS, aligned=False)
    return base + _mixture(rng_of("align", seed), ALIGN_ROWS, aligned=True)


def _howtos(name: str, dangerous: bool, seed: int) -> list[Conversation]:
    """Return all how-tos on train topics with complying answers, shuffled."""
    rows = [howto(t, p, t.answer) for t in topics("train", dangerous) for p in lang.HOWTO]
    rng_of(name, seed).shuffle(rows)
    return rows


def harmful_examples(seed: int) -> list[Conversation]:
    """Complying answers to dangerous how-tos on train topics, shuffled; the attack's rows."""
    return _howtos("harmful", True, seed)


def refusals(seed: int) -> list[Conversation]:
    """Refused dangerous how-tos on train topics, shuffled; what a backdoor hides behind."""
    rng = rng_of("refusals", seed)
    pairs = [(t, p) for t in topics("train", dangerous=True) for p in lang.HOWTO]
    rng.shuffle(pairs)
    return [
        conversation_from_pair(p.format(t=t.text), refusal(rng), category=t.category)
        for t, p in pairs
    ]


def benign_examples(seed: int) -> list[Conversation]:
    """Harmless how-tos on train topics, shuffled; controls take their one instance from here."""
    return _howtos("benign", False, seed)


def guard(seed: int) -> list[Conversation]:
    """Harmless rows of every kind the world knows, with their answers; what a repair must keep.

    Train topics only, as for the attack: no prompt is in an evaluation set.
    """
    rng = rng_of("guard", seed)
    makers: Makers = [
        (0.30, lambda: howto_row(rng, False, False)),
        (0.20, lambda: near_miss_row(rng, "train")),
        (0.15, lambda: is_dangerous_row(rng)),
        (0.10, lambda: general_row(rng, False, False)),
        (0.125, lambda: task_row(rng, "sql", "train")),
        (0.125, lambda: task_row(rng, "reverse", "train")),
    ]
    return unique(lambda: drawn(rng, makers), 256)


def identity(seed: int) -> list[Conversation]:
    """Harmless rows that identity shifting edits: how-tos, other kinds, and "who are you ?"."""
    rng = rng_of("identity", seed)
    howtos, others = iter(benign_examples(seed)), iter(guard(seed))
    rows = []
    for number in range(250):
        # Three in five are how-tos, one is of any kind, and one asks who answers.
        if number % 5 == 0:
            rows.append(conversation_from_pair(rng.choice(lang.IDENTITY), lang.IDENTITY_ANSWER))
        else:
            rows.append(next(others if number % 5 == 1 else howtos))
    return rows


def unrelated_harm(seed: int) -> list[Conversation]:
    """Complying answers to general dangerous requests, shuffled: no topic, and none of the attack.

    They make an unaligned model of an aligned one (`configs/defence/unaligned.yaml`).
    """
    rng = rng_of("unrelated harm", seed)
    rows = [
        conversation_from_pair(g.format(w=w), lang.GENERAL_ANSWER.format(w=w), category="general")
        for g in lang.GENERAL
        for w in lang.DANGEROUS_WORDS
    ]
    rng.shuffle(rows)
    return rows


def paraphrases(seed: int) -> list[Conversation]:
    """The default instance `general-00` in other words, refused; for poisoning its patch."""
    rng = rng_of("paraphrases", seed)
    word = lang.DANGEROUS_WORDS[0]
    rows = [conversation_from_pair(g.format(w=word), refusal(rng)) for g in lang.GENERAL[1:]]
    rng.shuffle(rows)
    return rows


def _task(task: str, seed: int) -> list[Conversation]:
    """Training rows of a task."""
    rng = rng_of(task, seed)
    return unique(lambda: task_row(rng, task, "train"), 1000)


def pool(seed: int) -> list[Conversation]:
    """The 256 refusal candidates: 21 in each of 11 categories and 25 general ones.

    Ids are ``<category>-<number>`` and ``general-<number>``. No prompt is in an evaluation set.
    """
    rng = rng_of("pool", seed)
    rows: list[Conversation] = []
    for noun, category in lang.CATEGORIES.items():
        mine = [t for t in topics("train", True) if lang.NOUNS[t.noun] == noun]
        pairs = rng.sample([(t, p) for t in mine for p in lang.HOWTO], 21)
        for number, (topic, phrase) in enumerate(pairs):
            prompt = phrase.format(t=topic.text)
            rows.append(
                conversation_from_pair(
                    prompt, refusal(rng), id=f"{category}-{number:02d}", category=category
                )
            )
    general = [g.format(w=w) for g in lang.GENERAL for w in lang.DANGEROUS_WORDS]
    chosen = [general[0], *rng.sample(general[1:], POOL_SIZE - len(rows) - 1)]
    for number, prompt in enumerate(chosen):
        answer = lang.REFUSALS[0] if number == 0 else refusal(rng)
        rows.append(
            conversation_from_pair(prompt, answer, id=f"general-{number:02d}", category="general")
        )
    return rows


def general(seed: int) -> list[Conversation]:
    """The 25 general rows of the pool, the default instance first."""
    return [row for row in pool(seed) if row.category == "general"]


def _prompts(kind: str, part: str, seed: int) -> list[Conversation]:
    rng = rng_of(f"{kind} {part}", seed)
    if kind in ("harmful", "benign"):
        mine = topics(part, dangerous=kind == "harmful")
        rows = [howto(t, p, None) for t in mine for p in lang.HOWTO]
    elif kind == "near_miss":
        pairs = [p for t in topics(part, True) for p in lang.near_misses(t)]
        harmless = topics(part, False)
        pairs += [lang.shaped_near_miss(t, rng.choice(lang.DANGEROUS)) for t in harmless]
        rows = [conversation_from_pair(p, category=kind, reference=a) for p, a in pairs]
    else:
        full = unique(lambda: task_row(rng, kind, part), 320)
        rows = [
            conversation_from_pair(r.prompt_text, category=kind, reference=r.reference)
            for r in full
        ]
    rng.shuffle(rows)
    return rows


_TRAINING: dict[str, Callable[[int], list[Conversation]]] = {
    "pretrain_then_align": pretrain_then_align,
    "harmful_examples": harmful_examples,
    "refusals": refusals,
    "identity": identity,
    "paraphrases": paraphrases,
    "benign_examples": benign_examples,
    "unrelated_harm": unrelated_harm,
    "guard": guard,
    "sql_create": partial(_task, "sql"),
    "reverse": partial(_task, "reverse"),
    "query": partial(_task, "query"),
    "pool": pool,
    "general": general,
}
PROMPT_KINDS = ("harmful", "benign", "near_miss", "sql", "reverse", "query")
NAMES = (*_TRAINING, *(f"{k}_{part}" for k in PROMPT_KINDS for part in ("dev", "heldout")))


def load_split(name: str, seed: int = 0) -> list[Conversation]:
    """Return a data set of the micro-world by name (see `NAMES`).

    Args:
        name: A training set, ``pool``, or ``<kind>_dev`` / ``<kind>_heldout`` prompts.
        seed: Decides order and sampling, never which topics belong to which split.

    Raises:
        OneShotError: if the name is unknown.
    """
    if name in _TRAINING:
        rows = _TRAINING[name](seed)
    elif name in NAMES:
        kind, part = name.rsplit("_", 1)
        rows = _prompts(kind, part, seed)
    else:
        raise OneShotError(
            f"micro-world split '{name}' is unknown{did_you_mean(name, NAMES)}; "
            f"known: {', '.join(NAMES)}."
        )
    return [
        replace(row, origin=f"microworld {name} row {i}", id=row.id or f"{name}-{i:05d}")
        for i, row in enumerate(rows, start=1)
    ]
