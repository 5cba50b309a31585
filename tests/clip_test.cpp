// SPDX-License-Identifier: Apache-2.0
#include "reco/clip.h"

#include <ATen/record_function.h>
#include <gtest/gtest.h>
#include <png.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <fstream>
#include <functional>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <string_view>
#include <thread>

#include "clip_config.h"
#include "clip_reference.h"
#include "io/safetensors.h"
#include "reco/error.h"
#include "reco/threads.h"

namespace reco {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::Reference;
using testing::Vec;
using testing::Weights;

constexpr int kEnd = 513;

/// The 256 printable stand-ins of bytes that CLIP's vocabulary uses, in its order.
std::vector<std::string> byte_symbols() {
  const auto utf8 = [](int code) {
    return code < 0x80 ? std::string(1, static_cast<char>(code))
                       : std::string{static_cast<char>(0xc0 | code >> 6), static_cast<char>(0x80 | (code & 0x3f))};
  };
  const auto printable = [](int byte) { return (byte > 32 && byte < 127) || (byte > 160 && byte != 173); };
  std::vector<std::string> symbols;
  for (int byte = 0; byte < 256; ++byte) {
    if (printable(byte)) symbols.push_back(utf8(byte));
  }
  for (int byte = 0, next = 256; byte < 256; ++byte) {
    if (!printable(byte)) symbols.push_back(utf8(next++));
  }
  return symbols;
}

json tiny_config(const std::string& activation = "quick_gelu") {
  return {{"model_type", "clip"},
          {"projection_dim", 6},
          {"text_config",
           {{"vocab_size", 514},
            {"hidden_size", 8},
            {"intermediate_size", 20},
            {"num_hidden_layers", 2},
            {"num_attention_heads", 2},
            {"max_position_embeddings", 12},
            {"hidden_act", activation},
            {"eos_token_id", kEnd}}},
          {"vision_config",
           {{"hidden_size", 12},
            {"intermediate_size", 16},
            {"num_hidden_layers", 3},
            {"num_attention_heads", 3},
            {"image_size", 9},  // one row and column that no patch covers
            {"patch_size", 4},
            {"hidden_act", activation}}}};
}

class ClipTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = fs::path(::testing::TempDir()) / (std::string("reco_clip_") + info->name());
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    write_tokenizer();
    write("preprocessor_config.json", json{{"size", 9}, {"crop_size", 9}}.dump());
    make_model(tiny_config());
  }
  void TearDown() override { fs::remove_all(folder_); }

  void write(const std::string& name, const std::string& text) const {
    std::ofstream(folder_ / name, std::ios::binary) << text;
  }

  void write_tokenizer() const {
    json vocabulary = json::object();
    int id = 0;
    for (const char* suffix : {"", "</w>"}) {
      for (const std::string& symbol : byte_symbols()) vocabulary[symbol + suffix] = id++;
    }
    vocabulary["<|startoftext|>"] = id++;
    vocabulary["<|endoftext|>"] = id++;
    write("vocab.json", vocabulary.dump());
    write("merges.txt", "#version: 0.2\n");
  }

  void make_model(const json& config, unsigned seed = 1) {
    config_ = config;
    write("config.json", config.dump());
    weights_.clear();
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (const auto& [name, shape] : ClipConfig::load(folder_ / "config.json").tensors()) {
      std::int64_t count = 1;
      for (const std::int64_t dim : shape) count *= dim;
      auto& values = weights_[name];
      values.resize(static_cast<std::size_t>(count));
      const float scale = name.find("weight") != std::string::npos && shape.size() > 1 ? 0.5F : 1.0F;
      for (float& value : values) value = scale * normal(random);
    }
    write_weights("model.safetensors", weights_);
  }

  void write_weights(const std::string& file, const Weights& weights) const {
    const auto shapes = ClipConfig::load(folder_ / "config.json").tensors();
    std::map<std::string, io::TensorView> views;
    for (const auto& [name, values] : weights) {
      const auto found = shapes.find(name);
      std::vector<std::int64_t> shape{static_cast<std::int64_t>(values.size())};
      if (found != shapes.end()) shape = found->second;
      views[name] = {"F32", shape, std::as_bytes(std::span(values))};
    }
    io::write_safetensors(folder_ / file, views, {});
  }

  std::string load_error(const ClipOptions& options = {}) const {
    try {
      Clip::load(folder_, options);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }

  void expect_load_error(const std::string& part, const ClipOptions& options = {}) const {
    const std::string message = load_error(options);
    EXPECT_NE(message.find(part), std::string::npos) << "message: " << message;
  }

  fs::path folder_;
  json config_;
  Weights weights_;
};

