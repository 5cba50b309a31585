// SPDX-License-Identifier: Apache-2.0
// Which rows of a memory a fusion looks up, and what of them it fuses; in two steps, so that training keeps row numbers
// alone and reads embeddings batch by batch.
#pragma once

#include "reco/fusion.h"

namespace reco::fusion {

/// Rows and scores of the neighbours; options.modality is the query's. Partners, if asked for, are those of the side
/// that was searched.
Neighbors search(const MemoryBase& memory, const FusionConfig& config, const MatrixView& queries,
                 SearchOptions options);

/// Adds what is fused of the rows found; doubles k where both sides are.
void fetch(const MemoryBase& memory, const FusionConfig& config, Modality query, Neighbors& found);

}  // namespace reco::fusion
