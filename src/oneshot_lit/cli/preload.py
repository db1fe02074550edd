"""The imports that the fork server does once for all commands of a study."""

import transformers.models.auto.modeling_auto
import transformers.models.auto.tokenization_auto
import transformers.models.llama.modeling_llama  # noqa: F401

import oneshot_lit.cli.fit
import oneshot_lit.microworld.splits  # noqa: F401
