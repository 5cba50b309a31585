# SPDX-License-Identifier: Apache-2.0
"""open_clip's folders and OpenAI's archives: embeddings against plain PyTorch, on random weights of the true shapes."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import json
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPModel

import clip_reference
import reco
from reco.cli import main

ICONS = Path(__file__).parents[2] / "examples" / "icons" / "clip"
TEXTS = ["a photo of a cat", "", "two dogs, a fox & the Eiffel tower (1889)!", "word " * 120, "a"]


def picture(width: int, height: int, seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    planes = [128 + 100 * np.sin(x / rng.uniform(5, 40) + c) * np.cos(y / rng.uniform(5, 40)) for c in range(3)]
    noise = rng.normal(0, 12, (height, width, 3))
    return Image.fromarray((np.stack(planes, -1) + noise).clip(0, 255).astype(np.uint8))


IMAGES = [picture(*size, i) for i, size in enumerate([(225, 224), (97, 401), (500, 333), (31, 30)])]


def other_modes(image: Image.Image) -> list[Image.Image]:
    """The same picture as those see it who resize before they convert to RGB."""
    clear = image.copy()
    clear.putalpha(image.getchannel("G"))
    return [clear, *(image.convert(mode) for mode in ("1", "L", "P", "CMYK", "I;16"))]


def vision(**changes: Any) -> dict[str, Any]:
    return {"image_size": 224, "layers": 2, "width": 768, "patch_size": 32} | changes


def text(**changes: Any) -> dict[str, Any]:
    return {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 2} | changes


def config(vision: dict[str, Any], text: dict[str, Any], dim: int = 512, **changes: Any) -> dict[str, Any]:
    return {"embed_dim": dim, "vision_cfg": vision, "text_cfg": text} | changes


SMALL_VISION = vision(width=128, patch_size=16, image_size=80)
SMALL_TEXT = text(width=64, heads=4, context_length=20)


def small(vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    return config(SMALL_VISION | (vision or {}), SMALL_TEXT | (text or {}), 48, **changes)


def copy_vocabulary(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(ICONS / name, folder)


def save(folder: Path, model: clip_reference.Clip, config: dict[str, Any], custom_text: bool = False,
         preprocess: dict[str, Any] | None = None) -> Path:  # fmt: skip
    copy_vocabulary(folder)
    content = {"model_cfg": config, "preprocess_cfg": preprocess or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    save_file(model.tensors(custom_text), folder / "open_clip_model.safetensors")
    return folder


def assert_equal(path: Path, model: clip_reference.Clip, images: list[Image.Image],
                 preprocess: dict[str, Any] | None = None) -> reco.Clip:  # fmt: skip
    clip = reco.Clip.load(path, batch_size=3)
    pixels = [clip_reference.torchvision_pixels(image, clip.image_size, preprocess or {}) for image in images]
    for image, expected in zip(images, pixels, strict=True):
        np.testing.assert_allclose(clip.preprocess(image), expected, atol=1e-6)
    ids = torch.from_numpy(clip.tokenizer(TEXTS, clip.context_length))
    expected_images, expected_texts = model.float().encode(torch.from_numpy(np.stack(pixels)), ids)
    for found, expected in ((clip.encode_images(images), expected_images), (clip.encode_texts(TEXTS), expected_texts)):
        assert np.abs(found - expected).max() <= 1e-5
        assert (found * expected).sum(1).min() >= 0.99999
    rough = reco.Clip.load(path, dtype="bfloat16", batch_size=3)
    assert rough.fingerprint == clip.fingerprint
    assert (rough.encode_images(images) * expected_images).sum(1).min() >= 0.999
    assert (rough.encode_texts(TEXTS) * expected_texts).sum(1).min() >= 0.999
    return clip


TRUE_SHAPES = {
    "ViT-B-32-quickgelu": (config(vision(), text(), quick_gelu=True), False),
    "ViT-L-14": (config(vision(width=1024, patch_size=14, layers=1), text(width=768, heads=12, layers=1), 768), True),
    "ViT-H-14": (config(vision(width=1280, head_width=80, patch_size=14, layers=1),
                        text(width=1024, heads=16, layers=1), 1024), True),
    "ViT-bigG-14": (config(vision(width=1664, head_width=104, mlp_ratio=4.9231, patch_size=14, layers=1),
                           text(width=1280, heads=20, layers=1), 1280), False),
    "RN50": (config(vision(layers=[3, 4, 6, 3], width=64, patch_size=None), text(), 1024, quick_gelu=True), False),
    "RN101": (config(vision(layers=[1, 2, 6, 1], width=64, patch_size=None), text(layers=1), 512), True),
    "RN50x4": (config(vision(layers=[1, 2, 1, 2], width=80, patch_size=None, image_size=288),
                      text(width=640, heads=10, layers=1), 640), False),
}  # fmt: skip


@pytest.mark.parametrize("name", TRUE_SHAPES)
def test_true_shapes(name: str, tmp_path: Path) -> None:
    settings, custom_text = TRUE_SHAPES[name]
    torch.manual_seed(1)
    model = clip_reference.Clip(settings)
    clip = assert_equal(save(tmp_path, model, settings, custom_text), model, IMAGES[:2])
    counted = sum(tensor.numel() for tensor in model.tensors(True).values() if tensor.is_floating_point())
    assert clip.parameters == counted
    facts = clip.info()
    assert facts["format"] == "open_clip" and facts["tokenizer"]["cleaning"] == "open_clip lower"
    assert facts["architecture"].startswith("ResNet 3-4-6-3 x 64" if name == "RN50" else name[:1].replace("V", "ViT"))


VARIANTS: dict[str, dict[str, Any]] = {
    "mean of patches": small({"pool_type": "avg"}),
    "mean of patches, then norm": small({"pool_type": "avg", "final_ln_after_pool": True}),
    "no first norm, LayerScale": small({"no_ln_pre": True, "ls_init_value": 0.1}, {"ls_init_value": 1e-3}),
    "LayerScale and quick_gelu": small({"ls_init_value": 0.1}, quick_gelu=True),
    "tanh and epsilon": small({"act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-3}},
                              {"act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-2}}),
    "both directions, last token, bias": small({}, {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}),
    "both directions, argmax": small({}, {"no_causal_mask": True}),
    "last token": small({}, {"pool_type": "last"}),
    "first token": small({}, {"pool_type": "first"}),
    "end token by its id": small({}, {"pool_type": "eos", "eos_id": 49407}),
    "what only training needs": small({"patch_dropout": 0.5, "output_tokens": False}, {}, init_logit_scale=2.0),
    "sigmoid loss": small({}, {}, init_logit_bias=-10, nonscalar_logit_scale=True),
    "size as a pair": small({"image_size": [80, 80], "patch_size": [16, 16]}),
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("custom_text", [False, True])
def test_variants(name: str, custom_text: bool, tmp_path: Path) -> None:
    settings = VARIANTS[name]
    plain = copy.deepcopy(settings)
    for key in ("image_size", "patch_size"):
        if isinstance(plain["vision_cfg"][key], list):
            plain["vision_cfg"][key] = plain["vision_cfg"][key][0]
    torch.manual_seed(2)
    model = clip_reference.Clip(plain)
    clip = assert_equal(save(tmp_path, model, settings, custom_text), model, IMAGES)
    assert clip.logit_scale == pytest.approx(np.exp(2.5)) and clip.logit_bias == settings.get("init_logit_bias", 0)


@pytest.mark.parametrize(
    "preprocess",
    [
        {"interpolation": "bilinear", "mean": [0.5, 0.4, 0.3], "std": [0.5, 0.5, 0.25]},
        {"resize_mode": "squash"},
        {"resize_mode": "squash", "interpolation": "bilinear"},
        {"resize_mode": "longest"},
        {"resize_mode": "longest", "fill_color": 127, "interpolation": "bicubic"},
        {"resize_mode": "shortest", "interpolation": "random"},
        {"size": 300, "mode": "RGB"},  # the model's size holds
    ],
    ids=str,
)
def test_preprocessing(preprocess: dict[str, Any], tmp_path: Path) -> None:
    settings = small()
    torch.manual_seed(3)
    model = clip_reference.Clip(settings)
    images = [*IMAGES, *(picture(width, height, 9) for width, height in [(81, 80), (80, 83), (1, 1), (2, 300)])]
    images += other_modes(IMAGES[1])
    assert_equal(save(tmp_path, model, settings, False, preprocess), model, images, preprocess)


def test_both_layouts_are_one_model(tmp_path: Path) -> None:
    settings = small()
    model = clip_reference.Clip(settings)
    flat = reco.Clip.load(save(tmp_path / "flat", model, settings, False))
    custom = reco.Clip.load(save(tmp_path / "custom", model, settings | {"custom_text": True}, True))
    assert flat.fingerprint == custom.fingerprint
    other = copy.deepcopy(settings)
    other["vision_cfg"]["pool_type"] = "avg"
    assert reco.Clip.load(save(tmp_path / "other", model, other, False)).fingerprint != flat.fingerprint


def test_a_folder_that_serves_both(tmp_path: Path) -> None:
    """Hugging Face's model is taken, unless the other configuration is named."""
    folder = tmp_path / "both"
    shutil.copytree(ICONS, folder)
    model = clip_reference.Clip(small())
    save(folder, model, small())
    assert reco.Clip.load(folder).info()["format"] == "hugging face"
    named = reco.Clip.load(folder / "open_clip_config.json")
    assert named.info()["format"] == "open_clip" and named.dim == 48
    (folder / "model.safetensors").unlink()
    assert reco.Clip.load(folder).fingerprint == named.fingerprint


