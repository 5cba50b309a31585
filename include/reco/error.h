// SPDX-License-Identifier: Apache-2.0
/// @file
/// The one exception of the library.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

#include "reco/export.h"

namespace reco {

/// Thrown for everything that a caller or an outside file got wrong, and for failures of the system.
///
/// The message reads `[module.function] what was expected, what was found, in which file`. The library throws nothing
/// else on purpose; std::bad_alloc passes through. Nothing is thrown out of a parallel region, nothing aborts.
class RECO_API Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Throws Error with the message `[tag] parts...`, the parts streamed one after the other. `tag` is `module.function`.
template <typename... Parts>
[[noreturn]] void fail(const char* tag, const Parts&... parts) {
  std::ostringstream message;
  message << '[' << tag << "] ";
  (message << ... << parts);
  throw Error(message.str());
}

/// fail() unless the condition holds. The parts are evaluated either way: keep them cheap.
template <typename... Parts>
void check(bool condition, const char* tag, const Parts&... parts) {
  if (!condition) fail(tag, parts...);
}

}  // namespace reco
