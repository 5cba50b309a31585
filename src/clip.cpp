// SPDX-License-Identifier: Apache-2.0
#include "reco/clip.h"

#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <array>
#include <functional>
#include <future>
#include <limits>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <numeric>
#include <sstream>
#include <system_error>
#include <utility>

#include "clip_folder.h"
#include "clip_model.h"
#include "io/sha256.h"
#include "parallel.h"
#include "reco/error.h"
#include "reco/interrupt.h"
#include "reco/threads.h"

namespace reco {

namespace fs = std::filesystem;
using nlohmann::json;

/// What load() made; everything below works on it.
struct LoadedClip {
  fs::path path;
  ClipOptions options;
  ClipConfig config;
  Preprocess preprocess;
  Tokenizer tokenizer;
  ClipModel model;
  ModelFormat format;
  std::string weights_dtype, fingerprint;
  std::int64_t parameters = 0;
};

struct Clip::Impl : LoadedClip {};

namespace {

constexpr const char* kLoad = "clip.load";
constexpr const char* kImages = "clip.encode_images";
constexpr const char* kTexts = "clip.encode_texts";

/// Runs work in inference mode on threads() threads; what LibTorch and the system throw becomes an Error.
template <typename Work>
auto run(const char* tag, const Work& work) {
  try {
    at::set_num_threads(threads());  // OpenMP's and MKL's: each keeps a number a thread, and torch may have set either
    const c10::InferenceMode guard;
    return work();
  } catch (const c10::Error& error) {
    fail(tag, "LibTorch: ", error.what_without_backtrace());
  } catch (const std::system_error& error) {
    fail(tag, error.what());
  }
}

at::Device parse_device(const std::string& name) {
  if (name == "cpu") return at::Device(at::kCPU);
  const std::string number = name.size() > 5 ? name.substr(5) : "0";
  const bool cuda = name == "cuda" || (name.rfind("cuda:", 0) == 0 && number.size() <= 3 &&
                                       number.find_first_not_of("0123456789") == std::string::npos);
  check(cuda, kLoad, "device must be 'cpu', 'cuda' or 'cuda:N', got '", name, "'");
  check(at::hasCUDA(), kLoad, "device '", name, "' was asked for, but there is no GPU that this LibTorch can use");
  const auto gpus = static_cast<std::int64_t>(at::getNumGPUs());
  check(std::stoll(number) < gpus, kLoad, "device '", name, "' was asked for, but there are ", gpus, " GPUs");
  return at::Device(at::kCUDA, static_cast<at::DeviceIndex>(std::stoi(number)));
}

at::ScalarType parse_dtype(const std::string& name) {
  check(name == "float32" || name == "bfloat16", kLoad, "dtype must be 'float32' or 'bfloat16', got '", name, "'");
  return name == "float32" ? at::kFloat : at::kBFloat16;
}

/// What Hugging Face's image processors do goes without saying: it was so when the first fingerprints were taken.
json preprocess_json(const Preprocess& p) {
  json object{{"do_resize", p.do_resize},
              {"shortest_edge", p.shortest_edge},
              {"resize_width", p.resize_width},
              {"resize_height", p.resize_height},
              {"resample", static_cast<int>(p.resample)},
              {"do_center_crop", p.do_center_crop},
              {"crop_width", p.crop_width},
              {"crop_height", p.crop_height},
              {"do_rescale", p.do_rescale},
              {"rescale_factor", p.rescale_factor},
              {"do_normalize", p.do_normalize},
              {"mean", p.mean},
              {"std", p.std}};
  if (p.fit != Fit::stretch) object["fit"] = p.fit == Fit::inside ? "inside" : "around";
  if (!p.rgb_first) object["rgb_first"] = false;
  if (p.torchvision_crop) object["torchvision_crop"] = true;
  if (p.fill != 0) object["fill"] = p.fill;
  return object;
}

/// Tells tokenizers apart by what they do, since one and the same comes in several file formats.
std::string probe_tokenizer(const Tokenizer& tokenizer) {
  const std::array<std::string, 4> texts{
      "A photo of a cat, 2 dogs & the Eiffel Tower (1889) in black-and-white!",
      "the quick brown fox jumps over the lazy dog; it's we'll they've I'm don't you're he'd",
      "caf\u00e9 na\u00efve \u041c\u043e\u0441\u043a\u0432\u0430 \u6771\u4eac \U0001f600 \u20ac5.00 #hashtag @user",
      "0123456789 !\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"};
  json ids = json::array();
  for (const std::string& text : texts) ids.push_back(tokenizer.encode(text, 256));
  const std::string dump = ids.dump();
  return io::sha256(std::as_bytes(std::span(dump)));
}

std::string make_fingerprint(const ClipFolder& folder) {
  json description = folder.config.json();
  description["format"] = "reco-clip-1";
  description["preprocess"] = preprocess_json(folder.preprocess);
  description["tokenizer"] = probe_tokenizer(folder.tokenizer);
  if (folder.tokenizer.cleaning() != "hugging face") description["cleaning"] = folder.tokenizer.cleaning();
  if (folder.config.text.padded()) description["pad_id"] = folder.tokenizer.pad_id();
  return folder.weights.fingerprint(description.dump());
}

LoadedClip load_clip(const fs::path& path, const ClipOptions& options) {
  const at::ScalarType dtype = parse_dtype(options.dtype);
  const at::Device device = parse_device(options.device);
  const ClipFolder folder = ClipFolder::open(path);
  // Hashing and packing the weights take about as long as each other.
  std::future<std::string> fingerprint = std::async(std::launch::async, make_fingerprint, std::cref(folder));
  ClipModel model(folder.config, folder.weights, device, dtype);
  return {fs::absolute(path), options,       folder.config,          folder.preprocess, folder.tokenizer,
          std::move(model),   folder.format, folder.weights.dtype(), fingerprint.get(), folder.weights.parameters()};
}

/// For people: "ViT 12 layers x 768, patches of 32", "ResNet 3-4-6-3 x 64".
std::string architecture(const ClipConfig& config) {
  const ClipVision& vision = config.vision;
  std::ostringstream text;
  if (vision.is_resnet()) {
    text << "ResNet " << vision.stages[0];
    for (const std::size_t stage : {1, 2, 3}) text << '-' << vision.stages[stage];
    text << " x " << vision.hidden_size;
  } else {
    text << "ViT " << vision.num_hidden_layers << " layers x " << vision.hidden_size << ", patches of "
         << vision.patch_size;
  }
  return text.str();
}

void report(const Progress& progress, const char* what, std::int64_t done, std::int64_t total) {
  check_interrupt();
  if (progress && !progress(done, total)) fail("interrupted", what, " stopped after ", done, " of ", total);
}

/// Writes the preprocessed pixels of one image; its errors name the image. Called from several threads at once.
using Fill = std::function<void(std::int64_t index, std::span<float> pixels)>;

void fill_image(const Image& image, const Preprocess& config, const std::string& name, std::span<float> out) {
  try {
    preprocess(image, config, out);
  } catch (const Error& error) {
    fail(kImages, name, ": ", error.what());
  }
}

/// The same of an image that nobody wants afterwards.
void fill_image(Image&& image, const Preprocess& config, const std::string& name, std::span<float> out) {
  fill_image(std::as_const(image), config, name, out);
  recycle(std::move(image));
}

/// Fills batches and sends them through the tower; the next one is read and filled meanwhile.
Matrix encode_batches(const LoadedClip& clip, std::int64_t count, const Fill& fill, const Progress& progress) {
  const std::int64_t size = clip.config.vision.image_size, batch = std::min(clip.options.batch_size, count);
  std::array<at::Tensor, 2> buffers;
  const auto prepare = [&](std::int64_t first, std::size_t which) {
    at::Tensor& pixels = buffers[which];
    if (!pixels.defined()) pixels = at::empty({batch, 3, size, size}, at::kFloat);
    const std::size_t each = static_cast<std::size_t>(3 * size * size);
    float* out = pixels.data_ptr<float>();
    parallel_for(std::min(batch, count - first), [&](std::int64_t i) { fill(first + i, {out + i * each, each}); });
  };
  prepare(0, 0);
  Matrix result(count, clip.config.projection_dim);
  ClipScratch scratch;
  for (std::int64_t first = 0, which = 0; first < count; first += batch, which = 1 - which) {
    const std::int64_t n = std::min(batch, count - first);
    std::future<void> next;
    if (first + n < count) next = std::async(std::launch::async, prepare, first + n, 1 - which);
    const at::Tensor rows = clip.model.encode_images(buffers[which].narrow(0, 0, n), scratch).contiguous();
    std::copy_n(rows.data_ptr<float>(), rows.numel(), result.row(first).data());
    report(progress, "encode_images", first + n, count);
    if (next.valid()) next.get();
  }
  return result;
}

Matrix encode(const LoadedClip& clip, std::size_t count, const Fill& fill, const Progress& progress) {
  if (count == 0) return Matrix(0, clip.config.projection_dim);
  return run(kImages, [&] { return encode_batches(clip, static_cast<std::int64_t>(count), fill, progress); });
}

/// encode() that goes on when an image cannot be read.
Matrix encode_readable(const LoadedClip& clip, std::size_t count, const Fill& fill, const Progress& progress,
                       const Unreadable& unreadable) {
  std::mutex mutex;
  std::map<std::int64_t, std::string> errors;
  const auto guarded = [&](std::int64_t i, std::span<float> out) {
    try {
      fill(i, out);
    } catch (const Interrupted&) {
      throw;  // says nothing about the image
    } catch (const std::exception& error) {
      std::fill(out.begin(), out.end(), 0.0F);
      const std::lock_guard lock(mutex);
      errors[i] = error.what();
    }
  };
  Matrix result = encode(clip, count, guarded, progress);
  for (const auto& [i, error] : errors) {
    result.row(i).setConstant(std::numeric_limits<float>::quiet_NaN());
    unreadable(i, error);
  }
  return result;
}

/// A text's token ids, and which of them becomes its embedding.
struct Tokens {
  std::vector<std::int64_t> ids;
  std::int64_t position = 0;
};

std::int64_t find_position(const std::vector<std::int64_t>& ids, const ClipText& config) {
  switch (config.pooling) {
    case TextPooling::first:
      return 0;
    case TextPooling::last:
      return static_cast<std::int64_t>(ids.size()) - 1;
    case TextPooling::highest:
      return std::max_element(ids.begin(), ids.end()) - ids.begin();
    default:
      return std::find(ids.begin(), ids.end(), config.eos_token_id) - ids.begin();  // encode() always puts one
  }
}

/// Under a causal mask what follows the token that counts never matters and is cut; otherwise pads fill the context.
Tokens tokenize(const LoadedClip& clip, const std::string& text, std::int64_t number) {
  const ClipText& config = clip.config.text;
  Tokens tokens{clip.tokenizer.encode(text, config.max_position_embeddings)};
  const std::int64_t highest = *std::max_element(tokens.ids.begin(), tokens.ids.end());
  check(highest < config.vocab_size, kTexts, "text ", number, ": token ", highest, " is beyond the model's vocab_size ",
        config.vocab_size);
  if (config.padded()) {
    tokens.ids.resize(static_cast<std::size_t>(config.max_position_embeddings), clip.tokenizer.pad_id());
  }
  tokens.position = find_position(tokens.ids, config);
  if (config.causal) tokens.ids.resize(static_cast<std::size_t>(tokens.position) + 1);
  return tokens;
}

std::vector<Tokens> tokenize(const LoadedClip& clip, std::span<const std::string> texts) {
  std::vector<Tokens> tokens(texts.size());
  parallel_for(static_cast<std::int64_t>(texts.size()),
               [&](std::int64_t i) { tokens[static_cast<std::size_t>(i)] = tokenize(clip, texts[i], i); });
  return tokens;
}

/// Sends texts through the tower, each batch as long as its longest text. `order` says which texts, shortest first.
void encode_sorted(const LoadedClip& clip, const std::vector<Tokens>& texts, const std::vector<std::size_t>& order,
                   const Progress& progress, Matrix& result) {
  ClipScratch scratch;
  const std::size_t batch = static_cast<std::size_t>(clip.options.batch_size);
  for (std::size_t first = 0; first < order.size(); first += batch) {
    const std::size_t n = std::min(batch, order.size() - first), length = texts[order[first + n - 1]].ids.size();
    const auto rows = static_cast<std::int64_t>(n), columns = static_cast<std::int64_t>(length);
    const at::Tensor ids = at::zeros({rows, columns}, at::kLong), positions = at::empty({rows}, at::kLong);
    for (std::size_t i = 0; i < n; ++i) {
      const Tokens& text = texts[order[first + i]];
      std::copy(text.ids.begin(), text.ids.end(), ids.data_ptr<std::int64_t>() + i * length);
      positions.data_ptr<std::int64_t>()[i] = text.position;
    }
    const at::Tensor out = clip.model.encode_texts(ids, positions, scratch).contiguous();
    for (std::size_t i = 0; i < n; ++i) {
      std::copy_n(out.data_ptr<float>() + i * out.size(1), out.size(1), result.row(order[first + i]).data());
    }
    report(progress, "encode_texts", static_cast<std::int64_t>(first + n), static_cast<std::int64_t>(order.size()));
  }
}

}  // namespace

Clip Clip::load(const fs::path& path, const ClipOptions& options) {
  check(options.batch_size >= 1 && options.batch_size <= 1 << 16, kLoad, "batch_size must be from 1 to 65,536, got ",
        options.batch_size);
  return run(kLoad, [&] { return Clip(std::make_shared<const Impl>(Impl{load_clip(path, options)})); });
}

Matrix Clip::encode_images(std::span<const fs::path> files, const Progress& progress) const {
  const auto fill = [&](std::int64_t i, std::span<float> out) {
    fill_image(read_image(files[i], impl_->preprocess.rgb_first), impl_->preprocess, files[i].string(), out);
  };
  return encode(*impl_, files.size(), fill, progress);
}

Matrix Clip::encode_images(std::span<const Image> images, const Progress& progress) const {
  const auto fill = [&](std::int64_t i, std::span<float> out) {
    fill_image(images[i], impl_->preprocess, "image " + std::to_string(i), out);
  };
  return encode(*impl_, images.size(), fill, progress);
}

Matrix Clip::encode_images(std::span<const std::span<const std::byte>> files, const Progress& progress) const {
  const auto fill = [&](std::int64_t i, std::span<float> out) {
    const std::string name = "image " + std::to_string(i);
    const Preprocess& config = impl_->preprocess;
    fill_image(decode_image(files[i], name, max_image_pixels, config.rgb_first), config, name, out);
  };
  return encode(*impl_, files.size(), fill, progress);
}

Matrix Clip::encode_images(std::int64_t count, const ImageSource& source, const Progress& progress,
                           const Unreadable& unreadable) const {
  check(count >= 0, kImages, "count must not be negative, got ", count);
  const auto fill = [&](std::int64_t i, std::span<float> out) {
    fill_image(source(i), impl_->preprocess, "image " + std::to_string(i), out);
  };
  const auto images = static_cast<std::size_t>(count);
  return unreadable ? encode_readable(*impl_, images, fill, progress, unreadable)
                    : encode(*impl_, images, fill, progress);
}

Matrix Clip::encode_texts(std::span<const std::string> texts, const Progress& progress) const {
  Matrix result(static_cast<Eigen::Index>(texts.size()), dim());
  run(kTexts, [&] {
    const std::vector<Tokens> tokens = tokenize(*impl_, texts);
    std::vector<std::size_t> order(texts.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](auto a, auto b) { return tokens[a].ids.size() < tokens[b].ids.size(); });
    encode_sorted(*impl_, tokens, order, progress, result);
  });
  return result;
}