Image random_image(unsigned seed, int width = 9, int height = 9) {
  Image image{width, height, std::vector<std::uint8_t>(static_cast<std::size_t>(3 * width * height))};
  std::mt19937 random(seed);
  for (auto& value : image.pixels) value = static_cast<std::uint8_t>(random());
  return image;
}

std::vector<std::byte> png_of(const Image& image) {
  png_image header{};
  header.version = PNG_IMAGE_VERSION;
  header.width = static_cast<png_uint_32>(image.width), header.height = static_cast<png_uint_32>(image.height);
  header.format = PNG_FORMAT_RGB;
  png_alloc_size_t size = 0;
  png_image_write_to_memory(&header, nullptr, &size, 0, image.pixels.data(), 0, nullptr);
  std::vector<std::byte> file(size);
  png_image_write_to_memory(&header, file.data(), &size, 0, image.pixels.data(), 0, nullptr);
  return file;
}

double cosine(const Matrix& rows, Eigen::Index row, const Vec& expected) {
  double sum = 0;
  for (Eigen::Index i = 0; i < rows.cols(); ++i) sum += rows(row, i) * expected[static_cast<std::size_t>(i)];
  return sum;
}

void expect_row(const Matrix& rows, Eigen::Index row, const Vec& expected) {
  ASSERT_EQ(rows.cols(), static_cast<Eigen::Index>(expected.size()));
  for (Eigen::Index i = 0; i < rows.cols(); ++i) EXPECT_NEAR(rows(row, i), expected[static_cast<std::size_t>(i)], 1e-5);
}

const std::vector<std::string> kTextList{"a", "tiny dogs", "", "cats", "a text that is much too long", "dog"};

TEST_F(ClipTest, EqualsThePlainMaths) {
  for (const char* activation : {"quick_gelu", "gelu", "gelu_new", "silu", "relu"}) {
    make_model(tiny_config(activation));
    const Clip clip = Clip::load(folder_, {.batch_size = 2});
    const Reference reference(config_, weights_);
    const std::vector<Image> images{random_image(1), random_image(2, 20, 13), random_image(3, 9, 31)};
    const Matrix out = clip.encode_images(images);
    for (int i = 0; i < 3; ++i) expect_row(out, i, reference.image(images[i], clip.preprocess()));
    const Matrix texts = clip.encode_texts(kTextList);
    for (std::size_t i = 0; i < kTextList.size(); ++i) {
      const auto ids = clip.tokenizer().encode(kTextList[i], 12);
      expect_row(texts, static_cast<Eigen::Index>(i), reference.text(ids, ids.size() - 1));
    }
  }
}

TEST_F(ClipTest, OneLayer) {
  json config = tiny_config();
  config["text_config"]["num_hidden_layers"] = config["vision_config"]["num_hidden_layers"] = 1;
  make_model(config);
  const Clip clip = Clip::load(folder_);
  const std::vector<Image> images{random_image(1)};
  expect_row(clip.encode_images(images), 0, Reference(config_, weights_).image(images[0], clip.preprocess()));
}

TEST_F(ClipTest, OldEndTokenMeansTheHighestId) {
  json config = tiny_config();
  config["text_config"]["eos_token_id"] = 2;
  make_model(config);
  const Clip clip = Clip::load(folder_);
  const Matrix out = clip.encode_texts(std::vector<std::string>{"two words"});
  const auto ids = clip.tokenizer().encode("two words", 12);
  expect_row(out, 0, Reference(config_, weights_).text(ids, ids.size() - 1));
}

