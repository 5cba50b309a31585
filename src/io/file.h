// SPDX-License-Identifier: Apache-2.0
// Files: read whole, memory-mapped, and written so that they survive a power cut.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>

namespace reco::io {

/// Reads a whole file. Throws Error naming the file when it cannot be read or is larger than `max_bytes`.
std::string read_file(const std::filesystem::path& path, std::size_t max_bytes = std::size_t{1} << 31);

/// A read-only memory map of a whole file; moves, does not copy. An empty file maps to an empty span.
class MappedFile {
 public:
  MappedFile() = default;
  explicit MappedFile(const std::filesystem::path& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();
  std::span<const std::byte> bytes() const { return {data_, size_}; }

 private:
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

/// Writes the spans one after the other to a temporary file beside `path`, fsyncs it, renames it to `path` and fsyncs
/// the folder. Throws Error naming the file; then no file of that name is left unless it was there before.
void write_file_durably(const std::filesystem::path& path, std::span<const std::span<const std::byte>> parts);

/// Makes what was created, renamed or removed in a folder durable. Throws Error naming the folder.
void sync_folder(const std::filesystem::path& folder);

}  // namespace reco::io
