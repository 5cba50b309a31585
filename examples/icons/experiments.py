# SPDX-License-Identifier: Apache-2.0
"""The evidence: every experiment on the icons world, several seeds, in one command that goes on where it was stopped.

Writes results.json, results.csv, results.md and figures; each row carries the commit that it was measured with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

import reco
import tasks
from controls import HEADS, train_head
from experiments_lab import Floats, Lab, Store, cached, neighbors_of, numbers, percent, summary
from experiments_report import write_all
from photographs import photographs
from quickstart import CLEAN, KNOWN_SHARE, K, configs, oracle_records
from reco.embedding import Embeddings, embed
from tasks import CLIP, DATA, HERE, System, moved_captions, same, training_pairs

TRAINED = ("mean", "reco-paper", "reco")
LEFT_OUT = ("openmoji", "fluent-emoji", "token-branded", "devicon")  # icon sets that training never sees
STORAGES: tuple[reco.types.Storage, ...] = ("float16", "int8", "codes4", "codes2", "codes1")


def on(
    lab: Lab,
    name: str,
    seed: int,
    memory: Callable[[], reco.Memory],
    k: int = 0,
    exclude: Callable[[int], list[str]] | None = None,
) -> Callable[[], dict[str, float]]:
    """The measurement of a fusion of the quickstart on a memory; nothing is made before it is called."""
    return lambda: lab.measure(lab.trained(name, seed), memory(), k or neighbors_of(name), exclude)


def after(
    lab: Lab,
    name: str,
    seed: int,
    config: reco.TrainingConfig,
    k: int | None = None,
    keep: npt.NDArray[Any] | None = None,
) -> Callable[[], dict[str, float]]:
    """The measurement of a fusion that is trained for it."""
    return lambda: lab.measure(lab.train(name, seed, config, keep), lab.full(), k)


# --- 1: the main table, with the training-free fusions ---------------------------------------------------------------
def main_table(lab: Lab, store: Store, seed: int) -> None:
    """CLIP, training-free fusions, the paper's layer, ours."""
    if seed == 0:
        store.add("main", "clip", 0, lambda: summary(System("clip", same, same), lab.queries))
        store.add("main", "oracle", 0, lambda: percent(oracle_records()))
    for name in TRAINED:
        store.add("main", name, seed, on(lab, name, seed, lab.full))
    mean, start = configs(lab.clip, seed)["mean"], untrained(lab, seed)
    chosen = partial(lab.train, "mean-chosen-as-ours", seed, mean, held_out=True)
    store.add("main", "mean, chosen as ours", seed, lambda: lab.measure(chosen(), lab.full(), None))
    store.add("main", "mean with ours' metric, not trained", seed, after(lab, "untrained", seed, start, K))
    store.add("main", f"mean, k = {K}", seed, on(lab, "mean", seed, lab.full, K))
    for name in ("vote", "logit blend"):
        store.add("main", name, seed, partial(vote_metrics, lab, seed, name))
    for name in TRAINED:
        store.add("main", f"{name}, unseen not remembered", seed, on(lab, name, seed, lab.without_unseen))


def untrained(lab: Lab, seed: int) -> reco.TrainingConfig:
    """Ours before its first step: the best mean over images compared with the metric, no neighbour trusted less."""
    ours = configs(lab.clip, seed)["reco"].fusion
    return reco.TrainingConfig(fusion=ours, epochs=1, learning_rate=1e-30, seed=seed, **CLEAN)


def vote_metrics(lab: Lab, seed: int, name: str) -> dict[str, float]:
    """Neighbour vote or logit blend, chosen as ours is, by the queries of fusion concepts; k, sharpness and weight."""
    q = lab.queries
    classes = reco.average_prompts(q.prompts, len(tasks.TEMPLATES))
    entities = tasks.field(q.pairs, "concept")
    clip = reco.Fusion.create(reco.FusionConfig(method="mean", dim=lab.clip.dim, layers=0))

    def hits(memory: reco.Memory, chosen: npt.NDArray[Any], votes: reco.Votes) -> npt.NDArray[Any]:
        model = reco.Model(lab.clip, memory, clip)
        scores = votes.scores(model, q.pairs.images[chosen], classes[chosen], entities[chosen].tolist())
        found: npt.NDArray[Any] = scores.argmax(1) == np.arange(len(scores))
        return found

    weights = (1.0,) if name == "vote" else (0.1, 0.25, 0.5, 0.75)
    grid = product((5, 10, 20, 30), (0.0, 10.0, 20.0, 30.0, 50.0, 100.0), weights)
    tried = [reco.Votes("concept", *given) for given in grid]
    best = max(tried, key=lambda votes: hits(lab.without_unseen(), q.roles == "fusion", votes).mean())
    right = hits(lab.full(), np.ones(len(entities), bool), best)
    unseen, known = (100 * float(right[q.roles == role].mean()) for role in ("unseen", "known"))
    return {"unseen": unseen, "known": known, "harmonic": reco.harmonic_mean(unseen, known)}