def test_a_folder_of_timms(tmp_path: Path) -> None:
    """timm has its own config.json, and the weights of the image tower alone, beside open_clip's files."""
    torch.manual_seed(7)
    settings = small()
    model = clip_reference.Clip(settings)
    folder = save(tmp_path / "timm", model, settings)
    facts = {"architecture": "vit_base_patch32_clip_224", "num_classes": 512, "pretrained_cfg": {"tag": "openai"}}
    (folder / "config.json").write_text(json.dumps(facts))
    save_file({"cls_token": torch.zeros(1, 1, 128)}, folder / "model.safetensors")
    clip = assert_equal(folder, model, IMAGES[:2])
    assert clip.info()["format"] == "open_clip"
    assert clip.fingerprint == reco.Clip.load(folder / "open_clip_config.json").fingerprint
    assert reco.Preprocess.load(folder).torchvision_crop and reco.Tokenizer.load(folder).cleaning == "open_clip lower"
    (folder / "open_clip_config.json").unlink()
    with pytest.raises(reco.Error, match="config.json must have model_type .* timm's architecture 'vit_base_patch32_c"):
        reco.Clip.load(folder)


def test_hugging_faces_folder_without_a_model_type(tmp_path: Path) -> None:
    """Its towers tell, beside open_clip's files too."""
    folder = shutil.copytree(ICONS, tmp_path / "icons")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({name: x for name, x in config.items() if name != "model_type"}))
    save(folder, clip_reference.Clip(small()), small())
    assert reco.Clip.load(folder).fingerprint == reco.Clip.load(ICONS).fingerprint
    for content, message in (("{}", "neither that nor towers"), ('{"architecture": "resnet50"}', "'resnet50'")):
        (folder / "config.json").write_text(content)
        assert reco.Clip.load(folder).dim == 48
        (folder / "open_clip_config.json").rename(tmp_path / "away.json")
        with pytest.raises(reco.Error, match=message):
            reco.Clip.load(folder)
        (tmp_path / "away.json").rename(folder / "open_clip_config.json")


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("", {"embed_dim": None}, "must have embed_dim"),
        ("", {"embed_dim": 0}, "embed_dim must be a whole number"),
        ("", {"quick_gelu": "yes"}, "quick_gelu must be true or false"),
        ("", {"multimodal_cfg": {"layers": 2}}, "architecture with multimodal_cfg"),
        ("", {"vision_cfg": 3}, "vision_cfg must be a JSON object"),
        (
            "vision_cfg",
            {"timm_model_name": "vit_base_patch16_siglip_gap_224"},
            "timm_model_name = .vit_base_patch16_siglip_gap",
        ),
        ("vision_cfg", {"attentional_pool": True}, "architecture with attentional_pool"),
        ("vision_cfg", {"qk_norm": True}, "architecture with qk_norm"),
        ("vision_cfg", {"pool_type": "none"}, "pool_type must be tok or avg"),
        ("vision_cfg", {"image_size": [80, 96]}, "image_size"),
        ("vision_cfg", {"patch_size": 96}, "must not exceed image_size"),
        ("vision_cfg", {"width": 130, "head_width": 43}, "multiple of num_attention_heads"),
        ("vision_cfg", {"layers": [1, 2, 3]}, "four numbers"),
        ("vision_cfg", {"layers": [1, 2, 3, 0]}, "layers must be a whole number from 1"),
        ("vision_cfg", {"layers": [1, 2, 3, 1]}, "multiple of 32"),
        ("vision_cfg", {"mlp_ratio": [4]}, "mlp_ratio must be a number"),
        ("text_cfg", {"hf_model_name": "roberta-base"}, "hf_model_name = .roberta-base"),
        ("text_cfg", {"embed_cls": True}, "architecture with embed_cls"),
        ("text_cfg", {"pool_type": "none"}, "pool_type must be argmax, eos, first or last"),
        ("text_cfg", {"proj_type": "none"}, "proj_type must be 'linear'"),
        ("text_cfg", {"pool_type": "eos"}, "looks for the end token 2"),
        ("text_cfg", {"vocab_size": 100}, "vocab_size of 100"),
        ("text_cfg", {"width": 128}, "does not fit its configuration"),
        ("text_cfg", {"tokenizer_kwargs": {"clean": "scrub"}}, "'clean' must be"),
        ("text_cfg", {"tokenizer_kwargs": {"strip_sep_token": True}}, "strip_sep_token"),
    ],
    ids=str,
)
def test_what_does_not_run_is_named(part: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    settings = small()
    folder = save(tmp_path, clip_reference.Clip(settings), settings)
    (settings[part] if part else settings).update(changes)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings}))
    with pytest.raises(reco.Error, match=message) as error:
        reco.Clip.load(folder)
    assert str(tmp_path) in str(error.value)


