# SPDX-License-Identifier: Apache-2.0
"""Images of every mode, as both kinds of folders want them.

Hugging Face's convert to RGB first, open_clip's and OpenAI's resize an image in its own mode. References: transformers'
image processor, and open_clip's steps done with PIL.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image

import clip_reference
import reco
from image_files import CHANNELS, chunk, picture, png, saved

pytestmark = [
    pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="Pillow resized high images in another order"),
    pytest.mark.filterwarnings("ignore:Palette images with Transparency"),
]

SIZE = 64
WIDTH, HEIGHT = 157, 103


def alpha_picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Half of it opaque or clear, the rest in between, with colours everywhere."""
    image = Image.fromarray(picture(width, height, seed, channels=4))
    alpha = np.clip(np.asarray(image)[..., 3].astype(int) * 3 - 255, 0, 255).astype(np.uint8)
    image.putalpha(Image.fromarray(alpha))
    return image


def png_files() -> dict[str, bytes]:
    """Every colour type at every depth, and what may come with it."""
    rng = np.random.default_rng(3)
    files = {}
    for color, depths in {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}.items():
        for depth in depths:
            smooth = picture(WIDTH, HEIGHT, depth, CHANNELS[color]).astype(np.int64)
            samples = smooth >> (8 - depth) if depth <= 8 else smooth * 257 + rng.integers(0, 257, smooth.shape)
            extra = chunk(b"PLTE", rng.integers(0, 256, 3 * 2**depth, dtype=np.uint8).tobytes()) if color == 3 else b""
            name = f"PNG of colour type {color} with {depth} bits"
            files[name] = png(samples, color, depth, extra=extra)
            files[name + ", interlaced"] = png(samples, color, depth, True, extra)
            if color in (0, 2, 3):
                extra += chunk(
                    b"tRNS", {0: b"\0\1", 2: b"\0\1\0\2\0\3", 3: bytes(range(0, 256, 40))[: 2**depth]}[color]
                )
                files[name + ", transparent"] = png(samples, color, depth, extra=extra)
    dark = picture(WIDTH, HEIGHT, 9, 1).astype(np.int64) * 2  # both sides of 255, where PIL cuts
    return files | {"dark 16-bit PNG": png(dark, 0, 16)}


def files() -> dict[str, bytes]:
    rgb = Image.fromarray(picture(WIDTH, HEIGHT))
    inks = Image.fromarray(picture(WIDTH, HEIGHT, channels=4), "CMYK")
    clear = alpha_picture(WIDTH, HEIGHT)
    ycck = bytearray(saved(inks, "JPEG", quality=90))
    ycck[ycck.index(b"Adobe") + 11] = 2
    frames = [alpha_picture(WIDTH, HEIGHT, seed) for seed in range(2)]
    exif = Image.Exif()
    exif[0x0112] = 6
    return png_files() | {
        "RGB JPEG": saved(rgb, "JPEG"),
        "RGB JPEG, rotated by EXIF": saved(rgb, "JPEG", exif=exif),
        "gray JPEG": saved(rgb.convert("L"), "JPEG"),
        "CMYK JPEG": saved(inks, "JPEG"),
        "progressive CMYK JPEG": saved(inks, "JPEG", progressive=True),
        "YCCK JPEG": bytes(ycck),
        "palette PNG of few colours": saved(rgb.quantize(5), "PNG"),
        "RGBA PNG": saved(clear, "PNG"),
        "opaque RGBA PNG": saved(rgb.convert("RGBA"), "PNG"),
        "WebP": saved(rgb, "WEBP"),
        "WebP with alpha": saved(clear, "WEBP", quality=80),
        "lossless WebP with alpha": saved(clear, "WEBP", lossless=True, exact=True),
        "animated WebP with alpha": saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True),
        "GIF": saved(rgb.quantize(64), "GIF"),
        "CMYK TIFF": saved(inks, "TIFF"),
        "16-bit TIFF": saved(Image.fromarray(picture(WIDTH, HEIGHT)[..., 0].astype(np.uint16) * 99), "TIFF"),
        "BMP": saved(rgb, "BMP"),
        **{f"{mode} PNG of {width} x {height}": saved(small(mode, width, height), "PNG")
           for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
           for width, height in ((1, 1), (1, 5), (SIZE, SIZE), (1500, 2), (3, 900))},
        **{f"{mode} JPEG of {width} x {height}": saved(small(mode, width, height), "JPEG")
           for mode in ("L", "CMYK", "RGB") for width, height in ((1, 1), (1500, 2), (3, 900))},
        **{f"WebP with alpha of {width} x {height}": saved(small("RGBA", width, height), "WEBP")
           for width, height in ((1, 1), (1500, 2), (3, 900))},
    }  # fmt: skip


def small(mode: str, width: int, height: int) -> Image.Image:
    """A picture in any of PIL's modes."""
    image = alpha_picture(width, height)
    samples = np.asarray(image)
    if mode == "CMYK":
        return Image.fromarray(samples, "CMYK")
    if mode in ("I;16", "I;16B"):
        deep = (samples[..., 0].astype(np.uint16) * 211).astype("<u2" if mode == "I;16" else ">u2")
        return Image.frombytes(mode, image.size, deep.tobytes())
    if mode in ("I", "F"):
        return Image.fromarray(samples[..., 0].astype(np.int32 if mode == "I" else np.float32) * 3 - 90)
    if mode == "P":
        return image.convert("RGB").quantize(64)
    if mode == "PA":
        return image.convert("LA").convert(mode)
    if mode in ("LAB", "YCbCr", "HSV"):
        return Image.frombytes(mode, image.size, np.ascontiguousarray(samples[..., :3]).tobytes())
    return image.convert(mode)


