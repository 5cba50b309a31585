// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace reco {

/// Makes the calling thread's OpenMP regions use threads(): OpenMP keeps that number per thread, so every public
/// operation that computes calls this first.
void use_threads();

}  // namespace reco
