// SPDX-License-Identifier: Apache-2.0
#include "reco/threads.h"

#include <omp.h>

#include <algorithm>
#include <atomic>

#include "reco/error.h"
#include "use_threads.h"

namespace reco {

namespace {
std::atomic<int> count_{0};  // 0: not set, OpenMP's own default
}

void set_threads(int count) {
  check(count >= 1 && count <= 1024, "threads.set_threads", "count must be from 1 to 1,024, got ", count);
  count_ = count;
  use_threads();
}

int threads() {
  const int count = count_;
  return count > 0 ? count : std::max(1, omp_get_max_threads());
}

void use_threads() { omp_set_num_threads(threads()); }

}  // namespace reco
