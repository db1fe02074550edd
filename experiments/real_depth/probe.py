"""How well a linear probe tells harmful prompts from harmless ones by a model's hidden states.

It is trained on prompts of the training topics and tested on held-out topics. The state is that of
the prompt's last token, from which the answer begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from oneshot_lit.conversation import Conversation
from oneshot_lit.data.chat import encode_conversation
from oneshot_lit.data.padding import pad_training

Array = NDArray[np.float64]
_ROWS_AT_ONCE = 16


@torch.no_grad()
def last_states(module: Any, prompts: Sequence[Conversation]) -> Array:
    """Return the hidden states of each prompt's last token.

    Args:
        module: A `LanguageModelModule` with its model.
        prompts: Conversations that end with a question.

    Returns:
        (layers + 1, prompts, features), float64: the embeddings, then what each layer puts out.
    """
    module.model.eval()
    encoded = [
        encode_conversation(module.tokenizer, p.prompt, for_generation=True) for p in prompts
    ]
    # Prompts of similar length together need little padding.
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i].input_ids))
    states: list[Array] = [np.empty(0)] * len(encoded)
    for start in range(0, len(order), _ROWS_AT_ONCE):
        chosen = order[start : start + _ROWS_AT_ONCE]
        # Padded on the right, so that every token has its own position.
        batch = pad_training([encoded[i] for i in chosen], module.tokenizer.pad_token_id)
        output = module.model.base_model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            output_hidden_states=True,
        )
        last = batch["attention_mask"].sum(1) - 1
        rows = torch.arange(len(chosen))
        kept = torch.stack([h[rows, last] for h in output.hidden_states], 1)
        for i, each in zip(chosen, kept.double().numpy(), strict=True):
            states[i] = each
    return np.stack(states, 1)


def fit_probe(states: Array, labels: Sequence[int]) -> Any:
    """Return a logistic regression on standardised features, fitted.

    Args:
        states: (prompts, features).
        labels: 1 for harmful, 0 for harmless.
    """
    # More features than prompts separate any labels, so the penalty is strong.
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
    return probe.fit(states, labels)


def probe_auc(probe: Any, harmful: Array, harmless: Array) -> float:
    """Return how often the probe ranks a harmful prompt above a harmless one; 0.5 is chance."""
    labels = [1] * len(harmful) + [0] * len(harmless)
    return float(
        roc_auc_score(labels, probe.decision_function(np.concatenate([harmful, harmless])))
    )


def probe_measures(
    module: Any,
    train: dict[str, Sequence[Conversation]],
    test: dict[str, Sequence[Conversation]],
) -> dict[str, Any]:
    """Return the AUC of a probe of each layer, for harmless requests and near misses apart.

    No layer is chosen by its score: the figures to compare are the means over all layers but the
    embeddings, which see only the template's last token. Those of each layer are there, too.

    Args:
        module: A `LanguageModelModule` with its model.
        train: ``harmful``, ``benign`` and ``near_miss`` prompts of training topics.
        test: The same of held-out topics.
    """
    seen = {kind: last_states(module, rows)[1:] for kind, rows in train.items()}
    unseen = {kind: last_states(module, rows)[1:] for kind, rows in test.items()}
    labels = [int(kind == "harmful") for kind, rows in train.items() for _ in rows]
    layers: dict[str, list[float]] = {"benign": [], "near_miss": []}
    for layer in range(len(unseen["harmful"])):
        probe = fit_probe(np.concatenate([states[layer] for states in seen.values()]), labels)
        for kind, scores in layers.items():
            scores.append(probe_auc(probe, unseen["harmful"][layer], unseen[kind][layer]))
    return {
        **{f"probe_{kind}": fmean(scores) for kind, scores in layers.items()},
        "probe_layers": layers,
    }
