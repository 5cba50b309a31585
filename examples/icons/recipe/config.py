# SPDX-License-Identifier: Apache-2.0
"""What the recipe fixes."""

from __future__ import annotations

from dataclasses import dataclass

BOS, EOS = 49406, 49407
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
QUERY_SETS = {"twemoji", "logos", "flagpack", "cryptocurrency-color"}
TEMPLATES = ("{}", "an icon of {}", "a drawing of {}", "a picture of {}", "an image of {}")


@dataclass(frozen=True)
class Config:
    """The recipe: what is not here is not free."""

    steps: int = 2400
    concepts: int = 128
    seed: int = 1
    width: int = 128
    layers: int = 6
    heads: int = 4
    text_width: int = 64
    text_layers: int = 2
    text_heads: int = 2
    context: int = 32
    dim: int = 256
    image_size: int = 64
    patch: int = 8
    lr: float = 2e-3
    muon_lr: float = 0.03
    token_lr: float = 0.02
    weight_decay: float = 0.05
    warmup: float = 0.04
    small_size: int = 48
    full_from: float = 0.75
    image_weight: float = 1.0
    text_weight: float = 0.1
    hand_power: float = 1.0
    duel_share: float = 0.6
    duel_from: float = 0.2
    duel_full: float = 0.6
    position_scale: float = 0.5
    oracle: bool = False
