// SPDX-License-Identifier: Apache-2.0
#include "io/file.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "reco/error.h"
#include "support.h"

namespace reco::io {
namespace {

namespace fs = std::filesystem;

class FileTest : public ::testing::Test {
 protected:
  static void write(const fs::path& path, const std::vector<std::string>& parts) {
    std::vector<std::span<const std::byte>> spans;
    for (const std::string& part : parts) spans.push_back(std::as_bytes(std::span(part)));
    write_file_durably(path, spans);
  }
  std::size_t entries() const {
    return static_cast<std::size_t>(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()));
  }

  const Folder own_;  // tests run side by side
  const fs::path folder_ = own_ / "";
};

TEST_F(FileTest, WritesReadsAndMaps) {
  const fs::path path = folder_ / "file";
  write(path, {"hello ", "", "world"});
  EXPECT_EQ(read_file(path), "hello world");
  MappedFile map(path);
  MappedFile moved = std::move(map);
  EXPECT_EQ(moved.bytes().size(), 11U);
  EXPECT_EQ(std::to_integer<char>(moved.bytes()[4]), 'o');
  EXPECT_TRUE(map.bytes().empty());
  write(path, {"other"});  // replaces; the old content stays mapped
  EXPECT_EQ(std::to_integer<char>(moved.bytes()[4]), 'o');
  EXPECT_EQ(read_file(path), "other");
  EXPECT_EQ(entries(), 1U);
}

TEST_F(FileTest, AnEmptyFileIsEmpty) {
  write(folder_ / "empty", {});
  EXPECT_EQ(read_file(folder_ / "empty"), "");
  EXPECT_TRUE(MappedFile(folder_ / "empty").bytes().empty());
}

TEST_F(FileTest, FailuresNameTheFileAndLeaveNothing) {
  EXPECT_THROW(read_file(folder_ / "missing"), Error);
  EXPECT_THROW(MappedFile(folder_ / "missing"), Error);
  EXPECT_THROW(read_file(folder_), Error);
  EXPECT_THROW(write(folder_ / "missing" / "file", {"x"}), Error);
  fs::create_directories(folder_ / "taken");
  EXPECT_THROW(write(folder_ / "taken", {"x"}), Error);
  EXPECT_EQ(entries(), 1U);
  write(folder_ / "big", {"12345"});
  try {
    read_file(folder_ / "big", 4);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()),
              "[file.read_file] '" + (folder_ / "big").string() + "' must be at most 4 bytes, found 5");
  }
}

}  // namespace
}  // namespace reco::io