TEST_F(ClipTest, BrainFloatIsClose) {
  const Clip clip = Clip::load(folder_, {.dtype = "bfloat16"});
  EXPECT_EQ(clip.dtype(), "bfloat16");
  const Reference reference(config_, weights_);
  const std::vector<Image> images{random_image(1), random_image(2)};
  const Matrix out = clip.encode_images(images);
  for (int i = 0; i < 2; ++i) EXPECT_GT(cosine(out, i, reference.image(images[i], clip.preprocess())), 0.99);
  EXPECT_NEAR(out.row(0).norm(), 1.0F, 1e-5F);
}

TEST_F(ClipTest, BatchesAndThreadsDoNotMatter) {
  const Matrix whole = Clip::load(folder_).encode_texts(kTextList);
  const int before = threads();
  set_threads(1);
  for (const std::int64_t batch : {1, 3}) {
    const Clip clip = Clip::load(folder_, {.batch_size = batch});
    EXPECT_LT((clip.encode_texts(kTextList) - whole).cwiseAbs().maxCoeff(), 1e-5F);
  }
  set_threads(before);
}

TEST_F(ClipTest, ImagesFromFilesBytesAndPixelsAreTheSame) {
  const Clip clip = Clip::load(folder_, {.batch_size = 2});
  std::vector<Image> images;
  std::vector<fs::path> paths;
  std::vector<std::vector<std::byte>> files;
  for (unsigned i = 0; i < 5; ++i) {
    images.push_back(random_image(i, 9 + static_cast<int>(i), 12));
    files.push_back(png_of(images.back()));
    paths.push_back(folder_ / (std::to_string(i) + ".png"));
    write(paths.back().filename(), {reinterpret_cast<const char*>(files.back().data()), files.back().size()});
  }
  const std::vector<std::span<const std::byte>> spans(files.begin(), files.end());
  const Matrix expected = clip.encode_images(images);
  EXPECT_EQ(clip.encode_images(paths), expected);
  EXPECT_EQ(clip.encode_images(spans), expected);
}

TEST_F(ClipTest, NothingInNothingOut) {
  const Clip clip = Clip::load(folder_);
  EXPECT_EQ(clip.encode_texts({}).rows(), 0);
  EXPECT_EQ(clip.encode_images(std::span<const Image>()).rows(), 0);
  EXPECT_EQ(clip.encode_images(std::span<const Image>()).cols(), 6);
}

