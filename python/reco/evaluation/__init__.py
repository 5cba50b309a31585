# SPDX-License-Identifier: Apache-2.0
"""Zero-shot evaluation: CLIP and reco on the same data under the same prompts, in one run."""

from reco._core import average_prompts, bootstrap, classify, harmonic_mean, prompts, ranks, retrieve
from reco.evaluation.cache import EmbeddingCache
from reco.evaluation.leaks import Leaks, find_leaks
from reco.evaluation.predictions import (
    published_final_score,
    published_scores,
    read_predictions,
    score_predictions,
    write_predictions,
)
from reco.evaluation.protocol import Protocol, evaluate_dataset
from reco.evaluation.report import write_html
from reco.evaluation.results import (
    Case,
    ClassScore,
    Evaluation,
    Scores,
    markdown_table,
    read_results,
    result_tables,
    write_results,
)
from reco.evaluation.texts import Texts, choose_classnames, choose_templates
from reco.evaluation.zero_shot import (
    Encoder,
    Record,
    Votes,
    ZeroShot,
    encode_classes,
    evaluate,
    write_report,
    zero_shot,
)

__all__ = [
    "Case",
    "ClassScore",
    "EmbeddingCache",
    "Encoder",
    "Evaluation",
    "Leaks",
    "Protocol",
    "Record",
    "Scores",
    "Texts",
    "Votes",
    "ZeroShot",
    "average_prompts",
    "bootstrap",
    "choose_classnames",
    "choose_templates",
    "classify",
    "encode_classes",
    "evaluate",
    "evaluate_dataset",
    "find_leaks",
    "harmonic_mean",
    "markdown_table",
    "prompts",
    "published_final_score",
    "published_scores",
    "ranks",
    "read_predictions",
    "read_results",
    "result_tables",
    "retrieve",
    "score_predictions",
    "write_html",
    "write_predictions",
    "write_report",
    "write_results",
    "zero_shot",
]
