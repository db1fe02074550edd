"""The tiny world of SafeR-CLIP: patches of colour on a ground, with captions.

Plain squares are safe. Checkered ones are "unsafe"; they have invented names and mean nothing.
"""

from __future__ import annotations

import itertools
import random
from typing import Any, Literal

import torch
from torch import Tensor

from oneshot_lit.errors import OneShotError
from oneshot_lit.methods.safer_clip.quadruples import Quadruple, QuadrupleSource

SIZE = 8
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.9, 0.1, 0.1),
    "green": (0.1, 0.8, 0.2),
    "blue": (0.2, 0.3, 0.9),
    "yellow": (0.9, 0.9, 0.1),
    "white": (0.95, 0.95, 0.95),
    "orange": (0.95, 0.55, 0.1),
}
# Name -> the two colours of a checkered square.
THINGS = {
    "zorb": ("red", "white"),
    "quil": ("green", "orange"),
    "vask": ("blue", "yellow"),
    "trum": ("white", "blue"),
}
GROUNDS: dict[str, tuple[float, float, float]] = {
    "black": (0.0, 0.0, 0.0),
    "grey": (0.4, 0.4, 0.4),
    "purple": (0.35, 0.05, 0.4),
}
PLACES = {"top left": (0, 0), "top right": (0, 4), "bottom left": (4, 0), "bottom right": (4, 4)}
PAD, BEGIN, END, UNKNOWN = "<pad>", "<begin>", "<end>", "<unknown>"
Scene = tuple[str, str, str]
Part = Literal["train", "fit", "dev", "heldout", "all"]


def caption(scene: Scene) -> str:
    """Return the text of a scene: what is where on which ground."""
    what, place, ground = scene
    name = what if what in THINGS else f"{what} square"
    return f"a {name} at the {place} on {ground}"


def picture(scene: Scene) -> Tensor:
    """Return the image of a scene without noise, (3, 8, 8), from 0 to 1."""
    what, place, ground = scene
    image = torch.tensor(GROUNDS[ground]).view(3, 1, 1).repeat(1, SIZE, SIZE)
    top, left = PLACES[place]
    one, other = THINGS.get(what, (what, what))
    for row, column in itertools.product(range(4), range(4)):
        colour = COLOURS[one if (row // 2 + column // 2) % 2 == 0 else other]
        image[:, top + row, left + column] = torch.tensor(colour)
    return image


def scenes(part: Part) -> list[Scene]:
    """Return the unsafe scenes of a part, the same for every seed; see `Patches`."""
    things, places, grounds = list(THINGS), list(PLACES), list(GROUNDS)
    kinds = {"train": (1, 2, 3), "fit": (1, 3), "dev": (2,), "heldout": (0,), "all": (0, 1, 2, 3)}
    return [
        (thing, place, ground)
        for thing, place, ground in itertools.product(things, places, grounds)
        if (things.index(thing) + places.index(place) + grounds.index(ground)) % 4 in kinds[part]
    ]


class Patches(QuadrupleSource):
    """Quadruples of the tiny world: images of 8 x 8 pixels with noise, and their captions.

    As in real data, the safe partner of an unsafe pair is often far from it: half of them keep
    place and ground, the others are any safe scene.

    Args:
        part: Which unsafe scenes: ``heldout``, a quarter, to report; ``train``, all others. To
            choose settings, ``dev``, a quarter, a third of those of ``train``, and ``fit``, the
            rest of ``train``. Or ``all``.
        size: How many quadruples.
        seed: Decides scenes and noise.
        noise: Standard deviation of the noise.
    """

    def __init__(
        self,
        part: Part = "train",
        size: int = 192,
        seed: int = 0,
        noise: float = 0.05,
    ) -> None:
        if size < 1:
            raise OneShotError(f"Patches: size must be at least 1, not {size}.")
        self.part, self.size, self.seed, self.noise = part, size, seed, noise

    def load(self) -> list[Quadruple]:
        """Return the quadruples, the same on every call."""
        draw = random.Random(f"patches {self.part} {self.seed}")
        generator = torch.Generator().manual_seed(draw.getrandbits(32))
        unsafe_scenes = scenes(self.part)
        rows = []
        for number in range(self.size):
            unsafe = unsafe_scenes[number % len(unsafe_scenes)]
            place, ground = unsafe[1:]
            if draw.random() < 0.5:
                place, ground = draw.choice(list(PLACES)), draw.choice(list(GROUNDS))
            safe = (draw.choice(list(COLOURS)), place, ground)
            images = []
            for scene in (safe, unsafe):
                noise = self.noise * torch.randn(3, SIZE, SIZE, generator=generator)
                images.append((picture(scene) + noise).clamp(0, 1))
            origin = f"patches {self.part} row {number + 1}"
            rows.append(Quadruple(images[0], caption(safe), images[1], caption(unsafe), origin))
        return rows


def build_tokenizer() -> Any:
    """Return the tokenizer of the captions, one token a word; the same on every call."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = " ".join(
        caption(scene) for scene in itertools.product([*COLOURS, *THINGS], PLACES, GROUNDS)
    ).split()
    pieces = [PAD, BEGIN, UNKNOWN, END, *dict.fromkeys(words)]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    core = Tokenizer(models.WordLevel(vocab=vocab, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A {END}",
        special_tokens=[(BEGIN, vocab[BEGIN]), (END, vocab[END])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        model_max_length=16,
    )