# --- 2: search and fusion modes --------------------------------------------------------------------------------------
def modes(lab: Lab, store: Store, seed: int) -> None:
    """What is searched and what is fused, for the mean and for ours."""
    for search, fuse in product(("uni-modal", "cross-modal"), ("partner", "same", "both")):
        for method in ("mean", "gated"):
            given: dict[str, Any] = {"method": method, "search": search, "fuse": fuse}
            name = f"{search} search, {fuse} ({method})"
            config = short(reco.FusionConfig(dim=lab.clip.dim, layers=0, k=10, relevance=False, **given), seed)
            store.add("modes", name, seed, after(lab, f"{search}-{fuse}-{method}", seed, config))


def short(shape: reco.FusionConfig, seed: int, **options: Any) -> reco.TrainingConfig:
    """Half the quickstart's epochs of ours, for ablations; the same for all that are compared."""
    given: dict[str, Any] = {"loss": (1, 0, 0), "logit_scale": 40.0, "epochs": 20, "batch_size": 256}
    given |= {"learning_rate": 2e-3, "gate_rate": 15.0, "wrong_captions": 0.9, "random_rows": 0.05, "dropped": 0.3}
    return reco.TrainingConfig(fusion=shape, seed=seed, **(given | options))


# --- 3: k, layers, loss terms, memory size ---------------------------------------------------------------------------
def neighbors(lab: Lab, store: Store, seed: int) -> None:
    """How many are looked up; none is CLIP."""
    if seed == 0:
        store.add("k", "clip", 0, lambda: summary(System("clip", same, same), lab.queries), 0)
    for k, name in product((1, 2, 5, 10, 20, 30, 50), ("mean", "reco")):
        store.add("k", name, seed, on(lab, name, seed, lab.full, k), k)


def size(lab: Lab, store: Store, seed: int) -> None:
    """How much there is to look up, and ours trained with a tenth of it."""
    order = np.random.default_rng(seed).permutation(len(lab.pairs))
    for share, name in product((0.01, 0.03, 0.1, 0.3, 1.0), ("mean", "reco")):
        rows = np.sort(order[: int(share * len(order))])
        store.add("size", name, seed, on(lab, name, seed, partial(lab.rows, f"share-{share}-{seed}", rows)), share)
    for share, title in ((0.1, "a tenth"), (0.01, "a hundredth")):
        few = np.isin(np.arange(len(order)), order[: int(share * len(order))])
        store.add("size", f"reco, trained with {title}", seed, partial(after_share, lab, seed, few, title), 1.0)


def after_share(lab: Lab, seed: int, few: npt.NDArray[Any], title: str) -> dict[str, float]:
    """Ours, trained on all pairs with a share of the memory to look up, on the whole memory."""
    pairs = training_pairs(lab.pairs, KNOWN_SHARE, seed)
    store = lab.memory(f"{title.replace(' ', '-')}-{seed}", lab.pairs.select(lab.seen & few))
    return lab.measure(lab.train_on(f"few-{seed}", pairs, store, configs(lab.clip, seed)["reco"]), lab.full(), K)


def ablation(lab: Lab, store: Store, seed: int) -> None:
    """One thing of ours changed at a time."""
    measure_variants("ablation", lab, store, seed, variants(lab))


def layers(lab: Lab, store: Store, seed: int) -> None:
    """Encoder layers, and what the paper leaves open of its own."""
    measure_variants("layers", lab, store, seed, layer_variants(lab))


def measure_variants(
    experiment: str, lab: Lab, store: Store, seed: int, changes: Iterator[tuple[str, dict[str, Any], dict[str, Any]]]
) -> None:
    """Ours with half its epochs and k = 10, but for what is changed."""
    for variant, shape, options in changes:
        config = short(
            reco.FusionConfig(
                **({"dim": lab.clip.dim, "layers": 0, "k": 10, "relevance": False, "metric": True} | shape)
            ),
            seed,
            **options,
        )
        name = f"{experiment}-" + variant.replace(" ", "-").replace(",", "")
        store.add(experiment, variant, seed, after(lab, name, seed, config))


