// SPDX-License-Identifier: Apache-2.0
#include "io/safetensors.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include "io/sha256.h"
#include "reco/error.h"

namespace reco::io {
namespace {

namespace fs = std::filesystem;

class SafetensorsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = fs::path(::testing::TempDir()) / (std::string("reco_safetensors_") + info->name());
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  fs::path write(const std::string& bytes) const {
    const fs::path path = folder_ / "file.safetensors";
    std::ofstream(path, std::ios::binary) << bytes;
    return path;
  }

  /// A file of this header and this many bytes of data; the header's size may be a lie.
  fs::path write(const std::string& header, std::size_t data, std::int64_t size_error = 0) const {
    const std::uint64_t size = header.size() + size_error;
    std::string bytes(8, '\0');
    std::memcpy(bytes.data(), &size, 8);
    return write(bytes + header + std::string(data, '\1'));
  }

  static std::string error_of(const fs::path& path) {
    try {
      Safetensors file(path);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }

  void expect_error(const fs::path& path, const std::string& part) const {
    const std::string message = error_of(path);
    EXPECT_NE(message.find(part), std::string::npos) << "message: " << message;
    EXPECT_NE(message.find(path.string()), std::string::npos) << "message: " << message;
  }

  void expect_error(const std::string& header, std::size_t data, const std::string& part) const {
    expect_error(write(header, data), part);
  }

  fs::path folder_;
};

std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
  return '"' + name + R"(":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + '}';
}

std::string header_of(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return '{' + entry("a", dtype, shape, offsets) + '}';
}

TEST_F(SafetensorsTest, RoundTrip) {
  const std::vector<float> a{1, 2, 3, 4, 5, 6};
  const std::vector<std::uint16_t> half{0x3c00};
  const std::map<std::string, TensorView> tensors{{"a", {"F32", {2, 3}, std::as_bytes(std::span(a))}},
                                                  {"half", {"F16", {1}, std::as_bytes(std::span(half))}},
                                                  {"none", {"I64", {0, 5}, {}}},
                                                  {"scalar", {"F32", {}, std::as_bytes(std::span(a).first(1))}}};
  const fs::path path = folder_ / "file.safetensors";
  write_safetensors(path, tensors, {{"format", "pt"}, {"note", "ü \"quoted\""}});

  Safetensors first(path);
  const Safetensors file = std::move(first);  // views outlive a move
  EXPECT_EQ(file.path(), path);
  EXPECT_EQ(file.metadata().at("note"), "ü \"quoted\"");
  ASSERT_EQ(file.tensors().size(), 4U);
  EXPECT_EQ(file.tensors().at("a").shape, (std::vector<std::int64_t>{2, 3}));
  EXPECT_EQ(file.tensors().at("none").count(), 0);
  EXPECT_EQ(file.tensors().at("scalar").count(), 1);
  std::vector<float> out(6);
  to_float32(file.tensors().at("a"), out, "a");
  EXPECT_EQ(out, a);
}

TEST_F(SafetensorsTest, EmptyFileOfNoTensors) { EXPECT_EQ(error_of(write("{}", 0)), ""); }

TEST_F(SafetensorsTest, MissingAndTruncatedFiles) {
  expect_error(folder_ / "missing.safetensors", "");
  expect_error(write(""), "no safetensors file");
  expect_error(write("1234567"), "no safetensors file");
  const std::string header = header_of("F32", "[2]", "[0,8]");
  EXPECT_EQ(error_of(write(header, 8)), "");
  expect_error(header, 7, "lies at bytes 0 to 8 of 7");
  expect_error(write(header, 0, 1), "truncated");
}

TEST_F(SafetensorsTest, HeaderSize) {
  expect_error(write(std::string(8, '\xff') + "{}"), "at most");
  const std::uint64_t size = 100'000'001;
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &size, 8);
  expect_error(write(bytes + "{}"), "at most");
  expect_error(write("{}", 0, 1000), "truncated");
  expect_error(write("{}", 0, -2), "JSON");
}

