// SPDX-License-Identifier: Apache-2.0
#include "reco/tokenizer.h"

#include "helpers.h"

namespace reco::python {

void init_tokenizer(py::module_& m) {
  py::class_<Tokenizer>(m, "Tokenizer",
                        "CLIP's byte-pair tokenizer, with ids identical to Hugging Face's CLIPTokenizer. Immutable.")
      .def_static("load", &Tokenizer::load, py::arg("path"), py::call_guard<py::gil_scoped_release>(),
                  R"(Read the tokenizer of a model: of a Hugging Face folder, of an open_clip folder or its
open_clip_config.json, of the folder in which one of OpenAI's archives (.pt) lies. The files are tokenizer.json, or
vocab.json and merges.txt; for the latter two also bpe_simple_vocab_16e6.txt.gz.

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
      .def_property_readonly(
          "cleaning", &Tokenizer::cleaning,
          R"(What happens to a text before it is split: "hugging face" (normalisation form C, white space
collapsed, lower case), "open_clip lower" (also OpenAI's: the repairs of ftfy but for wrong encodings, HTML's references
resolved, white space collapsed, lower case), "open_clip whitespace" (the same in the case given) or
"open_clip canonicalize" (the same in lower case without punctuation); "siglip" (lower case, no ASCII punctuation, white
space collapsed).)")
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
