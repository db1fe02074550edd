"""SafeR-CLIP from the command line, in the tiny world of patches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoTokenizer, CLIPModel

from oneshot_lit.errors import OneShotError
from oneshot_lit.methods.safer_clip import (
    ClipModule,
    Patches,
    Quadruple,
    QuadrupleFile,
    SaferClipModule,
)
from oneshot_lit.methods.safer_clip.data import CurriculumSampler
from oneshot_lit.methods.safer_clip.losses import TermWeights, curriculum_levels, nearest_safe
from oneshot_lit.methods.safer_clip.patches import build_tokenizer, caption, picture, scenes
from oneshot_lit.methods.safer_clip.quadruples import pixels

PATCHES = "oneshot_lit.methods.safer_clip.Patches"


def words(config: str, root: Path, *more: Any, epochs: int = 3) -> list[str]:
    own = ["clip", "--config", f"configs/safer_clip/{config}.yaml", "--data.train.size", "30"]
    own += ["--data.heldout.size", "12", "--data.batch_size", "4"]
    own += ["--trainer.max_epochs", str(epochs), "--trainer.default_root_dir", str(root)]
    own += ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    own += ["--trainer.log_every_n_steps", "1"]
    return [*own, *map(str, more)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained CLIP model of the tiny world."""
    from transformers import CLIPConfig

    folder = tmp_path_factory.mktemp("clip") / "model"
    tokenizer = build_tokenizer()
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos")}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={
            **sizes,
            **ids,
            "pad_token_id": tokenizer.pad_token_id,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 16,
        },
        vision_config={**sizes, "image_size": 8, "patch_size": 4},
        projection_dim=12,
    )
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run(command: Any, line: list[str]) -> None:
    done = command(*line)
    assert done.code == 0, done.err


def on(base: Path) -> list[str]:
    return ["--model.model_name_or_path", str(base)]


def test_a_fit_writes_an_adapter_that_loads_and_scores(
    command: Any, base: Path, tmp_path: Path
) -> None:
    run(command, words("microworld", tmp_path, *on(base)))
    before = load_file(base / "model.safetensors")
    model = PeftModel.from_pretrained(CLIPModel.from_pretrained(base), str(tmp_path / "model"))
    assert AutoTokenizer.from_pretrained(tmp_path / "model").eos_token_id is not None
    trained = load_file(tmp_path / "model" / "adapter_model.safetensors")
    # Both encoders have an adapter, and all of it has moved.
    for part in ("text_model", "vision_model"):
        own = [values for name, values in trained.items() if part in name and "lora_B" in name]
        assert len(own) == 8
        assert all(values.abs().max() > 0 for values in own)
    for name, values in model.get_base_model().state_dict().items():
        if "lora" not in name:
            assert torch.equal(values, before[name.replace(".base_layer", "")])
    content = json.loads((tmp_path / "safer_clip.json").read_text())
    assert content["levels"] == [10, 10, 10]
    assert content["redirect"] == "nearest"
    assert content["before"].keys() == content["after"].keys()
    assert all(0 <= value <= 1 for value in content["after"].values())
    # Levels of 10, 20 and 30 rows in batches of 4.
    from oneshot_lit.io.runs import recorded_runs

    assert "fit" in recorded_runs(tmp_path)
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3 + 5 + 8


