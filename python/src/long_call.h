// SPDX-License-Identifier: Apache-2.0
// Long work beside Python: other Python threads run meanwhile, Ctrl-C stops it, and its progress can be seen.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "reco/interrupt.h"
#include "reco/types.h"

namespace reco::python {

namespace py = pybind11;

/// What Python raised, KeyboardInterrupt say, while the library could not raise it: takes the place of the Interrupted
/// that it ends with.
inline std::unique_ptr<py::error_already_set>& pending_error() {
  thread_local std::unique_ptr<py::error_already_set> error;
  return error;
}

/// InterruptScope's question, where Python's signal handlers have the answer.
inline bool signal_raised() {
  const py::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() == 0) return false;
  pending_error() = std::make_unique<py::error_already_set>();
  return true;
}

/// Python runs its signal handlers in the main thread only.
inline bool is_main_thread() {
  const auto main = py::module_::import("threading").attr("main_thread")().attr("ident");
  return !main.is_none() && main.cast<unsigned long>() == PyThread_get_thread_ident();
}

/// While it lives, the GIL is free and signals stop what the library does on this thread.
class LongCall {
 public:
  LongCall() {
    if (is_main_thread()) scope_.emplace(signal_raised);
    release_.emplace();
  }

 private:
  std::optional<InterruptScope> scope_;
  std::optional<py::gil_scoped_release> release_;
};

/// The parameter `progress` of long work: None or False, True for a bar, or a function of (done, total) that may return
/// False to stop. Made and destroyed with the GIL.
class ProgressArgument {
 public:
  ProgressArgument(const py::object& given, const char* description, const char* unit) {
    if (given.is_none() || given.is(py::bool_(false))) return;
    reporter_ = py::module_::import("reco.progress").attr("Reporter")(given, description, unit);
  }
  ProgressArgument(const ProgressArgument&) = delete;
  ProgressArgument& operator=(const ProgressArgument&) = delete;
  ~ProgressArgument() {
    if (!reporter_) return;
    try {
      reporter_.attr("close")();
    } catch (const py::error_already_set&) {  // a terminal that is gone must not hide what the work gave
    }
  }

  /// For work without the GIL; must not outlive this.
  Progress function() const {
    if (!reporter_) return {};
    return [this](std::int64_t done, std::int64_t total) {
      const py::gil_scoped_acquire gil;
      return reporter_(done, total).cast<bool>();
    };
  }

 private:
  py::object reporter_;
};

}  // namespace reco::python
