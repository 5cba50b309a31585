# SPDX-License-Identifier: Apache-2.0
"""CLIP under Hugging Face's parameter names."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from recipe.config import EOS, Config


class Attention(nn.Module):
    """Plain matmul attention: on short sequences the flash kernel's backward takes half the time of a step."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        count, length, width = x.shape
        weight = torch.cat([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight])
        bias = torch.cat([self.q_proj.bias, self.k_proj.bias, self.v_proj.bias])
        parts = functional.linear(x, weight, bias).view(count, length, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-1, -2) * (width // self.heads) ** -0.5
        weights = (scores if mask is None else scores + mask).softmax(-1)
        mixed: Tensor = self.out_proj((weights @ v).transpose(1, 2).reshape(count, length, width))
        return mixed


class Mlp(nn.Module):
    """Two layers, four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return result


class Layer(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(width, heads), Mlp(width)
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), mask)
        x = x + self.mlp(self.layer_norm2(x))
        return x  # noqa: RET504


class Encoder(nn.Module):
    """A stack of layers, under Hugging Face's names."""

    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            x = layer(x, mask)
        return x


class VisionEmbeddings(nn.Module):
    """Patches, a class token and positions."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        grid = config.image_size // config.patch
        self.class_embedding = nn.Parameter(torch.randn(config.width) * 0.02)
        self.patch_embedding = nn.Conv2d(3, config.width, config.patch, config.patch, bias=False)
        self.position_embedding = nn.Embedding(grid * grid + 1, config.width)

    def _positions(self, grid: int) -> Tensor:
        """Position rows of a grid x grid picture: those of the full grid, interpolated."""
        full = math.isqrt(self.position_embedding.num_embeddings - 1)
        rows = self.position_embedding.weight[1:]
        if grid == full:
            return rows
        plane = rows.float().view(1, full, full, -1).permute(0, 3, 1, 2)
        scaled = functional.interpolate(plane, size=(grid, grid), mode="bicubic", align_corners=False)
        return scaled.flatten(2).transpose(1, 2)[0].to(rows.dtype)

    def forward(self, pixels: Tensor) -> Tensor:
        planes = self.patch_embedding(pixels)
        patches = planes.flatten(2).transpose(1, 2) + self._positions(planes.shape[-1])
        first = (self.class_embedding + self.position_embedding.weight[0]).expand(pixels.shape[0], 1, -1)
        return torch.cat([first, patches], 1)


class VisionModel(nn.Module):
    """The image tower."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.width)
        self.encoder = Encoder(config.width, config.heads, config.layers)
        self.post_layernorm = nn.LayerNorm(config.width)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.encoder(self.pre_layrnorm(self.embeddings(pixels)))
        pooled: Tensor = self.post_layernorm(x[:, 0])
        return pooled


class TextEmbeddings(nn.Module):
    """Tokens and positions."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(EOS + 1, config.text_width)
        self.position_embedding = nn.Embedding(config.context, config.text_width)

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.position_embedding.weight[: tokens.shape[1]]


class TextModel(nn.Module):
    """The text tower; it takes embedded tokens, so that only a batch's rows of the table need gradients."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embeddings = TextEmbeddings(config)
        self.encoder = Encoder(config.text_width, config.text_heads, config.text_layers)
        self.final_layer_norm = nn.LayerNorm(config.text_width)

    def forward(self, tokens: Tensor, last: Tensor) -> Tensor:
        length = tokens.shape[1]
        mask = torch.full((length, length), -1e4, dtype=tokens.dtype).triu(1)
        x = self.encoder(self.embeddings(tokens), mask)
        pooled: Tensor = self.final_layer_norm(x[torch.arange(x.shape[0]), last])
        return pooled


class TinyClip(nn.Module):
    """CLIP (Radford et al. 2021) with the parameter names of Hugging Face's CLIPModel."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.vision_model, self.text_model = VisionModel(config), TextModel(config)
        self.visual_projection = nn.Linear(config.width, config.dim, bias=False)
        self.text_projection = nn.Linear(config.text_width, config.dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.apply(initialise)

    def forward(self, kind: str, *inputs: Tensor | None) -> Tensor:
        """Unit rows for pixels or for embedded tokens; one entry, since functional_call has one."""
        if kind == "image":
            return functional.normalize(self.visual_projection(self.vision_model(*inputs)).float(), dim=-1)
        return functional.normalize(self.text_projection(self.text_model(*inputs)).float(), dim=-1)


def initialise(module: nn.Module) -> None:
    """Small weights; token rows are large against positions, so that unseen tokens are heard."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.normal_(module.weight, std=0.02 if isinstance(module, nn.Linear) else 0.05)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.05 if module.num_embeddings > EOS else 0.02)
