// SPDX-License-Identifier: Apache-2.0
#include "reco/tokenizer.h"

#include "helpers.h"

namespace reco::python {

void init_tokenizer(py::module_& m) {
  Class<Tokenizer>(m, "Tokenizer", R"(A CLIP model's tokenizer, with ids identical to its own project's. Immutable.

Byte-pair encoding as Hugging Face's CLIPTokenizer and open_clip do it, and SigLIP's SentencePiece models. Made with
Tokenizer.load(); `clip.tokenizer` is that of a model. ``len(tokenizer)`` is the size of its vocabulary.
)")
      .def_static("load", &Tokenizer::load, py::arg("path"), py::call_guard<LongCall>(),
                  R"(Read the tokenizer of a model.

Parameters
----------
path : str or Path
    A Hugging Face folder, an open_clip folder or its open_clip_config.json, or the folder in which one of OpenAI's
    archives (.pt) lies. The files are tokenizer.json, or vocab.json and merges.txt; for the latter two also
    bpe_simple_vocab_16e6.txt.gz, and CLIP's own vocabulary, which reco carries, where there is none; for SigLIP
    spiece.model.

Returns
-------
Tokenizer

Raises
------
Error
    If a file is missing or malformed; names it.
)")
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
    Longer input is cut and keeps its end token; 2 or more.

Returns
-------
list of int

Raises
------
Error
    For a max_length below 2.
)")
      .def(
          "__call__",
          [](const Tokenizer& self, const std::vector<std::string>& texts, std::int64_t max_length) {
            IndexMatrix ids;
            {
              const LongCall unlocked;
              ids = self.encode(texts, max_length);
            }
            return to_numpy(std::move(ids));
          },
          py::arg("texts"), py::arg("max_length") = 77, R"(The ids of many texts, padded; on all threads.

Parameters
----------
texts : list of str
max_length : int
    Longer input is cut and keeps its end token; 2 or more.

Returns
-------
int64 array [n, max_length]
    pad_id behind the end token.

Raises
------
Error
    For a max_length below 2.
)")
      .def_property_readonly(
          "cleaning", &Tokenizer::cleaning,
          R"(What happens to a text before it is split: "hugging face" (normalisation form C, white space
collapsed, lower case), "open_clip lower" (also OpenAI's: the repairs of ftfy 6.3, HTML's references
resolved, white space collapsed, lower case), "open_clip whitespace" (the same in the case given) or
"open_clip canonicalize" (the same in lower case without punctuation); "siglip" (lower case, no ASCII punctuation, white
space collapsed); "siglip2" (none) or "siglip2 lower".)")
      .def("__len__", &Tokenizer::size, "Number of tokens in the vocabulary.")
      .def_property_readonly("start_id", &Tokenizer::start_id, "Id of the start token; -1 where there is none.")
      .def_property_readonly("end_id", &Tokenizer::end_id, "Id of the end token.")
      .def_property_readonly("pad_id", &Tokenizer::pad_id, "Id that fills what is shorter than max_length.")
      .copies_share()
      .def(
          "__repr__",
          [](const Tokenizer& self) {
            std::ostringstream text;
            text << "Tokenizer(" << self.size() << " tokens, start " << self.start_id() << ", end " << self.end_id()
                 << ", pad " << self.pad_id() << ", cleaning '" << self.cleaning() << "')";
            return text.str();
          },
          "Size, special tokens and cleaning.");
}

}  // namespace reco::python