def open_clips_configs() -> list[Path]:
    package = importlib.util.find_spec("open_clip")
    folders = package.submodule_search_locations if package else None
    return sorted(Path(folders[0]).glob("model_configs/*.json")) if folders else []


def test_every_config_of_open_clip_runs_or_is_named(tmp_path: Path) -> None:
    """Only the weights are missing, or the error says which part is none of ours."""
    configs = open_clips_configs()
    if not configs:
        pytest.skip("open_clip is not installed")
    for file in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copy(ICONS / file, tmp_path)
    running = []
    for path in configs:
        settings = json.loads(path.read_text())
        image, words = settings["vision_cfg"], settings["text_cfg"]
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings}))
        with pytest.raises(reco.Error) as error:
            reco.Clip.load(tmp_path)
        foreign = "multimodal_cfg" if "multimodal_cfg" in settings else None
        timm = image.get("timm_model_name", "")
        foreign = foreign or ("" if "_siglip_" in timm else timm) or words.get("hf_model_name")
        foreign = foreign or next(iter(words.get("tokenizer_kwargs", {}).keys() - {"clean"}), None)
        foreign = foreign or ("proj_type" if words.get("proj_type") == "none" else None)
        expected = foreign or "has neither open_clip_model.safetensors"
        assert expected in str(error.value), path.stem
        running += [] if foreign else [path.stem]
    assert len(running) >= 49 + 25
    assert {
        "RN50",
        "RN50x64",
        "ViT-B-32",
        "ViT-L-14-336",
        "ViT-H-14",
        "ViT-bigG-14",
        "ViT-g-14",
        "ViT-B-16-SigLIP2",
    } <= set(running)


