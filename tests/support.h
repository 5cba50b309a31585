// SPDX-License-Identifier: Apache-2.0
// What several tests need: a folder of their own, and the text of an Error.
#pragma once

#include <unistd.h>

#include <filesystem>
#include <string>

#include "reco/error.h"

/// A folder that goes when the test ends.
class Folder {
 public:
  Folder()
      : path_(std::filesystem::temp_directory_path() / ("reco-test-" + std::to_string(::getpid()) + "-" + counter())) {
    std::filesystem::create_directories(path_);
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  static std::string counter() {
    static int count = 0;
    return std::to_string(count++);
  }
  std::filesystem::path path_;
};

/// What an Error says; empty when nothing is thrown.
template <typename Work>
std::string error_of(const Work& work) {
  try {
    work();
  } catch (const reco::Error& error) {
    return error.what();
  }
  return {};
}

inline bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }
