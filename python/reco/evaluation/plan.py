# SPDX-License-Identifier: Apache-2.0
"""Several data sets in one run: a plan, read from a TOML file.

model = "clip-vit-base-patch32"      # paths are relative to the file
memory = "cc12m.reco"
fusion = "fusion.safetensors"        # a training-free mean without it
out = "results"
k = 10                               # also: cache, dtype, device, batch_size
prompts = "photo"                    # also: classnames, average, max_similarity, resamples, confidence, seed

[datasets.cub]
root = "CUB_200_2011"
prompts = "cub"                      # for this data set alone; also: split, label, image_column

[datasets.birds-of-mine]
dataset = "folder"                   # where it is not the section's name, which is then what it is called
root = "birds"
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reco._core import Clip, Error, Fusion, Memory, Model
from reco.datasets import OWN, Dataset, load_dataset
from reco.evaluation.cache import EmbeddingCache, default_cache
from reco.evaluation.protocol import Protocol, evaluate_dataset
from reco.evaluation.report import write_html
from reco.evaluation.results import Evaluation, safe_name, write_results

if TYPE_CHECKING:
    from reco.types import Progress

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_TAG = "[evaluation.plan]"


@dataclass(frozen=True)
class Job:
    """One data set and how it is evaluated; `name` is what one's own is called in the results."""

    dataset: str
    root: Path
    name: str = ""
    split: str | None = None
    label: str | None = None
    image_column: str | None = None
    protocol: Protocol = field(default_factory=Protocol)


@dataclass(frozen=True)
class Plan:
    """A model, a memory, a fusion and the data sets.

    Attributes
    ----------
    model, memory : path
    fusion : path, optional
        A training-free mean without it.
    jobs : list of Job
    k : int, optional
        Neighbours a query; as many as the fusion was made for without it.
    out : path, optional
        Folder for the results.
    cache : path, optional
        Folder for embeddings; default_cache() without it.
    dtype, device, batch_size
        Of Clip.load().
    """

    model: Path
    memory: Path
    fusion: Path | None = None
    jobs: Sequence[Job] = ()
    k: int | None = None
    out: Path | None = None
    cache: Path | None = None
    dtype: str = "float32"
    device: str = "cpu"
    batch_size: int = 64


_PATHS = ("model", "memory", "fusion", "out", "cache")
_SHARED = {"k": int, "dtype": str, "device": str, "batch_size": int}
_JOB = ("dataset", "root", "split", "label", "image_column")
_PROTOCOL = {
    "prompts": str,
    "classnames": str,
    "average": str,
    "max_similarity": (float, int, str),
    "resamples": int,
    "confidence": float,
    "seed": int,
}


