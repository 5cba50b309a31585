// SPDX-License-Identifier: Apache-2.0
#include "helpers.h"
#include "reco/threads.h"

namespace reco::python {

void init_image(py::module_& m);
void init_tokenizer(py::module_& m);
void init_clip(py::module_& m);
void init_memory(py::module_& m);
void init_fusion(py::module_& m);
void init_training(py::module_& m);
void init_model(py::module_& m);
void init_evaluation(py::module_& m);

}  // namespace reco::python

PYBIND11_MODULE(_core, m) {
  namespace py = pybind11;
  using namespace reco::python;
  m.doc() = "The compiled core of reco; use the package reco.";
  py::register_exception<reco::Error>(m, "Error", PyExc_RuntimeError);
  m.def("set_threads", &reco::set_threads, py::arg("count"),
        "Set how many threads encoding, search and training use, from the next call on.");
  m.def("threads", &reco::threads, "The number of threads in use.");
  init_image(m);
  init_tokenizer(m);
  init_clip(m);
  init_memory(m);
  init_fusion(m);
  init_training(m);
  init_model(m);
  init_evaluation(m);
}
