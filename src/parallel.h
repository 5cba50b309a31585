// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <omp.h>

#include <cstdint>
#include <exception>

#include "reco/threads.h"

namespace reco {

/// Runs work(0) to work(count - 1) on `most` threads. Nothing leaves the parallel region: what the lowest index
/// threw is thrown afterwards.
template <typename Work>
void parallel_for(std::int64_t count, const Work& work, int most = threads()) {
  std::exception_ptr error;
  std::int64_t failed = count;
#pragma omp parallel for schedule(dynamic) num_threads(most)
  for (std::int64_t i = 0; i < count; ++i) {
    try {
      work(i);
    } catch (...) {
#pragma omp critical(reco_parallel_for)
      if (i < failed) failed = i, error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace reco
