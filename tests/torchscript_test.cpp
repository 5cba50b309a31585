// SPDX-License-Identifier: Apache-2.0
#include "io/torchscript.h"

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <random>

#include "io/pickle.h"
#include "io/zip.h"
#include "support.h"

namespace reco::io {
namespace {

template <typename Number>
std::string little(Number value) {
  std::string bytes(sizeof(value), '\0');
  std::memcpy(bytes.data(), &value, sizeof(value));
  return bytes;
}

std::span<const std::byte> bytes_of(const std::string& text) { return std::as_bytes(std::span(text)); }

struct ZipFile {
  std::string name, content;
  std::uint16_t method = 0;
};

/// A zip archive; with `wide`, sizes and offsets stand in 64-bit records, as PyTorch writes them.
std::string zip(const std::vector<ZipFile>& files, bool wide) {
  std::string archive, directory;
  for (const ZipFile& file : files) {
    const std::uint64_t size = file.content.size(), offset = archive.size();
    const auto narrow = [&](std::uint64_t value) {
      return little(wide ? 0xFFFFFFFFU : static_cast<std::uint32_t>(value));
    };
    const std::string extra =
        wide ? little<std::uint16_t>(1) + little<std::uint16_t>(24) + little(size) + little(size) + little(offset) : "";
    const auto lengths =
        little(static_cast<std::uint16_t>(file.name.size())) + little(static_cast<std::uint16_t>(extra.size()));
    const std::string head =
        little<std::uint16_t>(0) + little(file.method) + std::string(8, '\0') + narrow(size) + narrow(size) + lengths;
    archive += "PK\x03\x04" + little<std::uint16_t>(45) + head + file.name + extra + file.content;
    directory += std::string("PK\x01\x02") + little<std::uint32_t>(45) + head + std::string(10, '\0') + narrow(offset) +
                 file.name + extra;
  }
  const std::uint64_t start = archive.size(), end = start + directory.size(), count = files.size();
  archive += directory;
  if (wide) {
    archive += "PK\x06\x06" + little<std::uint64_t>(44) + std::string(12, '\0') + little(count) + little(count) +
               little<std::uint64_t>(directory.size()) + little(start);
    archive += "PK\x06\x07" + little<std::uint32_t>(0) + little(end) + little<std::uint32_t>(1);
  }
  return archive + "PK\x05\x06" + std::string(4, '\0') +
         std::string(2, static_cast<char>(count)).replace(1, 1, 1, '\0') + std::string(1, static_cast<char>(count)) +
         std::string(1, '\0') + little(static_cast<std::uint32_t>(directory.size())) +
         little(wide ? 0xFFFFFFFFU : static_cast<std::uint32_t>(start)) + std::string(2, '\0');
}

std::string text(const std::string& value) { return 'X' + little(static_cast<std::uint32_t>(value.size())) + value; }
std::string integer(std::int32_t value) { return 'J' + little(value); }

std::string numbers(const std::vector<std::int32_t>& values) {
  std::string tuple = "(";
  for (const std::int32_t value : values) tuple += integer(value);
  return tuple + 't';
}

/// _rebuild_tensor_v2(storage, offset, shape, strides, False, OrderedDict())
std::string tensor(const std::string& key, std::int32_t offset, const std::vector<std::int32_t>& shape,
                   const std::vector<std::int32_t>& strides, const std::string& type = "FloatStorage") {
  const std::string storage =
      '(' + text("storage") + "ctorch\n" + type + '\n' + text(key) + text("cuda:0") + integer(6) + "tQ";
  return "ctorch._utils\n_rebuild_tensor_v2\n(" + storage + integer(offset) + numbers(shape) + numbers(strides) +
         "\x89" + "ccollections\nOrderedDict\n)RtR";
}

/// A module with the tensor `a.weight` and what else is given as key and value.
std::string module(const std::string& weight, const std::string& more = "") {
  const std::string inner =
      std::string("c__torch__\nLinear\n)\x81}(") + text("weight") + weight + text("training") + "\x88" + "ub";
  return std::string("\x80\x02") + "c__torch__\nModel\n)\x81q" + '\0' + "}(" + text("a") + inner + more + "ub.";
}

class TorchScriptTest : public ::testing::Test {
 protected:
  std::filesystem::path write(const std::string& content) {
    std::ofstream(folder_ / "model.pt", std::ios::binary) << content;
    return folder_ / "model.pt";
  }

  std::string archive(const std::string& pickle, bool wide = true) {
    std::string floats;
    for (const float value : {0.F, 1.F, 2.F, 3.F, 4.F, 5.F}) floats += little(value);
    return zip({{"m/code/x.py", "packed", 8}, {"m/data.pkl", pickle}, {"m/data/0", floats}, {"m/byteorder", "little"}},
               wide);
  }

  std::string error(const std::string& pickle) {
    const auto path = write(archive(pickle));
    return error_of([&] { TorchScript{path}; });
  }