std::int64_t Clip::dim() const { return impl_->config.projection_dim; }
std::int64_t Clip::image_size() const { return impl_->config.vision.image_size; }
std::int64_t Clip::context_length() const { return impl_->config.text.max_position_embeddings; }
std::int64_t Clip::parameters() const { return impl_->parameters; }
float Clip::logit_scale() const { return impl_->model.logit_scale(); }
float Clip::logit_bias() const { return impl_->model.logit_bias(); }
const fs::path& Clip::path() const { return impl_->path; }
const ClipOptions& Clip::options() const { return impl_->options; }
const std::string& Clip::dtype() const { return impl_->options.dtype; }
const std::string& Clip::device() const { return impl_->options.device; }
const std::string& Clip::fingerprint() const { return impl_->fingerprint; }
const Tokenizer& Clip::tokenizer() const { return impl_->tokenizer; }
const Preprocess& Clip::preprocess() const { return impl_->preprocess; }

std::string Clip::info() const {
  json info = impl_->config.json();
  info["format"] = std::array{"hugging face", "open_clip", "openai"}[static_cast<std::size_t>(impl_->format)];
  info["model_type"] = impl_->config.architecture;
  info["architecture"] = architecture(impl_->config);
  info["preprocess"] = preprocess_json(impl_->preprocess);
  info["tokenizer"] = {{"cleaning", impl_->tokenizer.cleaning()},
                       {"size", impl_->tokenizer.size()},
                       {"start_id", impl_->tokenizer.start_id()},
                       {"end_id", impl_->tokenizer.end_id()},
                       {"pad_id", impl_->tokenizer.pad_id()}};
  info["dim"] = dim();
  info["image_size"] = image_size();
  info["context_length"] = context_length();
  info["logit_scale"] = logit_scale();
  info["logit_bias"] = logit_bias();
  info["parameters"] = parameters();
  info["weights_dtype"] = impl_->weights_dtype;
  info["dtype"] = dtype();
  info["device"] = device();
  info["fingerprint"] = fingerprint();
  return info.dump();
}

}  // namespace reco
