# SPDX-License-Identifier: Apache-2.0
"""reco makes a frozen CLIP model better by letting it look things up (RECO, arXiv 2306.07196).

>>> import reco
>>> clip = reco.Clip.load("clip-vit-base-patch32")  # doctest: +SKIP
>>> memory = reco.Memory.open("birds.reco")  # doctest: +SKIP
>>> model = reco.Model(clip, memory, reco.Fusion.load("fusion.safetensors"))  # doctest: +SKIP
>>> model.encode_images(["photo.jpg"])  # doctest: +SKIP
"""

from reco import _core
from reco._core import (
    Clip,
    Error,
    Explanation,
    Fusion,
    FusionConfig,
    Memory,
    Model,
    Neighbors,
    Preprocess,
    Tokenizer,
    TrainingConfig,
    average_prompts,
    classify,
    decode_image,
    harmonic_mean,
    prompts,
    read_image,
    resize,
    retrieve,
    set_threads,
    threads,
    train,
)
from reco.evaluation import evaluate, zero_shot

__version__ = "0.1.0"

__all__ = [
    "Clip",
    "Error",
    "Explanation",
    "Fusion",
    "FusionConfig",
    "Memory",
    "Model",
    "Neighbors",
    "Preprocess",
    "Tokenizer",
    "TrainingConfig",
    "average_prompts",
    "classify",
    "decode_image",
    "evaluate",
    "harmonic_mean",
    "prompts",
    "read_image",
    "resize",
    "retrieve",
    "set_threads",
    "threads",
    "train",
    "zero_shot",
]

for _name in __all__:
    # What users see in errors and help is reco.X, not where it was compiled.
    if hasattr(_core, _name) and hasattr(getattr(_core, _name), "__module__"):
        import contextlib

        with contextlib.suppress(AttributeError, TypeError):
            getattr(_core, _name).__module__ = "reco"
