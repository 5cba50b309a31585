# SPDX-License-Identifier: Apache-2.0
"""The fusion's maths against plain PyTorch, its file, its errors."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import reco

N, K, DIM, HEADS = 7, 5, 32, 4


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    queries = unit(torch.randn(N, DIM, generator=generator))
    partners = unit(torch.randn(N, K, DIM, generator=generator))
    scores = torch.rand(N, K, generator=generator).sort(descending=True).values
    return queries, partners, scores


def randomised(config: reco.FusionConfig, path: Path) -> tuple[reco.Fusion, dict[str, Tensor]]:
    """A fusion whose every weight is random, also those that start at zero; written by the safetensors package."""
    reco.Fusion.create(config).save(path)
    generator = torch.Generator().manual_seed(5)
    weights = {
        k: v + 0.3 * torch.rand(v.shape, generator=generator) - (0 if k.endswith(".std") else 0.15)
        for k, v in load_file(path).items()
    }
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(weights, path, metadata)
    return reco.Fusion.load(path), weights


def reference_encoder(weights: dict[str, Tensor], config: reco.FusionConfig, q: Tensor, p: Tensor) -> Tensor:
    """PyTorch's own encoder layers over [query, partners]; the query token."""
    d = config.dim
    layers = []
    for i in range(config.layers):
        layer = nn.TransformerEncoderLayer(
            d, config.heads, int(d * config.mlp_ratio), 0.0, "gelu", batch_first=True, norm_first=True
        )
        prefix = f"layers.{i}."
        layer.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
        layers.append(layer.eval())
    x = torch.cat([q[:, None], p], 1)
    if "positions" in weights:
        x = x + weights["positions"][: x.shape[1]]
    for layer in layers:
        x = layer(x)
    return x[:, 0]