  Folder folder_;
};

TEST_F(TorchScriptTest, FindsTensorsWhereTheyHang) {
  for (const bool wide : {false, true}) {
    const TorchScript script(
        write(archive(module(tensor("0", 1, {2, 2}, {2, 1}), text("scale") + tensor("0", 5, {}, {})), wide)));
    ASSERT_EQ(script.tensors().size(), 2U);
    const TensorView& weight = script.tensors().at("a.weight");
    EXPECT_EQ(weight.dtype, "F32");
    EXPECT_EQ(weight.shape, (std::vector<std::int64_t>{2, 2}));
    std::vector<float> values(4);
    to_float32(weight, values, "a.weight");
    EXPECT_EQ(values, (std::vector<float>{1, 2, 3, 4}));
    EXPECT_EQ(script.tensors().at("scale").count(), 1);
  }
}

TEST_F(TorchScriptTest, ReadsAStateDictWithParameters) {
  const std::string parameter = "ctorch._utils\n_rebuild_parameter\n(" + tensor("0", 0, {6}, {1}) + "\x88}tR";
  const TorchScript script(write(archive("\x80\x02}" + text("x.weight") + parameter + "s.")));
  EXPECT_EQ(script.tensors().at("x.weight").count(), 6);
}

TEST_F(TorchScriptTest, RefusesWhatDoesNotFit) {
  EXPECT_TRUE(has(error(module(tensor("0", 0, {7}, {1}))), "'a.weight' reaches beyond its storage"));
  EXPECT_TRUE(has(error(module(tensor("0", 6, {1}, {1}))), "reaches beyond"));
  EXPECT_TRUE(has(error(module(tensor("0", -1, {1}, {1}))), "reaches beyond"));
  EXPECT_TRUE(has(error(module(tensor("0", 0, {2'000'000'000, 2'000'000'000, 2'000'000'000}, {0, 2'000'000'000, 1}))),
                  "not contiguous"));
  EXPECT_TRUE(has(error(module(tensor("0", 0, {2, 3}, {1, 2}))), "not contiguous"));
  EXPECT_TRUE(has(error(module(tensor("0", 0, {-2}, {1}))), "whole numbers"));
  EXPECT_TRUE(has(error(module(tensor("1", 0, {1}, {1}))), "storage of tensor 'a.weight' is missing"));
  EXPECT_TRUE(has(error(module(tensor("0", 0, {1}, {1}, "ComplexFloatStorage"))), "ComplexFloatStorage"));
}

TEST_F(TorchScriptTest, HostilePicklesEndInErrors) {
  EXPECT_TRUE(has(error(""), "truncated"));
  EXPECT_TRUE(has(error("."), "takes more from its stack"));
  EXPECT_TRUE(has(error("t."), "no mark"));
  EXPECT_TRUE(has(error("(a."), "takes more from its stack"));
  EXPECT_TRUE(has(error("i."), "opcode 105"));
  EXPECT_TRUE(has(error("h\x05."), "refers to 5"));
  EXPECT_TRUE(has(error("X\xff\xff\xff\x7f."), "truncated"));
  EXPECT_TRUE(has(error(text("\xff") + '.'), "no UTF-8"));
  EXPECT_TRUE(has(error("NNR."), "calls what is no function"));
  EXPECT_TRUE(has(error(std::string(5'000'000, 'N') + '.'), "at most 4194304"));
  std::string deep = "}q" + std::string(1, '\0');
  deep += text("x") + "h" + std::string(1, '\0') + "s.";  // holds itself
  EXPECT_TRUE(has(error(deep), "deeper than 32 levels"));
  std::string wide = "}";  // each holds the one before eight times: 8^30 ways
  for (int i = 0; i < 30; ++i) {
    const std::string memo(1, static_cast<char>(i));
    wide += "q" + memo + "}(";
    for (int j = 0; j < 8; ++j) wide += text(std::to_string(j)) + "h" + memo;
    wide += "u";
  }
  EXPECT_TRUE(has(error(wide + '.'), "more than 1000000 objects"));
}

TEST_F(TorchScriptTest, DamageIsNeverACrash) {
  const std::string good = archive(module(tensor("0", 1, {2, 2}, {2, 1})));
  std::mt19937 random(3);
  int refused = 0;
  for (int i = 0; i < 20'000; ++i) {
    std::string bad = good;
    for (std::uint32_t j = 0; j <= random() % 3; ++j) bad[random() % bad.size()] = static_cast<char>(random());
    if (random() % 10 == 0) bad.resize(random() % bad.size());
    const auto bytes = bytes_of(bad);
    refused += error_of([&] {
                 const auto files = read_zip(bytes, "bad");
                 for (const auto& [name, content] : files) {
                   if (content.empty()) continue;
                   EXPECT_TRUE(&content.front() >= &bytes.front() && &content.back() <= &bytes.back());
                 }
                 if (files.contains("m/data.pkl")) Pickle(files.at("m/data.pkl"), "bad");
               }).empty()
                   ? 0
                   : 1;
  }
  EXPECT_GT(refused, 5000);
}

TEST_F(TorchScriptTest, OtherFilesAreNoArchives) {
  EXPECT_TRUE(has(error_of([&] { TorchScript{write("")}; }), "no zip archive"));
  EXPECT_TRUE(has(error_of([&] { TorchScript{write(std::string(100'000, 'x'))}; }), "no zip archive"));
  EXPECT_TRUE(has(error_of([&] { TorchScript{write(zip({{"a.txt", "x"}}, false))}; }), "no data.pkl"));
  EXPECT_TRUE(has(error_of([&] { TorchScript{write(zip({{"m/data.pkl", "}.", 8}}, true))}; }), "no data.pkl"));
  EXPECT_TRUE(has(error_of([&] {
                    TorchScript{write(zip({{"m/data.pkl", "}."}, {"m/byteorder", "big"}}, true))};
                  }),
                  "big-endian"));
}

}  // namespace
}  // namespace reco::io
