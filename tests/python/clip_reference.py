# SPDX-License-Identifier: Apache-2.0
"""CLIP in plain PyTorch, from the papers' descriptions, with the parameter names of OpenAI and open_clip."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import nn
from torch.nn import functional as F  # noqa: N812


class QuickGelu(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


class LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma


def activation(config: dict[str, Any], quick: bool) -> nn.Module:
    return QuickGelu() if quick else nn.GELU(**(config.get("act_kwargs") or {}))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, config: dict[str, Any], quick: bool) -> None:
        super().__init__()
        norm, scaled = config.get("norm_kwargs") or {}, config.get("ls_init_value") is not None
        hidden = int(width * config.get("mlp_ratio", 4.0))
        self.ln_1 = nn.LayerNorm(width, **norm)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width, **norm)
        layers = [("c_fc", nn.Linear(width, hidden)), ("gelu", activation(config, quick))]
        self.mlp = nn.Sequential(OrderedDict([*layers, ("c_proj", nn.Linear(hidden, width))]))
        self.ls_1, self.ls_2 = (LayerScale(width) if scaled else nn.Identity() for _ in range(2))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        y = self.ln_1(x)
        x = x + self.ls_1(self.attn(y, y, y, need_weights=False, attn_mask=mask)[0])
        return x + self.ls_2(self.mlp(self.ln_2(x)))


class Transformer(nn.Module):
    def __init__(self, width: int, heads: int, config: dict[str, Any], quick: bool) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads, config, quick) for _ in range(config.get("layers", 12)))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class VisionTransformer(nn.Module):
    def __init__(self, config: dict[str, Any], dim: int, quick: bool) -> None:
        super().__init__()
        width, side = config["width"], config["patch_size"]
        norm = config.get("norm_kwargs") or {}
        self.config = config
        self.conv1 = nn.Conv2d(3, width, side, side, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        patches = (config["image_size"] // side) ** 2
        self.positional_embedding = nn.Parameter(torch.randn(patches + 1, width) * width**-0.5)
        self.ln_pre = nn.Identity() if config.get("no_ln_pre") else nn.LayerNorm(width, **norm)
        self.transformer = Transformer(width, width // config.get("head_width", 64), config, quick)
        self.ln_post = nn.LayerNorm(width, **norm)
        self.proj = nn.Parameter(torch.randn(width, dim) * width**-0.5)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        x = self.transformer(self.ln_pre(x))
        if self.config.get("pool_type", "tok") == "tok":
            return self.ln_post(x[:, 0]) @ self.proj
        if self.config.get("final_ln_after_pool"):
            return self.ln_post(x[:, 1:].mean(1)) @ self.proj
        return self.ln_post(x)[:, 1:].mean(1) @ self.proj


class Bottleneck(nn.Module):
    def __init__(self, planes_in: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(planes_in, planes, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False), nn.BatchNorm2d(planes)
        self.conv3, self.bn3 = nn.Conv2d(planes, 4 * planes, 1, bias=False), nn.BatchNorm2d(4 * planes)
        self.pool = nn.AvgPool2d(stride)
        self.downsample = None
        if stride > 1 or planes_in != 4 * planes:
            parts = [("-1", nn.AvgPool2d(stride)), ("0", nn.Conv2d(planes_in, 4 * planes, 1, bias=False))]
            self.downsample = nn.Sequential(OrderedDict([*parts, ("1", nn.BatchNorm2d(4 * planes))]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        y = self.bn3(self.conv3(self.pool(y)))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class AttentionPool(nn.Module):
    def __init__(self, cells: int, width: int, heads: int, dim: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(cells + 1, width) * width**-0.5)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.c_proj = nn.Linear(width, dim)
        self.heads = heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(1, keepdim=True), x], 1) + self.positional_embedding
        q, k, v = (p(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        weights = (q[:, :, :1] @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)
        return self.c_proj((weights @ v).transpose(1, 2).flatten(1))


class ModifiedResNet(nn.Module):
    def __init__(self, config: dict[str, Any], dim: int) -> None:
        super().__init__()
        width, size = config["width"], config["image_size"]
        self.conv1, self.bn1 = nn.Conv2d(3, width // 2, 3, 2, 1, bias=False), nn.BatchNorm2d(width // 2)
        self.conv2, self.bn2 = nn.Conv2d(width // 2, width // 2, 3, 1, 1, bias=False), nn.BatchNorm2d(width // 2)
        self.conv3, self.bn3 = nn.Conv2d(width // 2, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        planes_in = width
        for i, count in enumerate(config["layers"]):
            planes, blocks = width * 2**i, []
            for j in range(count):
                blocks.append(Bottleneck(planes_in, planes, 2 if i > 0 and j == 0 else 1))
                planes_in = 4 * planes
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        heads = width * 32 // config.get("head_width", 64)
        self.attnpool = AttentionPool((size // 32) ** 2, width * 32, heads, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for convolution, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = F.relu(norm(convolution(x)))
        x = F.avg_pool2d(x, 2)
        for i in range(1, 5):
            x = getattr(self, f"layer{i}")(x)
        return self.attnpool(x)


class Text(nn.Module):
    """The text tower; `Clip` has its parts at the top, or the whole as `text`."""

    def __init__(self, config: dict[str, Any], dim: int, quick: bool) -> None:
        super().__init__()
        width, length = config.get("width", 512), config.get("context_length", 77)
        self.config = config
        self.transformer = Transformer(width, config.get("heads", 8), config, quick)
        self.token_embedding = nn.Embedding(config.get("vocab_size", 49408), width)
        self.positional_embedding = nn.Parameter(torch.randn(length, width) * 0.1)
        self.ln_final = nn.LayerNorm(width, **(config.get("norm_kwargs") or {}))
        if config.get("proj_bias"):
            self.text_projection: nn.Module | nn.Parameter = nn.Linear(width, dim)
        else:
            self.text_projection = nn.Parameter(torch.randn(width, dim) * width**-0.5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        length = ids.shape[1]
        mask = None if self.config.get("no_causal_mask") else torch.full((length, length), -torch.inf).triu(1)
        x = self.ln_final(self.transformer(self.token_embedding(ids) + self.positional_embedding[:length], mask))
        pool = self.config.get("pool_type", "argmax")
        if pool == "argmax":
            at = ids.argmax(-1)
        elif pool == "eos":
            at = (ids == self.config["eos_id"]).int().argmax(-1)
        else:
            at = torch.full((len(ids),), 0 if pool == "first" else length - 1)
        x = x[torch.arange(len(x)), at]
        projection = self.text_projection
        linear = isinstance(projection, nn.Linear)
        return projection(x) if linear else x @ projection  # type: ignore[operator]


class Clip(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        dim, quick, vision = config["embed_dim"], config.get("quick_gelu", False), config["vision_cfg"]
        resnet = isinstance(vision.get("layers"), list)
        self.visual = ModifiedResNet(vision, dim) if resnet else VisionTransformer(vision, dim, quick)
        self.text = Text(config["text_cfg"], dim, quick)
        self.logit_scale = nn.Parameter(torch.full([1] if config.get("nonscalar_logit_scale") else [], 2.5))
        if config.get("init_logit_bias") is not None:
            self.logit_bias = nn.Parameter(torch.tensor(float(config["init_logit_bias"])))
        with torch.no_grad():
            for name, weight in self.named_parameters():
                if name.endswith("gamma"):
                    weight.uniform_(0.2, 0.9)
                elif weight.ndim == 1 and name.endswith("bias"):
                    weight.normal_(0, 0.05)
                elif weight.ndim == 1 and name.endswith("weight"):  # of norms
                    weight.normal_(1, 0.1)
            for name, buffer in self.named_buffers():
                if name.endswith("running_mean"):
                    buffer.normal_(0, 0.1)
                elif name.endswith("running_var"):
                    buffer.uniform_(0.5, 1.5)
        self.eval()

    def tensors(self, custom_text: bool) -> dict[str, torch.Tensor]:
        """The state dict, with the text tower at the top unless `custom_text`."""
        state = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        return state if custom_text else {name.removeprefix("text."): tensor for name, tensor in state.items()}

    @torch.inference_mode()
    def encode(self, pixels: torch.Tensor, ids: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Unit rows of both."""
        return F.normalize(self.visual(pixels)).numpy(), F.normalize(self.text(ids)).numpy()


OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def _padded(image: Image.Image, size: int, fill: int) -> Image.Image:
    """torchvision's pad() to at least `size` a side: every channel, or the palette's index, has the value `fill`."""
    missing = [max(size - side, 0) for side in image.size]
    border = (*(m // 2 for m in missing), *((m + 1) // 2 for m in missing))
    if not any(border):
        return image
    bands = len(image.getbands())
    padded = ImageOps.expand(image, border, fill if bands == 1 else (fill,) * bands)
    if image.mode == "P":
        padded.putpalette(image.getpalette())
    return padded


def torchvision_pixels(image: Image.Image, size: int, config: dict[str, Any]) -> np.ndarray:
    """What torchvision's Resize, CenterCrop, open_clip's conversion to RGB, ToTensor and Normalize make of an image."""
    resample = Image.Resampling.BILINEAR if config.get("interpolation") == "bilinear" else Image.Resampling.BICUBIC
    mode, (width, height) = config.get("resize_mode", "shortest"), image.size
    if mode == "squash":
        image = image.resize((size, size), resample)
    elif mode == "longest":
        ratio = max(width / size, height / size)
        image = image.resize((round(width / ratio), round(height / ratio)), resample)
    else:
        longer = int(size * max(width, height) / min(width, height))
        image = image.resize((size, longer) if width <= height else (longer, size), resample)
    image = _padded(image, size, config.get("fill_color", 0))
    left, top = (round((side - size) / 2) for side in image.size)
    image = image.crop((left, top, left + size, top + size)).convert("RGB")
    values = np.asarray(image).transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    mean, std = (np.float32(config.get(key, default)).reshape(3, 1, 1) for key, default in (
        ("mean", OPENAI_MEAN), ("std", OPENAI_STD)))  # fmt: skip
    return (values - mean) / std
