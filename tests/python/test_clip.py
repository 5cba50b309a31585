# SPDX-License-Identifier: Apache-2.0
"""Embeddings against transformers: on random weights of ViT-B/32's true shape and on the tiny CLIP of the examples."""

from __future__ import annotations

import io
import json
import shutil
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor

import reco

ICONS = Path(__file__).parents[2] / "examples" / "icons" / "clip"

TEXTS = [
    "a photo of a cat",
    "",
    "two dogs, a fox & the Eiffel tower (1889)!",
    "caf\u00e9 na\u00efve \u6771\u4eac \U0001f600",
    "flag of the Central African Republic",
    "word " * 120,
    "a",
]


def picture(width: int, height: int, seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    planes = [128 + 100 * np.sin(x / rng.uniform(5, 40) + c) * np.cos(y / rng.uniform(5, 40)) for c in range(3)]
    noise = rng.normal(0, 12, (height, width, 3))
    return Image.fromarray((np.stack(planes, -1) + noise).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    sizes = [(224, 224), (320, 240), (97, 401), (64, 64), (500, 333), (31, 30), (640, 480), (224, 300), (65, 64)]
    paths = []
    for i, (width, height) in enumerate(sizes):
        format = ("png", "jpeg", "webp")[i % 3]
        paths.append(folder / f"{i}.{format}")
        picture(width, height, i).save(paths[-1])
    return paths


def randomise(model: CLIPModel) -> CLIPModel:
    """Norms and biases too, so that none may be forgotten."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_(0, 0.05)
            elif "norm" in name:
                weight.normal_(1, 0.1)
    return model


@pytest.fixture(scope="session")
def b32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ViT-B/32's true shape, random weights."""
    folder = tmp_path_factory.mktemp("clip-vit-base-patch32")
    torch.manual_seed(0)
    randomise(CLIPModel(CLIPConfig())).save_pretrained(folder)
    CLIPImageProcessorPil().save_pretrained(folder)
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copy(ICONS / name, folder)
    return folder


@pytest.fixture(params=["b32", "icons"])
def folder(request: pytest.FixtureRequest, b32: Path) -> Path:
    return b32 if request.param == "b32" else ICONS


class Reference:
    """The same model in transformers."""

    def __init__(self, folder: Path) -> None:
        self.model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = CLIPImageProcessorPil.from_pretrained(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def images(self, images: list[Image.Image]) -> np.ndarray:
        pixels = torch.cat([self.processor(image, return_tensors="pt")["pixel_values"] for image in images])
        with torch.inference_mode():
            return self.unit(self.model.get_image_features(pixels).pooler_output)

    def texts(self, texts: list[str]) -> np.ndarray:
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        with torch.inference_mode():
            return self.unit(self.model.get_text_features(**tokens).pooler_output)

    @staticmethod
    def unit(rows: torch.Tensor) -> np.ndarray:
        return (rows / rows.norm(dim=-1, keepdim=True)).numpy()


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def test_equals_transformers(folder: Path, images: list[Path]) -> None:
    reference = Reference(folder)
    expected_images = reference.images([Image.open(path).convert("RGB") for path in images])
    expected_texts = reference.texts(TEXTS)

    clip = reco.Clip.load(folder, batch_size=4)
    for found, expected in [(clip.encode_images(images), expected_images), (clip.encode_texts(TEXTS), expected_texts)]:
        assert found.dtype == np.float32 and found.shape == expected.shape
        assert np.abs(found - expected).max() <= 1e-5
        assert cosines(found, expected).min() >= 0.99999
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)

    clip = reco.Clip.load(folder, dtype="bfloat16", batch_size=4)
    assert cosines(clip.encode_images(images), expected_images).min() >= 0.999
    assert cosines(clip.encode_texts(TEXTS), expected_texts).min() >= 0.999


def tower(width: int, heads: int, ratio: float = 4, **more: object) -> dict[str, object]:
    sizes = {"hidden_size": width, "num_attention_heads": heads, "intermediate_size": int(width * ratio)}
    return sizes | {"num_hidden_layers": 1} | more


SIZES = {
    "B/16": (tower(512, 8), tower(768, 12, patch_size=16), 512),
    "L/14": (tower(768, 12), tower(1024, 16, patch_size=14), 768),
    "L/14-336": (tower(768, 12, eos_token_id=2), tower(1024, 16, patch_size=14, image_size=336), 768),
    "H/14": (tower(1024, 16, hidden_act="gelu"), tower(1280, 16, hidden_act="gelu", patch_size=14), 1024),
    "bigG/14": (tower(1280, 20, hidden_act="gelu"),
                tower(1664, 16, 4.9231, hidden_act="gelu", patch_size=14), 1280),
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_other_sizes(name: str, images: list[Path], tmp_path: Path) -> None:
    """One layer of the other models, in shards of bfloat16 weights."""
    words, pixels, dim = SIZES[name]
    torch.manual_seed(2)
    model = randomise(CLIPModel(CLIPConfig(text_config=words, vision_config=pixels, projection_dim=dim)))
    model.to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="50MB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    size = pixels.get("image_size", 224)
    CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=size).save_pretrained(tmp_path)
    for file in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copy(ICONS / file, tmp_path)
    reference, clip = Reference(tmp_path), reco.Clip.load(tmp_path)
    expected_images = reference.images([Image.open(path).convert("RGB") for path in images[:2]])
    expected_texts = reference.texts(TEXTS)
    assert np.abs(clip.encode_images(images[:2]) - expected_images).max() <= 1e-5
    assert np.abs(clip.encode_texts(TEXTS) - expected_texts).max() <= 1e-5
    rough = reco.Clip.load(tmp_path, dtype="bfloat16")
    assert cosines(rough.encode_images(images[:2]), expected_images).min() >= 0.999
    assert cosines(rough.encode_texts(TEXTS), expected_texts).min() >= 0.999
    assert clip.info()["weights_dtype"] == "BF16" and clip.dim == dim


def test_pixels_equal_the_image_processor(folder: Path, images: list[Path]) -> None:
    clip = reco.Clip.load(folder)
    processor = CLIPImageProcessorPil.from_pretrained(folder)
    for path in images:
        expected = processor(Image.open(path).convert("RGB"), return_tensors="np")["pixel_values"][0]
        np.testing.assert_array_equal(clip.preprocess(reco.read_image(path)), expected)


def test_folder_as_transformers_5_saves_a_processor(tmp_path: Path) -> None:
    folder = copied(tmp_path / "saved")
    processor = CLIPProcessor.from_pretrained(ICONS)
    for name in ("preprocessor_config.json", "vocab.json", "merges.txt", "tokenizer_config.json"):
        (folder / name).unlink()
    processor.save_pretrained(folder)
    assert not (folder / "preprocessor_config.json").exists()
    assert reco.Clip.load(folder).fingerprint == reco.Clip.load(ICONS).fingerprint


def test_says_what_it_is(b32: Path) -> None:
    clip = reco.Clip.load(b32)
    assert (clip.dim, clip.image_size, clip.context_length, clip.parameters) == (512, 224, 77, 151_277_313)
    assert (clip.dtype, clip.device) == ("float32", "cpu")
    assert clip.logit_scale == pytest.approx(np.exp(2.6592), rel=1e-5)
    assert len(clip.fingerprint) == 64
    info = clip.info()
    assert info["fingerprint"] == clip.fingerprint and info["vision_config"]["patch_size"] == 32
    for part in ("224 px", "ViT 12 layers x 768, patches of 32", "151.3 M", "float32 on cpu", clip.fingerprint[:8]):
        assert part in repr(clip)


@pytest.fixture(scope="module")
def clip() -> reco.Clip:
    return reco.Clip.load(ICONS, batch_size=4)


def test_every_kind_of_image(clip: reco.Clip, images: list[Path]) -> None:
    expected = clip.encode_images(images)
    pil = [Image.open(path) for path in images]
    arrays = [np.asarray(image.convert("RGB")) for image in pil]
    kinds = {
        "str": [str(path) for path in images],
        "bytes": [path.read_bytes() for path in images],
        "bytearray": [bytearray(path.read_bytes()) for path in images],
        "PIL": pil,
        "arrays": arrays,
        "tuple": tuple(arrays),
        "generator": (path for path in images),
        "mixed": [(images, pil, arrays, [path.read_bytes() for path in images])[i % 4][i] for i in range(len(images))],
    }
    for kind, items in kinds.items():
        np.testing.assert_allclose(clip.encode_images(items), expected, atol=1e-6, err_msg=kind)


def test_one_image_or_text_gives_one_row(clip: reco.Clip, images: list[Path]) -> None:
    for image in (images[0], str(images[0]), images[0].read_bytes(), Image.open(images[0]), np.zeros((9, 7, 3), "u1")):
        assert clip.encode_images(image).shape == (1, clip.dim)
    assert clip.encode_images(np.zeros((4, 9, 7, 3), np.uint8)).shape == (4, clip.dim)
    assert clip.encode_texts("a cat").shape == (1, clip.dim)
    assert clip.encode_images([]).shape == clip.encode_texts([]).shape == (0, clip.dim)


def test_other_formats_through_pil(clip: reco.Clip, tmp_path: Path) -> None:
    image = picture(70, 60, 1)
    expected = clip.encode_images(image)
    for format in ("bmp", "tiff", "ppm"):
        path = tmp_path / f"image.{format}"
        image.save(path)
        np.testing.assert_array_equal(clip.encode_images([path]), expected)
        np.testing.assert_array_equal(clip.encode_images(path.read_bytes()), expected)
    (tmp_path / "image").write_bytes(encoded(image, "PNG"))
    np.testing.assert_array_equal(clip.encode_images(tmp_path / "image"), expected)
    for format in ("GIF", "BMP", "PNG"):  # by its content, whatever the name says
        data = encoded(image.quantize(64), format)
        (tmp_path / "wrong.jpg").write_bytes(data)
        by_path, by_bytes = clip.encode_images([tmp_path / "wrong.jpg"]), clip.encode_images(data)
        np.testing.assert_array_equal(by_path, by_bytes, format)
    (tmp_path / "wrong.jpg").write_bytes(b"GIF89a, or so it says")
    with pytest.raises(reco.Error, match="wrong.jpg' is neither JPEG, PNG nor WebP, and PIL cannot read it"):
        clip.encode_images([tmp_path / "wrong.jpg"])
    alpha = image.convert("RGBA")
    np.testing.assert_array_equal(clip.encode_images([alpha]), expected)


def test_order_and_batches_do_not_matter(clip: reco.Clip) -> None:
    texts = [f"{'very ' * (i * 7 % 13)}long text {i}" for i in range(30)]
    rows = clip.encode_texts(texts)
    np.testing.assert_allclose(clip.encode_texts(texts[::-1])[::-1], rows, atol=2e-6)
    np.testing.assert_allclose(np.concatenate([clip.encode_texts(text) for text in texts]), rows, atol=2e-6)


def test_progress(clip: reco.Clip, images: list[Path]) -> None:
    calls: list[tuple[int, int]] = []
    clip.encode_images(images, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(4, 9), (8, 9), (9, 9)]
    with pytest.raises(reco.Error, match=r"\[interrupted\]"):
        clip.encode_texts(TEXTS, progress=lambda done, total: False)
    with pytest.raises(ZeroDivisionError):
        clip.encode_texts(TEXTS, progress=lambda done, total: 1 // 0)


def test_keyboard_interrupt(clip: reco.Clip) -> None:
    texts = ["a text of some length"] * 100_000
    timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        clip.encode_texts(texts)
    timer.join()


def test_unreadable_images(clip: reco.Clip, images: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(images[0].read_bytes()[:200])
    for item, part in [
        (bad, "bad.png"),
        (tmp_path / "missing.jpg", "missing.jpg"),
        (tmp_path / "missing", "missing"),
        (bad.read_bytes(), "image 1"),
        (b"not an image", "image 1"),
        (np.zeros((4, 4), np.uint8), "image 1"),
        (np.zeros((4, 4, 4), np.uint8), "image 1"),
        (np.zeros((4, 4, 3), np.float32), "image 1"),
    ]:
        with pytest.raises(reco.Error, match=part):
            good = images[0].read_bytes() if isinstance(item, bytes) else images[0]
            clip.encode_images([good, item])
    with pytest.raises(TypeError, match="int"):
        clip.encode_images([3])
    with pytest.raises(TypeError, match="int"):
        clip.encode_texts(["a", 3])


def test_unreadable_images_can_be_left_out(clip: reco.Clip, images: list[Path], tmp_path: Path) -> None:
    good = [images[0], images[1].read_bytes(), Image.open(images[2]), reco.read_image(images[3])]
    bad = [tmp_path / "missing.jpg", b"", b"not an image", images[4].read_bytes()[:99], np.zeros((4, 4), np.uint8)]
    mixed = [item for pair in zip(bad, [*good, images[5]], strict=True) for item in pair]
    errors: list[tuple[int, str]] = []
    found = clip.encode_images(mixed, on_error=lambda index, message: errors.append((index, message)))
    assert [index for index, _ in errors] == [0, 2, 4, 6, 8]
    assert "missing.jpg" in errors[0][1] and "image 4" in errors[2][1]
    assert np.isnan(found[::2]).all()
    np.testing.assert_allclose(found[1::2], clip.encode_images([*good, images[5]]), atol=1e-6)
    with pytest.raises(ZeroDivisionError):
        clip.encode_images(bad, on_error=lambda index, message: 1 // 0)


def copied(folder: Path) -> Path:
    shutil.copytree(ICONS, folder)
    return folder


def test_damaged_folders(tmp_path: Path) -> None:
    with pytest.raises(reco.Error, match="does not exist"):
        reco.Clip.load(tmp_path / "missing")

    folder = copied(tmp_path / "truncated")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(reco.Error, match="model.safetensors"):
        reco.Clip.load(folder)

    folder = copied(tmp_path / "missing-tensor")
    tensors = load_file(folder / "model.safetensors")
    name = "vision_model.encoder.layers.1.mlp.fc1.weight"
    save_file({key: value for key, value in tensors.items() if key != name}, folder / "model.safetensors")
    with pytest.raises(reco.Error, match=f"(?s)lacks 1 of .*{name}"):
        reco.Clip.load(folder)

    folder = copied(tmp_path / "wrong-shape")
    save_file({**tensors, name: tensors[name].T.contiguous()}, folder / "model.safetensors")
    with pytest.raises(reco.Error, match=rf"(?s)does not fit its configuration.*{name}: expected \["):
        reco.Clip.load(folder)

    folder = copied(tmp_path / "architecture")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "blip"}))
    with pytest.raises(reco.Error, match="'blip' is not supported"):
        reco.Clip.load(folder)


def test_options() -> None:
    with pytest.raises(reco.Error, match="dtype"):
        reco.Clip.load(ICONS, dtype="float16")
    with pytest.raises(reco.Error, match="device"):
        reco.Clip.load(ICONS, device="cuda:99")
    with pytest.raises(reco.Error, match="batch_size"):
        reco.Clip.load(ICONS, batch_size=0)


def test_fingerprint_survives_another_saving(tmp_path: Path) -> None:
    """The order of tensors, shards and unused tensors do not matter; weights do."""
    expected = reco.Clip.load(ICONS).fingerprint
    folder = copied(tmp_path / "saved-again")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, chosen in parts.items():
        save_file({name: tensors[name] for name in chosen}, folder / file)
    index = {"weight_map": {name: file for file, chosen in parts.items() for name in chosen}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert reco.Clip.load(folder, dtype="bfloat16").fingerprint == expected

    tensors["logit_scale"] = tensors["logit_scale"] + 1
    save_file(tensors, folder / "model.safetensors")
    assert reco.Clip.load(folder).fingerprint != expected
