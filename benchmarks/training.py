# SPDX-License-Identifier: Apache-2.0
"""A training step of reco and the same step in PyTorch, eager and compiled, in one run on the same threads.

    python benchmarks/training.py [--batch 4096 1024] [--threads N] [--rounds N]

Forward, backward and AdamW over one batch of random pairs: the paper's layer and the gated fusion without a layer,
with the three loss terms. Peers take turns; each starts from the weights of reco's file and must find reco's loss on
the same batch. They are written here anew, twice:

 - "same arithmetic": a single query token leaves the layer, as in reco, with plain products for attention (keys and
   values of all tokens, which reco does not make);
 - "TransformerEncoderLayer": PyTorch's own module, which computes all tokens of the layer.

reco's times are the columns step_seconds and data_seconds of its learning curve: the data pass reads a batch's pairs
and their neighbours' partners from the memory, which the peers get as tensors that are there already. The hours at the
end are steps times seconds for ten epochs over ten million pairs; those of a GPU are operations over an assumed rate,
on paper.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads would be charged to whoever comes next

import numpy as np  # noqa: E402
import torch  # noqa: E402
from encoder import processor, table  # noqa: E402
from safetensors import safe_open  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812

import reco  # noqa: E402

PAIRS, EPOCHS = 10_000_000, 10
GPU_RATE = 100e12  # operations a second that a step is assumed to reach on a GPU of 312e12 in bfloat16 (an A100)
CLEAN = {"wrong_captions": 0.0, "random_rows": 0.0, "dropped": 0.0, "random_k": 0.0}
Weights = dict[str, Tensor]
Step = Callable[[], float]


@dataclass
class Batch:
    """One side's queries [n, dim], partners [n, k, dim], similarities [n, k], and which neighbours are there."""

    queries: Tensor
    partners: Tensor
    scores: Tensor
    mask: Tensor


@dataclass
class Times:
    """Seconds of each step, and the loss before the first."""

    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def text(self) -> str:
        """Median (fastest to slowest)."""
        return f"{statistics.median(self.seconds):.3f} ({min(self.seconds):.3f}–{max(self.seconds):.3f})"


