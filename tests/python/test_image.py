# SPDX-License-Identifier: Apache-2.0
"""Images against PIL and Hugging Face's CLIPImageProcessor: decoded and resized bytes are equal, inputs are equal."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image

import reco
from image_files import CHANNELS, Pixels, chunk, picture, png, saved

FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}


def by_pil(data: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def assert_decodes_like_pil(data: bytes) -> None:
    np.testing.assert_array_equal(reco.decode_image(data), by_pil(data))


# ---- JPEG


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("quality", [30, 75, 96])
@pytest.mark.parametrize("size", [(1, 1), (7, 9), (64, 48), (333, 217)])
def test_jpeg(subsampling: str, progressive: bool, quality: int, size: tuple[int, int]) -> None:
    image = Image.fromarray(picture(*size))
    options = {"subsampling": subsampling, "progressive": progressive, "quality": quality}
    assert_decodes_like_pil(saved(image, "JPEG", **options))


@pytest.mark.parametrize("sampling", [0x12, 0x41, 0x14, 0x22])
def test_jpeg_other_subsamplings(sampling: int) -> None:
    """Reads a 4:4:4 file's blocks under another sampling: a wild image, but the same one in both decoders."""
    data = bytearray(saved(Image.fromarray(picture(160, 160)), "JPEG", subsampling="4:4:4", restart_marker_blocks=1))
    frame = data.index(b"\xff\xc0")
    data[frame + 11] = sampling
    try:
        expected = by_pil(bytes(data))
    except OSError:
        with pytest.raises(reco.Error):
            reco.decode_image(bytes(data))
    else:
        np.testing.assert_array_equal(reco.decode_image(bytes(data)), expected)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_modes(mode: str, progressive: bool) -> None:
    image = Image.fromarray(picture(97, 61)).convert(mode)
    if mode == "CMYK":
        image = Image.fromarray(picture(97, 61, channels=4), "CMYK")
    assert_decodes_like_pil(saved(image, "JPEG", progressive=progressive))
    assert_decodes_like_pil(saved(image, "JPEG", keep_rgb=mode == "RGB", restart_marker_rows=1))


def test_jpeg_ycck() -> None:
    data = bytearray(saved(Image.fromarray(picture(97, 61, channels=4), "CMYK"), "JPEG"))
    transform = data.index(b"Adobe") + 11
    assert data[transform] == 0
    data[transform] = 2
    assert_decodes_like_pil(bytes(data))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotated_by_exif_stays_as_it_is(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.fromarray(picture(60, 40)), format, exif=exif)
    assert reco.decode_image(data).shape == (40, 60, 3)
    assert_decodes_like_pil(data)


def test_jpeg_with_more_pictures_gives_the_first() -> None:
    """MPO, as cameras with two lenses write it."""
    pair = [Image.fromarray(picture(60, 40, seed)) for seed in (1, 2)]
    assert_decodes_like_pil(saved(pair[0], "MPO", save_all=True, append_images=pair[1:]))


def test_jpeg_with_junk_is_read_as_pil_reads_it() -> None:
    data = saved(Image.fromarray(picture(64, 64)), "JPEG")
    assert_decodes_like_pil(data + b"trailing junk")
    middle = len(data) * 2 // 3
    damaged = data[:middle] + b"\x00\x11\x22" + data[middle + 3 :]
    assert_decodes_like_pil(damaged)


# ---- PNG

DEPTHS = [(c, d) for c, depths in {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}.items()
          for d in depths]  # fmt: skip