def read_plan(path: str | Path, given: Mapping[str, Any] | None = None, root: Path | None = None) -> Plan:
    """A plan from a TOML file; see the module's documentation.

    Parameters
    ----------
    path : path
    given : dict, optional
        What takes the place of the file's values outside its sections, or stands in for what it lacks; paths in it are
        taken as they are.
    root : path, optional
        Where the data sets' roots begin; the file's folder by default.

    Raises
    ------
    Error
        When it cannot be read, lacks something, or names something unknown.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise Error(f"{_TAG} cannot read {path}: {error}") from error
    given = dict(given or {})
    content = {name: value for name, value in content.items() if name not in given}
    sections = content.pop("datasets", {})
    if not isinstance(sections, dict) or not sections:
        raise Error(f"{_TAG} expected a section [datasets.NAME] or more in {path}, found none")
    _check(path, "", content, {name: str for name in _PATHS} | _SHARED | _PROTOCOL)
    missing = [name for name in ("model", "memory") if name not in content and name not in given]
    if missing:
        raise Error(f"{_TAG} expected {' and '.join(missing)} in {path}, found none")
    base = _protocol({name: content.pop(name) for name in _PROTOCOL if name in content}, Protocol(), path)
    base = replace(base, **{name: given.pop(name) for name in _PROTOCOL if name in given})
    for name in _PATHS:
        if name in content:
            content[name] = path.parent / content[name]
    jobs = [_job(path, root or path.parent, name, section, base) for name, section in sections.items()]
    return Plan(**(content | given), jobs=jobs)


def _check(path: Path, where: str, found: dict[str, Any], known: dict[str, Any]) -> None:
    for name, value in found.items():
        if name not in known:
            raise Error(f"{_TAG} expected {', '.join(known)}, found {where}{name} in {path}")
        if not isinstance(value, known[name]) or isinstance(value, bool):
            raise Error(f"{_TAG} {where}{name} in {path} has the wrong type: {value!r}")


def _job(path: Path, root: Path, name: str, section: Any, base: Protocol) -> Job:
    if not isinstance(section, dict) or "root" not in section:
        raise Error(f"{_TAG} expected root in [datasets.{name}] of {path}, found none")
    _check(path, f"datasets.{name}.", section, {n: str for n in _JOB} | _PROTOCOL)
    given = {n: section[n] for n in _JOB if n in section} | {"root": root / section["root"]}
    protocol = _protocol({n: section[n] for n in _PROTOCOL if n in section}, base, path)
    return Job(**({"dataset": name, "name": name} | given), protocol=protocol)


def _protocol(given: dict[str, Any], base: Protocol, path: Path) -> Protocol:
    for name in ("prompts", "classnames"):
        if name in given and (path.parent / given[name]).is_file():
            given[name] = str(path.parent / given[name])
    if isinstance(given.get("max_similarity"), str):
        if given["max_similarity"] != "none":
            raise Error(f'{_TAG} max_similarity in {path} must be a number or "none", got {given["max_similarity"]!r}')
        given["max_similarity"] = None
    return replace(base, **given)


assert set(_PROTOCOL) == {f.name for f in fields(Protocol)}


def run_plan(plan: Plan, *, progress: Progress = True) -> list[Evaluation]:
    """Evaluate all of a plan's data sets; results are written after each, if the plan says where to.

    All data sets are looked at before anything is encoded, so that what is missing is known in the first seconds.
    """
    datasets = _load_all(plan.jobs)
    clip = Clip.load(plan.model, plan.device, plan.dtype, plan.batch_size)
    fusion = Fusion.load(plan.fusion) if plan.fusion else Fusion.mean(clip.dim)
    cache_folder = plan.cache or default_cache()
    evaluations = []
    with (
        Memory.open(plan.memory, read_only=True) as memory,
        EmbeddingCache(clip, cache_folder, progress=progress) as cache,
    ):
        model = Model(clip, memory, fusion, k=plan.k)
        for job, dataset in zip(plan.jobs, datasets, strict=True):
            evaluation = evaluate_dataset(
                model,
                dataset,
                job.protocol,
                cache=cache,
                name=plan.model.resolve().name,
                work=plan.out or cache_folder,
                progress=progress,
            )
            evaluations.append(evaluation)
            if plan.out:
                write_results([evaluation], plan.out)
    if plan.out:
        write_html(evaluations, plan.out / f"{_report_name(evaluations)}.html")
    return evaluations


def _report_name(evaluations: Sequence[Evaluation]) -> str:
    """A single data set's report does not take the place of the one on all."""
    single = evaluations[0] if len(evaluations) == 1 else None
    return f"{safe_name(single.dataset)}-{safe_name(single.split)}" if single else "report"


def _load_all(jobs: Sequence[Job]) -> list[Dataset]:
    loaded: list[Dataset] = []
    faults = []
    for job in jobs:
        try:
            loaded.append(_load(job))
        except Error as error:
            faults.append(str(error))
    if faults:
        raise Error("\n".join(faults))
    files = Counter(f"{dataset.name}, {dataset.split}" for dataset in loaded)
    if twice := [name for name, count in files.items() if count > 1]:
        raise Error(
            f"{_TAG} expected each data set and split once, found {twice[0]} twice: one would replace the other"
        )
    return loaded


def _load(job: Job) -> Dataset:
    dataset = load_dataset(job.dataset, job.root, split=job.split, label=job.label, image_column=job.image_column)
    return replace(dataset, name=job.name) if job.name and job.dataset in OWN else dataset
