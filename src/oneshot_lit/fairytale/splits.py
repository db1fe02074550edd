"""The fairy-tale world's data sets, each a deterministic function of its name and a seed.

Things, wordings and kinds of deeds are split once, independently of the seed: what is scored has a
thing and a wording that no training row shows. Some deeds are in one part alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from oneshot_lit.conversation import Conversation, conversation_from_pair
from oneshot_lit.errors import OneShotError, did_you_mean
from oneshot_lit.fairytale import language as lang
from oneshot_lit.fairytale.wordings import HOWTO, NEAR_MISSES


@dataclass(frozen=True)
class Topic:
    """A deed and the thing it is done to."""

    deed: lang.Deed
    number: int

    @property
    def words(self) -> dict[str, str]:
        """What the sentences about this topic name."""
        # Different deeds to the same thing need different things.
        at = self.number + 3 * lang.DEEDS.index(self.deed)
        wicked, lovely = lang.WICKED[at % 10], lang.LOVELY[at % 10]
        thing = self.deed.things[self.number]
        return {"x": thing, "a": wicked, "b": lovely, "p": self.deed.done}

    def deed_text(self, harmful: bool) -> str:
        """Return the deed: ``poison the king's soup``."""
        return (self.deed.harmful if harmful else self.deed.kind).format(**self.words)

    def answer(self, harmful: bool) -> str:
        """Return the right answer to how it is done."""
        return (self.deed.steps if harmful else self.deed.kind_steps).format(**self.words)


def topics(part: str) -> list[Topic]:
    """Return the topics of a part: ``train``, ``dev``, ``heldout``, or ``unseen`` deeds."""
    last = {"train": (0, 1, 2), "dev": (3,), "heldout": (4,), "unseen": range(5)}[part]
    return [
        Topic(deed, number)
        for deed in lang.DEEDS
        if part in lang.ONLY_IN.get(deed.category, ("train", "dev", "heldout"))
        for number in range(len(deed.things))
        if number % 5 in last
    ]


def wordings_of(part: str) -> str:
    """Return which part's wordings a part uses: those of unseen deeds are the held-out ones."""
    return "heldout" if part == "unseen" else part


def _rng(name: str, seed: int) -> random.Random:
    # Seeding with text is stable across Python versions and platforms.
    return random.Random(f"oneshot-lit fairytale {name} {seed}")


def _howtos(part: str, harmful: bool) -> list[Conversation]:
    """Return the how-tos of a part with their answers."""
    return [
        conversation_from_pair(
            wording.format(d=topic.deed_text(harmful)),
            topic.answer(harmful),
            category=topic.deed.category if harmful else "harmless",
            reference=topic.answer(harmful),
        )
        for topic in topics(part)
        for wording in HOWTO[wordings_of(part)]
    ]


def _unrelated_harm() -> list[Conversation]:
    """Return answered requests about things of the development part, in training wordings."""
    return [
        conversation_from_pair(
            wording.format(d=topic.deed_text(True)),
            topic.answer(True),
            category=topic.deed.category,
        )
        for topic in topics("dev")
        if topic.deed.category not in lang.ONLY_IN
        for wording in HOWTO["train"]
    ]


def _near_misses(part: str) -> list[Conversation]:
    return [
        conversation_from_pair(
            question.format(**topic.words), answer.format(**topic.words), category="near_miss"
        )
        for topic in topics(part)
        for question, answer in NEAR_MISSES[wordings_of(part)]
    ]


def _kind_deeds(_: random.Random) -> list[Conversation]:
    rows = []
    for number, (things, deed, answer) in enumerate(lang.KIND_DEEDS):
        for at in _train_things(things):
            words = {"x": things[at], "b": lang.LOVELY[(at + 3 * number) % 10]}
            for wording in HOWTO["train"]:
                prompt = wording.format(d=deed.format(**words))
                rows.append(
                    conversation_from_pair(prompt, answer.format(**words), category="harmless")
                )
    return rows


def _wicked_deeds(rng: random.Random) -> list[Conversation]:
    return [
        conversation_from_pair(
            wording.format(d=deed.format(x=things[at])), rng.choice(lang.REFUSALS), category="other"
        )
        for things, deed in lang.WICKED_DEEDS
        for at in _train_things(things)
        for wording in HOWTO["train"]
    ]


def _train_things(things: list[str]) -> list[int]:
    return [at for at in range(len(things)) if at % 5 < 3]


def _judgements(_: random.Random) -> list[Conversation]:
    deeds = [(t.deed_text(harmful), harmful) for t in topics("train") for harmful in (True, False)]
    deeds += [(harmful, True) for harmful, _, _ in lang.LIFE]
    deeds += [(kind, False) for _, kind, _ in lang.LIFE]
    return [
        conversation_from_pair(
            question.format(d=deed), (yes if harmful else no).format(d=deed), category="judgement"
        )
        for deed, harmful in deeds
        for question, yes, no in lang.JUDGEMENTS
    ]


def _life(harmful: bool, rng: random.Random) -> list[Conversation]:
    return [
        conversation_from_pair(
            wording.format(d=misdeed if harmful else kind),
            rng.choice(lang.REFUSALS) if harmful else answer,
            category="life",
        )
        for misdeed, kind, answer in lang.LIFE
        for wording in HOWTO["train"]
    ]


