// SPDX-License-Identifier: Apache-2.0
// What the binding files share.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <algorithm>
#include <functional>
#include <iomanip>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "arrays.h"
#include "long_call.h"
#include "reco/error.h"
#include "reco/types.h"
#include "signature.h"

namespace reco::python {

namespace py = pybind11;

/// JSON as Python's json module reads it.
inline py::object loads(const std::string& json) { return py::module_::import("json").attr("loads")(json); }

/// The other way round.
inline std::string dumps(const py::handle& metadata) {
  const auto json = py::module_::import("json");
  return json.attr("dumps")(metadata, py::arg("ensure_ascii") = false, py::arg("allow_nan") = false)
      .cast<std::string>();
}

/// Keys that must not be found, from Python: None, one list for all queries, or one list a query.
inline std::vector<std::vector<std::string>> exclude_keys(const py::object& keys) {
  if (keys.is_none()) return {};
  const auto items = keys.cast<py::sequence>();
  if (items.size() == 0) return {};
  if (py::isinstance<py::str>(items[0])) return {keys.cast<std::vector<std::string>>()};
  return keys.cast<std::vector<std::vector<std::string>>>();
}

/// "image" or "text" from Python.
inline Modality modality(const std::string& name, const char* tag) {
  check(name == "image" || name == "text", tag, "modality must be 'image' or 'text', got '", name, "'");
  return name == "image" ? Modality::image : Modality::text;
}

}  // namespace reco::python
