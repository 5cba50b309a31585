// SPDX-License-Identifier: Apache-2.0
/// @file
/// Stopping long work from outside: a signal, a button, a deadline.
#pragma once

#include <chrono>
#include <functional>

#include "reco/error.h"
#include "reco/export.h"

namespace reco {

/// What long work throws when it was told to stop; its tag is `[interrupted]`. A change of a memory that it ends has
/// not happened: the last committed state stays.
class RECO_API Interrupted : public Error {
 public:
  using Error::Error;
};

/// While it lives, long work of the thread that made it can be stopped: encoding, searching, changing, checking and
/// optimising a memory, refining, training, evaluating. `stop` is asked between steps, at most ten times a second, on
/// that thread only; once it returned true the work ends with Interrupted, mostly within a second. It must not throw.
/// Scopes nest: the innermost counts, and one with an empty function keeps what must be finished from being stopped.
class RECO_API InterruptScope {
 public:
  explicit InterruptScope(std::function<bool()> stop);  ///< begins with a function, or with none
  ~InterruptScope();
  InterruptScope(const InterruptScope&) = delete;
  InterruptScope& operator=(const InterruptScope&) = delete;

 private:
  friend RECO_API bool interrupted();
  bool asked_to_stop();

  std::function<bool()> stop_;
  InterruptScope* outer_;
  std::chrono::steady_clock::time_point next_;  ///< when `stop` is asked again
  bool stopped_ = false;
};

/// True if the calling thread's long work shall end. Costs next to nothing; made for loops of one's own.
RECO_API bool interrupted();

/// Throws Interrupted if interrupted().
RECO_API void check_interrupt();

}  // namespace reco
