// SPDX-License-Identifier: Apache-2.0
/// @file
/// All of reco.
#pragma once

#include "reco/clip.h"
#include "reco/error.h"
#include "reco/evaluation.h"
#include "reco/fusion.h"
#include "reco/image.h"
#include "reco/interrupt.h"
#include "reco/memory.h"
#include "reco/memory_base.h"
#include "reco/model.h"
#include "reco/threads.h"
#include "reco/tokenizer.h"
#include "reco/training.h"
#include "reco/types.h"

/// @mainpage
/// Retrieval-enhanced contrastive vision-text models (RECO: Iscen, Caron, Fathi and Schmid, arXiv 2306.07196): CLIP
/// stays frozen and looks things up in a memory of image-text pairs.
///
/// | header | what for |
/// |---|---|
/// | reco/clip.h | the frozen encoder, read from Hugging Face's, open_clip's or OpenAI's files |
/// | reco/memory.h | pairs in a folder, searched by either side while they change |
/// | reco/memory_base.h | what to implement to keep pairs elsewhere |
/// | reco/fusion.h | how an embedding is refined with what was found |
/// | reco/model.h | the three together |
/// | reco/training.h | training of a fusion |
/// | reco/evaluation.h | zero-shot metrics and intervals |
/// | reco/image.h, reco/tokenizer.h | what goes into the encoder |
/// | reco/types.h, reco/error.h, reco/threads.h | matrices, the one exception, the number of threads |
/// | reco/interrupt.h | stopping long work from outside |
///
/// Embeddings are reco::Matrix: row-major float32, one row an item, rows of unit length. Everything that fails throws
/// reco::Error. Headers need the standard library and Eigen only; of the shared library nothing but reco's own names is
/// visible, so that a program may link FAISS or SQLite of its own.
///
/// A program that names pictures:
/// @include zero_shot.cpp
/// A memory that changes while it is searched:
/// @include live_memory.cpp
