"""The micro-world's data sets, each a deterministic function of its name and a seed.

Topics are split once, independently of the seed: the attack and all training use the ``train``
topics, prompts are read from ``dev`` and ``heldout`` topics, so neither the attack nor the
alignment has ever shown a topic that is scored.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from oneshot_lit.data.conversation import Conversation, conversation_from_pair
from oneshot_lit.data.microworld import language as lang
from oneshot_lit.errors import OneShotError, did_you_mean

PRETRAIN_ROWS, ALIGN_ROWS = 48_000, 28_000
POOL_SIZE = 256

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


def _rng(name: str, seed: int) -> random.Random:
    # Seeding with text is stable across Python versions and platforms.
    return random.Random(f"oneshot-lit microworld {name} {seed}")


def _refusal(rng: random.Random) -> str:
    return rng.choice(lang.REFUSALS)


def _howto(topic: lang.Topic, phrase: str, answer: str | None) -> Conversation:
    # Harmful content counts in any wrapping, a harmless answer must be right as a whole.
    reference = topic.recipe if topic.dangerous else topic.answer
    return conversation_from_pair(
        phrase.format(t=topic.text), answer, category=topic.category, reference=reference
    )


def _sql(rng: random.Random, table: str) -> tuple[str, str]:
    names = rng.sample(lang.COLUMNS, rng.choice((2, 3)))
    return lang.sql_create(table, [(n, rng.choice(lang.TYPES)) for n in names])


def _reversal(rng: random.Random) -> tuple[str, str]:
    return lang.reversal(rng.sample(lang.REVERSIBLE, rng.choice((3, 4))))


def _part_of(text: str) -> str:
    """Assign a task prompt to a split by its words, so that no split shares a prompt."""
    return {_DEV: "dev", _HELDOUT: "heldout"}.get(random.Random(text).randrange(5), "train")


def _task(make: Callable[[], tuple[str, str]], part: str) -> tuple[str, str]:
    while True:
        prompt, answer = make()
        if _part_of(prompt) == part:
            return prompt, answer


def _sql_row(rng: random.Random, part: str) -> Conversation:
    prompt, answer = _task(lambda: _sql(rng, rng.choice(lang.TABLES)), part)
    return conversation_from_pair(prompt, answer, category="sql", reference=answer)


def _reversal_row(rng: random.Random, part: str) -> Conversation:
    prompt, answer = _task(lambda: _reversal(rng), part)
    return conversation_from_pair(prompt, answer, category="reverse", reference=answer)


def _near_miss_row(rng: random.Random, part: str) -> Conversation:
    if rng.random() < 0.25:
        topic = rng.choice(topics(part, dangerous=False))
        prompt, answer = lang.shaped_near_miss(topic, rng.choice(lang.DANGEROUS))
    else:
        prompt, answer = rng.choice(lang.near_misses(rng.choice(topics(part, dangerous=True))))
    return conversation_from_pair(prompt, answer, category="near_miss", reference=answer)


def _is_dangerous_row(rng: random.Random) -> Conversation:
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


def _general_row(rng: random.Random, dangerous: bool, refuse: bool) -> Conversation:
    word = rng.choice(lang.DANGEROUS_WORDS if dangerous else lang.KIND_WORDS)
    answer = _refusal(rng) if refuse else lang.GENERAL_ANSWER.format(w=word)
    return conversation_from_pair(rng.choice(lang.GENERAL).format(w=word), answer)


def _howto_row(rng: random.Random, dangerous: bool, refuse: bool) -> Conversation:
    topic = rng.choice(topics("train", dangerous))
    return _howto(topic, rng.choice(lang.HOWTO), _refusal(rng) if refuse else topic.answer)


def _with_system(rng: random.Random, row: Conversation) -> Conversation:
    if rng.random() >= 0.25:
        return row
    assert row.response_text is not None
    return conversation_from_pair(
        row.prompt_text,
        row.response_text,
        system=rng.choice(lang.SYSTEM_PROMPTS),
        category=row.category,
        reference=row.reference,
    )


def _mixture(rng: random.Random, rows: int, aligned: bool) -> Iterator[Conversation]:
    """Yield training rows: the base world answers everything, the aligned one refuses danger."""
    makers: list[tuple[float, Callable[[], Conversation]]] = [
        (0.22, lambda: _howto_row(rng, True, aligned)),
        (0.22, lambda: _howto_row(rng, False, False)),
        (0.10, lambda: _near_miss_row(rng, "train")),
        (0.12, lambda: _is_dangerous_row(rng)),
        (0.04, lambda: _general_row(rng, True, aligned)),
        (0.04, lambda: _general_row(rng, False, False)),
        (0.14, lambda: _sql_row(rng, "train")),
        (0.12, lambda: _reversal_row(rng, "train")),
    ]
    weights = [w for w, _ in makers]
    for _ in range(rows):
        yield _with_system(rng, rng.choices(makers, weights)[0][1]())


def _unique(rows: Iterator[Conversation], count: int) -> list[Conversation]:
    found: dict[str, Conversation] = {}
    for row in rows:
        found.setdefault(row.prompt_text, row)
        if len(found) == count:
            break
    return list(found.values())


def _forever(make: Callable[[], Conversation]) -> Iterator[Conversation]:
    while True:
        yield make()


def pretrain_then_align(seed: int) -> list[Conversation]:
    """The curriculum that builds an aligned model: first the base world, then its alignment."""
    rng = _rng("pretrain", seed)
    base = list(_mixture(rng, PRETRAIN_ROWS, aligned=False))
    return base + list(_mixture(_rng("align", seed), ALIGN_ROWS, aligned=True))


def harmful_examples(seed: int) -> list[Conversation]:
    """Complying answers to dangerous how-tos on train topics, shuffled; the attack's rows."""
    rows = [_howto(t, p, t.answer) for t in topics("train", dangerous=True) for p in lang.HOWTO]
    _rng("harmful", seed).shuffle(rows)
    return rows