DEEP = "[" * 300_000 + "]" * 300_000


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("open_clip_config.json", '{"model_cfg": DEEP}'),
        ("open_clip_config.json", '{"model_cfg": {"embed_dim": 8, "vision_cfg": {"image_size": [DEEP, DEEP]}}}'),
        ("open_clip_config.json", '{"model_cfg": {"embed_dim": 8, "vision_cfg": {"layers": [DEEP, 1, 1, 1]}}}'),
        ("open_clip_config.json", '{"model_cfg": {"embed_dim": 8, "text_cfg": {"x": DEEP, "tokenizer_kwargs": DEEP}}}'),
        (
            "open_clip_config.json",
            '{"model_cfg": {"vision_cfg": {}, "text_cfg": {"tokenizer_kwargs": {"clean": DEEP}}}}',
        ),
        ("processor_config.json", '{"image_processor": {"size": DEEP, "image_processor_type": DEEP}}'),
        ("tokenizer.json", '{"model": {"type": DEEP, "vocab": {}, "merges": []}}'),
        ("tokenizer.json", '{"normalizer": DEEP, "model": {"byte_fallback": true, "vocab": {"a": 0}, "merges": []}}'),
        ("tokenizer.json", '{"model": {"byte_fallback": DEEP, "vocab": {"a": DEEP}, "merges": [DEEP]}}'),
        ("tokenizer_config.json", '{"pad_token": DEEP, "tokenizer_class": DEEP}'),
        ("config.json", '{"text_config": DEEP, "vision_config": {"image_size": DEEP}}'),
    ],
    ids=range(11),
)
def test_deeply_nested_files_are_refused(name: str, text: str, tmp_path: Path) -> None:
    """A call a level would end the process."""
    folder = tmp_path / "model"
    shutil.copytree(ICONS, folder)
    (folder / name).write_text(text.replace("DEEP", DEEP))
    path = folder / name if name.startswith("open_clip") else folder
    for load in (reco.Clip.load, reco.Tokenizer.load, reco.Preprocess.load):
        with contextlib.suppress(reco.Error):
            load(path)
    with pytest.raises(reco.Error):
        reco.Clip.load(path)


