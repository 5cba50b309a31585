// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>

#include "reco/interrupt.h"
#include "reco/threads.h"

namespace reco {

/// Runs work(0) to work(count - 1) on `most` threads. Nothing leaves the parallel region: what the lowest index
/// threw is thrown afterwards. Before the first item, and between its own, the calling thread
/// looks whether it shall stop.
template <typename Work>
void parallel_for(std::int64_t count, const Work& work, int most = threads()) {
  // A thread that has nothing to do costs its waking: more than a query through a graph takes.
  const int workers = static_cast<int>(std::clamp<std::int64_t>(count, 1, most));
  check_interrupt();  // the other threads may take all items
  std::exception_ptr error;
  std::atomic<std::int64_t> failed = count;
#pragma omp parallel for schedule(dynamic) num_threads(workers)
  for (std::int64_t i = 0; i < count; ++i) {
    if (i > failed) continue;  // its outcome no longer matters
    try {
      if (omp_get_thread_num() == 0) check_interrupt();
      work(i);
    } catch (...) {
#pragma omp critical(reco_parallel_for)
      if (i < failed) failed = i, error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace reco
