// SPDX-License-Identifier: Apache-2.0
#include <exception>
#include <string_view>

#include "helpers.h"
#include "reco/error.h"
#include "reco/threads.h"

namespace reco::python {

void init_image(py::module_& m);
void init_tokenizer(py::module_& m);
void init_clip(py::module_& m);
void init_memory_base(py::module_& m);
void init_memory(py::module_& m);
void init_fusion(py::module_& m);
void init_training(py::module_& m);
void init_model(py::module_& m);
void init_evaluation(py::module_& m);

/// Where work was stopped by what Python raised, that is what Python gets.
bool raise_pending(const Error& error) {
  auto& pending = pending_error();
  if (!pending || dynamic_cast<const Interrupted*>(&error) == nullptr) return false;
  pending->restore();
  pending.reset();
  return true;
}

/// reco::Error becomes reco.Error. Messages quote files that nobody vouches for, so that they may be no UTF-8.
void register_error(py::module_& m) {
  static const py::handle type = py::exception<Error>(m, "Error", PyExc_RuntimeError).release();
  type.attr("__doc__") =
      "What a caller or an outside file got wrong, and failures of the system.\n\n"
      "The message reads ``[module.function] what was expected, what was found, in which file``.";
  py::register_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const Error& error) {
      if (raise_pending(error)) return;
      const std::string_view text = error.what();
      const auto message = py::reinterpret_steal<py::object>(
          PyUnicode_DecodeUTF8(text.data(), static_cast<py::ssize_t>(text.size()), "replace"));
      if (message) PyErr_SetObject(type.ptr(), message.ptr());
    }
  });
}

}  // namespace reco::python

PYBIND11_MODULE(_core, m) {
  namespace py = pybind11;
  using namespace reco::python;
  m.doc() = "The compiled core of reco; use the package reco.";
  py::options docstrings;
  docstrings.disable_function_signatures();  // they carry their own: see signature.h
  register_error(m);
  define(m, "set_threads", &reco::set_threads, py::arg("count"),
         R"(Set how many threads encoding, search and training use, from the next call on.

Parameters
----------
count : int
    1 to 1,024. At the start it is the number of cores that the process may run on.

Raises
------
Error
    For a count out of range.
)");
  define(m, "threads", &reco::threads, R"(How many threads encoding, search and training use.

Returns
-------
int
)");
  init_image(m);
  init_tokenizer(m);
  init_clip(m);
  init_memory_base(m);
  init_memory(m);
  init_fusion(m);
  init_training(m);
  init_model(m);
  init_evaluation(m);
}
