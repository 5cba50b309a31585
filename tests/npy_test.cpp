// SPDX-License-Identifier: Apache-2.0
#include "io/npy.h"

#include <gtest/gtest.h>

#include "support.h"

namespace {

std::span<const std::byte> bytes_of(const std::string& text) { return std::as_bytes(std::span(text)); }

}  // namespace

TEST(Npy, ReadsWhatItWrites) {
  for (const auto& shape : std::vector<std::vector<std::int64_t>>{{}, {5}, {3, 4}, {0, 7}, {2, 3, 4}}) {
    std::int64_t count = 1;
    for (const auto size : shape) count *= size;
    const std::string header = reco::io::npy_header("<f2", shape);
    EXPECT_EQ(header.size() % 64, 0U);
    const std::string file = header + std::string(static_cast<std::size_t>(2 * count), 'x');
    const auto view = reco::io::read_npy(bytes_of(file), "test.npy");
    EXPECT_EQ(view.dtype, "<f2");
    EXPECT_EQ(view.shape, shape);
    EXPECT_EQ(view.data.size(), static_cast<std::size_t>(2 * count));
  }
}

TEST(Npy, ReadsVersion2AndAnyOrderOfKeys) {
  const std::string dict = "{\"shape\": (2,), 'fortran_order': False , 'descr': '<f4'}\n";
  const std::string file =
      std::string("\x93NUMPY\2\0", 8) + static_cast<char>(dict.size()) + std::string(3, '\0') + dict + "12345678";
  const auto view = reco::io::read_npy(bytes_of(file), "test.npy");
  EXPECT_EQ(view.dtype, "<f4");
  EXPECT_EQ(view.shape, std::vector<std::int64_t>{2});
}

TEST(Npy, RefusesHostileHeaders) {
  const auto file = [](const std::string& dict, const std::string& data = "") {
    return std::string("\x93NUMPY\1\0", 8) + static_cast<char>(dict.size()) + '\0' + dict + data;
  };
  const std::vector<std::string> files{
      "",
      "short",
      std::string("\x93NUMPX\1\0\2\0{}", 12),
      std::string("\x93NUMPY\3\0\2\0{}", 12),
      std::string("\x93NUMPY\1\0\xff\xff{}", 12),
      std::string("\x93NUMPY\2\0\xff\xff\xff\xff{}", 14),
      file("{}"),
      file("{'descr': '<f2', 'fortran_order': False, 'shape': (2, 2)", "12345678"),
      file("{'descr': '<f2', 'fortran_order': False, 'shape': (2, 2)} x", "12345678"),
      file("{'descr': '<f2', 'fortran_order': True, 'shape': (2, 2)}", "12345678"),
      file("{'descr': '>f2', 'fortran_order': False, 'shape': (2, 2)}", "12345678"),
      file("{'descr': '|O', 'fortran_order': False, 'shape': (2, 2)}", "12345678"),
      file("{'descr': [('a', '<f2')], 'fortran_order': False, 'shape': (2, 2)}", "12345678"),
      file("{'descr': '<f2', 'fortran_order': False, 'shape': (-2, 2)}", "12345678"),
      file("{'descr': '<f2', 'fortran_order': False, 'shape': (2, 3)}", "12345678"),
      file("{'descr': '<f2', 'fortran_order': False, 'shape': (2, 1)}", "12345678"),
      file("{'descr': '<f2', 'fortran_order': False, 'shape': (4294967296, 4294967296)}", "12345678"),
      file("{'descr': '<f2', 'fortran_order': False, 'shape': (9223372036854775808, 2)}", "12345678"),
      file("{'descr': '<f2', 'fortran_order': False, 'shape': 4}", "12345678"),
      file("{'descr': '<f2', 'fortran_order': False, 'shape': (4,), 'shape': (4,)}", "12345678"),
      file("{'descr': '<f2', 'fortran_order': False, 'shape': (4,), 'more': (4,)}", "12345678"),
      file("{'descr': '<f2"),
  };
  for (const auto& bytes : files) {
    EXPECT_TRUE(has(error_of([&] { reco::io::read_npy(bytes_of(bytes), "bad.npy"); }), "bad.npy")) << bytes;
  }
}
