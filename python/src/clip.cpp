// SPDX-License-Identifier: Apache-2.0
#include "reco/clip.h"

#include <algorithm>
#include <cctype>
#include <fstream>
#include <iomanip>
#include <sstream>

#include "image_array.h"

namespace reco::python {

namespace {

namespace fs = std::filesystem;

constexpr const char* kImages = "clip.encode_images";

/// One item of the list that encode_images() got.
struct Item {
  enum class Kind { path, bytes, object } kind;
  fs::path path;
  py::object object;                 // the bytes, or what becomes an array
  bool native = false;               // the library decodes it; otherwise PIL does
  std::span<const std::byte> bytes;  // of `object`
};

bool is_path(const py::handle& x) { return py::isinstance<py::str>(x) || py::hasattr(x, "__fspath__"); }
bool is_bytes(const py::handle& x) {
  return PyBytes_Check(x.ptr()) || PyByteArray_Check(x.ptr()) || PyMemoryView_Check(x.ptr());
}
bool is_pil(const py::handle& x) { return py::hasattr(x, "convert") && py::hasattr(x, "getbands"); }

bool is_array(const py::handle& x) { return py::isinstance<py::array>(x) || is_tensor(x); }

bool is_one(const py::object& x) {
  return is_path(x) || is_bytes(x) || is_pil(x) || (is_array(x) && x.attr("ndim").cast<int>() != 4);
}

/// JPEG, PNG or WebP by its first bytes. Files that cannot be read count too: the library's error says why.
bool is_native(std::string_view head) {
  using namespace std::string_view_literals;
  return head.empty() || head.starts_with("\xff\xd8\xff"sv) || head.starts_with("\x89PNG"sv) ||
         (head.starts_with("RIFF"sv) && head.size() >= 12 && head.substr(8, 4) == "WEBP"sv);
}

/// The usual suffixes are believed, which saves opening a million files twice.
bool is_native(const fs::path& path) {
  std::string suffix = path.extension().string();
  std::transform(suffix.begin(), suffix.end(), suffix.begin(), [](unsigned char c) { return std::tolower(c); });
  if (suffix == ".jpg" || suffix == ".jpeg" || suffix == ".png" || suffix == ".webp") return true;
  std::string head(12, '\0');
  std::ifstream file(path, std::ios::binary);
  file.read(head.data(), 12);
  head.resize(static_cast<std::size_t>(file.gcount()));
  return is_native(std::string_view(head));
}

std::span<const std::byte> span_of(const py::object& bytes) {
  char* data = nullptr;
  py::ssize_t size = 0;
  if (PyBytes_AsStringAndSize(bytes.ptr(), &data, &size) != 0) throw py::error_already_set();
  return {reinterpret_cast<const std::byte*>(data), static_cast<std::size_t>(size)};
}

Item classify(const py::object& x) {
  if (is_bytes(x)) {
    const auto bytes = py::reinterpret_steal<py::bytes>(PyBytes_FromObject(x.ptr()));  // itself, if it is bytes
    if (!bytes) throw py::error_already_set();
    return {Item::Kind::bytes, {}, bytes, is_native(std::string_view(bytes)), span_of(bytes)};
  }
  if (is_path(x)) {
    auto path = x.cast<fs::path>();
    const bool native = is_native(path);
    return {Item::Kind::path, std::move(path), {}, native, {}};
  }
  if (is_array(x)) return {Item::Kind::object, {}, any_array(x), false, {}};
  if (!is_pil(x)) {
    throw py::type_error("encode_images takes paths, bytes, PIL images and uint8 arrays [height, width, 3], got " +
                         py::str(py::type::of(x)).cast<std::string>());
  }
  return {Item::Kind::object, {}, x, false, {}};
}

std::vector<Item> classify_all(const py::object& images) {
  std::vector<Item> items;
  if (is_one(images)) {
    items.push_back(classify(images));
  } else {
    for (const py::handle& image : images) items.push_back(classify(py::reinterpret_borrow<py::object>(image)));
  }
  return items;
}

/// The pixels by way of PIL: of an image object, or of a file in a format that only PIL knows.
Image through_pil(const Item& item, const std::string& name) {
  try {
    py::object image = item.object;
    if (item.kind != Item::Kind::object) {
      const py::object source =
          item.kind == Item::Kind::path ? py::cast(item.path) : py::module_::import("io").attr("BytesIO")(item.object);
      image = py::module_::import("PIL.Image").attr("open")(source);
    }
    const py::object rgb = image.attr("convert")("RGB");
    return image_from_array(py::module_::import("numpy").attr("asarray")(rgb), kImages);
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_Exception)) {  // KeyboardInterrupt says nothing about the image
      pending_error() = std::make_unique<py::error_already_set>(std::move(error));
      throw Interrupted("[interrupted] while PIL read an image");
    }
    fail(kImages, "'", name, "' is neither JPEG, PNG nor WebP, and PIL cannot read it: ", error.what());
  }
}

/// Called without the GIL, from several threads at once.
Image to_image(const Item& item, std::int64_t index) {
  const std::string name = item.kind == Item::Kind::path ? item.path.string() : "image " + std::to_string(index);
  if (item.native) return item.kind == Item::Kind::path ? read_image(item.path) : decode_image(item.bytes, name);
  const py::gil_scoped_acquire gil;
  if (item.kind != Item::Kind::object || !py::isinstance<py::array>(item.object)) return through_pil(item, name);
  try {
    return image_from_array(item.object, kImages);
  } catch (const Error& error) {
    fail(kImages, name, ": ", error.what());
  }
}

Unreadable unreadable(std::optional<py::function> callback) {
  if (!callback) return {};
  return [callback = std::move(callback)](std::int64_t index, const std::string& error) {
    const py::gil_scoped_acquire gil;
    (*callback)(index, error);
  };
}

py::array_t<float> encode_images(const Clip& clip, const py::object& images, const py::object& progress,
                                 std::optional<py::function> on_error) {
  const std::vector<Item> items = classify_all(images);
  const ProgressArgument reporter(progress, "encode", " images");
  const Unreadable report = unreadable(std::move(on_error));
  const auto source = [&](std::int64_t i) { return to_image(items[static_cast<std::size_t>(i)], i); };
  Matrix result;
  {
    const LongCall unlocked;
    result = clip.encode_images(static_cast<std::int64_t>(items.size()), source, reporter.function(), report);
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
    open_clip_pytorch_model.bin) and the tokenizer's files (where a folder serves both, give the path of
    open_clip_config.json for the latter); or a .pt archive with the tokenizer's files beside it. Nothing in pickles is run.
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
    JPEG, PNG and WebP files are decoded by reco itself, on all threads; other formats by PIL, if it is installed.
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