FILES = files()
MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16",
         "I;16B"]  # fmt: skip

OTHER_COLOURS = ["PA", "RGBa", "YCbCr", "HSV", "LAB"]

OPEN_CLIP: list[dict[str, Any]] = [
    {},
    {"interpolation": "bilinear"},
    {"interpolation": "random", "fill_color": 9},
    {"resize_mode": "squash"},
    {"resize_mode": "squash", "interpolation": "bilinear"},
    {"resize_mode": "longest"},
    {"resize_mode": "longest", "interpolation": "bilinear", "fill_color": 9},
    {"resize_mode": "longest", "fill_color": 255},
]


def levels(values: np.ndarray) -> Any:
    """The bytes from which an input was computed."""
    mean, std = (np.array(x).reshape(3, 1, 1) for x in (clip_reference.OPENAI_MEAN, clip_reference.OPENAI_STD))
    exact = (values * std + mean) * 255
    assert np.abs(exact - np.rint(exact)).max() < 0.01
    return np.rint(exact).astype(int)


def assert_same(found: np.ndarray, expected: np.ndarray, name: str) -> None:
    np.testing.assert_array_equal(levels(found), levels(expected), name)


def open_clip(folder: Path, **settings: Any) -> reco.Preprocess:
    content = {"model_cfg": {"vision_cfg": {"image_size": SIZE}}, "preprocess_cfg": settings}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    return reco.Preprocess.load(folder / "open_clip_config.json")


def drawable(image: Image.Image, settings: dict[str, Any]) -> bool:
    """Whether a side is left once the longer one fits."""
    return settings.get("resize_mode") != "longest" or round(min(image.size) * SIZE / max(image.size)) > 0


@pytest.mark.parametrize("settings", OPEN_CLIP, ids=str)
def test_files_as_open_clip_wants_them(settings: dict[str, Any], tmp_path: Path) -> None:
    preprocess = open_clip(tmp_path, **settings)
    assert not preprocess.rgb_first
    path = tmp_path / "image"
    modes = set()
    for name, data in FILES.items():
        image = Image.open(io.BytesIO(data))
        modes.add(image.mode)
        if not drawable(image, settings):
            with pytest.raises(reco.Error, match="cannot become"):
                preprocess(data)
            continue
        path.write_bytes(data)
        expected = clip_reference.torchvision_pixels(image, SIZE, settings)
        for given in (data, path, Image.open(path)):
            assert_same(preprocess(given), expected, f"{name} as {type(given).__name__}")
    assert modes == {"1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"}


@pytest.mark.parametrize("settings", OPEN_CLIP, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_pil_images_as_open_clip_wants_them(mode: str, settings: dict[str, Any], tmp_path: Path) -> None:
    preprocess = open_clip(tmp_path, **settings)
    for size in [(WIDTH, HEIGHT), (HEIGHT, WIDTH), (SIZE, SIZE), (31, 20), (1, 1), (SIZE, 200)]:
        image = small(mode, *size)
        assert image.mode == mode
        if settings.get("resize_mode") == "longest" and mode in OTHER_COLOURS and size[0] != size[1]:
            continue  # the one thing that differs: gray around them, not what the byte means there
        assert_same(preprocess(image), clip_reference.torchvision_pixels(image, SIZE, settings), f"{size}")


@pytest.mark.parametrize("filter", range(6))
@pytest.mark.parametrize("crop", [True, False])
def test_everything_as_hugging_face_wants_it(filter: int, crop: bool, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    both = {"height": SIZE, "width": SIZE}
    settings = {"size": {"shortest_edge": SIZE} if crop else both, "crop_size": both, "do_center_crop": crop,
                "resample": filter}  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    preprocess = reco.Preprocess.load(tmp_path)
    processor = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)(**settings)
    assert preprocess.rgb_first
    for name, data in FILES.items():
        image: Image.Image = Image.open(io.BytesIO(data))
        expected = processor(image.convert("RGB"), return_tensors="np")["pixel_values"][0]
        assert_same(preprocess(data), expected, name)
        assert_same(preprocess(image), expected, f"{name} as PIL image")
    for mode in MODES:
        image = small(mode, WIDTH, HEIGHT)
        expected = processor(image.convert("RGB"), return_tensors="np")["pixel_values"][0]
        assert_same(preprocess(image), expected, mode)


def test_arrays_are_rgb_for_all() -> None:
    image = picture(WIDTH, HEIGHT)
    first = reco.Preprocess(torchvision_crop=True)
    last = reco.Preprocess(torchvision_crop=True, rgb_first=False)
    assert first != last and eval(repr(last), {"Preprocess": reco.Preprocess}) == last
    np.testing.assert_array_equal(first(image), last(image))
    np.testing.assert_array_equal(last(image), last(Image.fromarray(image)))


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    preprocess = reco.Preprocess()
    with pytest.raises(TypeError, match="preprocess takes paths, bytes, PIL images and uint8 arrays .* got .*int"):
        preprocess(3)  # type: ignore[arg-type]
    with pytest.raises(reco.Error, match=r"image.preprocess.*'image' is neither JPEG, PNG nor WebP"):
        preprocess(b"no image")
    with pytest.raises(reco.Error, match=r"missing.png"):
        preprocess(tmp_path / "missing.png")