TEST_F(SafetensorsTest, BadJson) {
  expect_error("{", 0, "JSON");
  expect_error("[]", 0, "no JSON object");
  expect_error("null", 0, "no JSON object");
  expect_error("{\"\xff\":1}", 0, "JSON");
  expect_error("{} trailing", 0, "JSON");
  expect_error("{\"a\":1}", 0, "no JSON object");
  expect_error("{\"a\":" + std::string(100'000, '[') + std::string(100'000, ']') + "}", 0, "nested deeper");
  expect_error(R"({"__metadata__":{"a":1}})", 0, "is no string");
  expect_error(R"({"__metadata__":[]})", 0, "no JSON object");
}

TEST_F(SafetensorsTest, MissingOrMistypedMembers) {
  expect_error(R"({"a":{"shape":[1],"data_offsets":[0,4]}})", 4, "no dtype");
  expect_error(R"({"a":{"dtype":"F32","data_offsets":[0,4]}})", 4, "no shape");
  expect_error(R"({"a":{"dtype":"F32","shape":[1]}})", 4, "no data_offsets");
  expect_error(R"({"a":{"dtype":7,"shape":[1],"data_offsets":[0,4]}})", 4, "no string");
  expect_error(header_of("F32", "1", "[0,4]"), 4, "no list");
  expect_error(header_of("F32", "[1]", "{}"), 4, "no list");
  expect_error(header_of("F32", "[1.0]", "[0,4]"), 4, "whole numbers");
  expect_error(header_of("F32", "[\"1\"]", "[0,4]"), 4, "whole numbers");
  expect_error(header_of("F32", "[1]", "[0,4,4]"), 4, "two data_offsets");
}

TEST_F(SafetensorsTest, NegativeAndOverflowingNumbers) {
  expect_error(header_of("F32", "[-1]", "[0,4]"), 4, "whole numbers");
  expect_error(header_of("F32", "[1]", "[-4,0]"), 4, "whole numbers");
  expect_error(header_of("F32", "[1]", "[4,0]"), 4, "lies at bytes 4 to 0");
  expect_error(header_of("F32", "[1]", "[0,18446744073709551615]"), 4, "lies at bytes");
  expect_error(header_of("F32", "[1]", "[18446744073709551612,18446744073709551615]"), 4, "lies at bytes");
  expect_error(header_of("F32", "[1]", "[0,18446744073709551620]"), 4, "whole numbers");
  expect_error(header_of("F32", "[18446744073709551615]", "[0,4]"), 4, "does not fit 64 bits");
  // 2^62 elements of four bytes wrap to zero.
  expect_error(header_of("F32", "[4611686018427387904]", "[0,0]"), 0, "does not fit 64 bits");
  expect_error(header_of("F32", "[4294967296,4294967296,1]", "[0,4]"), 4, "does not fit 64 bits");
}

TEST_F(SafetensorsTest, SizeMustFitDtypeAndShape) {
  expect_error(header_of("F64", "[1]", "[0,4]"), 4, "needs 8 bytes");
  expect_error(header_of("F16", "[1]", "[0,4]"), 4, "needs 2 bytes");
  expect_error(header_of("F32", "[2]", "[0,4]"), 4, "needs 8 bytes");
  expect_error(header_of("F31", "[1]", "[0,4]"), 4, "unknown dtype 'F31'");
}

TEST_F(SafetensorsTest, OverlapsAndHoles) {
  const auto two = [](const std::string& first, const std::string& second) {
    return '{' + entry("a", "F32", "[1]", first) + ',' + entry("b", "F32", "[1]", second) + '}';
  };
  EXPECT_EQ(error_of(write(two("[4,8]", "[0,4]"), 8)), "");
  expect_error(two("[0,4]", "[0,4]"), 4, "overlaps");
  expect_error(two("[0,4]", "[2,6]"), 6, "overlaps");
  expect_error(two("[0,4]", "[5,9]"), 9, "leaves a hole");
  expect_error(two("[1,5]", "[5,9]"), 9, "leaves a hole");
  expect_error(two("[0,4]", "[4,8]"), 9, "end at byte 8 of 9");
}

TEST_F(SafetensorsTest, RepeatedNames) {
  expect_error('{' + entry("a", "F32", "[1]", "[0,4]") + ',' + entry("a", "F32", "[1]", "[4,8]") + '}', 8,
               "has 'a' twice");
}

TEST_F(SafetensorsTest, HalfPrecision) {
  const std::vector<std::uint16_t> half{0x0000, 0x8000, 0x3c00, 0xc000, 0x0001, 0x03ff, 0x0400, 0x7bff, 0x7c00, 0xfc00};
  const std::vector<float> expected{0.0F,
                                    -0.0F,
                                    1.0F,
                                    -2.0F,
                                    0x1p-24F,
                                    1023 * 0x1p-24F,
                                    0x1p-14F,
                                    65504.0F,
                                    std::numeric_limits<float>::infinity(),
                                    -std::numeric_limits<float>::infinity()};
  std::vector<float> out(half.size());
  to_float32({"F16", {10}, std::as_bytes(std::span(half))}, out, "half");
  EXPECT_EQ(out, expected);
  EXPECT_TRUE(std::signbit(out[1]));

  const std::uint16_t nan = 0x7e00;
  float value = 0;
  to_float32({"F16", {1}, std::as_bytes(std::span(&nan, 1))}, {&value, 1}, "nan");
  EXPECT_TRUE(std::isnan(value));
}

TEST_F(SafetensorsTest, BrainFloatAndDouble) {
  const std::vector<std::uint16_t> brain{0x3f80, 0xc049};
  std::vector<float> out(2);
  to_float32({"BF16", {2}, std::as_bytes(std::span(brain))}, out, "brain");
  EXPECT_EQ(out, (std::vector<float>{1.0F, -3.140625F}));
  const std::vector<double> wide{0.5, -2.0};
  to_float32({"F64", {2}, std::as_bytes(std::span(wide))}, out, "wide");
  EXPECT_EQ(out, (std::vector<float>{0.5F, -2.0F}));
}

TEST_F(SafetensorsTest, ConversionErrors) {
  const std::vector<float> data{1, 2};
  std::vector<float> out(2);
  EXPECT_THROW(to_float32({"I32", {2}, std::as_bytes(std::span(data))}, out, "a"), Error);
  EXPECT_THROW(to_float32({"F32", {1}, std::as_bytes(std::span(data).first(1))}, out, "a"), Error);
}

TEST_F(SafetensorsTest, WriteRefusesWhatItCouldNotRead) {
  const std::vector<float> data{1, 2};
  const auto bytes = std::as_bytes(std::span(data));
  const fs::path path = folder_ / "refused.safetensors";
  EXPECT_THROW(write_safetensors(path, {{"a", {"F32", {3}, bytes}}}, {}), Error);
  EXPECT_THROW(write_safetensors(path, {{"a", {"F33", {2}, bytes}}}, {}), Error);
  EXPECT_THROW(write_safetensors(path, {{"__metadata__", {"F32", {2}, bytes}}}, {}), Error);
  EXPECT_THROW(write_safetensors(path, {{"\xff", {"F32", {2}, bytes}}}, {}), Error);
  EXPECT_FALSE(fs::exists(path));
}

// Every byte of a small file changed in turn: an Error or a well-formed view, never a read out of bounds.
TEST_F(SafetensorsTest, SurvivesAnyChangedByte) {
  const std::string header = '{' + entry("a", "F32", "[2]", "[0,8]") + ',' + entry("b", "F16", "[1,1]", "[8,10]") + '}';
  const std::string bytes = read_file(write(header, 10));
  for (std::size_t i = 0; i < 8 + header.size(); ++i) {
    for (const char value : {'\0', '9', '-', '"', ']', '}', '\xff'}) {
      std::string changed = bytes;
      changed[i] = value;
      const fs::path file = write(changed);
      try {
        const Safetensors opened(file);
        for (const auto& [name, view] : opened.tensors()) EXPECT_LE(view.data.size(), 10U);
      } catch (const Error&) {
      }
    }
  }
}

std::string hash_of(const std::string& text) { return sha256(std::as_bytes(std::span(text))); }

TEST(Sha256Test, KnownDigests) {
  EXPECT_EQ(hash_of(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(hash_of("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(hash_of("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(hash_of(std::string(1'000'000, 'a')), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Sha256Test, PiecesOfAnySizeGiveTheSameDigest) {
  const std::string text(1000, 'x');
  const auto bytes = std::as_bytes(std::span(text));
  for (std::size_t piece = 1; piece < 200; ++piece) {
    Sha256 hash;
    for (std::size_t at = 0; at < bytes.size(); at += piece) {
      hash.update(bytes.subspan(at, std::min(piece, bytes.size() - at)));
    }
    EXPECT_EQ(hash.finish(), hash_of(text)) << piece;
  }
}

}  // namespace
}  // namespace reco::io