@pytest.mark.parametrize(("color", "depth"), DEPTHS)
@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("transparency", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (37, 23)])
def test_png(color: int, depth: int, interlaced: bool, transparency: bool, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(color * 100 + depth)
    samples = rng.integers(0, 2**depth, (size[1], size[0], CHANNELS[color]))
    if color == 0 and depth == 16:
        samples[::2] //= 200  # values on both sides of 255, where PIL clips
    extra = chunk(b"PLTE", rng.integers(0, 256, 3 * 2**depth, dtype=np.uint8).tobytes()) if color == 3 else b""
    if transparency and color in (0, 2, 3):
        extra += chunk(b"tRNS", {0: b"\0\1", 2: b"\0\1\0\2\0\3", 3: b"\0"}[color])
    assert_decodes_like_pil(png(samples, color, depth, interlaced, extra))


def test_png_with_gamma_and_profile_is_not_corrected() -> None:
    samples = picture(20, 20)
    assert_decodes_like_pil(png(samples, 2, 8, extra=chunk(b"gAMA", struct.pack(">I", 100000))))
    assert_decodes_like_pil(png(samples, 2, 8, extra=chunk(b"sRGB", b"\0")))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_png_as_pil_writes_it(mode: str) -> None:
    image = Image.fromarray(picture(65, 33))
    image = Image.fromarray(picture(65, 33)[..., 0].astype(np.uint16) * 3) if mode == "I;16" else image.convert(mode)
    assert_decodes_like_pil(saved(image, "PNG"))


# ---- WebP


@pytest.mark.parametrize(
    "options", [{"lossless": True}, {"quality": 20}, {"quality": 80}, {"quality": 95, "method": 6}]
)
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("size", [(1, 1), (17, 5), (128, 96)])
def test_webp(options: dict[str, Any], channels: int, size: tuple[int, int]) -> None:
    image = Image.fromarray(picture(*size, channels=channels))
    assert_decodes_like_pil(saved(image, "WEBP", exact=True, **options))
    assert_decodes_like_pil(saved(image, "WEBP", **options))


@pytest.mark.parametrize("lossless", [False, True])
def test_webp_animation_gives_its_first_frame(lossless: bool) -> None:
    frames = [Image.fromarray(picture(40, 30, seed, channels=4)) for seed in range(3)]
    data = saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=lossless)
    assert_decodes_like_pil(data)


@pytest.mark.parametrize("default_image", [False, True])
def test_png_animation_gives_its_first_frame(default_image: bool) -> None:
    frames = [Image.fromarray(picture(40, 30, seed, channels=4)) for seed in range(3)]
    data = saved(frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=default_image)
    assert_decodes_like_pil(data)


# ---- what is no image