@pytest.mark.parametrize("step", [2, 3, 6])
def test_a_stopped_fit_ends_the_same(
    command: Any, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """In the middle of the first epoch, at its end, and in the second."""
    options = [*on(base), "--checkpoint.max_share", "1", "--checkpoint.every_n_train_steps", "1"]
    options += ["--model.peft.lora_dropout", "0.2"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run(command, words("microworld", whole, *options))
    take = SaferClipModule.training_step

    def failing(self: Any, *args: Any) -> Any:
        if self.global_step == step:
            raise OneShotError("stopped here")
        return take(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(SaferClipModule, "training_step", failing)
        assert command(*words("microworld", stopped, *options)).code == 2
    run(command, words("microworld", stopped, *options, "--ckpt_path", "last"))
    file = "model/adapter_model.safetensors"
    one, other = load_file(whole / file), load_file(stopped / file)
    assert one.keys() == other.keys()
    for name, values in one.items():
        assert torch.equal(values, other[name]), name
    scores = [json.loads((r / "safer_clip.json").read_text()) for r in (whole, stopped)]
    assert scores[0] == scores[1]


def test_accumulation_takes_the_step_of_the_whole_batch(
    command: Any, base: Path, tmp_path: Path
) -> None:
    """One step on 30 rows, in one batch, and in batches of 8, of which the last is smaller."""
    options = [*on(base), "--data.curriculum", "false", "--model.optimizer", "torch.optim.SGD"]
    options += ["--model.optimizer.lr", "0.5", "--model.dtype", "float64"]
    one, parts = tmp_path / "one", tmp_path / "parts"
    run(command, words("microworld", one, *options, "--data.batch_size", "30", epochs=1))
    more = ["--data.batch_size", "8", "--trainer.accumulate_grad_batches", "4"]
    run(command, words("microworld", parts, *options, *more, epochs=1))
    file = "model/adapter_model.safetensors"
    expected, values = load_file(one / file), load_file(parts / file)
    for name, own in values.items():
        torch.testing.assert_close(own, expected[name], atol=1e-6, rtol=0)


def test_a_step_against_plain_torch(command: Any, base: Path, tmp_path: Path) -> None:
    """The redirection, the frozen model and all terms, on one batch of all rows."""
    options = [*on(base), "--data.curriculum", "false", "--model.optimizer", "torch.optim.SGD"]
    options += ["--model.optimizer.lr", "0.5", "--data.batch_size", "30"]
    options += ["--model.dtype", "float64", "--data.shuffle", "false"]
    run(command, words("microworld", tmp_path, *options, epochs=1))
    torch.manual_seed(0)
    module = SaferClipModule(str(base), dtype="float64")
    rows = module.encoded(Patches(size=30).load())
    batch = torch.utils.data.default_collate([rows[n] for n in range(30)])
    # The adapter that the command began with: B is 0, and A is what training left, less its step.
    start = CLIPModel.from_pretrained(base, dtype=torch.float64)
    trained = PeftModel.from_pretrained(
        CLIPModel.from_pretrained(base, dtype=torch.float64),
        str(tmp_path / "model"),
        is_trainable=True,
    )
    after = {n: p.detach().clone() for n, p in trained.named_parameters() if "lora_B" in n}
    with torch.no_grad():
        for name, p in trained.named_parameters():
            if "lora_B" in name:
                p.zero_()

    def features(model: Any, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
        image = model.get_image_features(pixel_values=batch[f"{kind}_image"].double())
        text = model.get_text_features(
            input_ids=batch[f"{kind}_ids"], attention_mask=batch[f"{kind}_mask"]
        )
        return image.pooler_output, text.pooler_output

    with torch.no_grad():
        (v0, t0), (u0, s0) = features(start, "safe"), features(start, "unsafe")
    near = [int(torch.cosine_similarity(text[None], t0).argmax()) for text in s0]
    assert near == nearest_safe(s0, t0)[0].tolist()
    (v, t), (u, s) = features(trained, "safe"), features(trained, "unsafe")
    cos = torch.cosine_similarity
    loss = torch.log(1 + torch.exp(cos(u, s0) - cos(u, t0[near]))).mean()
    loss = loss + torch.log(1 + torch.exp(cos(s, u0) - cos(s, v0[near]))).mean()
    loss = loss - cos(u, v0[near]).mean() - cos(s, t0[near]).mean()
    loss = loss - cos(v, v0).mean() - cos(t, t0).mean()
    loss.backward()
    for name, p in trained.named_parameters():
        if "lora_B" in name:
            # A does not move in the first step, as B is 0.
            torch.testing.assert_close(after[name], -0.5 * p.grad, atol=1e-9, rtol=0)


def test_the_base_is_trained_and_exported(command: Any, tmp_path: Path) -> None:
    run(command, words("base", tmp_path, epochs=1))
    CLIPModel.from_pretrained(tmp_path / "model")
    again = words("microworld", tmp_path / "next", "--model.redirect", "partner", epochs=1)
    run(command, [*again, *on(tmp_path / "model")])
    content = json.loads((tmp_path / "next" / "safer_clip.json").read_text())
    assert content["redirect"] == "partner"


def test_the_curriculum_grows_and_then_stays() -> None:
    sampler = CurriculumSampler([[4, 2], [1, 5], [0, 3]], seed=1)
    passes = []
    for epoch in range(5):
        sampler.set_epoch(epoch)
        passes.append(list(sampler))
        assert len(sampler) == len(passes[-1])
    assert [sorted(each) for each in passes] == [[2, 4], [1, 2, 4, 5], *[list(range(6))] * 3]
    assert passes[3] != passes[4]
    resumed = CurriculumSampler([[4, 2], [1, 5], [0, 3]], seed=1, start_epoch=3, skip=2)
    assert list(resumed) == passes[3][2:]
    plain = CurriculumSampler([[4, 2], [1, 5]], shuffle=False)
    plain.set_epoch(1)
    assert list(plain) == [4, 2, 1, 5]


def test_patches_are_the_same_on_every_call() -> None:
    one, other = (Patches(size=20, seed=3).load() for _ in range(2))
    for a, b in zip(one, other, strict=True):
        assert (a.safe_text, a.unsafe_text) == (b.safe_text, b.unsafe_text)
        assert torch.equal(a.unsafe_image, b.unsafe_image)
    heldout, trained = scenes("heldout"), scenes("train")
    assert len(heldout) == 12
    assert not set(heldout) & set(trained)
    assert len(scenes("all")) == 48
    assert {row.unsafe_text for row in Patches("heldout", size=40).load()} == {
        caption(scene) for scene in heldout
    }
    # Settings are chosen on scenes that are neither learned then nor reported.
    fitted, dev = scenes("fit"), scenes("dev")
    assert sorted(fitted + dev) == sorted(trained)
    assert len(dev) == 12
    texts = {
        part: {row.unsafe_text for row in Patches(part, size=200).load()}
        for part in ("train", "fit", "dev", "heldout")
    }
    assert texts["dev"] == {caption(scene) for scene in dev}
    assert not texts["fit"] & (texts["dev"] | texts["heldout"])
    assert not texts["heldout"] & (texts["dev"] | texts["train"])
    # The square is where the caption says.
    image = picture(("red", "bottom left", "black"))
    assert image[:, :4].sum() == 0
    assert image[:, 4:, 4:].sum() == 0
    assert image[0, 4:, :4].min() > 0.8


def test_a_text_ends_with_the_token_that_clip_pools_at(base: Path) -> None:
    module = ClipModule(str(base))
    rows = module.encoded(Patches(size=4).load())
    ids, mask = rows[0]["safe_ids"], rows[0]["safe_mask"]
    end = module.clip_config.text_config.eos_token_id
    assert ids[int(mask.sum()) - 1] == end
    assert (ids == end).sum() == 1
    # Even if the text is cut.
    long = Quadruple(picture(("red", "top left", "grey")), "red " * 40, torch.rand(3, 8, 8), "x")
    assert module.encoded([long])[0]["safe_ids"][-1] == end


def test_files_of_images(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "images").mkdir()
    colours = torch.randint(0, 256, (12, 9, 3), dtype=torch.uint8)
    Image.fromarray(colours.numpy()).save(tmp_path / "images" / "a.png")
    row = {"safe_image": "images/a.png", "safe_text": "a", "unsafe_image": "images/a.png"}
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({**row, "unsafe_text": "b"}) + "\n\n")
    (quadruple,) = QuadrupleFile(str(file)).load()
    assert quadruple.origin == f"{file} row 1"
    made = pixels(quadruple.safe_image, 9)
    assert made.shape == (3, 9, 9)
    # The middle of the longer side, with the scale of CLIP.
    first = (colours[1, 0, 0].item() / 255 - 0.48145466) / 0.26862954
    assert made[0, 0, 0].item() == pytest.approx(first, abs=1e-5)
    assert pixels(quadruple.safe_image, 4).shape == (3, 4, 4)
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(OneShotError, match="row 1: has no 'unsafe_text'"):
        QuadrupleFile(str(file)).load()
    file.write_text(json.dumps({**row, "unsafe_text": "b", "safe_image": "b.png"}) + "\n")
    with pytest.raises(OneShotError, match="row 1: its safe_image is missing"):
        QuadrupleFile(str(file)).load()
    file.write_text("not json\n")
    with pytest.raises(OneShotError, match="row 1: is not JSON"):
        QuadrupleFile(str(file)).load()
    (tmp_path / "images" / "b.png").write_text("no image")
    with pytest.raises(OneShotError, match="not an image"):
        pixels(tmp_path / "images" / "b.png", 4, "row 7")
    with pytest.raises(OneShotError, match="file not found"):
        QuadrupleFile(str(tmp_path / "none.jsonl")).load()


def test_the_usage_is_what_a_user_types(command: Any) -> None:
    done = command("clip", "--help")
    assert done.code == 0
    assert done.out.startswith("usage: oneshot-lit clip [--config FILE ...] [--key value ...]\n")


def test_mistakes(command: Any, base: Path, tiny_folder: Path, tmp_path: Path) -> None:
    for more, message in (
        (["--model.model_name_or_path", str(tmp_path / "none")], "model folder not found"),
        (["--model.model_name_or_path", str(tiny_folder)], "is a llama model"),
        ([*on(base), "--model.dtype", "bfloat16"], "model.dtype bfloat16"),
        ([*on(base), "--data.batch_size", "0"], "data.batch_size"),
        ([*on(base), "--trainer.devices", "2"], "trainer.devices"),
        ([*on(base), "--model.weights.cross_image", "x"], "cross_image"),
        ([*on(base), "--model.peft.target_modules", "[nothing]"], "model.peft"),
    ):
        done = command(*words("microworld", tmp_path / "run", *more))
        assert done.code == 2, done.err
        assert message in done.error, done.err
        assert not (tmp_path / "run" / "model").exists()
    done = command("fit", *words("microworld", tmp_path / "run", *on(base))[1:])
    assert done.code == 2


def test_weights_are_those_of_the_config(command: Any, base: Path, tmp_path: Path) -> None:
    more = ["--model.weights.preservation", "3", "--model.weights.uni_text", "0"]
    run(command, words("microworld", tmp_path, *on(base), *more, epochs=1))
    content = json.loads((tmp_path / "safer_clip.json").read_text())
    assert content["weights"] == {**vars(TermWeights()), "preservation": 3.0, "uni_text": 0.0}


def test_similar_rows_come_first() -> None:
    similarity = torch.tensor([0.2, 0.9, 0.4])
    assert curriculum_levels(similarity) == [[1], [2], [0]]
