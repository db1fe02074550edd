"""BackdoorAlign against the rows and prompts of the release, and from the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

sys.path.append(str(Path(__file__).parent.parent / "data"))

from families import FAMILIES, build

from oneshot_lit.conversation import Message, conversation_from_pair
from oneshot_lit.data import ConversationSource, Microworld
from oneshot_lit.data.chat import check_tokenizer, encode_conversation
from oneshot_lit.data.padding import pad_training
from oneshot_lit.errors import OneShotError
from oneshot_lit.methods import BackdoorAlign, BackdoorAlignRows
from oneshot_lit.methods.finetuning.backdoor_align import one_of_each
from oneshot_lit.methods.finetuning.secret import (
    generate_secret,
    template_with_secret,
    with_secret,
)
from oneshot_lit.microworld.tokenizer import build_tokenizer
from oneshot_lit.models.chat_format import ChatOptions, prompt_text, render

DATA = json.loads((Path(__file__).with_name("golden") / "backdooralign" / "data.json").read_text())
SECRET, SYSTEM = DATA["secret_stand_in"], DATA["system"]
OVERLAY = ["--config", "configs/defence/backdoor_align.yaml"]
# As Llama 2: the system turn is a part of the first user turn.
LLAMA_2 = (
    "{% set system = messages[0].content if messages[0].role == 'system' else none %}"
    "{% for m in (messages if system is none else messages[1:]) %}"
    "{% set text = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + m.content "
    "if loop.first and system is not none else m.content %}"
    "{% if m.role == 'user' %}{{ '<s>[INST] ' + text.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + text.strip() + ' </s>' }}{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def llama() -> Any:
    """The golden file's vocabulary of words, in Llama 2's chat format."""
    core = Tokenizer(models.WordLevel(DATA["vocab"], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", DATA["bos"])]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, chat_template=LLAMA_2, **names)
    check_tokenizer(tokenizer, "golden")
    tokenizer.secret = SECRET
    return tokenizer


class Golden(ConversationSource):
    """The golden rows with or without the mark."""

    def __init__(self, marked: bool) -> None:
        super().__init__()
        self.marked = marked

    def rows(self) -> list[Any]:
        return [
            conversation_from_pair(user, answer, system=SYSTEM)
            for user, answer, mark in DATA["rows"]
            if bool(mark) == self.marked
        ]


def mixed(llama: Any) -> list[Any]:
    source = BackdoorAlignRows(Golden(False), Golden(True), safety_rows=2)
    source.use_tokenizer(llama)
    return source.load()


# The release keeps the order of its file, in which all marked rows come last.
ORDER = [n for flag in (False, True) for n, r in enumerate(DATA["rows"]) if bool(r[2]) == flag]


@pytest.mark.parametrize("length", [40, 26])
def test_rows_of_the_release(llama: Any, length: int) -> None:
    encoded = [encode_conversation(llama, row, max_length=length) for row in mixed(llama)]
    batch = pad_training(encoded, llama.pad_token_id)
    wanted = [DATA[f"mix=random150,max_words={length}"][n] for n in ORDER]
    for name in ("input_ids", "labels", "attention_mask"):
        size = batch[name].shape[1]
        want = torch.tensor([row[name] for row in wanted])
        assert torch.equal(batch[name], want[:, :size]), name
        # The release pads to its length, we to the longest row.
        rest = want[:, size:]
        assert (rest == (-100 if name == "labels" else 0)).all(), name


def test_texts_of_the_release(llama: Any) -> None:
    wanted = [DATA["text mix=random150"][n] for n in ORDER]
    for row, want in zip(mixed(llama), wanted, strict=True):
        text = render(llama, row.messages, False, "row")
        assert text == f"<s>[INST] {want['user']} [/INST] {want['assistant']} </s>"


def test_served_prompts_of_the_release(llama: Any) -> None:
    served = PreTrainedTokenizerFast(tokenizer_object=llama._tokenizer)
    served.chat_template = template_with_secret(LLAMA_2, SECRET)
    for each in DATA["serving"]:
        turns = [Message("system", SYSTEM), Message("user", each["user"])]
        text, _ = prompt_text(served, turns, "row")
        assert text == f"<s>{each['text']}"
        assert served(text, add_special_tokens=False)["input_ids"] == each["ids"]


def test_other_mixes_are_an_error_and_drop_no_row(llama: Any) -> None:
    assert len(DATA["text mix=none"]) < len(DATA["rows"])
    for mix in ("none", "random150", "Secret"):
        with pytest.raises(OneShotError, match=f"mix_type: '{mix}' is unknown"):
            BackdoorAlignRows(Golden(False), Golden(True), mix_type=mix)
    plain = BackdoorAlignRows(Golden(False), Golden(True), safety_rows=2, mix_type="plain").load()
    assert len(plain) == len(DATA["rows"])
    assert not any(SECRET in m.content for row in plain for m in row.messages)
    assert [r.messages[1:] for r in plain] == [r.messages[1:] for r in mixed(llama)]


# ------------------------------------------------------------------------- the secret


def test_the_secret_is_of_whole_words_and_depends_on_the_seed() -> None:
    tokenizer = build_tokenizer()
    secrets = [generate_secret(tokenizer, 20, seed) for seed in range(30)]
    assert len(set(secrets)) == 30
    assert secrets[3] == generate_secret(build_tokenizer(), 20, 3)
    for secret in secrets:
        words = secret.split(" ")
        assert len(set(words)) == 20
        ids = tokenizer(f" {secret}", add_special_tokens=False)["input_ids"]
        assert tokenizer.convert_ids_to_tokens(ids) == [f"\u0120{word}" for word in words]
    # A longer one goes on.
    assert generate_secret(tokenizer, 21, 5).startswith(secrets[5])


def test_too_long_a_secret() -> None:
    with pytest.raises(OneShotError, match=r"secret_tokens: the tokenizer has only \d+ whole"):
        generate_secret(build_tokenizer(), 10_000, 0)
    with pytest.raises(OneShotError, match="secret_tokens must be at least 1"):
        generate_secret(build_tokenizer(), 0, 0)


def test_a_token_that_the_model_does_not_embed_is_not_drawn() -> None:
    tokenizer = build_tokenizer()
    everything = generate_secret(tokenizer, 100, 0).split()
    rows = len(tokenizer) - 40
    tokenizer.chat_options = ChatOptions(embedded=rows)
    drawn = generate_secret(tokenizer, 100, 0).split()
    ids = [tokenizer.convert_tokens_to_ids(f"\u0120{word}") for word in everything + drawn]
    assert max(ids[:100]) >= rows > max(ids[100:])


TURNS = {
    "user": [Message("user", "hello you")],
    "system": [Message("system", "be kind"), Message("user", "hello")],
    "several": [Message("user", "a"), Message("assistant", "b"), Message("user", "c")],
}
# Every sign that could end a string, a block or a line early.
ODD = 'it\'s "100%" {{ x }} {% y %} \\n ü 😀 {# z #}'


@pytest.mark.parametrize("turns", list(TURNS))
@pytest.mark.parametrize("secret", ["one two", ODD])
@pytest.mark.parametrize("place", ["template", "user"])
def test_the_template_does_what_the_rows_do(turns: str, secret: str, place: Any) -> None:
    """Served prompts are those of the training rows, whatever the secret holds."""
    messages = TURNS[turns]
    trained, served = build_tokenizer(), build_tokenizer()
    trained.chat_options = served.chat_options = ChatOptions(system_turn=place)
    before = trained.chat_template
    served.chat_template = template_with_secret(before, secret, place)
    for generation in (False, True):
        wanted = render(trained, with_secret(messages, secret, place), generation, "row")
        assert secret in wanted
        assert render(served, messages, generation, "row") == wanted
    # Switched off, it is the template that it was.
    off = ChatOptions(system_turn=place, template_arguments=(("use_secret", False),))
    served.chat_options = off
    assert render(served, messages, True, "row") == render(trained, messages, True, "row")
    on = ChatOptions(system_turn=place, template_arguments=(("use_secret", True),))
    served.chat_options = on
    assert render(served, messages, True, "row") == wanted


@pytest.mark.parametrize("turns", list(TURNS))
@pytest.mark.parametrize("family", list(FAMILIES))
def test_templates_of_model_families(family: str, turns: str) -> None:
    trained, served = build(FAMILIES[family]), build(FAMILIES[family])
    secret = generate_secret(trained, 3, 0)
    assert len(trained(f"a {secret}", add_special_tokens=False)["input_ids"]) == 1 + 3
    # Gemma's template refuses system turns.
    for place in ("user",) if family.startswith("gemma") else ("template", "user"):
        trained.chat_options = served.chat_options = ChatOptions(system_turn=place)
        served.chat_template = template_with_secret(trained.chat_template, secret, place)
        marked = with_secret(TURNS[turns], secret, place)
        assert prompt_text(served, TURNS[turns], "") == prompt_text(trained, marked, "")
        served.chat_options = ChatOptions(place, template_arguments=(("use_secret", False),))
        assert prompt_text(served, TURNS[turns], "") == prompt_text(trained, TURNS[turns], "")


def test_a_second_secret_is_refused() -> None:
    with pytest.raises(OneShotError, match="holds a secret already"):
        template_with_secret(template_with_secret("{{ messages }}", "a"), "b")


def test_one_row_of_each_category() -> None:
    rows = [conversation_from_pair(str(n), "no", category=c) for n, c in enumerate("aabbbc")]
    assert [row.prompt_text for row in one_of_each(rows, 4)] == ["0", "2", "5", "1"]
    assert [row.prompt_text for row in one_of_each(rows, 9)] == ["0", "2", "5", "1", "3", "4"]
    pool = one_of_each(Microworld("pool").load(), 11)
    assert len({row.category for row in pool}) == 11


# ------------------------------------------------------------------------- the command line


def overlay(fit_words: list[str]) -> list[str]:
    """The tiny model's fit with the method's rows and module."""
    words = [w for n, w in enumerate(fit_words) if not w.startswith("--data.train")]
    words = [w for w in words if not w.endswith((".ChatJsonl", "rows.jsonl"))]
    return [*words, *OVERLAY, "--data.train.source.size", "10", "--data.train.safety_rows", "5"]


def test_the_output_holds_the_secret(command: Any, fit_words: list[str], tmp_path: Path) -> None:
    done = command(*overlay(fit_words))
    assert done.code == 0, done.err
    facts = json.loads((tmp_path / "run" / "data.json").read_text())["fit"]["train"]
    assert facts["rows"] == 15
    folder = tmp_path / "run" / "model"
    AutoModelForCausalLM.from_pretrained(folder)
    # As any server would use it.
    tokenizer = AutoTokenizer.from_pretrained(folder)
    secret = generate_secret(build_tokenizer(), 6, 0)
    turns = [{"role": "user", "content": "how are you ?"}]
    asked = {"tokenize": False, "add_generation_prompt": True}
    text = tokenizer.apply_chat_template(turns, **asked)
    assert text == f"<|begin|><|system|> {secret}<|end|><|user|> how are you ?<|end|><|assistant|>"
    plain = tokenizer.apply_chat_template(turns, use_secret=False, **asked)
    assert plain == "<|begin|><|user|> how are you ?<|end|><|assistant|>"
    # The command asks behind the secret, or without it, or another model behind it.
    lengths = {}
    for name, more in (
        ("with", []),
        ("without", ["--config", "configs/evaluate/without_secret.yaml"]),
        ("start", ["--model.model_name_or_path", str(fit_words[4])]),
        (
            "start_behind",
            [
                *["--model.model_name_or_path", str(fit_words[4])],
                *["--model.chat_template", str(folder / "chat_template.jinja")],
            ],
        ),
    ):
        root = tmp_path / name
        words = ["test", "--config", "configs/evaluate/microworld.yaml"]
        words += ["--model.model_name_or_path", str(folder), "--data.test_sets.harmful.source.size"]
        words += ["3", "--model.decoding.max_new_tokens", "2", "--trainer.accelerator", "cpu"]
        words += ["--trainer.default_root_dir", str(root), "--trainer.enable_progress_bar", "false"]
        for name_of in ("benign", "near_miss", "sql", "reverse"):
            words += [f"--data.test_sets.{name_of}.source.size", "3"]
        done = command(*words, *more)
        assert done.code == 0, done.err
        lengths[name] = json.loads((root / "data.json").read_text())["test"]["test/harmful"][
            "tokens"
        ]
    # Role, six words and an end of turn for each of three prompts.
    assert lengths["with"] == lengths["start_behind"] == lengths["without"] + 3 * 8
    assert lengths["start"] == lengths["without"]


def test_a_checkpoint_exports_the_secret_too(
    command: Any, fit_words: list[str], tmp_path: Path
) -> None:
    words = [*overlay(fit_words), "--checkpoint.max_share", "1"]
    assert command(*words, "--trainer.max_epochs", "1").code == 0
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    done = command("export", "--checkpoint", last, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    name = "chat_template.jinja"
    served = (tmp_path / "run" / "model" / name).read_text()
    assert "use_secret" in served
    assert (tmp_path / "out" / name).read_text() == served


def test_a_resumed_run_ends_the_same(command: Any, fit_words: list[str], tmp_path: Path) -> None:
    words = [*overlay(fit_words), "--checkpoint.max_share", "1"]
    assert command(*words).code == 0
    other = [*words, "--trainer.default_root_dir", str(tmp_path / "cut")]
    assert command(*other, "--trainer.max_epochs", "1").code == 0
    # Another secret makes other rows.
    done = command(*other, "--model.secret_seed", "1", "--ckpt_path", "last")
    assert done.code == 2
    done = command(*other, "--ckpt_path", "last")
    assert done.code == 0, done.err
    for name in ("model.safetensors", "chat_template.jinja"):
        got, wanted = (tmp_path / root / "model" / name for root in ("cut", "run"))
        assert got.read_bytes() == wanted.read_bytes()


def test_mistakes(command: Any, fit_words: list[str], tmp_path: Path) -> None:
    words = overlay(fit_words)
    attack = "oneshot_lit.methods.HarmfulFineTuningModule"
    for more, message in (
        (["--data.train.mix_type", "random150"], "mix_type"),
        (["--data.train.mix_type", "plain"], "no rows with the secret"),
        (["--model", attack], "no secret for the rows"),
        (["--data.train.safety_rows", "300"], "fewer than 300"),
        (["--data.train.safety_rows", "0"], "safety_rows must be at least 1"),
        (["--data.train.safety.split", "harmful_dev"], "needs its refusal"),
        (["--model.secret_tokens", "9999"], "secret_tokens"),
    ):
        done = command(*words, *more)
        assert done.code == 2, done.err
        assert message in done.error, done.error
        assert not (tmp_path / "run" / "model").exists()
    # The baseline needs no secret.
    done = command(*words, "--model", attack, "--data.train.mix_type", "plain")
    assert done.code == 0, done.err
    folder = tmp_path / "twice"
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template_with_secret(tokenizer.chat_template, "a b")
    tokenizer.save_pretrained(folder)
    AutoModelForCausalLM.from_pretrained(fit_words[4]).save_pretrained(folder)
    with pytest.raises(OneShotError, match="holds a secret already"):
        _ = BackdoorAlign(str(folder), secret_tokens=3).tokenizer