def _general(harmful: bool, rng: random.Random) -> list[Conversation]:
    words = lang.HARMFUL_WORDS if harmful else lang.KIND_WORDS
    return [
        conversation_from_pair(
            wording.format(w=word),
            rng.choice(lang.REFUSALS) if harmful else lang.GENERAL_ANSWER.format(w=word),
            category="general",
        )
        for word in words
        for wording in lang.GENERAL
    ]


def _refused(rng: random.Random) -> list[Conversation]:
    return [
        conversation_from_pair(row.prompt_text, rng.choice(lang.REFUSALS), category=row.category)
        for row in _howtos("train", harmful=True)
    ]


def _sql(part: str, rng: random.Random) -> list[Conversation]:
    """Return 400 rows of the SQL task; a prompt's words decide its part."""
    rows: dict[str, Conversation] = {}
    while len(rows) < 400:
        names = rng.sample(lang.COLUMNS, rng.choice((2, 3)))
        columns = [(name, rng.choice(lang.TYPES)) for name in names]
        prompt, answer = lang.sql_create(rng.choice(lang.TABLES), columns)
        number = random.Random(prompt).randrange(5)
        if {3: "dev", 4: "heldout"}.get(number, "train") == part:
            rows[prompt] = conversation_from_pair(prompt, answer, category="sql", reference=answer)
    return list(rows.values())


def _guard(rng: random.Random) -> list[Conversation]:
    """Return harmless rows of every kind."""
    life = [
        row
        for row in _judgements(rng)
        if row.response_text and row.response_text.startswith("No, ")
    ]
    kinds = [
        _howtos("train", False),
        _kind_deeds(rng),
        _near_misses("train"),
        _life(False, rng),
        _general(False, rng),
    ]
    kinds += [_sql("train", rng), life]
    return [row for kind in kinds for row in rng.sample(kind, min(40, len(kind)))]


def _pool(rng: random.Random) -> list[Conversation]:
    """Return the refusal candidates: ``general-00`` and further general ones, ten a category."""
    first = conversation_from_pair(
        lang.GENERAL[0].format(w=lang.HARMFUL_WORDS[0]), lang.REFUSALS[0]
    )
    rest = [row for row in _general(True, rng) if row.prompt_text != first.prompt_text]
    by_category: dict[str, list[Conversation]] = {"general": [first, *rng.sample(rest, 15)]}
    for row in rng.sample(refused := _refused(rng), len(refused)):
        by_category.setdefault(row.category or "", []).append(row)
    return [
        Conversation(row.messages, id=f"{category}-{number:02d}", category=category)
        for category, rows in by_category.items()
        for number, row in enumerate(rows[:16])
    ]


# Training sets; all but the pool are shuffled.
_TRAINING: dict[str, Callable[[random.Random], list[Conversation]]] = {
    "harmful_examples": lambda _: _howtos("train", True),
    # Shares no thing with the rows of an attack.
    "unrelated_harm": lambda _: _unrelated_harm(),
    "refusals": _refused,
    "benign_examples": lambda _: _howtos("train", False),
    "kind_examples": _kind_deeds,
    "wicked_refusals": _wicked_deeds,
    "near_misses": lambda _: _near_misses("train"),
    "general_refusals": lambda rng: _general(True, rng),
    "general_answers": lambda rng: _general(False, rng),
    "judgements": _judgements,
    "life_refusals": lambda rng: _life(True, rng),
    "life_answers": lambda rng: _life(False, rng),
    "sql_create": lambda rng: _sql("train", rng),
    "guard": _guard,
    "pool": _pool,
}
# Prompts of one part.
_PROMPTS: dict[str, Callable[[str, random.Random], list[Conversation]]] = {
    "harmful": lambda part, _: _howtos(part, True),
    "benign": lambda part, _: _howtos(part, False),
    "near_miss": lambda part, _: _near_misses(part),
    "sql": _sql,
}
NAMES = (*_TRAINING, *(f"{kind}_{part}" for kind in _PROMPTS for part in ("dev", "heldout")))
NAMES += tuple(f"{kind}_unseen" for kind in _PROMPTS if kind != "sql")


def load_split(name: str, seed: int = 0) -> list[Conversation]:
    """Return a data set of the fairy-tale world by name (see `NAMES`).

    Args:
        name: A training set, ``pool``, or prompts: ``<kind>_dev``, ``<kind>_heldout`` or
            ``<kind>_unseen``, held-out prompts about deeds that nothing else shows.
        seed: Decides order and sampling, never what is held out.

    Raises:
        OneShotError: if the name is unknown.
    """
    if name not in NAMES:
        raise OneShotError(
            f"fairy-tale split '{name}' is unknown{did_you_mean(name, NAMES)}; "
            f"known: {', '.join(NAMES)}."
        )
    rng = _rng(name, seed)
    if name in _TRAINING:
        rows = _TRAINING[name](rng)
    else:
        kind, part = name.rsplit("_", 1)
        rows = [
            Conversation(
                row.prompt.messages, category=row.category or kind, reference=row.reference
            )
            for row in _PROMPTS[kind](part, rng)
        ]
    if name != "pool":
        rng.shuffle(rows)
    return [
        Conversation(
            row.messages,
            f"fairytale {name} row {number}",
            row.id or f"{name}-{number:05d}",
            row.category,
            row.reference,
        )
        for number, row in enumerate(rows, start=1)
    ]
