# SPDX-License-Identifier: Apache-2.0
"""A fusion file without reco, in fifty lines of PyTorch: refine(*load("fusion.safetensors"), "image", q, p, s)."""

import json
from typing import Any

import torch
from safetensors.torch import load_file, safe_open
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

Weights = dict[str, Tensor]


def load(path: str) -> tuple[dict[str, Any], Weights]:
    """The config and the weights by name."""
    return json.loads(safe_open(path, "pt").metadata()["config"]), load_file(path)


def mlp(w: Weights, name: str, x: Tensor) -> Tensor:
    hidden = F.gelu(F.linear(x, w[f"{name}.linear1.weight"], w[f"{name}.linear1.bias"]))
    return F.linear(hidden, w[f"{name}.linear2.weight"], w[f"{name}.linear2.bias"])[..., 0]


def encode(c: dict[str, Any], w: Weights, q: Tensor, p: Tensor, s: Tensor, scale: float) -> Tensor:
    x = torch.cat([q[:, None], p + s[..., None] * w.get("similarity", torch.zeros(1))], 1) * scale
    x = x + w["positions"][: x.shape[1]] if "positions" in w else x
    shape = (c["dim"], c["heads"], round(c["dim"] * c["mlp_ratio"]), 0.0, "gelu")
    for i in range(c["layers"]):
        layer = nn.TransformerEncoderLayer(*shape, batch_first=True, norm_first=True)
        layer.load_state_dict({n.split(".", 2)[2]: v for n, v in w.items() if n.startswith(f"layers.{i}.")})
        x = layer.eval()(x)
    return x[:, 0]


def gate(w: Weights, q: Tensor, p: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    others = ~torch.eye(s.shape[1], dtype=torch.bool)
    cosines, own = p @ p.transpose(1, 2), torch.einsum("nkd,nd->nk", p, q)
    plain = torch.softmax(s * w["sharpness"], 1)[:, None] * others
    agree = (plain * cosines).sum(2) / plain.sum(2).clamp_min(1e-6)
    best = cosines.masked_fill(~others, -2).amax(2) if s.shape[1] > 1 else torch.zeros_like(s)
    x = (torch.stack([s, s - s.amax(1, True), own, agree, best], 2) - w["neighbor.mean"]) / w["neighbor.std"]
    query = [s.amax(1), s.mean(1), s.var(1, correction=0).clamp_min(1e-12).sqrt(), agree.mean(1), best.mean(1)]
    query += [best.amax(1), own.mean(1), own.amax(1), torch.full((len(s),), float(s.shape[1])).log()]
    confidence = mlp(w, "confidence", (torch.stack(query, 1) - w["query.mean"]) / w["query.std"]).sigmoid()
    logits = s * w["sharpness"] + F.logsigmoid(mlp(w, "trust", x))
    logits = logits + mlp(w, "relevance", x) if "relevance.linear1.weight" in w else logits
    return torch.softmax(logits, 1), confidence[:, None]


def refine(c: dict[str, Any], weights: Weights, side: str, q: Tensor, p: Tensor, s: Tensor, same: Any = None) -> Tensor:
    """Queries [n, dim] with partners [n, k, dim] and similarities [n, k], none of them missing: [n, dim] unit rows.

    A fusion with a metric compares images itself: with the neighbours' own images, `same` [n, k, dim].
    """
    prefix, root = "shared." if c["shared"] else f"{side}.", c["dim"] ** 0.5
    w = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    if c["sides"] not in ("both", side):
        return q
    if "metric" in w:
        s = F.cosine_similarity((q @ w["metric"].T)[:, None], same @ w["metric"].T, dim=-1)
    if c["method"] == "transformer":
        result = F.layer_norm(encode(c, w, q, p, s, 1.0), (c["dim"],), w["norm.weight"], w["norm.bias"])
        return F.normalize(q + result / root if c["residual"] else result, dim=-1)
    gated = c["method"] == "gated"
    attention, confidence = gate(w, q, p, s) if gated else (torch.softmax(s * w["sharpness"], 1), torch.ones(len(q), 1))
    change = w["weight"] * torch.einsum("nk,nkd->nd", attention, p)
    if gated and c["layers"]:
        change = change + encode(c, w, q, p, s, root) / root - q
    return F.normalize(q + confidence**4 * change, dim=-1)