def variants(lab: Lab) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Name, what is changed of the fusion, what is changed of the training."""
    yield "ours", {}, {}
    yield "no metric", {"metric": False}, {}
    yield "clean training", {}, CLEAN
    yield "less noise in training", {}, {"wrong_captions": 0.6, "random_rows": 0.1, "dropped": 0.5}
    yield "no metric, shared weights", {"metric": False, "shared": True}, {}
    yield "image side alone", {"sides": "image"}, {}
    yield "text side alone", {"sides": "text"}, {}
    relevance = {"relevance": True}  # what the loss teaches
    yield "relevance", relevance, {}
    yield "relevance, loss 1 1 1", relevance, {"loss": (1, 1, 1)}
    yield "relevance, loss 0 1 1", relevance, {"loss": (0, 1, 1)}
    yield "relevance, temperature of CLIP", relevance, {"logit_scale": lab.clip.logit_scale}
    yield "relevance, temperature learned", relevance, {"learn_scale": True}


def layer_variants(lab: Lab) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """As variants()."""
    for count in (0, 1, 2, 3, 4):
        yield f"layers {count}", {"layers": count}, {}
    paper = {"method": "transformer", "layers": 1, "metric": False}
    steps = {"loss": (1, 1, 1), "logit_scale": lab.clip.logit_scale, "batch_size": 1024, "epochs": 24} | CLEAN
    yield "the paper's, no positions", paper | {"positions": False}, steps
    yield "the paper's, with similarities", paper | {"similarity": True}, steps
    yield "the paper's, with outer residual", paper | {"residual": True}, steps


def amount(lab: Lab, store: Store, seed: int) -> None:
    """How many concepts training has, from a hundredth to all; memory and queries stay."""
    pairs = training_pairs(lab.pairs, KNOWN_SHARE, seed)
    concepts = tasks.field(pairs, "concept")
    names = np.random.default_rng(seed).permutation(np.unique(concepts))
    for share in (0.01, 0.03, 0.1, 0.3, 1.0):
        few = pairs.select(np.isin(concepts, names[: max(8, int(share * len(names)))]))
        chosen = configs(lab.clip, seed)
        chosen["reco, no metric"] = short(
            reco.FusionConfig(dim=lab.clip.dim, layers=0, k=20, relevance=False), seed, epochs=40
        )
        for name, config in chosen.items():
            measured = partial(after_few, lab, f"amount-{share}-{name}-{seed}", few, config)
            store.add("amount", name, seed, measured, float(len(np.unique(tasks.field(few, "concept")))))


def after_few(lab: Lab, name: str, few: Embeddings, config: reco.TrainingConfig) -> dict[str, float]:
    """A fusion trained on these pairs, with all that training may look up, on the whole memory."""
    fusion = lab.train_on(name, few, lab.without_unseen(), config)
    return lab.measure(fusion, lab.full(), K if fusion.config.method == "gated" else None)


# --- 4: capacity without a memory ------------------------------------------------------------------------------------
def capacity(lab: Lab, store: Store, seed: int) -> None:
    """As many weights, the same pairs, no memory."""
    for name in HEADS:

        def measured(name: str = name) -> dict[str, float]:
            pairs = training_pairs(lab.pairs, KNOWN_SHARE, seed)
            images, texts = train_head(name, pairs.images, pairs.texts, numbers(pairs), lab.clip.logit_scale, seed)
            return summary(System(name, images, texts), lab.queries)

        store.add("capacity", name, seed, measured)


# --- 5: noise --------------------------------------------------------------------------------------------------------
def wrong(lab: Lab, store: Store, seed: int) -> None:
    """Wrong captions."""
    if seed == 0:
        store.add("wrong", "clip", 0, lambda: summary(System("clip", same, same), lab.queries), 0.0)
    for share, name in product((0.0, 0.1, 0.3, 0.5, 0.7, 1.0), TRAINED):
        store.add("wrong", name, seed, on(lab, name, seed, partial(lab.wrong, share, seed)), share)


def missing(lab: Lab, store: Store, seed: int) -> None:
    """Relevant pairs that are missing."""
    concepts, keys = tasks.field(lab.pairs, "concept"), np.array(lab.pairs.keys)
    entities = tasks.field(lab.queries.pairs, "concept")
    draws = np.random.default_rng(seed).random(len(keys))
    for share in (0.0, 0.3, 0.6, 1.0):
        gone = [keys[(concepts == entity) & (draws < share)].tolist() for entity in entities]
        for name in TRAINED:
            store.add("missing", name, seed, on(lab, name, seed, lab.full, exclude=gone.__getitem__), share)


# --- 6: other memories -----------------------------------------------------------------------------------------------
def swap(lab: Lab, store: Store, seed: int) -> None:
    """Icon sets that training never saw, and a memory of photographs."""
    others = ~np.isin(tasks.field(lab.pairs, "set"), LEFT_OUT)
    theirs = partial(lab.rows, "left-out-alone", np.flatnonzero(~others))
    for name, config in configs(lab.clip, seed).items():
        title = f"{name}, trained without {len(LEFT_OUT)} icon sets"
        trained = partial(lab.train, f"left-out-{name}", seed, config, others)
        k = neighbors_of(name)
        store.add("swap", title, seed, partial(measured_on, lab, trained, lab.full, k))
        store.add("swap", f"{title}, memory of these alone", seed, partial(measured_on, lab, trained, theirs, k))
    found = cached_photographs(lab)
    if found is None:
        return
    for name in TRAINED:
        memory = partial(lab.memory, "photographs", found)
        store.add("swap", f"{name}, memory of photographs", seed, on(lab, name, seed, memory))


def measured_on(
    lab: Lab, trained: Callable[[], reco.Fusion], memory: Callable[[], reco.Memory], k: int | None
) -> dict[str, float]:
    """A fusion that is trained for it, on another memory."""
    return lab.measure(trained(), memory(), k)


def cached_photographs(lab: Lab) -> Embeddings | None:
    """The photographs, embedded; None where the package cannot be fetched."""
    folder = lab.work / "embeddings" / "photographs"
    if (folder / "words.json").exists():
        return cached(folder, lambda: lab.pairs)
    samples = photographs(lab.work / "photographs")
    if samples is None:
        click.echo("swap: tuxpaint-stamps-default cannot be fetched; no photographs")
        return None
    return cached(folder, lambda: embed(lab.clip, samples, progress=False))


# --- 8: cost ---------------------------------------------------------------------------------------------------------
def cost(lab: Lab, store: Store, seed: int) -> None:
    """Time a query, and bytes a pair, by k and memory size; one seed."""
    if seed > 0:
        return
    queries = lab.queries.pairs.images[:512]
    fusion = lab.trained("reco", 0)
    for size in (1_000, 13_000, 130_000):
        part = lab.memory(f"cost-{size}", grown(lab.pairs, size))
        info = part.info()
        for k in (1, 10, 30, 50):
            store.add("cost", f"{size} pairs", 0, partial(timed, lab, part, fusion, queries, k, info), k)


def grown(pairs: Embeddings, size: int) -> Embeddings:
    """As many pairs as asked for: these, then noisy copies of them."""
    random = np.random.default_rng(0)
    rows = np.arange(size) % len(pairs)
    many = pairs.select(rows)
    noise = random.normal(scale=0.02, size=many.images.shape).astype(np.float32)
    return Embeddings(many.images + noise, many.texts, [f"{i}" for i in range(size)], many.captions, many.metadata)


def fused(fusion: reco.Fusion, memory: reco.Memory, queries: Floats, found: reco.Neighbors) -> dict[str, Floats]:
    """What a fusion makes of images and what was found for them."""
    beside = memory.embeddings("image", found.rows.ravel()).reshape(found.partners.shape)
    return fusion.fuse("image", queries, found.scores, found.partners, found.rows, beside)


def timed(
    lab: Lab, memory: reco.Memory, fusion: reco.Fusion, queries: Floats, k: int, info: dict[str, Any]
) -> dict[str, Any]:
    """Milliseconds a query in batches of 512, the best of three runs: search, fusion, and one query alone."""

    def best(work: Callable[[], Any]) -> float:
        times = []
        for _ in range(3):
            started = time.perf_counter()
            work()
            times.append(1000 * (time.perf_counter() - started))
        return min(times)

    found = memory.search(queries, k=k)
    model = reco.Model(lab.clip, memory, fusion, k=k)
    return {
        "search_ms": best(lambda: memory.search(queries, k=k, partners=False)) / len(queries),
        "fuse_ms": best(lambda: fused(fusion, memory, queries, found)) / len(queries),
        "refine_ms": best(lambda: model.refine_images(queries)) / len(queries),
        "refine_one_ms": best(lambda: model.refine_images(queries[:1])),
        "bytes_a_pair": float(info["bytes"]) / len(memory),
        "bytes_read_a_query": float(2 * lab.clip.dim * (len(memory) + (2 if fusion.config.metric else 1) * k)),
    }


# --- 9: storage ------------------------------------------------------------------------------------------------------
def storage(lab: Lab, store: Store, seed: int) -> None:
    """What smaller rows cost in accuracy; fusions trained with float16 rows."""
    for kind, name in product(STORAGES, ("mean", "reco")):
        memory = partial(lab.memory, f"storage-{kind}", lab.pairs, None, kind)
        store.add("storage", f"{name}, {kind}", seed, on(lab, name, seed, memory))


# --- 10: calibration -------------------------------------------------------------------------------------------------
def calibration(lab: Lab, store: Store, seed: int) -> None:
    """Image queries by confidence, over memories with no, some and all captions wrong: is one of the partners true?"""
    store.add("calibration", "reco", seed, lambda: calibrated(lab, seed))


def calibrated(lab: Lab, seed: int) -> dict[str, Any]:
    """Ten bins of confidence: how often a partner is true, accuracy of CLIP and of reco."""
    q, fusion = lab.queries, lab.trained("reco", seed)
    plain = reco.average_prompts(q.prompts, len(tasks.TEMPLATES))
    clip_right = (q.pairs.images @ plain.T).argmax(1) == np.arange(len(plain))
    parts: list[npt.NDArray[Any]] = []
    for share in (0.0, 0.3, 0.5, 0.7, 1.0):
        memory = lab.wrong(share, seed)
        model = reco.Model(lab.clip, memory, fusion, k=K)
        texts = reco.average_prompts(model.refine_texts(q.prompts), len(tasks.TEMPLATES))
        right = (model.refine_images(q.pairs.images) @ texts.T).argmax(1) == np.arange(len(texts))
        found = memory.search(q.pairs.images, k=K)
        confidence = fused(fusion, memory, q.pairs.images, found)["confidence"][:, 0]
        moved = moved_captions(len(lab.pairs), share, seed)
        true = (moved == np.arange(len(moved)))[found.rows].any(1)
        parts.append(np.stack([confidence, true, clip_right, right], 1))
    every = np.concatenate(parts)
    bins = np.minimum((10 * every[:, 0]).astype(int), 9)
    table = [
        [float(x) for x in every[bins == b].mean(0)] + [int((bins == b).sum())] for b in range(10) if (bins == b).any()
    ]
    error = sum(abs(c - t) * n for c, t, _, _, n in table) / len(every)
    return {"expected_calibration_error": 100 * error, "bins": table}


EXPERIMENTS: dict[str, Callable[[Lab, Store, int], None]] = {
    "main": main_table,
    "wrong": wrong,
    "missing": missing,
    "calibration": calibration,
    "k": neighbors,
    "cost": cost,
    "capacity": capacity,
    "size": size,
    "amount": amount,
    "storage": storage,
    "modes": modes,
    "swap": swap,
    "ablation": ablation,
    "layers": layers,
}


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=HERE / "experiments", help="Where results go.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("build/experiments"), help="Scratch, kept.")
@click.option("--seeds", default=3, show_default=True)
@click.option("--only", multiple=True, type=click.Choice(list(EXPERIMENTS)), help="These experiments alone.")
@click.option("--model", type=click.Path(path_type=Path), default=CLIP, help="CLIP folder.")
@click.option("--data", type=click.Path(path_type=Path), default=DATA, help="Folder of the shards.")
@click.option("--again", is_flag=True, help="Measure anew what is there already.")
def main(out: Path, work: Path, seeds: int, only: Sequence[str], model: Path, data: Path, again: bool) -> None:
    """Run what is not in OUT/results.json yet, then write tables and figures."""
    out.mkdir(parents=True, exist_ok=True)
    store = Store(out / "results.json")
    if again:
        store.rows = [row for row in store.rows if row.experiment not in (only or EXPERIMENTS)]
    lab = Lab.load(work, reco.Clip.load(model), data)
    for name, seed in product(only or EXPERIMENTS, range(seeds)):
        EXPERIMENTS[name](lab, store, seed)
        write_all(store.rows, out)
    click.echo(f"{len(store.rows)} rows in {out}")


if __name__ == "__main__":
    main()