def test_truncated_files_are_refused() -> None:
    image = Image.fromarray(picture(64, 64))
    for format in ("JPEG", "PNG", "WEBP"):
        data = saved(image, format)
        for length in [0, 1, 4, 11, 12, 20, len(data) // 3, len(data) // 2, len(data) * 9 // 10]:
            with pytest.raises(reco.Error, match="image.decode_image"):
                reco.decode_image(data[:length], name="cat")


def test_random_damage_never_crashes() -> None:
    rng = np.random.default_rng(7)
    files = [saved(Image.fromarray(picture(48, 32)), format) for format in ("JPEG", "PNG", "WEBP")]
    files.append(
        saved(Image.fromarray(picture(48, 32)), "WEBP", save_all=True, append_images=[Image.new("RGB", (48, 32))])
    )
    for round in range(2000):
        data = bytearray(files[round % 4])
        for _ in range(rng.integers(1, 6)):
            data[rng.integers(0, len(data))] = rng.integers(0, 256)
        try:
            image = reco.decode_image(bytes(data), max_pixels=1 << 20)
        except reco.Error:
            continue
        assert image.shape[2] == 3


def test_too_many_pixels_are_refused_before_they_are_allocated() -> None:
    header = struct.pack(">IIBBBBB", 900_000, 900_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with pytest.raises(reco.Error, match="at most 178956970 pixels, has 900000 x 900000"):
        reco.decode_image(bomb)
    with pytest.raises(reco.Error, match="at most 100 pixels, has 11 x 10"):
        reco.decode_image(saved(Image.new("RGB", (11, 10)), "JPEG"), max_pixels=100)
    assert reco.decode_image(saved(Image.new("RGB", (10, 10)), "JPEG"), max_pixels=100).shape == (10, 10, 3)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "ä b.png"
    path.write_bytes(saved(Image.fromarray(picture(9, 7)), "PNG"))
    np.testing.assert_array_equal(reco.read_image(path), picture(9, 7))
    with pytest.raises(reco.Error, match="missing.png"):
        reco.read_image(tmp_path / "missing.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(reco.Error, match=r"text.png' must be a JPEG, PNG or WebP file"):
        reco.read_image(tmp_path / "text.png")


# ---- resize


def vertical_first(size: tuple[int, int], target: tuple[int, int]) -> bool:
    """Whether PIL 13 resizes vertically first, as reco does and earlier versions never do."""
    shrunk = size[1] - target[1]
    return shrunk > 0 and shrunk > 2 * (size[0] - target[0])


@pytest.mark.parametrize("filter", FILTERS)
def test_resize_equals_pil(filter: str) -> None:
    rng = np.random.default_rng(FILTERS[filter])
    old = int(PIL.__version__.split(".")[0]) < 13
    sizes = [(1, 1), (1, 9), (9, 1), (64, 64), (200, 50), (50, 200), (16, 16), (17, 15), (640, 427)]
    sizes += [tuple(rng.integers(1, 90, 2).tolist()) for _ in range(30)]
    for size in sizes:
        noise = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        for image in (noise, (noise > 127).astype(np.uint8) * 255):  # the second overshoots at every edge
            for target in [size, (size[0], 31), (29, size[1]), (224, 224), *(sizes[i] for i in rng.integers(0, 39, 4))]:
                if old and vertical_first(size, target):
                    continue
                expected = np.asarray(Image.fromarray(image).resize(target, FILTERS[filter]))
                np.testing.assert_array_equal(
                    reco.resize(image, target[0], target[1], filter), expected, f"{size} to {target}"
                )


def test_arrays_of_reco_count_as_any_others() -> None:
    """They are not copied; changed, turned, cut or reshaped they are what they show."""
    data = saved(Image.fromarray(picture(90, 60)), "PNG")
    array = reco.decode_image(data)
    array[:30] = 7
    square = reco.decode_image(data)
    square.shape = (60 * 90 // 30, 30, 3)
    for given in (
        array,
        array[::-1],
        array[5:],
        array[:, :40],
        array.transpose(1, 0, 2),
        array.reshape(30, 180, 3),
        square,
    ):
        expected = reco.resize(given.copy(), 41, 29)
        np.testing.assert_array_equal(reco.resize(given, 41, 29), expected)
        np.testing.assert_array_equal(reco.Preprocess()(given), reco.Preprocess()(given.copy()))
    with pytest.raises(reco.Error, match="uint8"):
        reco.resize(array.view(np.int8), 41, 29)


@pytest.mark.parametrize(
    "arguments",
    [
        (picture(4, 4), 0, 5),
        (picture(4, 4), 5, 65_536),
        (picture(4, 4)[..., 0], 5, 5),
        (picture(4, 4).astype(np.float32), 5, 5),
        (picture(4, 4)[:0], 5, 5),
        (picture(4, 4), 5, 5, "gauss"),
    ],
    ids=range(6),
)
def test_resize_refuses_nonsense(arguments: Any) -> None:
    with pytest.raises(reco.Error, match="image.resize"):
        reco.resize(*arguments)


# ---- preprocess

CONFIGS = [
    {},
    {"size": 64, "crop_size": 64},
    {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}, "resample": 2},
    {"size": {"shortest_edge": 75}, "crop_size": {"height": 64, "width": 51}},
    {"size": {"height": 40, "width": 61}, "do_center_crop": False, "resample": 1},
    {"size": {"shortest_edge": 32}, "crop_size": 45},
    {"do_resize": False, "crop_size": {"height": 64, "width": 75}},
    {"size": 64, "crop_size": 64, "do_rescale": False},
    {"size": 64, "crop_size": 64, "do_normalize": False},
    {"size": 64, "crop_size": 64, "rescale_factor": 0.0123},
    {"size": 64, "crop_size": 64, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.25, 0.1]},
]


def hugging_face(config: dict[str, Any]) -> Any:
    transformers = pytest.importorskip("transformers")
    pil = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    return pil(**config)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_preprocess_equals_hugging_face(config: dict[str, Any], tmp_path: Path) -> None:
    processor = hugging_face(config)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    preprocess = reco.Preprocess.load(tmp_path / "preprocessor_config.json")
    for size in [(64, 64), (100, 75), (75, 101), (33, 200), (500, 37), (65, 64), (47, 46), (1, 3)]:
        image = picture(*size)
        expected = processor(Image.fromarray(image), return_tensors="np")["pixel_values"][0]
        values = preprocess(image)
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, expected, f"{size}")


def files() -> dict[str, bytes]:
    """One of every kind that collections hold."""
    rgb, rgba = Image.fromarray(picture(333, 217)), Image.fromarray(picture(333, 217, channels=4))
    exif = Image.Exif()
    exif[0x0112] = 6
    rng = np.random.default_rng(1)
    deep = rng.integers(0, 2**16, (217, 333, 3))
    return {
        "baseline JPEG": saved(rgb, "JPEG"),
        "progressive JPEG": saved(rgb, "JPEG", progressive=True, quality=60),
        "grayscale JPEG": saved(rgb.convert("L"), "JPEG"),
        "CMYK JPEG": saved(Image.fromarray(picture(333, 217, channels=4), "CMYK"), "JPEG"),
        "JPEG rotated by EXIF": saved(rgb, "JPEG", exif=exif),
        "palette PNG": saved(rgb.quantize(64), "PNG"),
        "16-bit PNG": png(deep, 2, 16),
        "16-bit grayscale PNG": png(deep[..., :1] // 200, 0, 16),
        "PNG with alpha": saved(rgba, "PNG"),
        "interlaced PNG": png(picture(333, 217), 2, 8, interlaced=True),
        "lossy WebP": saved(rgb, "WEBP", quality=80),
        "lossless WebP": saved(rgb, "WEBP", lossless=True),
        "WebP with alpha": saved(rgba, "WEBP", quality=80),
        "one pixel": saved(Image.fromarray(picture(1, 1)), "PNG"),
        "very wide": saved(Image.fromarray(picture(4000, 3)), "PNG"),
        "very high": saved(Image.fromarray(picture(2, 3000)), "JPEG"),
    }


def test_the_tensor_of_every_kind_of_file(tmp_path: Path) -> None:
    """Whatever the file is called: its content counts."""
    processor, preprocess = hugging_face({}), reco.Preprocess()
    for kind, data in files().items():
        path = tmp_path / "image.jpg"
        path.write_bytes(data)
        with Image.open(path) as image:
            expected = processor(image.convert("RGB"), return_tensors="np")["pixel_values"][0]
        np.testing.assert_array_equal(preprocess(reco.read_image(path)), expected, kind)


def test_preprocess_reads_what_hugging_face_saves(tmp_path: Path) -> None:
    processor = hugging_face({"size": 50, "crop_size": 40, "image_std": [0.3, 0.2, 0.1]})
    processor.save_pretrained(tmp_path)
    preprocess = reco.Preprocess.load(tmp_path / "preprocessor_config.json")
    image = picture(90, 60)
    expected = processor(Image.fromarray(image), return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(preprocess(image), expected)


def test_the_processor_config_of_transformers_5(tmp_path: Path) -> None:
    """One file for all of a processor's parts; it wins over the older file beside it, unless it has no such part."""
    older, newer = {"size": 50, "crop_size": 40}, {"size": {"shortest_edge": 31}, "crop_size": 30}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(older))
    assert reco.Preprocess.load(tmp_path).crop_width == 40
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "CLIPProcessor"}))
    assert reco.Preprocess.load(tmp_path).crop_width == 40
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": newer}))
    assert reco.Preprocess.load(tmp_path).crop_width == 30
    assert reco.Preprocess.load(tmp_path / "processor_config.json").shortest_edge == 31
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": {"size": -1}}))
    with pytest.raises(reco.Error, match=r"'size' .*processor_config.json"):
        reco.Preprocess.load(tmp_path)