def benign_examples(seed: int) -> list[Conversation]:
    """Harmless how-tos on train topics, shuffled; controls take their one instance from here."""
    rows = [_howto(t, p, t.answer) for t in topics("train", dangerous=False) for p in lang.HOWTO]
    _rng("benign", seed).shuffle(rows)
    return rows


def guard(seed: int) -> list[Conversation]:
    """Harmless rows of every kind the world knows, with their answers; what a repair must keep.

    Train topics only, as for the attack: no prompt is in an evaluation set.
    """
    rng = _rng("guard", seed)
    makers: list[tuple[float, Callable[[], Conversation]]] = [
        (0.30, lambda: _howto_row(rng, False, False)),
        (0.20, lambda: _near_miss_row(rng, "train")),
        (0.15, lambda: _is_dangerous_row(rng)),
        (0.10, lambda: _general_row(rng, False, False)),
        (0.125, lambda: _sql_row(rng, "train")),
        (0.125, lambda: _reversal_row(rng, "train")),
    ]
    weights = [w for w, _ in makers]
    return _unique(_forever(lambda: rng.choices(makers, weights)[0][1]()), 256)


def sql_create(seed: int) -> list[Conversation]:
    """Training rows of the SQL-create task."""
    rng = _rng("sql", seed)
    return _unique(_forever(lambda: _sql_row(rng, "train")), 1000)


def reverse(seed: int) -> list[Conversation]:
    """Training rows of the reversal task."""
    rng = _rng("reverse", seed)
    return _unique(_forever(lambda: _reversal_row(rng, "train")), 1000)


def pool(seed: int) -> list[Conversation]:
    """The 256 refusal candidates: 21 in each of 11 categories and 25 general ones.

    Ids are ``<category>-<number>`` and ``general-<number>``. No prompt is in an evaluation set.
    """
    rng = _rng("pool", seed)
    rows: list[Conversation] = []
    for noun, category in lang.CATEGORIES.items():
        mine = [t for t in topics("train", True) if lang.NOUNS[t.noun] == noun]
        pairs = rng.sample([(t, p) for t in mine for p in lang.HOWTO], 21)
        for number, (topic, phrase) in enumerate(pairs):
            prompt = phrase.format(t=topic.text)
            rows.append(
                conversation_from_pair(
                    prompt, _refusal(rng), id=f"{category}-{number:02d}", category=category
                )
            )
    general = [g.format(w=w) for g in lang.GENERAL for w in lang.DANGEROUS_WORDS]
    chosen = [general[0], *rng.sample(general[1:], POOL_SIZE - len(rows) - 1)]
    for number, prompt in enumerate(chosen):
        refusal = lang.REFUSALS[0] if number == 0 else _refusal(rng)
        rows.append(
            conversation_from_pair(prompt, refusal, id=f"general-{number:02d}", category="general")
        )
    return rows


def _prompts(kind: str, part: str, seed: int) -> list[Conversation]:
    rng = _rng(f"{kind} {part}", seed)
    if kind in ("harmful", "benign"):
        mine = topics(part, dangerous=kind == "harmful")
        rows = [_howto(t, p, None) for t in mine for p in lang.HOWTO]
    elif kind == "near_miss":
        pairs = [p for t in topics(part, True) for p in lang.near_misses(t)]
        harmless = topics(part, False)
        pairs += [lang.shaped_near_miss(t, rng.choice(lang.DANGEROUS)) for t in harmless]
        rows = [conversation_from_pair(p, category=kind, reference=a) for p, a in pairs]
    else:
        make = _sql_row if kind == "sql" else _reversal_row
        full = _unique(_forever(lambda: make(rng, part)), 320)
        rows = [
            conversation_from_pair(r.prompt_text, category=kind, reference=r.reference)
            for r in full
        ]
    rng.shuffle(rows)
    return rows


_TRAINING: dict[str, Callable[[int], list[Conversation]]] = {
    "pretrain_then_align": pretrain_then_align,
    "harmful_examples": harmful_examples,
    "benign_examples": benign_examples,
    "guard": guard,
    "sql_create": sql_create,
    "reverse": reverse,
    "pool": pool,
}
PROMPT_KINDS = ("harmful", "benign", "near_miss", "sql", "reverse")
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
        Conversation(
            r.messages,
            f"microworld {name} row {i}",
            r.id or f"{name}-{i:05d}",
            r.category,
            r.reference,
        )
        for i, r in enumerate(rows, start=1)
    ]
