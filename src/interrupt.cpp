// SPDX-License-Identifier: Apache-2.0
#include "reco/interrupt.h"

namespace reco {

namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kInterval = std::chrono::milliseconds(100);

thread_local InterruptScope* innermost = nullptr;

}  // namespace

InterruptScope::InterruptScope(std::function<bool()> stop)
    : stop_(std::move(stop)), outer_(innermost), next_(Clock::now() + kInterval) {
  innermost = this;
}

InterruptScope::~InterruptScope() { innermost = outer_; }

bool InterruptScope::asked_to_stop() {
  if (stopped_ || !stop_ || Clock::now() < next_) return stopped_;
  stopped_ = stop_();
  next_ = Clock::now() + kInterval;
  return stopped_;
}

bool interrupted() { return innermost != nullptr && innermost->asked_to_stop(); }

void check_interrupt() {
  if (interrupted()) throw Interrupted("[interrupted] stopped from outside");
}

}  // namespace reco
