// SPDX-License-Identifier: Apache-2.0
// What the binding files share: arrays in and out without copies, interruptible work.
#pragma once

#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <functional>
#include <iomanip>
#include <map>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "reco/error.h"
#include "reco/types.h"

namespace reco::python {

namespace py = pybind11;

/// Any array-like of numbers; float32 in C order arrives without a copy, everything else is converted.
using FloatArray = py::array_t<float, py::array::c_style | py::array::forcecast>;
using IndexArray = py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>;

/// A view of a [n, d] array; [d] counts as one row. `tag` and `name` are for the Error that other shapes get.
inline Eigen::Map<const Matrix> matrix_view(const FloatArray& array, const char* tag, const char* name) {
  check(array.ndim() == 1 || array.ndim() == 2, tag, name, " must be a [n, dim] array, got ", array.ndim(),
        " dimensions");
  const auto columns = array.shape(array.ndim() - 1);
  const auto rows = array.ndim() == 2 ? array.shape(0) : 1;
  return {array.data(), rows, columns};
}

/// Hands a matrix over to NumPy, with another shape if given, without a copy.
template <typename M>
py::array_t<typename M::Scalar> to_numpy(M&& matrix, std::vector<py::ssize_t> shape = {}) {
  using Owned = std::remove_cvref_t<M>;
  auto* owned = new Owned(std::forward<M>(matrix));
  const py::capsule owner(owned, [](void* pointer) { delete static_cast<Owned*>(pointer); });
  if (shape.empty()) shape = {owned->rows(), owned->cols()};
  return py::array_t<typename Owned::Scalar>(shape, owned->data(), owner);
}

/// A Progress for work done without the GIL: honours Ctrl-C and calls the Python function, if any, which may return
/// False to stop.
inline Progress interruptible(std::optional<py::function> callback = std::nullopt) {
  return [callback = std::move(callback)](std::int64_t done, std::int64_t total) {
    const py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    if (!callback) return true;
    const py::object answer = (*callback)(done, total);
    return answer.is_none() || answer.cast<bool>();
  };
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

/// A struct of options as a Python class: keyword arguments set its fields, attributes read them.
template <typename Config>
class Options {
 public:
  explicit Options(py::class_<Config>& type) : type_(type) {}

  template <typename Value>
  Options& field(const char* name, Value Config::*member) {
    type_.def_readonly(name, member);
    setters_[name] = [member](Config& config, const py::handle& value) { config.*member = py::cast<Value>(value); };
    return *this;
  }

  /// Adds the constructor, which calls `validate`. Call it last.
  void init() {
    type_.def(py::init([setters = setters_](const py::kwargs& given) {
      Config config;
      for (const auto& [key, value] : given) {
        const auto name = py::cast<std::string>(key);
        const auto found = setters.find(name);
        if (found == setters.end()) throw py::type_error("unexpected keyword argument '" + name + "'");
        try {
          found->second(config, value);
        } catch (const py::cast_error&) {
          throw py::type_error("wrong type for '" + name + "': " + std::string(py::str(value)));
        }
      }
      validate(config);
      return config;
    }));
  }

 private:
  py::class_<Config>& type_;
  std::map<std::string, std::function<void(Config&, const py::handle&)>> setters_;
};

}  // namespace reco::python