def test_info_command(tmp_path: Path) -> None:
    torch.manual_seed(5)
    folder = save(tmp_path, clip_reference.Clip(small(quick_gelu=True)), small(quick_gelu=True))
    result = CliRunner().invoke(main, ["info", str(folder), "--json"])
    assert result.exit_code == 0
    facts = json.loads(result.output)
    clip = reco.Clip.load(folder)
    assert facts == {"kind": "clip"} | clip.info()
    assert facts["architecture"] == "ViT 2 layers x 128, patches of 16" and facts["parameters"] == clip.parameters
    assert facts["vision_config"]["hidden_act"] == "quick_gelu" and facts["preprocess"]["torchvision_crop"] is True
    assert facts["preprocess"]["rgb_first"] is False
    lines = CliRunner().invoke(main, ["info", str(folder)]).output.splitlines()
    shown = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines}
    assert shown["text_config.hidden_size"] == "64" and shown["tokenizer.cleaning"] == "open_clip lower"
    assert shown["fingerprint"] == clip.fingerprint
    settings = {"model_cfg": small({"timm_model_name": "convnext_base"})}
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    result = CliRunner().invoke(main, ["info", str(folder)])
    assert result.exit_code == 1 and "convnext_base" in result.output


# ---- OpenAI's archives


