// SPDX-License-Identifier: Apache-2.0
#include "reco/clip.h"

#include <iomanip>
#include <sstream>

#include "image_input.h"

namespace reco::python {

namespace {

namespace fs = std::filesystem;

constexpr const char* kImages = "clip.encode_images";

Unreadable unreadable(std::optional<py::function> callback) {
  if (!callback) return {};
  return [callback = std::move(callback)](std::int64_t index, const std::string& error) {
    const py::gil_scoped_acquire gil;
    (*callback)(index, error);
  };
}

py::array_t<float> encode_images(const Clip& clip, const py::object& images, const py::object& progress,
                                 std::optional<py::function> on_error) {
  const std::vector<ImageInput> inputs = image_inputs(images, kImages);
  const ProgressArgument reporter(progress, "encode", " images");
  const Unreadable report = unreadable(std::move(on_error));
  const auto source = [&](std::int64_t i) {
    return inputs[static_cast<std::size_t>(i)].read(clip.preprocess(), "image " + std::to_string(i));
  };
  Matrix result;
  {
    const LongCall unlocked;
    result = clip.encode_images(static_cast<std::int64_t>(inputs.size()), source, reporter.function(), report);
  }
  return to_numpy(std::move(result));
}

py::array_t<float> encode_texts(const Clip& clip, const py::object& texts, const py::object& progress) {
  std::vector<std::string> list;
  const auto add = [&](const py::handle& text) {
    if (!py::isinstance<py::str>(text)) {
      throw py::type_error("encode_texts takes strings, got " + py::str(py::type::of(text)).cast<std::string>());
    }
    list.push_back(text.cast<std::string>());
  };
  if (py::isinstance<py::str>(texts)) {
    add(texts);
  } else {
    for (const py::handle& text : texts) add(text);
  }
  const ProgressArgument reporter(progress, "encode", " texts");
  Matrix result;
  {
    const LongCall unlocked;
    result = clip.encode_texts(list, reporter.function());
  }
  return to_numpy(std::move(result));
}

py::object info(const Clip& clip) { return loads(clip.info()); }

Clip load(const fs::path& path, const std::string& device, const std::string& dtype, std::int64_t batch_size) {
  const LongCall unlocked;
  return Clip::load(path, {device, dtype, batch_size});
}

/// What a pickle leads to: the same folder, opened again, if it still holds the same model.
Clip reload(const fs::path& path, const std::string& device, const std::string& dtype, std::int64_t batch_size,
            const std::string& fingerprint) {
  Clip clip = load(path, device, dtype, batch_size);
  check(clip.fingerprint() == fingerprint, "clip.load", "'", path.string(), "' held the model ", fingerprint,
        " when it was pickled, now it holds ", clip.fingerprint());
  return clip;
}

py::tuple reduce(const Clip& clip) {
  const auto reload = py::module_::import("reco._core").attr("_reload_clip");
  const ClipOptions& options = clip.options();
  return py::make_tuple(
      reload, py::make_tuple(clip.path(), options.device, options.dtype, options.batch_size, clip.fingerprint()));
}

std::string describe(const Clip& clip) {
  const py::object all = info(clip);
  std::ostringstream text;
  text << "Clip(dim " << clip.dim() << ", images " << clip.image_size() << " px through "
       << all["architecture"].cast<std::string>() << ", texts of " << clip.context_length() << " tokens through "
       << py::str("{num_hidden_layers} layers x {hidden_size}")
              .attr("format_map")(all["text_config"])
              .cast<std::string>()
       << ", " << std::fixed << std::setprecision(1) << static_cast<double>(clip.parameters()) / 1e6
       << " M parameters, " << clip.dtype() << " on " << clip.device() << ", fingerprint "
       << clip.fingerprint().substr(0, 8) << ")";
  return text.str();
}

}  // namespace

void init_clip(py::module_& m) {
  m.def("_reload_clip", &reload, "What a pickled Clip is made of again.");
  Class<Clip>(m, "Clip", R"(A frozen CLIP model, opened with Clip.load(). Immutable and thread safe.

CLIP (Radford et al., arXiv 2103.00020), open_clip's models and SigLIP (Zhai et al., arXiv 2303.15343). A pickle holds
the path, and opens it again where it is unpickled; an Error says if another model lies there then.

Examples
--------
>>> import reco
>>> clip = reco.Clip.load("clip-vit-base-patch32")  # doctest: +SKIP
>>> images, texts = clip.encode_images(["cat.jpg"]), clip.encode_texts(["a cat", "a dog"])  # doctest: +SKIP
>>> clip.logit_scale * images @ texts.T  # logits [1, 2]  # doctest: +SKIP
)")
      .def_static(
          "load", &load, py::arg("path"), py::arg("device") = "cpu", py::arg("dtype") = "float32",
          py::arg("batch_size") = 64,
          R"(Open a model: a Hugging Face folder (CLIP, SigLIP), an open_clip folder, or one of OpenAI's archives.

Parameters
----------
path : str or Path
    Folder with config.json, model.safetensors (or its sharded index, or pytorch_model.bin), preprocessor_config.json or
    processor_config.json, and the tokenizer's files; or with open_clip_config.json, open_clip_model.safetensors (or
    open_clip_pytorch_model.bin) and, unless the vocabulary is CLIP's, the tokenizer's files (where a folder serves both,
    give the path of open_clip_config.json for the latter); or a .pt archive. Nothing in pickles is run.
device : str
    "cpu", "cuda" or "cuda:N".
dtype : {"float32", "bfloat16"}
    The arithmetic of the towers; results are float32 either way.
batch_size : int
    Items that go through a tower at once, 1 to 65,536.

Returns
-------
Clip

Raises
------
Error
    When a file or a tensor is missing, damaged, or does not fit the config; names file, tensor and shapes.
)")
      .def("encode_images", &encode_images, py::arg("images"), py::arg("progress") = py::none(),
           py::arg("on_error") = py::none(), R"(Embed images.

Parameters
----------
images : list, or one, of str, Path, bytes, PIL image, uint8 array [height, width, 3]; or a uint8 array [n, height, width, 3]
    JPEG, PNG and WebP files are decoded by reco itself, on all threads; other formats by PIL, whatever the files' names.
    Tensors of PyTorch's or of other libraries (DLPack) count as arrays.
progress : bool or callable, optional
    True for a progress bar on standard error; or called after each batch with (images done, images in all), returning
    False stops with an Error.
on_error : callable, optional
    An image that cannot be read is then no error: its row is NaN, and at the end on_error(index, message) is called
    for each of them, in order.

Returns
-------
float32 array [n, dim]
    Unit rows, in the order given. ``torch.from_dlpack(rows)`` shares their memory.

Raises
------
Error
    Naming the image that cannot be read.
)")
      .def("encode_texts", &encode_texts, py::arg("texts"), py::arg("progress") = py::none(), R"(Embed texts.

Parameters
----------
texts : list of str, or one str
    Longer ones than context_length tokens are cut.
progress : bool or callable, optional
    True for a progress bar on standard error; or called after each batch with (texts done, texts in all), returning
    False stops with an Error.

Returns
-------
float32 array [n, dim]
    Unit rows, in the order given. ``torch.from_dlpack(rows)`` shares their memory.

Raises
------
Error
    For a token that the model's vocabulary does not have, and when progress stops it.
)")
      .def_property_readonly("dim", &Clip::dim, "Width of the shared space.")
      .def_property_readonly("image_size", &Clip::image_size, "Input pixels a side.")
      .def_property_readonly("context_length", &Clip::context_length, "Input tokens of the text tower.")
      .def_property_readonly("parameters", &Clip::parameters, "Number of weights.")
      .def_property_readonly("logit_scale", &Clip::logit_scale, "The factor on cosines before the softmax.")
      .def_property_readonly("logit_bias", &Clip::logit_bias, "SigLIP's: added before the sigmoid; 0 in CLIP.")
      .def_property_readonly("dtype", &Clip::dtype, "'float32' or 'bfloat16': the arithmetic of the towers.")
      .def_property_readonly("device", &Clip::device, "'cpu', 'cuda' or 'cuda:N'.")
      .def_property_readonly("fingerprint", &Clip::fingerprint,
                             "64 hex digits that name the model: equal ones give the same embeddings.")
      .def_property_readonly("tokenizer", &Clip::tokenizer, "The model's Tokenizer.")
      .def_property_readonly(
          "preprocess", [](const Clip& self) { return self.preprocess(); },
          "The model's Preprocess; a copy, changing it does nothing.")
      .def("info", &info, R"(What was found in the folder.

Returns
-------
dict
    format, architecture, sizes, activation, preprocess, tokenizer, parameters, fingerprint and more.
)")
      .def("__reduce__", &reduce, "Its path, options and fingerprint.")
      .copies_share()
      .def("__repr__", &describe, "Sizes of both towers, weights, arithmetic and the fingerprint's beginning.");
}

}  // namespace reco::python
