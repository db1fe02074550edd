"""The losses of SafeR-CLIP, its redirection and its curriculum, as pure functions.

Source: "SafeR-CLIP" (arXiv 2511.16743). Its code was not best. Known are the rule of the nearest
safe text, the cross-modal loss of images, and a curriculum of three stages. The cross-modal loss of
texts, both losses within a modality, the preservation, equal weights and thirds as stages are
inferred.

Symbols: V and T are the trained encoders of images and texts, V0 and T0 the frozen ones. A row is a
quadruple of a safe pair (image v, text t) and an unsafe pair (v*, t*). Embeddings need not be
normalised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class TermWeights:
    """How much each term counts; the paper's weights were not best.

    Args:
        cross_image: Unsafe images away from unsafe texts, to the nearest safe text.
        cross_text: Unsafe texts away from unsafe images, to the image of the nearest safe text.
        uni_image: Unsafe images to the image of the nearest safe text.
        uni_text: Unsafe texts to the nearest safe text.
        preservation: Safe images and texts stay where they are.
    """

    cross_image: float = 1.0
    cross_text: float = 1.0
    uni_image: float = 1.0
    uni_text: float = 1.0
    preservation: float = 1.0


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine of each row of `a` with that of `b`: (rows, features) -> (rows,)."""
    return functional.cosine_similarity(a, b, dim=-1)


def similarities(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine of each row of `a` with each of `b`: (rows of a, rows of b)."""
    return functional.normalize(a, dim=-1) @ functional.normalize(b, dim=-1).T


def nearest_safe(unsafe_texts: Tensor, safe_texts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the safe text nearest to each unsafe one, under the frozen encoder.

    Args:
        unsafe_texts: T0(t*), (unsafe, features).
        safe_texts: T0(t) of all safe texts, (safe, features).

    Returns:
        Its place among the safe texts, and the cosine, both (unsafe,).
    """
    # In parts: the whole table of a large set would not fit in memory.
    best = [similarities(part, safe_texts).max(-1) for part in torch.split(unsafe_texts, 4096)]
    return torch.cat([each.indices for each in best]), torch.cat([each.values for each in best])


def cross_loss(trained: Tensor, unsafe: Tensor, near: Tensor) -> Tensor:
    """Return the mean of ``log(1 + exp(cos(trained, unsafe) - cos(trained, near)))``.

    Args:
        trained: Unsafe rows under a trained encoder, (rows, features).
        unsafe: Their unsafe partners under the other frozen encoder.
        near: The safe rows that they go to, under the other frozen encoder.
    """
    return functional.softplus(cosines(trained, unsafe) - cosines(trained, near)).mean()


def uni_loss(trained: Tensor, near: Tensor) -> Tensor:
    """Return minus the mean cosine with the safe rows of the same modality [inferred]."""
    return -cosines(trained, near).mean()


def preservation_loss(images: Tensor, images0: Tensor, texts: Tensor, texts0: Tensor) -> Tensor:
    """Return minus the mean cosines of safe images and texts with their frozen ones [inferred]."""
    return -cosines(images, images0).mean() - cosines(texts, texts0).mean()


def loss_terms(
    trained: Mapping[str, Tensor], frozen: Mapping[str, Tensor], near: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the five terms of a batch, by the names of `TermWeights`.

    Args:
        trained: ``safe_image``, ``unsafe_image``, ``safe_text`` and ``unsafe_text`` under the
            trained encoders, (rows, features) each.
        frozen: The same under the frozen ones.
        near: ``image`` and ``text`` of the nearest safe text of each row, under the frozen ones.
    """
    return {
        "cross_image": cross_loss(trained["unsafe_image"], frozen["unsafe_text"], near["text"]),
        "cross_text": cross_loss(trained["unsafe_text"], frozen["unsafe_image"], near["image"]),
        "uni_image": uni_loss(trained["unsafe_image"], near["image"]),
        "uni_text": uni_loss(trained["unsafe_text"], near["text"]),
        "preservation": preservation_loss(
            trained["safe_image"],
            frozen["safe_image"],
            trained["safe_text"],
            frozen["safe_text"],
        ),
    }


def total_loss(terms: Mapping[str, Tensor], weights: TermWeights) -> Tensor:
    """Return the weighted sum of the terms."""
    return torch.stack([weight * terms[name] for name, weight in asdict(weights).items()]).sum()


def curriculum_levels(similarity: Tensor, levels: int = 3) -> list[list[int]]:
    """Return the rows of each level, easy ones first; levels of equal size [inferred].

    A row is the easier, the more similar its unsafe text is to the nearest safe one. Epoch 1 learns
    the first level, epoch 2 the first two, and so on.

    Args:
        similarity: (rows,), the cosines of `nearest_safe`.
        levels: How many.
    """
    order = torch.argsort(similarity, descending=True, stable=True)
    return [part.tolist() for part in torch.tensor_split(order, levels)]


def retrieval_scores(rows: Mapping[str, Tensor], pairs: list[tuple[str, str]]) -> dict[str, float]:
    """Return how often retrieval finds what it should, among all safe and unsafe items.

    Args:
        rows: Embeddings as in `loss_terms`, (rows, features) each.
        pairs: The safe and the unsafe text of each row; rows of equal texts are the same item.

    Returns:
        Shares of queries: ``unsafe_text_to_safe_image`` and ``unsafe_image_to_safe_text``, whose
        nearest item is a safe one; ``safe_text_to_image`` and ``safe_image_to_text``, whose nearest
        item is the right one.
    """
    count = len(pairs)
    texts = [safe for safe, _ in pairs] + [unsafe for _, unsafe in pairs]
    scores = {}
    for query, gallery in (("text", "image"), ("image", "text")):
        items = torch.cat([rows[f"safe_{gallery}"], rows[f"unsafe_{gallery}"]])
        best = {
            kind: similarities(rows[f"{kind}_{query}"], items).argmax(-1).tolist()
            for kind in ("safe", "unsafe")
        }
        redirected = sum(place < count for place in best["unsafe"])
        right = sum(texts[place] == texts[row] for row, place in enumerate(best["safe"]))
        scores[f"unsafe_{query}_to_safe_{gallery}"] = redirected / count
        scores[f"safe_{query}_to_{gallery}"] = right / count
    return scores