# --- the peers' fusion -----------------------------------------------------------------------------------------------
def attend(w: Weights, x: Tensor, bias: Tensor, heads: int) -> Tensor:
    """The query token's attention over all tokens, [n, 1, d]."""
    n, tokens, d = x.shape
    weight, offset = w["layers.0.self_attn.in_proj_weight"], w["layers.0.self_attn.in_proj_bias"]
    query = F.linear(x[:, :1], weight[:d], offset[:d]).view(n, 1, heads, -1).transpose(1, 2)
    keys, values = F.linear(x, weight[d:], offset[d:]).view(n, tokens, 2, heads, -1).permute(2, 0, 3, 1, 4)
    attention = torch.softmax(query @ keys.transpose(2, 3) * (d // heads) ** -0.5 + bias, -1)
    mixed = (attention @ values).transpose(1, 2).reshape(n, 1, d)
    return F.linear(mixed, w["layers.0.self_attn.out_proj.weight"], w["layers.0.self_attn.out_proj.bias"])


def norm(w: Weights, name: str, x: Tensor) -> Tensor:
    """LayerNorm with the weights of this name."""
    return F.layer_norm(x, x.shape[-1:], w[name + ".weight"], w[name + ".bias"])


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    """A linear map with the weights of this name."""
    return F.linear(x, w[name + ".weight"], w[name + ".bias"])


def one_token(w: Weights, x: Tensor, absent: Tensor, heads: int) -> Tensor:
    """The encoder layer, computed for the query token alone."""
    bias = torch.zeros(absent.shape).masked_fill(absent, -1e9)[:, None, None]
    query = x[:, :1] + attend(w, norm(w, "layers.0.norm1", x), bias, heads)
    hidden = F.gelu(linear(w, "layers.0.linear1", norm(w, "layers.0.norm2", query)))
    return (query + linear(w, "layers.0.linear2", hidden))[:, 0]


class AllTokens:
    """The same layer as PyTorch's module, called with the given weights."""

    def __init__(self, w: Weights, heads: int) -> None:
        hidden, d = w["layers.0.linear1.weight"].shape
        self.layer = nn.TransformerEncoderLayer(d, heads, hidden, 0.0, "gelu", batch_first=True, norm_first=True)

    def __call__(self, w: Weights, x: Tensor, absent: Tensor, _: int) -> Tensor:
        """The query token that leaves the layer."""
        own = {name.removeprefix("layers.0."): value for name, value in w.items() if name.startswith("layers.0.")}
        found: Tensor = torch.func.functional_call(self.layer, own, (x,), {"src_key_padding_mask": absent})
        return found[:, 0]


def transformer(w: Weights, batch: Batch, layer: Callable[..., Tensor], heads: int) -> tuple[Tensor, Tensor]:
    """The paper's fusion; no labels are learned."""
    x = torch.cat([batch.queries[:, None], batch.partners], 1) + w["positions"][: batch.scores.shape[1] + 1]
    absent = F.pad(~batch.mask, (1, 0), value=False)
    return F.normalize(norm(w, "norm", layer(w, x, absent, heads)), dim=-1), torch.zeros(())


def network(w: Weights, name: str, x: Tensor) -> Tensor:
    """One hidden layer, one output."""
    return linear(w, f"{name}.linear2", F.gelu(linear(w, f"{name}.linear1", x)))[..., 0]


def gated(w: Weights, batch: Batch, *_: Any) -> tuple[Tensor, Tensor]:
    """Ours without a layer, every neighbour there; the loss of the labels, which say that all are true."""
    q, p, s = batch.queries, batch.partners, batch.scores
    others = ~torch.eye(s.shape[1], dtype=torch.bool)
    cosines = p @ p.transpose(1, 2)
    plain = torch.softmax(s * w["sharpness"], 1)[:, None] * others
    agree = (plain * cosines).sum(2) / plain.sum(2).clamp_min(1e-6)
    best = cosines.masked_fill(~others, -2).amax(2)
    own = (p @ q[:, :, None])[:, :, 0]
    neighbor = torch.stack([s, s - s.amax(1, True), own, agree, best], 2)
    count = torch.full((len(s),), float(s.shape[1])).log()
    query = [s.amax(1), s.mean(1), s.var(1, correction=0).clamp_min(1e-12).sqrt(), agree.mean(1)]
    query += [best.mean(1), best.amax(1), own.mean(1), own.amax(1), count]
    seen = (neighbor - w["neighbor.mean"]) / w["neighbor.std"]
    trust = network(w, "trust", seen)
    sure = network(w, "confidence", (torch.stack(query, 1) - w["query.mean"]) / w["query.std"])
    logits = s * w["sharpness"] + F.logsigmoid(trust.detach()) + network(w, "relevance", seen)
    mixed = (torch.softmax(logits, 1)[:, None] @ p)[:, 0]
    refined = F.normalize(q + sure.detach().sigmoid()[:, None] ** 4 * w["weight"] * mixed, dim=-1)
    ones = torch.ones_like(sure)
    labels = F.binary_cross_entropy_with_logits(trust, torch.ones_like(trust))
    return refined, labels + F.binary_cross_entropy_with_logits(sure, ones)


def nce(a: Tensor, b: Tensor) -> Tensor:
    """InfoNCE in both directions."""
    logits = 100 * a @ b.T
    own = torch.arange(len(a))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


# --- the peers' step -------------------------------------------------------------------------------------------------
def learns(method: str, name: str) -> bool:
    """Whether a weight is trained."""
    last = name.split(".", 1)[1]
    return method != "gated" or not (last in ("weight", "sharpness") or last.endswith((".mean", ".std")))


def groups(method: str, weights: Weights, config: reco.TrainingConfig) -> list[dict[str, Any]]:
    """AdamW's, with reco's learning rates and decay."""
    found = []
    for name, value in weights.items():
        if learns(method, name):
            gate = ".trust." in name or ".confidence." in name
            rate = config.gate_rate if method == "gated" and gate else 1.0
            decay = config.weight_decay if value.dim() > 1 else 0.0
            found.append(
                {"params": [value], "lr": rate * config.learning_rate, "weight_decay": decay, "betas": (0.9, 0.98)}
            )
    return found


def make_step(
    method: str, weights: Weights, batches: list[Batch], config: reco.TrainingConfig, whole: bool, compiled: bool
) -> Step:
    """A function that does one step and returns the loss before it."""
    weights = {name: value.clone().requires_grad_(learns(method, name)) for name, value in weights.items()}
    optimiser = torch.optim.AdamW(groups(method, weights, config), fused=True)
    sides = []
    for side, batch in zip(("image", "text"), batches, strict=True):
        own = {n.partition(".")[2]: v for n, v in weights.items() if n.startswith(side)}
        sides.append((own, batch, AllTokens(own, config.fusion.heads) if whole else one_token))
    fuse = gated if method == "gated" else transformer

    def loss() -> Tensor:
        (image, image_labels), (text, text_labels) = (fuse(w, b, layer, config.fusion.heads) for w, b, layer in sides)
        contrast = nce(image, text) + nce(image, batches[1].queries) + nce(batches[0].queries, text)
        return contrast + image_labels + text_labels

    if compiled:
        loss = torch.compile(loss)

    def step() -> float:
        found = loss()
        optimiser.zero_grad()
        found.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        return float(found.detach())

    return step


# --- reco ------------------------------------------------------------------------------------------------------------
@dataclass
class World:
    """Random pairs, which are one batch, and a memory of others; neighbours are searched once."""

    folder: Path
    pairs: reco.Memory
    memory: reco.Memory

    @classmethod
    def make(cls, folder: Path, batch: int, rows: int, dim: int) -> World:
        """Write both memories."""
        folder.mkdir()
        random = np.random.default_rng(0)
        made = []
        for name, count in (("pairs", batch), ("memory", rows)):
            memory = reco.Memory.create(folder / name, dim=dim)
            for first in range(0, count, 20_000):
                size = min(20_000, count - first)
                images, texts = (random.standard_normal((size, dim), np.float32) for _ in range(2))
                memory.add(images, texts, [f"{name}{first + i}" for i in range(size)])
            made.append(memory)
        return cls(folder, *made)

    def config(self, shape: reco.FusionConfig, **options: Any) -> reco.TrainingConfig:
        """One step an epoch, no validation; learning curve and neighbours in the world's folder."""
        common = {"batch_size": len(self.pairs), "validation": 0.0, "warmup": 0.0}
        files = {"log": self.folder / "log.csv", "neighbors": self.folder / f"neighbors-{shape.k}"}
        return reco.TrainingConfig(fusion=shape, **(common | files | options))

    def curve(self, config: reco.TrainingConfig) -> tuple[reco.Fusion, list[dict[str, float]]]:
        """Train, and read what the curve says of each step."""
        fusion = reco.train(self.pairs, None, self.memory, config)
        with (self.folder / "log.csv").open() as lines:
            rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(lines)]
        return fusion, rows[1:]

    def start(self, config: reco.TrainingConfig) -> Weights:
        """The weights before the first step: after one that is too small to count."""
        still = {"learning_rate": 1e-30, "weight_decay": 0.0, "epochs": 1}
        fusion, _ = self.curve(self.config(config.fusion, **(CLEAN | still)))
        fusion.save(self.folder / "start.safetensors")
        with safe_open(str(self.folder / "start.safetensors"), "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def batches(self, k: int) -> list[Batch]:
        """What reco's data pass reads, for the peers."""
        found = []
        for side in ("image", "text"):
            queries = self.pairs.embeddings(side)
            near = self.memory.search(queries, k=k, modality=side)
            arrays = (queries, near.partners, near.scores, near.rows >= 0)
            q, partners, scores, mask = (torch.from_numpy(np.ascontiguousarray(a)) for a in arrays)
            found.append(Batch(q, partners, scores, mask))
        return found


def measure(world: World, config: reco.TrainingConfig, rounds: int, steps: int, peers: dict[str, Step]) -> Any:
    """Times of all in turns, and of reco's data pass: the first step of each turn does not count."""
    times, data = {name: Times() for name in ("reco", *peers)}, []
    for _ in range(rounds):
        curve = world.curve(config)[1]
        times["reco"].losses += [row["loss"] for row in curve[:1]]
        times["reco"].seconds += [row["step_seconds"] for row in curve[1:]]
        data += [row["data_seconds"] for row in curve[1:]]
        for name, step in peers.items():
            for i in range(steps + 1):
                start = time.perf_counter()
                times[name].losses.append(step())
                if i > 0:
                    times[name].seconds.append(time.perf_counter() - start)
    return times, data


def check_losses(times: dict[str, Times], tolerance: float) -> None:
    """Who computes something else is no peer."""
    for name, found in times.items():
        difference = abs(found.losses[0] / times["reco"].losses[0] - 1)
        if difference > tolerance:
            raise SystemExit(f"{name} has a loss of {found.losses[0]}, reco of {times['reco'].losses[0]}")


def operations(shape: reco.FusionConfig, batch: int) -> float:
    """Multiplications and additions of a step's products, there and twice back, as few as reco makes of them."""
    d, tokens = shape.dim, shape.k + 1
    layer = (4 + 2 * shape.mlp_ratio) * d * d + 2 * shape.heads * tokens * d
    gate = shape.k * shape.k * d + 2 * shape.k * d  # features alone: partners do not learn
    forward = 2 * batch * (3 * layer if shape.method == "transformer" else gate)
    # Three contrastive matrices; back, two products for the one of refined and refined, one for each other.
    return 2 * forward + 7 * 2 * batch * batch * d


def peers_of(world: World, config: reco.TrainingConfig, compiled: bool, module: bool) -> dict[str, Step]:
    """PyTorch's ways to do the step."""
    weights, batches = world.start(config), world.batches(config.fusion.k)
    method, found = config.fusion.method, {}
    for whole in (False, True) if method == "transformer" and module else (False,):
        name = "PyTorch, TransformerEncoderLayer" if whole else "PyTorch, same arithmetic"
        for speed in ("eager", "compiled") if compiled else ("eager",):
            made = make_step(method, weights, batches, config, whole, speed == "compiled")
            found[f"{name}, {speed}"] = made
    return found


def hours(batch: int, seconds: float) -> float:
    """Of ten epochs over ten million pairs."""
    return PAIRS * EPOCHS / batch * seconds / 3600


def measure_shape(world: World, shape: reco.FusionConfig, given: argparse.Namespace) -> dict[str, Any]:
    """Print the table of one fusion at one batch size."""
    batch = len(world.pairs)
    steps = {"epochs": given.steps + 1}
    config = world.config(shape, **(CLEAN | steps))
    times, data = measure(
        world, config, given.rounds, given.steps, peers_of(world, config, not given.eager, not given.fewer)
    )
    check_losses(times, given.tolerance)
    ours = statistics.median(times["reco"].seconds)
    for precision, options in (("bfloat16", CLEAN), ("disturbed neighbours", {})):
        if precision == "bfloat16" and shape.layers == 0:
            continue  # nothing but layers has a precision to choose
        more = {"precision": "bfloat16"} if precision == "bfloat16" else {}
        found, read = measure(world, world.config(shape, **(options | steps | more)), given.rounds, given.steps, {})
        times[f"reco, {precision}"] = found["reco"]
        if precision != "bfloat16":
            data_disturbed = read
    print(f"\n{shape.method}, {shape.layers} layers, batch {batch:,}, k {shape.k}, dim {shape.dim}:")
    rows = []
    for name, found in times.items():
        middle = statistics.median(found.seconds)
        rate = operations(shape, batch) / middle / 1e9
        rows.append([name, found.text(), f"{middle / ours:.2f}", f"{found.losses[0]:.5f}", f"{rate:.0f}"])
    table(["step by", "seconds, median (range)", "times reco's", "loss", "GFLOP/s of the least needed"], rows)
    read = {"clean": statistics.median(data), "disturbed": statistics.median(data_disturbed)}
    print(f"data pass: {read['clean']:.3f} s, with disturbed neighbours {read['disturbed']:.3f} s")
    needed = operations(shape, batch)
    print(
        f"10 million pairs x 10 epochs are {PAIRS * EPOCHS / batch:,.0f} steps: {hours(batch, ours):.1f} h of steps "
        f"and {hours(batch, read['disturbed']):.1f} h of data here; on paper {hours(batch, needed / GPU_RATE):.2f} h "
        f"of steps on a GPU that reaches {GPU_RATE / 1e12:.0f} TFLOP/s ({needed / 1e9:,.0f} GFLOP a step)",
        flush=True,
    )
    return {"method": shape.method, "batch": batch, "data": data, "seconds": {n: t.seconds for n, t in times.items()}}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[4096, 1024])
    parser.add_argument("--methods", nargs="+", default=["transformer", "gated"], choices=["transformer", "gated"])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--rows", type=int, default=100_000, help="of the memory")
    parser.add_argument("--threads", type=int, default=reco.threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="in each round, after one that does not count")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="between losses")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--fewer", action="store_true", help="without PyTorch's TransformerEncoderLayer")
    parser.add_argument("--json", type=Path, help="write every step's time too")
    given = parser.parse_args()
    reco.set_threads(given.threads)
    torch.set_num_threads(given.threads)
    print(
        f"{processor()}, {given.threads} threads; torch {torch.__version__}; load at the start {os.getloadavg()[0]:.1f}"
    )
    found = []
    for batch in given.batch:
        with tempfile.TemporaryDirectory() as folder:
            world = World.make(Path(folder) / "world", batch, given.rows, given.dim)
            for method in given.methods:
                layers = 1 if method == "transformer" else 0
                shape = reco.FusionConfig(method=method, dim=given.dim, k=given.k, layers=layers)
                torch.compiler.reset()
                found.append(measure_shape(world, shape, given))
    if given.json:
        given.json.write_text(json.dumps(found))
    print(f"load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