def test_defaults_are_those_of_clip() -> None:
    image = picture(300, 260)
    expected = hugging_face({})(Image.fromarray(image), return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(reco.Preprocess()(image), expected)


def test_extreme_aspect_is_cropped_without_making_the_whole() -> None:
    """224 x 6.7 million pixels before the crop: 6 GB as an image."""
    image = picture(30_000, 1)
    values = reco.Preprocess()(image)
    assert values.shape == (3, 224, 224)
    row = reco.resize(image[:, 14_990:15_010], 20 * 224, 224, "bicubic")
    unscaled = reco.Preprocess()
    unscaled.do_rescale = unscaled.do_normalize = False
    np.testing.assert_array_equal(unscaled(image), row[:, 10 * 224 - 112 : 10 * 224 + 112].transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold a JSON object"),
        ("[1]", "must hold a JSON object"),
        ('{"size": "big"}', "'size' must be an integer"),
        ('{"size": 0}', "'size' must be integers from 1 to 65,535, got 0"),
        ('{"size": -224}', "'size'"),
        ('{"size": 1e99}', "'size'"),
        ('{"size": 99999999999999999999}', "'size'"),
        ('{"size": {"shortest_edge": 224.5}}', "'size'"),
        ('{"size": {"shortest_edge": 9, "longest_edge": 10}}', "'size'"),
        ('{"size": {"height": 224}}', "'size'"),
        ('{"crop_size": {"height": 224, "width": null}}', "'crop_size'"),
        ('{"crop_size": true}', "'crop_size'"),
        ('{"resample": 6}', "'resample' must be an integer from 0 to 5, got 6"),
        ('{"resample": "bicubic"}', "'resample'"),
        ('{"do_resize": 1}', "'do_resize' must be true or false, got 1"),
        ('{"do_convert_rgb": "yes"}', "'do_convert_rgb'"),
        ('{"rescale_factor": [1]}', "'rescale_factor'"),
        ('{"image_mean": [0.5, 0.5]}', "'image_mean' must be three numbers"),
        ('{"image_mean": [0.5, "x", 0.5]}', "'image_mean'"),
        ('{"image_std": [0.5, 0.0, 0.5]}', "'image_std'"),
        ('{"image_std": [0.5, 1e99, 0.5]}', "'image_std'"),
    ],
)
def test_malformed_config_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "preprocessor_config.json"
    path.write_text(text)
    with pytest.raises(reco.Error, match=message) as error:
        reco.Preprocess.load(path)
    assert "preprocessor_config.json" in str(error.value)