def mlp(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    hidden = nn.functional.gelu(x @ weights[f"{name}.linear1.weight"].T + weights[f"{name}.linear1.bias"])
    return (hidden @ weights[f"{name}.linear2.weight"].T + weights[f"{name}.linear2.bias"])[..., 0]


def standardised(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return (x - weights[f"{name}.mean"]) / weights[f"{name}.std"]


def reference_gate(weights: dict[str, Tensor], q: Tensor, p: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Attention and confidence of one query, neighbour by neighbour, in the words of the header."""
    k = len(s)
    plain = torch.softmax(s * weights["sharpness"], 0)
    rows = []
    for i in range(k):
        others = [j for j in range(k) if j != i]
        cosines = torch.stack([p[i] @ p[j] for j in others])
        agreement = (plain[others] * cosines).sum() / plain[others].sum()
        rows.append(torch.stack([s[i], s[i] - s.max(), p[i] @ q, agreement, cosines.max()]))
    seen = torch.stack(rows)
    spread = s.std(correction=0)
    of_query = torch.stack(
        [s.max(), s.mean(), spread, seen[:, 3].mean(), seen[:, 4].mean(), seen[:, 4].max()]
        + [seen[:, 2].mean(), seen[:, 2].max(), torch.tensor(float(k)).log()]
    )
    neighbor = standardised(weights, "neighbor", seen)
    trust = torch.sigmoid(mlp(weights, "trust", neighbor))
    logits = s * weights["sharpness"] + trust.log()
    if "relevance.linear1.weight" in weights:
        logits = logits + mlp(weights, "relevance", neighbor)
    confidence = torch.sigmoid(mlp(weights, "confidence", standardised(weights, "query", of_query)))
    return torch.softmax(logits, 0), confidence


def reference_gated(
    weights: dict[str, Tensor], config: reco.FusionConfig, q: Tensor, p: Tensor, s: Tensor
) -> dict[str, Tensor]:
    gates = [reference_gate(weights, *row) for row in zip(q, p, s, strict=True)]
    attention, confidence = (torch.stack(x) for x in zip(*gates, strict=True))
    change = weights["weight"] * torch.einsum("nk,nkd->nd", attention, p)
    if config.layers:
        scale = config.dim**0.5
        tokens = p + s[..., None] * weights["similarity"] if config.similarity else p
        change = change + reference_encoder(weights, config, q * scale, tokens * scale) / scale - q
    opening = confidence[:, None] ** 4
    refined = unit(q + opening * change)
    gate = weights["weight"] * opening
    return {"embeddings": refined, "attention": attention, "gate": gate, "confidence": confidence[:, None]}


def side(weights: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {k.removeprefix(name + "."): v for k, v in weights.items() if k.startswith(name + ".")}


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("options", [{}, {"positions": False}, {"similarity": True}, {"residual": True}])
@pytest.mark.parametrize("modality", ["image", "text"])
def test_transformer_equals_pytorch(tmp_path: Path, batch: Any, layers: int, options: Any, modality: Any) -> None:
    config = reco.FusionConfig(method="transformer", dim=DIM, k=K, layers=layers, heads=HEADS, **options)
    fusion, weights = randomised(config, tmp_path / "f.safetensors")
    q, p, s = batch
    got = fusion.fuse(modality, q.numpy(), s.numpy(), p.numpy())["embeddings"]
    own = side(weights, modality)
    tokens = p + s[..., None] * own["similarity"] if config.similarity else p
    token = reference_encoder(own, config, q, tokens)
    result = nn.functional.layer_norm(token, (DIM,), own["norm.weight"], own["norm.bias"])
    want = unit(q + result / DIM**0.5) if config.residual else unit(result)
    np.testing.assert_allclose(got, want.detach().numpy(), atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"layers": 0}, {"layers": 0, "relevance": False}, {"layers": 1}, {"layers": 2, "similarity": True}]
)
@pytest.mark.parametrize("modality", ["image", "text"])
def test_gated_equals_pytorch(tmp_path: Path, batch: Any, options: Any, modality: Any) -> None:
    config = reco.FusionConfig(method="gated", dim=DIM, k=K, heads=HEADS, **options)
    fusion, weights = randomised(config, tmp_path / "f.safetensors")
    q, p, s = batch
    got = fusion.fuse(modality, q.numpy(), s.numpy(), p.numpy())
    for name, want in reference_gated(side(weights, modality), config, q, p, s).items():
        np.testing.assert_allclose(got[name], want.detach().numpy(), atol=1e-5, err_msg=name)


def test_metric_equals_pytorch(tmp_path: Path, batch: Any) -> None:
    """Images are compared after the map, whatever similarities were found, texts are not; the plain example agrees."""
    fusion, weights = randomised(reco.FusionConfig(dim=DIM, layers=0, metric=True), tmp_path / "f.safetensors")
    own = side(weights, "image")
    q, p, s = batch
    same = unit(torch.randn(p.shape, generator=torch.Generator().manual_seed(7)))
    measured = torch.einsum("nd,nkd->nk", unit(q @ own["metric"].T), unit(same @ own["metric"].T))
    got = fusion.fuse("image", q.numpy(), s.numpy(), p.numpy(), same=same.numpy())
    for name, want in reference_gated(own, fusion.config, q, p, measured).items():
        np.testing.assert_allclose(got[name], want.detach().numpy(), atol=1e-5, err_msg=name)
    plain = runpy.run_path(str(Path(__file__).parents[2] / "examples/plain_fusion.py"))
    with torch.no_grad():
        want = plain["refine"](*plain["load"](str(tmp_path / "f.safetensors")), "image", q, p, s, same)
    np.testing.assert_allclose(got["embeddings"], want.numpy(), atol=1e-5)
    text = fusion.fuse("text", q.numpy(), s.numpy(), p.numpy())["embeddings"]
    want = reference_gated(side(weights, "text"), fusion.config, q, p, s)["embeddings"]
    np.testing.assert_allclose(text, want.detach().numpy(), atol=1e-5)


def test_metric_needs_the_same_sides(batch: Any) -> None:
    q, p, s = (x.numpy() for x in batch)
    fusion = reco.Fusion.create(reco.FusionConfig(dim=DIM, layers=0, metric=True))
    with pytest.raises(reco.Error, match=r"metric of its own.*same sides too, \[35, 32\], got \[0, 0\]"):
        fusion.fuse("image", q, s, p)
    with pytest.raises(reco.Error, match="same must be"):
        fusion.fuse("image", q, s, p, same=p[:, :2])
    for wrong in ({"method": "transformer"}, {"search": "cross-modal"}, {"fuse": "both"}, {"shared": True}):
        with pytest.raises(reco.Error, match="metric needs method 'gated'"):
            reco.FusionConfig(dim=DIM, heads=HEADS, metric=True, **wrong)


def test_shared_weights_and_single_sides(tmp_path: Path, batch: Any) -> None:
    q, p, s = (x.numpy() for x in batch)
    shared, weights = randomised(reco.FusionConfig(dim=DIM, heads=HEADS, shared=True), tmp_path / "a.safetensors")
    assert all(name.startswith("shared.") for name in weights)
    both = [shared.fuse(modality, q, s, p)["embeddings"] for modality in ("image", "text")]
    np.testing.assert_array_equal(both[0], both[1])
    alone, _ = randomised(reco.FusionConfig(dim=DIM, heads=HEADS, sides="text"), tmp_path / "b.safetensors")
    left = alone.fuse("image", q, s, p)
    np.testing.assert_array_equal(left["embeddings"], q)
    assert not left["gate"].any() and not left["attention"].any()
    assert np.abs(alone.fuse("text", q, s, p)["embeddings"] - q).max() > 0.01


def test_k_may_differ(tmp_path: Path, batch: Any) -> None:
    """A gated fusion takes any number of neighbours, and more of them do not shift its features."""
    q, p, s = batch
    config = reco.FusionConfig(dim=DIM, k=2, layers=0, heads=HEADS)
    fusion, weights = randomised(config, tmp_path / "f.safetensors")
    for k in (2, K):
        got = fusion.fuse("image", q.numpy(), s[:, :k].numpy(), p[:, :k].numpy())["embeddings"]
        want = reference_gated(side(weights, "image"), config, q, p[:, :k], s[:, :k])["embeddings"]
        np.testing.assert_allclose(got, want.detach().numpy(), atol=1e-5)


@pytest.mark.parametrize(
    "shape", [{"relevance": False}, {"layers": 0, "shared": True}, {"method": "transformer"}, {"method": "mean"}]
)
def test_plain_pytorch_reads_the_file(tmp_path: Path, batch: Any, shape: Any) -> None:
    """The example that does without reco gives the same."""
    plain = runpy.run_path(str(Path(__file__).parents[2] / "examples/plain_fusion.py"))
    fusion, _ = randomised(reco.FusionConfig(dim=DIM, k=K, heads=HEADS, **shape), tmp_path / "f.safetensors")
    q, p, s = batch
    with torch.no_grad():
        want = plain["refine"](*plain["load"](str(tmp_path / "f.safetensors")), "text", q, p, s)
    got = fusion.fuse("text", q.numpy(), s.numpy(), p.numpy())["embeddings"]
    np.testing.assert_allclose(got, want.numpy(), atol=1e-5)


def test_files_of_before_there_was_a_choice_have_a_relevance(tmp_path: Path, batch: Any) -> None:
    q, p, s = (x.numpy() for x in batch)
    fusion, _ = randomised(reco.FusionConfig(dim=DIM, k=K, heads=HEADS), tmp_path / "f.safetensors")
    with safe_open(str(tmp_path / "f.safetensors"), "pt") as file:
        facts, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    config = json.loads(facts["config"])
    assert config.pop("relevance") is True
    save_file(tensors, tmp_path / "old.safetensors", facts | {"config": json.dumps(config)})
    old = reco.Fusion.load(tmp_path / "old.safetensors")
    np.testing.assert_array_equal(old.fuse("image", q, s, p)["embeddings"], fusion.fuse("image", q, s, p)["embeddings"])


def test_mean_equals_numpy(batch: Any) -> None:
    q, p, s = (x.numpy() for x in batch)
    fusion = reco.Fusion.mean(DIM, image_weight=0.7, image_sharpness=9.0)
    weights = np.exp(9.0 * s) / np.exp(9.0 * s).sum(1, keepdims=True)
    want = q + 0.7 * np.einsum("nk,nkd->nd", weights, p)
    result = fusion.fuse("image", q, s, p)
    np.testing.assert_allclose(result["embeddings"], want / np.linalg.norm(want, axis=1, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(result["attention"], weights, atol=1e-6)


def test_paper_size() -> None:
    """3.16 M parameters a module at d = 512 (arXiv 2306.07196)."""
    assert reco.Fusion.create(reco.FusionConfig(method="transformer", dim=512, k=10)).parameters == 2 * 3_159_040


@pytest.mark.parametrize("method", ["gated", "mean"])
def test_untrained_is_clip(batch: Any, method: Any) -> None:
    q, p, s = (x.numpy() for x in batch)
    fusion = reco.Fusion.create(reco.FusionConfig(method=method, dim=DIM, heads=HEADS))
    np.testing.assert_allclose(fusion.fuse("text", q, s, p)["embeddings"], q, atol=1e-6)


@pytest.mark.parametrize("method", ["gated", "transformer", "mean"])
def test_absent_neighbors_do_not_count(tmp_path: Path, batch: Any, method: Any) -> None:
    q, p, s = (x.numpy() for x in batch)
    config = reco.FusionConfig(method=method, dim=DIM, k=K, heads=HEADS)
    fusion, _ = randomised(config, tmp_path / "f.safetensors")
    rows = np.tile(np.arange(K), (N, 1))
    rows[:, 3:] = -1
    s[:, 3:] = 0
    first = fusion.fuse("image", q, s, p, rows)["embeddings"]
    p[:, 3:] = 9.0
    np.testing.assert_allclose(first, fusion.fuse("image", q, s, p, rows)["embeddings"], atol=1e-6)
    np.testing.assert_allclose(first, fusion.fuse("image", q, s[:, :3], p[:, :3])["embeddings"], atol=1e-5)
    if method != "transformer":
        alone = fusion.fuse("image", q, s, p, np.full((N, K), -1))["embeddings"]
        np.testing.assert_allclose(alone, q, atol=1e-6)


def test_save_and_load(tmp_path: Path, batch: Any) -> None:
    q, p, s = (x.numpy() for x in batch)
    fusion, _ = randomised(reco.FusionConfig(dim=DIM, heads=HEADS), tmp_path / "a.safetensors")
    fusion.save(tmp_path / "b.safetensors")
    again = reco.Fusion.load(tmp_path / "b.safetensors")
    assert again.config.method == "gated" and again.parameters == fusion.parameters
    np.testing.assert_array_equal(fusion.fuse("text", q, s, p)["embeddings"], again.fuse("text", q, s, p)["embeddings"])


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    reco.Fusion.create(reco.FusionConfig(dim=DIM, heads=HEADS)).save(path)
    whole = path.read_bytes()
    for size in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(reco.Error, match="f.safetensors"):
            reco.Fusion.load(path)
    path.write_bytes(whole)
    weights = load_file(path)
    save_file(weights, path)
    with pytest.raises(reco.Error, match="is no fusion"):
        reco.Fusion.load(path)


def test_errors(batch: Any) -> None:
    q, p, s = (x.numpy() for x in batch)
    fusion = reco.Fusion.create(reco.FusionConfig(method="transformer", dim=DIM, k=3, heads=HEADS))
    with pytest.raises(reco.Error, match=r"\[fusion.fuse\] made for at most 3 neighbours, got 5"):
        fusion.fuse("image", q, s, p)
    with pytest.raises(reco.Error, match=r"queries must have 32 columns, got 16"):
        fusion.fuse("image", q[:, :16], s, p)
    with pytest.raises(reco.Error, match="heads must be a divisor of dim, got 5"):
        reco.FusionConfig(dim=32, heads=5)
    with pytest.raises(reco.Error, match="method must be one of 'gated', 'transformer', 'mean', got 'magic'"):
        reco.FusionConfig(method="magic")
    with pytest.raises(reco.Error, match="fuse must be one of"):
        reco.FusionConfig(fuse="all")
    with pytest.raises(TypeError, match="unexpected keyword argument 'depth'"):
        reco.FusionConfig(depth=2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="wrong type for 'k': many"):
        reco.FusionConfig(k="many")
