// SPDX-License-Identifier: Apache-2.0
// Arrays in and out without copies: NumPy's, PyTorch's tensors, and whatever else speaks DLPack.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "reco/error.h"
#include "reco/types.h"

namespace reco::python {

namespace py = pybind11;

/// Any array-like of numbers; float32 in C order arrives without a copy, everything else is converted.
using FloatArray = py::array_t<float, py::array::c_style | py::array::forcecast>;
/// The same for whole numbers: int64 arrives without a copy.
using IndexArray = py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>;

/// Whether something is a tensor of another library that lends its memory.
inline bool is_tensor(const py::handle& given) {
  return !py::isinstance<py::array>(given) && py::hasattr(given, "__dlpack__");
}

/// A tensor as NumPy's array over the same memory, where NumPy can: PyTorch's are taken out of their graph, from
/// another device, and out of bfloat16, which NumPy does not have.
inline py::array array_of_tensor(py::object tensor) {
  for (const char* step : {"detach", "cpu"}) {
    if (py::hasattr(tensor, step)) tensor = tensor.attr(step)();
  }
  const auto dtype = py::str(tensor.attr("dtype")).cast<std::string>();
  if (dtype == "torch.bfloat16") tensor = tensor.attr("float")();
  const auto numpy = py::module_::import("numpy");
  return py::hasattr(tensor, "__array__") ? numpy.attr("asarray")(tensor) : numpy.attr("from_dlpack")(tensor);
}

/// What came in for an array parameter, as an array of some dtype.
inline py::array any_array(const py::handle& given) {
  if (py::isinstance<py::array>(given)) return py::reinterpret_borrow<py::array>(given);
  if (is_tensor(given)) return array_of_tensor(py::reinterpret_borrow<py::object>(given));
  return py::module_::import("numpy").attr("asarray")(given);
}

inline std::string dtype_of(const py::array& array) { return py::str(array.dtype()).cast<std::string>(); }

/// Whether the kind of an array's dtype is one of these letters.
inline bool is_kind(const py::array& array, std::string_view kinds) {
  return kinds.find(array.dtype().kind()) != std::string_view::npos;
}

/// Throws TypeError for what holds no real numbers.
inline FloatArray float_array(const py::handle& given) {
  const py::array array = any_array(given);
  const std::string dtype = dtype_of(array);
  // The bfloat16 and the small floats of other packages have a kind of their own.
  const bool numbers = is_kind(array, "fiub") || dtype.find("float") != std::string::npos;
  if (!numbers) throw py::type_error("expected an array of numbers, got one of " + dtype);
  auto converted = FloatArray::ensure(array);
  if (!converted) throw py::error_already_set();
  return converted;
}

/// Throws TypeError for what holds no whole numbers.
inline IndexArray index_array(const py::handle& given) {
  const py::array array = any_array(given);
  const bool whole = is_kind(array, "iub") || array.size() == 0;
  if (!whole) throw py::type_error("expected an array of whole numbers, got one of " + dtype_of(array));
  auto converted = IndexArray::ensure(array);
  if (!converted) throw py::error_already_set();
  return converted;
}

/// A view of a [n, d] array; [d] counts as one row. `tag` and `name` are for the Error that other shapes get.
inline Eigen::Map<const Matrix> matrix_view(const FloatArray& array, const char* tag, const char* name) {
  check(array.ndim() == 1 || array.ndim() == 2, tag, name, " must be a [n, dim] array, got ", array.ndim(),
        " dimensions");
  const auto columns = array.shape(array.ndim() - 1);
  const auto rows = array.ndim() == 2 ? array.shape(0) : 1;
  return {array.data(), rows, columns};
}

/// Hands a matrix over to NumPy, with another shape if given, without a copy. The array may be written to: NumPy gives
/// no other to DLPack.
template <typename M>
py::array_t<typename M::Scalar> to_numpy(M&& matrix, std::vector<py::ssize_t> shape = {}) {
  using Owned = std::remove_cvref_t<M>;
  auto* owned = new Owned(std::forward<M>(matrix));
  const py::capsule owner(owned, [](void* pointer) { delete static_cast<Owned*>(pointer); });
  if (shape.empty()) shape = {owned->rows(), owned->cols()};
  return py::array_t<typename Owned::Scalar>(shape, owned->data(), owner);
}

}  // namespace reco::python

namespace pybind11::detail {

/// Parameters of these types take tensors too.
template <>
struct type_caster<reco::python::FloatArray> : pyobject_caster<reco::python::FloatArray> {
  bool load(handle source, bool) {
    if (source.is_none()) return false;
    value = reco::python::float_array(source);
    return true;
  }
};
template <>
struct type_caster<reco::python::IndexArray> : pyobject_caster<reco::python::IndexArray> {
  bool load(handle source, bool) {
    if (source.is_none()) return false;
    value = reco::python::index_array(source);
    return true;
  }
};

}  // namespace pybind11::detail
