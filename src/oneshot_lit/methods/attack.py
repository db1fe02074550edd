"""`HarmfulFineTuningModule`: the attack, plain supervised fine-tuning on chosen rows."""

from __future__ import annotations

from oneshot_lit.methods.base import LanguageModelModule


class HarmfulFineTuningModule(LanguageModelModule):
    """Fine-tune an aligned model on harmful or mixed rows, as a customer or an attacker would.

    The objective is ordinary supervised fine-tuning: what makes it an attack is the data (see
    `configs/attack/`). Defences that act during fine-tuning subclass this module and change
    `compute_loss` or the hooks. Development scores are logged as ``attack/<set>/<metric>``.
    """

    validation_prefix = "attack/"
