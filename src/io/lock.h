// SPDX-License-Identifier: Apache-2.0
// A lock that one process holds, by way of a file.
#pragma once

#include <sys/types.h>

#include <filesystem>

namespace reco::io {

/// Held from construction to destruction; the system releases it when the process dies, however it dies.
class FileLock {
 public:
  FileLock() = default;  ///< holds nothing
  /// Makes the file if there is none. Throws Error, with `holder` saying who else can hold it, when it is taken.
  FileLock(const std::filesystem::path& path, const char* holder);
  FileLock(FileLock&& other) noexcept;
  FileLock& operator=(FileLock&& other) noexcept;
  ~FileLock();

 private:
  int descriptor_ = -1;
  pid_t owner_ = 0;
};

}  // namespace reco::io