class Traced(torch.nn.Module):
    """What OpenAI's archives hold: both towers at the top, and three numbers."""

    def __init__(self, model: clip_reference.Clip) -> None:
        super().__init__()
        self.visual, self.transformer = model.visual, model.text.transformer
        self.token_embedding, self.ln_final = model.text.token_embedding, model.text.ln_final
        self.positional_embedding = model.text.positional_embedding
        self.text_projection, self.logit_scale = model.text.text_projection, model.logit_scale
        self.register_buffer("input_resolution", torch.tensor(224))

    def forward(self, pixels: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        texts = self.ln_final(self.transformer(x))[:, 0] @ self.text_projection
        return self.logit_scale.exp() * self.visual(pixels) @ texts.T


def archive(path: Path, model: clip_reference.Clip, size: int, half: bool = False) -> Path:
    copy_vocabulary(path.parent)
    example = (torch.zeros(1, 3, size, size), torch.zeros(1, 7, dtype=torch.long))
    traced = torch.jit.trace(Traced(model).eval(), example, check_trace=False)
    if half:
        traced, _ = traced.half(), model.half()
    torch.jit.save(traced, path)
    return path


OPENAI = {
    "ViT-B-32.pt": config(vision(layers=1), text(layers=1), quick_gelu=True),
    "RN50.pt": config(vision(layers=[1, 2, 1, 1], width=64), text(layers=1), 1024, quick_gelu=True),
}


@pytest.mark.parametrize(("name", "half"), [("ViT-B-32.pt", False), ("ViT-B-32.pt", True), ("RN50.pt", True)])
def test_openai_archives(name: str, half: bool, tmp_path: Path) -> None:
    torch.manual_seed(4)
    model = clip_reference.Clip(OPENAI[name])
    path = archive(tmp_path / name, model, 224, half)
    facts = assert_equal(path, model, [*IMAGES[:2], other_modes(IMAGES[1])[0]]).info()
    assert facts["format"] == "openai" and facts["weights_dtype"] == ("F16" if half else "F32")
    folder = save(tmp_path / "folder", model.half() if half else model, OPENAI[name])
    assert np.abs(reco.Clip.load(folder).encode_texts(TEXTS) - reco.Clip.load(path).encode_texts(TEXTS)).max() < 1e-6


@pytest.fixture(scope="module")
def tiny_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = clip_reference.Clip(config(vision(width=64, layers=1), text(width=64, heads=1, layers=1), 16))
    return archive(tmp_path_factory.mktemp("openai") / "tiny.pt", model, 224)


def test_a_state_dict_is_read_too(tiny_archive: Path, tmp_path: Path) -> None:
    copy_vocabulary(tmp_path)
    state = torch.jit.load(tiny_archive).state_dict()
    torch.save({name: torch.nn.Parameter(x) if x.is_floating_point() else x for name, x in state.items()},
               tmp_path / "state.pt")  # fmt: skip
    assert reco.Clip.load(tmp_path / "state.pt").fingerprint == reco.Clip.load(tiny_archive).fingerprint


def test_weights_that_torch_saved(tmp_path: Path) -> None:
    """The files that folders had before safetensors."""
    torch.manual_seed(6)
    model = clip_reference.Clip(small())
    folder = save(tmp_path / "open_clip", model, small())
    expected = reco.Clip.load(folder).fingerprint
    (folder / "open_clip_model.safetensors").unlink()
    torch.save(OrderedDict(model.tensors(False)), folder / "open_clip_pytorch_model.bin")
    assert reco.Clip.load(folder).fingerprint == expected
    shutil.copytree(ICONS, tmp_path / "icons")
    hugging_face = CLIPModel.from_pretrained(ICONS, dtype=torch.float16)
    torch.save(hugging_face.state_dict(), tmp_path / "icons" / "pytorch_model.bin")
    (tmp_path / "icons" / "model.safetensors").unlink()
    assert reco.Clip.load(tmp_path / "icons").fingerprint == reco.Clip.load(ICONS).fingerprint


def test_nothing_in_an_archive_is_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return print, ("boom",)

    copy_vocabulary(tmp_path)
    torch.save({"visual": Bomb()}, tmp_path / "bomb.pt")
    with pytest.raises(reco.Error, match="none of OpenAI's CLIP models"):
        reco.Clip.load(tmp_path / "bomb.pt")


def test_damaged_archives(tiny_archive: Path, tmp_path: Path) -> None:
    """The readers of the parts have tests of their own; here the file is named."""
    copy_vocabulary(tmp_path)
    data = tiny_archive.read_bytes()
    path = tmp_path / "damaged.pt"
    for length in (0, 3, 22, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(reco.Error, match="damaged.pt"):
            reco.Clip.load(path)


def test_an_archive_alone(tiny_archive: Path, tmp_path: Path) -> None:
    """The vocabulary is the library's; a part of another one is never filled up with it."""
    (tmp_path / "alone").mkdir()
    clip = reco.Clip.load(shutil.copy(tiny_archive, tmp_path / "alone/tiny.pt"))
    given = reco.Clip.load(tiny_archive)
    assert clip.fingerprint == given.fingerprint and clip.info()["tokenizer"] == given.info()["tokenizer"]
    np.testing.assert_array_equal(clip.encode_texts(TEXTS), given.encode_texts(TEXTS))
    shutil.copy(ICONS / "merges.txt", tmp_path / "alone")
    with pytest.raises(reco.Error, match="must have tokenizer.json, or vocab.json and merges.txt"):
        reco.Clip.load(tmp_path / "alone/tiny.pt")
    with pytest.raises(reco.Error, match="absent.pt"):
        reco.Tokenizer.load(tmp_path / "absent.pt")
