// SPDX-License-Identifier: Apache-2.0
#include "reco/tokenizer.h"

#include "helpers.h"

namespace reco::python {

void init_tokenizer(py::module_& m) {
  py::class_<Tokenizer>(m, "Tokenizer",
                        "CLIP's byte-pair tokenizer, with ids identical to Hugging Face's CLIPTokenizer. Immutable.")
      .def_static("load", &Tokenizer::load, py::arg("folder"), py::call_guard<py::gil_scoped_release>(),
                  R"(Read the tokenizer of a Hugging Face folder: tokenizer.json, or vocab.json and merges.txt.

Raises
------
Error
    If a file is missing or malformed; names it.)")
      .def(
          "encode",
          [](const Tokenizer& self, const std::string& text, std::int64_t max_length) {
            return self.encode(text, max_length);
          },
          py::arg("text"), py::arg("max_length") = 77, py::call_guard<py::gil_scoped_release>(),
          R"(The ids of one text between start and end token, without padding.

Parameters
----------
text : str
max_length : int
    Longer input is cut and keeps its end token.

Returns
-------
list of int)")
      .def(
          "__call__",
          [](const Tokenizer& self, const std::vector<std::string>& texts, std::int64_t max_length) {
            IndexMatrix ids;
            {
              const py::gil_scoped_release release;
              ids = self.encode(texts, max_length);
            }
            return to_numpy(std::move(ids));
          },
          py::arg("texts"), py::arg("max_length") = 77, R"(The ids of many texts, padded.

Parameters
----------
texts : list of str
max_length : int
    Longer input is cut and keeps its end token.

Returns
-------
int64 array [n, max_length])")
      .def("__len__", &Tokenizer::size)
      .def_property_readonly("start_id", &Tokenizer::start_id)
      .def_property_readonly("end_id", &Tokenizer::end_id)
      .def_property_readonly("pad_id", &Tokenizer::pad_id)
      .def("__repr__", [](const Tokenizer& self) {
        return "Tokenizer(" + std::to_string(self.size()) + " tokens, start " + std::to_string(self.start_id()) +
               ", end " + std::to_string(self.end_id()) + ", pad " + std::to_string(self.pad_id()) + ")";
      });
}

}  // namespace reco::python
