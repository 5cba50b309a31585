// SPDX-License-Identifier: Apache-2.0
/// @file
/// The one knob for the number of threads.
#pragma once

#include "reco/export.h"

namespace reco {

/// Sets how many threads encoding, search and training use (LibTorch, FAISS and our own loops alike), from the next
/// call on. Starts at the number of cores this process may run on. Throws Error unless 1 <= count <= 1,024. Thread
/// safe.
RECO_API void set_threads(int count);

/// The number of threads in use. Thread safe.
RECO_API int threads();

}  // namespace reco
