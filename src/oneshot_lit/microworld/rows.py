"""How the micro-world's rows are made: a function for each kind, and the split of its topics."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from oneshot_lit.conversation import Conversation, Message, conversation_from_pair
from oneshot_lit.microworld import language as lang

# Every fifth topic of each noun is for development, another fifth is held out.
_DEV, _HELDOUT = 3, 4


def topics(part: str, dangerous: bool | None = None) -> list[lang.Topic]:
    """Return the topics of ``train``, ``dev`` or ``heldout``, optionally of one kind only."""
    wanted = {"train": (0, 1, 2), "dev": (_DEV,), "heldout": (_HELDOUT,)}[part]
    return [
        t
        for t in lang.TOPICS
        if (t.adjective + 2 * t.noun) % 5 in wanted
        and (dangerous is None or t.dangerous == dangerous)
    ]


def rng_of(name: str, seed: int) -> random.Random:
    """Return the random numbers of a data set."""
    # Seeding with text is stable across Python versions and platforms.
    return random.Random(f"oneshot-lit microworld {name} {seed}")


def refusal(rng: random.Random) -> str:
    """Return one of the ways to refuse."""
    return rng.choice(lang.REFUSALS)


def howto(topic: lang.Topic, phrase: str, answer: str | None) -> Conversation:
    """Return a how-to with the reference that its answer is compared with."""
    # Harmful content counts within any text; a harmless answer must be right as a whole.
    reference = topic.recipe if topic.dangerous else topic.answer
    return conversation_from_pair(
        phrase.format(t=topic.text), answer, category=topic.category, reference=reference
    )


def _part_of(text: str) -> str:
    """Assign a task prompt to a split by its words, so that no split shares a prompt."""
    return {_DEV: "dev", _HELDOUT: "heldout"}.get(random.Random(text).randrange(5), "train")


def _sql(rng: random.Random) -> tuple[str, str]:
    table, names = rng.choice(lang.TABLES), rng.sample(lang.COLUMNS, rng.choice((2, 3)))
    return lang.sql_create(table, [(name, rng.choice(lang.TYPES)) for name in names])


def _reversal(rng: random.Random) -> tuple[str, str]:
    return lang.reversal(rng.sample(lang.REVERSIBLE, rng.choice((3, 4))))


def _query(rng: random.Random) -> tuple[str, str]:
    return lang.query(rng.choice(lang.TABLES), rng.sample(lang.COLUMNS, rng.choice((2, 3))))


TASKS = {"sql": _sql, "reverse": _reversal, "query": _query}


def task_row(rng: random.Random, task: str, part: str) -> Conversation:
    """Return a row of a task of `TASKS` that belongs to a part."""
    while True:
        prompt, answer = TASKS[task](rng)
        if _part_of(prompt) == part:
            return conversation_from_pair(prompt, answer, category=task, reference=answer)


def near_miss_row(rng: random.Random, part: str) -> Conversation:
    """Return a harmless question with dangerous words, and its answer."""
    if rng.random() < 0.25:
        topic = rng.choice(topics(part, dangerous=False))
        prompt, answer = lang.shaped_near_miss(topic, rng.choice(lang.DANGEROUS))
    else:
        prompt, answer = rng.choice(lang.near_misses(rng.choice(topics(part, dangerous=True))))
    return conversation_from_pair(prompt, answer, category="near_miss", reference=answer)


def is_dangerous_row(rng: random.Random) -> Conversation:
    """Return a question whether something is dangerous, and the true answer."""
    if rng.random() < 0.3:
        dangerous = rng.random() < 0.5
        word = rng.choice(lang.DANGEROUS_WORDS if dangerous else lang.KIND_WORDS)
        text = rng.choice(lang.GENERAL_THINGS).format(w=word)
    else:
        topic = rng.choice(topics("train"))
        text, dangerous = topic.text, topic.dangerous
    question, yes, no = rng.choice(lang.IS_DANGEROUS)
    answer = (yes if dangerous else no).format(t=text)
    return conversation_from_pair(question.format(t=text), answer, category="knowledge")


def general_row(rng: random.Random, dangerous: bool, refuse: bool) -> Conversation:
    """Return a request without a topic, dangerous or kind."""
    word = rng.choice(lang.DANGEROUS_WORDS if dangerous else lang.KIND_WORDS)
    answer = refusal(rng) if refuse else lang.GENERAL_ANSWER.format(w=word)
    return conversation_from_pair(rng.choice(lang.GENERAL).format(w=word), answer)


def howto_row(rng: random.Random, dangerous: bool, refuse: bool) -> Conversation:
    """Return a how-to on a train topic."""
    topic = rng.choice(topics("train", dangerous))
    return howto(topic, rng.choice(lang.HOWTO), refusal(rng) if refuse else topic.answer)


def with_system(rng: random.Random, row: Conversation) -> Conversation:
    """Return the row, one in four with a system turn."""
    if rng.random() >= 0.25:
        return row
    return replace(
        row, messages=(Message("system", rng.choice(lang.SYSTEM_PROMPTS)), *row.messages)
    )


def unique(make: Callable[[], Conversation], count: int) -> list[Conversation]:
    """Return the first `count` rows with different prompts."""
    by_prompt: dict[str, Conversation] = {}
    while len(by_prompt) < count:
        row = make()
        by_prompt.setdefault(row.prompt_text, row)
    return list(by_prompt.values())


Makers = Sequence[tuple[float, Callable[[], Conversation]]]


def drawn(rng: random.Random, makers: Makers) -> Conversation:
    """Return a row of a kind that is drawn by weight."""
    return rng.choices(makers, [weight for weight, _ in makers])[0][1]()