TEST_F(ClipTest, ManyCallersAtOnce) {
  const Clip clip = Clip::load(folder_);
  const std::vector<Image> images{random_image(1), random_image(2)};
  const Matrix expected = clip.encode_images(images), texts = clip.encode_texts(kTextList);
  std::atomic<int> wrong = 0;
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i) {
    callers.emplace_back([&] {
      for (int j = 0; j < 5; ++j) {
        if ((clip.encode_images(images) - expected).cwiseAbs().maxCoeff() > 1e-6F) ++wrong;
        if ((clip.encode_texts(kTextList) - texts).cwiseAbs().maxCoeff() > 1e-6F) ++wrong;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(wrong, 0);
}

TEST_F(ClipTest, ProgressCountsAndStops) {
  const Clip clip = Clip::load(folder_, {.batch_size = 2});
  const std::vector<Image> images(5, random_image(1));
  std::vector<std::int64_t> done;
  clip.encode_images(images, [&](std::int64_t count, std::int64_t total) {
    EXPECT_EQ(total, 5);
    done.push_back(count);
    return true;
  });
  EXPECT_EQ(done, (std::vector<std::int64_t>{2, 4, 5}));
  for (const bool text : {false, true}) {
    try {
      const auto stop = [](std::int64_t count, std::int64_t) { return count < 4; };
      text ? clip.encode_texts(kTextList, stop) : clip.encode_images(images, stop);
      ADD_FAILURE() << "not stopped";
    } catch (const Error& error) {
      EXPECT_EQ(std::string(error.what()).rfind("[interrupted]", 0), 0U) << error.what();
    }
  }
}

TEST_F(ClipTest, SourcesMaySkipWhatIsUnreadable) {
  const Clip clip = Clip::load(folder_, {.batch_size = 2});
  const std::vector<Image> images{random_image(0), random_image(1), random_image(2), random_image(3), random_image(4)};
  const ImageSource source = [&](std::int64_t i) {
    if (i == 1 || i == 4) fail("test", "no image ", i);
    return images[static_cast<std::size_t>(i)];
  };
  std::vector<std::string> errors;
  const Matrix found = clip.encode_images(
      5, source, {}, [&](std::int64_t i, const std::string& error) { errors.push_back(std::to_string(i) + error); });
  EXPECT_EQ(errors, (std::vector<std::string>{"1[test] no image 1", "4[test] no image 4"}));
  const Matrix expected = clip.encode_images(images);
  for (const int i : {0, 2, 3}) EXPECT_LT((found.row(i) - expected.row(i)).cwiseAbs().maxCoeff(), 1e-6F) << i;
  for (const int i : {1, 4}) EXPECT_TRUE(found.row(i).array().isNaN().all()) << i;
  EXPECT_THROW(clip.encode_images(5, source), Error);
  EXPECT_THROW(clip.encode_images(-1, source), Error);
  EXPECT_EQ(clip.encode_images(0, source).rows(), 0);
}

/// Holds the encoder inside its first layer until the images of the next batch have been read.
struct Overlap {
  static inline std::mutex mutex;
  static inline std::condition_variable changed;
  static inline int read = 0, held = 0;

  static Image read_image(std::int64_t i) {
    const std::lock_guard lock(mutex);
    ++read;
    changed.notify_all();
    return random_image(static_cast<unsigned>(i));
  }

  /// Called by LibTorch at the start of each of its operations on the thread that encodes.
  static std::unique_ptr<at::ObserverContext> on_operation(const at::RecordFunction& operation) {
    std::unique_lock lock(mutex);
    if (std::string_view(operation.name()) != "aten::layer_norm" || held > 0) return nullptr;
    held = changed.wait_for(lock, std::chrono::minutes(1), [] { return read == 4; }) ? read : -read;
    return nullptr;
  }
};

TEST_F(ClipTest, TheNextImagesAreReadWhileTheEncoderWorks) {
  const Clip clip = Clip::load(folder_, {.batch_size = 2});
  const auto handle = at::addThreadLocalCallback(at::RecordFunctionCallback(Overlap::on_operation));
  const Matrix rows = clip.encode_images(4, Overlap::read_image);
  at::removeCallback(handle);
  EXPECT_EQ(Overlap::held, 4);
  EXPECT_EQ(rows.rows(), 4);
}

TEST_F(ClipTest, UnreadableImagesAreNamed) {
  const Clip clip = Clip::load(folder_, {.batch_size = 2});
  const auto message = [&](const auto& images) -> std::string {
    try {
      clip.encode_images(images);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  write("good.png", {reinterpret_cast<const char*>(png_of(random_image(1)).data()), png_of(random_image(1)).size()});
  write("bad.png", "no image");
  std::vector<fs::path> paths(6, folder_ / "good.png");
  EXPECT_EQ(message(paths), "");
  paths[3] = folder_ / "bad.png", paths[5] = folder_ / "missing.png";
  EXPECT_NE(message(paths).find("bad.png"), std::string::npos) << message(paths);
  std::vector<Image> images(3, random_image(1));
  images[1].pixels.pop_back();
  EXPECT_NE(message(images).find("image 1"), std::string::npos) << message(images);
}

TEST_F(ClipTest, SaysWhatItIs) {
  const Clip clip = Clip::load(folder_);
  EXPECT_EQ(clip.dim(), 6);
  EXPECT_EQ(clip.image_size(), 9);
  EXPECT_EQ(clip.context_length(), 12);
  EXPECT_FLOAT_EQ(clip.logit_scale(), std::exp(weights_["logit_scale"][0]));
  std::int64_t parameters = 0;
  for (const auto& [name, values] : weights_) parameters += static_cast<std::int64_t>(values.size());
  EXPECT_EQ(clip.parameters(), parameters);
  const json info = json::parse(clip.info());
  EXPECT_EQ(info["fingerprint"], clip.fingerprint());
  EXPECT_EQ(info["vision_config"]["num_hidden_layers"], 3);
  EXPECT_EQ(info["weights_dtype"], "F32");
}

TEST_F(ClipTest, FingerprintNamesTheModel) {
  const std::string first = Clip::load(folder_).fingerprint();
  EXPECT_EQ(first.size(), 64U);
  EXPECT_EQ(Clip::load(folder_, {.dtype = "bfloat16", .batch_size = 3}).fingerprint(), first);
  std::set<std::string> seen{first};
  weights_["text_projection.weight"][0] += 1.0F;
  write_weights("model.safetensors", weights_);
  EXPECT_TRUE(seen.insert(Clip::load(folder_).fingerprint()).second);
  config_["vision_config"]["layer_norm_eps"] = 1e-6;
  write("config.json", config_.dump());
  EXPECT_TRUE(seen.insert(Clip::load(folder_).fingerprint()).second);
  write("preprocessor_config.json", json{{"size", 9}, {"crop_size", 9}, {"resample", 2}}.dump());
  EXPECT_TRUE(seen.insert(Clip::load(folder_).fingerprint()).second);
}

TEST_F(ClipTest, ShardsAreTheSameModel) {
  const Clip whole = Clip::load(folder_);
  fs::remove(folder_ / "model.safetensors");
  Weights parts[2];
  json map = json::object();
  int i = 0;
  for (const auto& [name, values] : weights_) {
    map[name] = "part" + std::to_string(i % 2) + ".safetensors";
    parts[i++ % 2][name] = values;
  }
  for (int part = 0; part < 2; ++part) write_weights("part" + std::to_string(part) + ".safetensors", parts[part]);
  write("model.safetensors.index.json", json{{"weight_map", map}}.dump());
  const Clip sharded = Clip::load(folder_);
  EXPECT_EQ(sharded.fingerprint(), whole.fingerprint());
  EXPECT_EQ(sharded.encode_texts(kTextList), whole.encode_texts(kTextList));

  map["logit_scale"] = "../part0.safetensors";
  write("model.safetensors.index.json", json{{"weight_map", map}}.dump());
  expect_load_error("must lie in the same folder");
  map["logit_scale"] = "part9.safetensors";
  write("model.safetensors.index.json", json{{"weight_map", map}}.dump());
  expect_load_error("part9.safetensors");
  write("model.safetensors.index.json", "[]");
  expect_load_error("must hold a JSON object");
  write("model.safetensors.index.json", R"({"weight_map": 3})");
  expect_load_error("weight_map");
  const std::string deep(100'000, '[');  // as text this would take as many calls
  write("model.safetensors.index.json", R"({"weight_map": {"logit_scale": )" + deep + std::string(100'000, ']') + "}}");
  expect_load_error("'logit_scale' must be a string, got array");
}

/// [rows, columns] as [columns, rows].
std::vector<float> transposed(const std::vector<float>& values, std::size_t columns) {
  std::vector<float> out(values.size());
  const std::size_t rows = values.size() / columns;
  for (std::size_t i = 0; i < values.size(); ++i) out[i % columns * rows + i / columns] = values[i];
  return out;
}

/// The same weights under open_clip's names: projections of attention joined, those into the shared space transposed.
Weights in_open_clip(const Weights& weights) {
  const std::vector<std::pair<std::string, std::string>> names{
      {"text_model.embeddings.token_embedding", "token_embedding"},
      {"text_model.embeddings.position_embedding.weight", "positional_embedding"},
      {"text_model.final_layer_norm", "ln_final"},
      {"text_model.encoder.layers", "transformer.resblocks"},
      {"vision_model.encoder.layers", "visual.transformer.resblocks"},
      {"vision_model.embeddings.class_embedding", "visual.class_embedding"},
      {"vision_model.embeddings.patch_embedding", "visual.conv1"},
      {"vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"},
      {"vision_model.pre_layrnorm", "visual.ln_pre"},
      {"vision_model.post_layernorm", "visual.ln_post"},
      {"self_attn.out_proj", "attn.out_proj"},
      {"layer_norm", "ln_"},
      {"mlp.fc1", "mlp.c_fc"},
      {"mlp.fc2", "mlp.c_proj"}};
  Weights out;
  for (const auto& [name, values] : weights) {
    std::string renamed = name;
    for (const auto& [from, to] : names) {
      const std::size_t at = renamed.find(from);
      if (at != renamed.npos) renamed.replace(at, from.size(), to);
    }
    if (name == "text_projection.weight") {
      out["text_projection"] = transposed(values, 8);
    } else if (name == "visual_projection.weight") {
      out["visual.proj"] = transposed(values, 12);
    } else if (const std::size_t at = renamed.find("self_attn.q_proj."); at != renamed.npos) {
      std::vector<float>& joined = out[renamed.substr(0, at) + "attn.in_proj_" + renamed.substr(at + 17)];
      for (const char* part : {"q", "k", "v"}) {
        std::string one = name;
        const auto& more = weights.at(one.replace(one.find("q_proj"), 1, part));
        joined.insert(joined.end(), more.begin(), more.end());
      }
    } else if (name.find("k_proj") == name.npos && name.find("v_proj") == name.npos) {
      out[renamed] = values;
    }
  }
  return out;
}

TEST_F(ClipTest, TheSameModelInOpenClipsLayout) {
  const Clip plain = Clip::load(folder_);
  const json vision{{"layers", 3},     {"width", 12},    {"head_width", 4}, {"mlp_ratio", 16.0 / 12},
                    {"image_size", 9}, {"patch_size", 4}};
  const json text{{"layers", 2},      {"width", 8},        {"heads", 2},
                  {"mlp_ratio", 2.5}, {"vocab_size", 514}, {"context_length", 12}};
  const json model{{"embed_dim", 6}, {"quick_gelu", true}, {"vision_cfg", vision}, {"text_cfg", text}};
  write("open_clip_config.json", json{{"model_cfg", model}}.dump());
  std::map<std::string, io::TensorView> views;
  const Weights weights = in_open_clip(weights_);
  const std::map<std::string, std::vector<std::int64_t>> matrices{{"token_embedding.weight", {514, 8}},
                                                                  {"positional_embedding", {12, 8}},
                                                                  {"text_projection", {8, 6}},
                                                                  {"visual.conv1.weight", {12, 3, 4, 4}},
                                                                  {"visual.proj", {12, 6}},
                                                                  {"visual.positional_embedding", {5, 12}}};
  for (const auto& [name, values] : weights) {
    const auto count = static_cast<std::int64_t>(values.size());
    const std::int64_t width = name.starts_with("visual") ? 12 : 8, hidden = name.starts_with("visual") ? 16 : 20;
    std::vector<std::int64_t> shape{count};
    if (matrices.contains(name)) shape = matrices.at(name);
    if (name.ends_with("in_proj_weight") || name.ends_with("out_proj.weight") || name.ends_with("c_fc.weight")) {
      shape = {count / width, width};
    }
    if (name.ends_with("c_proj.weight")) shape = {width, hidden};
    views[name] = {"F32", shape, std::as_bytes(std::span(values))};
  }
  io::write_safetensors(folder_ / "open_clip_model.safetensors", views, {});
  const Clip clip = Clip::load(folder_ / "open_clip_config.json");
  const std::vector<Image> images{random_image(1), random_image(2)};  // as large as the model's: neither resizes
  EXPECT_LT((clip.encode_images(images) - plain.encode_images(images)).cwiseAbs().maxCoeff(), 1e-6F);
  EXPECT_LT((clip.encode_texts(kTextList) - plain.encode_texts(kTextList)).cwiseAbs().maxCoeff(), 1e-6F);
  EXPECT_NE(clip.fingerprint(), plain.fingerprint());  // texts are cleaned otherwise
  EXPECT_EQ(clip.parameters(), plain.parameters());
}

TEST_F(ClipTest, OtherTensorsAreIgnored) {
  const std::string before = Clip::load(folder_).fingerprint();
  Weights more = weights_;
  more["text_model.embeddings.position_ids"] = {0, 1, 2};
  write_weights("model.safetensors", more);
  EXPECT_EQ(Clip::load(folder_).fingerprint(), before);
}

TEST_F(ClipTest, MissingAndMisshapenTensors) {
  Weights less = weights_;
  less.erase("visual_projection.weight");
  less.erase("text_model.final_layer_norm.bias");
  write_weights("model.safetensors", less);
  expect_load_error("lacks 2 of");
  expect_load_error("text_model.final_layer_norm.bias");
  config_["projection_dim"] = 7;
  write_weights("model.safetensors", weights_);
  write("config.json", config_.dump());
  expect_load_error("text_projection.weight: expected [7, 8], got [6, 8]");
}

TEST_F(ClipTest, TruncatedWeights) {
  fs::resize_file(folder_ / "model.safetensors", fs::file_size(folder_ / "model.safetensors") - 1);
  expect_load_error("model.safetensors");
  fs::remove(folder_ / "model.safetensors");
  expect_load_error("neither model.safetensors nor model.safetensors.index.json nor pytorch_model.bin");
}

TEST_F(ClipTest, BadConfigs) {
  const auto expect_error = [&](const std::function<void(json&)>& change, const std::string& part) {
    json config = tiny_config();
    change(config);
    write("config.json", config.dump());
    expect_load_error(part);
  };
  expect_error([](json& c) { c["model_type"] = "blip"; }, "architecture 'blip'");
  expect_error([](json& c) { c["vision_config"]["model_type"] = "resnet"; }, "got 'resnet'");
  expect_error([](json& c) { c["vision_config"]["hidden_size"] = -12; }, "vision_config.hidden_size");
  expect_error([](json& c) { c["text_config"]["hidden_size"] = "wide"; }, "got \"wide\"");
  expect_error([](json& c) { c["text_config"]["vocab_size"] = 1e30; }, "vocab_size");
  expect_error([](json& c) { c["text_config"]["num_attention_heads"] = 3; }, "multiple of num_attention_heads");
  expect_error([](json& c) { c["text_config"]["hidden_act"] = "sine"; }, "hidden_act 'sine'");
  expect_error([](json& c) { c["vision_config"]["num_channels"] = 4; }, "num_channels must be 3");
  expect_error([](json& c) { c["vision_config"]["patch_size"] = 10; }, "patch_size");
  expect_error([](json& c) { c["vision_config"] = json::array(); }, "must be a JSON object");
  expect_error([](json& c) { c["text_config"]["eos_token_id"] = 7; }, "end token 7");
  expect_error([](json& c) { c["vision_config"]["image_size"] = 12; }, "image_size 12");
  write("config.json", "{");
  expect_load_error("config.json");
  fs::remove(folder_ / "config.json");
  expect_load_error("config.json");
}

TEST_F(ClipTest, DefaultsAndOldKeys) {
  write("config.json", R"({"model_type": "clip"})");
  const ClipConfig config = ClipConfig::load(folder_ / "config.json");
  EXPECT_EQ(config.projection_dim, 512);
  EXPECT_EQ(config.text.hidden_size, 512);
  EXPECT_EQ(config.text.num_attention_heads, 8);
  EXPECT_EQ(config.text.eos_token_id, 49407);
  EXPECT_EQ(config.vision.hidden_size, 768);
  EXPECT_EQ(config.vision.num_attention_heads, 12);
  EXPECT_EQ(config.vision.grid(), 7);
  EXPECT_EQ(config.tensors().size(), 398U);
  write("config.json", R"({"text_config": {"hidden_size": 64, "vocab_size": 9},
                           "text_config_dict": {"hidden_size": 256}, "vision_config_dict": null})");
  const ClipConfig old = ClipConfig::load(folder_ / "config.json");
  EXPECT_EQ(old.text.hidden_size, 256);
  EXPECT_EQ(old.text.vocab_size, 49408);
}

TEST_F(ClipTest, BadOptions) {
  expect_load_error("dtype must be", {.dtype = "int8"});
  expect_load_error("device must be", {.device = "tpu"});
  expect_load_error("device must be", {.device = "cuda:-1"});
  expect_load_error("device 'cuda:999'", {.device = "cuda:999"});
  expect_load_error("batch_size", {.batch_size = 0});
}

}  // namespace
}  // namespace reco
