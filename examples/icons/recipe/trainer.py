# SPDX-License-Identifier: Apache-2.0
"""What changes while training, and how."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import click
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from recipe.config import BOS, EOS, TEMPLATES, Config
from recipe.data import Drawings, Sampler, augment
from recipe.text import Tokenizer, babble, pad
from recipe.towers import TinyClip


class TokenRows:
    """Adagrad on the rows of the token table that a batch has touched."""

    def __init__(self, table: Tensor) -> None:
        self.table = table.requires_grad_(False)
        self.squares = torch.zeros(table.shape[0])

    def gather(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The rows that occur, as a leaf, and where each token of the batch is among them."""
        rows, places = torch.unique(ids, return_inverse=True)
        return rows, places, self.table[rows].requires_grad_()

    def step(self, rows: Tensor, gradient: Tensor, lr: float) -> None:
        """One update, each row by its own history."""
        self.squares[rows] += gradient.square().mean(1)
        self.table[rows] -= lr * gradient / (self.squares[rows].sqrt() + 1e-8).unsqueeze(1)


def info_nce(left: Tensor, right: Tensor, scale: Tensor) -> Tensor:
    """Contrast in both directions; a batch never holds one concept twice, so the diagonal is all that is right."""
    logits, target = scale * left @ right.T, torch.arange(left.shape[0])
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2


@dataclass
class Trainer:
    """All that changes while training, and how it changes."""

    config: Config
    tokenizer: Tokenizer
    model: TinyClip = field(init=False)
    step: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        torch.manual_seed(self.config.seed)
        self.model = TinyClip(self.config)
        self.tokens = TokenRows(self.model.text_model.embeddings.token_embedding.weight)
        self._place()
        self.templates = [self.tokenizer.encode(template.format("x"))[1:-1] for template in TEMPLATES]
        self.image_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.optimizers = self._optimizers()

    def _place(self) -> None:
        """Starts the image positions as waves in both directions: from noise, neighbourhood is learned slowly."""
        grid, width = self.config.image_size // self.config.patch, self.config.width
        rows, columns = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
        rate = 100 ** -(torch.arange(width // 4) / (width // 4))
        x, y = columns.flatten()[:, None] * rate, rows.flatten()[:, None] * rate
        waves = torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], 1) * self.config.position_scale
        self.model.vision_model.embeddings.position_embedding.weight.data[1:] = waves

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        matrices = [p for n, p in self.model.named_parameters() if p.ndim == 2 and ".layers." in n]
        taken = {id(matrix) for matrix in matrices}
        rest = [p for p in self.model.parameters() if p.requires_grad and id(p) not in taken]
        decay = self.config.weight_decay
        muon = torch.optim.Muon(matrices, lr=self.config.muon_lr, weight_decay=decay, ns_steps=5)
        adam = torch.optim.AdamW([*rest, self.image_scale], lr=self.config.lr, weight_decay=0.0, betas=(0.9, 0.98))
        return [muon, adam]

    def schedule(self) -> float:
        """Linear warm-up, then a cosine to nearly nothing."""
        progress, warmup = self.progress, self.config.warmup
        if progress < warmup:
            return progress / warmup + 1e-3
        return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))) + 1e-3

    @property
    def progress(self) -> float:
        """Share of the steps that are done."""
        return self.step / self.config.steps

    def picture_size(self) -> int:
        """Small pictures first, which cost half; full size in the last steps."""
        return self.config.image_size if self.progress >= self.config.full_from else self.config.small_size

    def duel_share(self) -> float:
        """Batches of one hand against another are hard: none at first, then more and more of them."""
        begin, end = self.config.duel_from, self.config.duel_full
        return self.config.duel_share * min(1.0, max(0.0, (self.progress - begin) / (end - begin)))

    def text_rows(self, texts: list[str], generator: torch.Generator) -> Tensor:
        """Captions, half of them in a template, and babble in two templates each."""
        names = [self.tokenizer.encode(text)[1:-1] for text in texts]
        noise = babble(len(texts) // 2, generator)
        rows = [self._template(name, 0.5, generator) for name in names]
        rows += [self._template(name, 0.5, generator) for name in noise]
        rows += [self._template(name, 0.9, generator) for name in noise]
        return pad(rows, self.config.context)

    def _template(self, name: list[int], share: float, generator: torch.Generator) -> list[int]:
        draw, which = torch.rand(2, generator=generator).tolist()
        prefix = self.templates[1 + int(which * (len(TEMPLATES) - 1))][:-1] if draw < share else []
        return [BOS, *prefix, *name, EOS]

    def losses(self, drawings: Drawings, sampler: Sampler) -> tuple[Tensor, list[float], Tensor, Tensor]:
        """Image-text, image-image and babble contrasts of one batch, with the token rows they touched."""
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.step)
        left, right, texts = sampler.draw(self.config.concepts, self.duel_share(), generator)
        pixels = augment(drawings.images[torch.tensor(left + right)], self.picture_size(), generator)
        rows, places, table = self.tokens.gather(ids := self.text_rows(texts, generator))
        half = {name: p.bfloat16() for name, p in self.model.named_parameters() if p.requires_grad}
        image = functional_call(self.model, half, ("image", pixels.bfloat16()))
        embedded = table.bfloat16()[places]
        text = functional_call(self.model, half, ("text", embedded, (ids == EOS).int().argmax(1)))
        return *self._contrast(image, text), rows, table

    def _contrast(self, image: Tensor, text: Tensor) -> tuple[Tensor, list[float]]:
        count = self.config.concepts
        scale, image_scale = self.model.logit_scale.exp(), self.image_scale.exp()
        (left, right), names = image.chunk(2), text[:count]
        first, second = text[count:].chunk(2)
        image_text = (info_nce(left, names, scale) + info_nce(right, names, scale)) / 2
        image_image = info_nce(left, right, image_scale)
        text_text = info_nce(first, second, image_scale)
        total = image_text + self.config.image_weight * image_image + self.config.text_weight * text_text
        return total, [image_text.item(), image_image.item(), text_text.item()]

    def train_step(self, drawings: Drawings, sampler: Sampler) -> list[float]:
        """One update of everything; returns the three losses."""
        started, factor = time.perf_counter(), self.schedule()
        loss, parts, rows, table = self.losses(drawings, sampler)
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer, lr in zip(self.optimizers, (self.config.muon_lr, self.config.lr), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = lr * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        assert table.grad is not None
        self.tokens.step(rows, table.grad, self.config.token_lr * factor)
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=math.log(100))
            self.image_scale.clamp_(max=math.log(50))
        self.step += 1
        self.seconds += time.perf_counter() - started
        return parts

    def save(self, path: Path) -> None:
        """A checkpoint, renamed into place so that a crash leaves the last one."""
        state = {
            "config": asdict(self.config),
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "squares": self.tokens.squares,
            "image_scale": self.image_scale.data,
            "step": self.step,
            "seconds": self.seconds,
        }
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def load(self, path: Path) -> None:
        """Goes on where a checkpoint of the same recipe ended."""
        state = torch.load(path, weights_only=True)
        if state["config"] != asdict(self.config):
            raise click.ClickException(f"{path} was made with {state['config']}, asked for {asdict(self.config)}")
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.tokens.squares.copy_(state["squares"])
        self.image_scale.data.copy_(state["image_scale"])
        self.step, self.seconds = state["step"], state["seconds"]
