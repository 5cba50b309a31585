// SPDX-License-Identifier: Apache-2.0
// Files: read whole, memory-mapped, and written so that they survive a power cut.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>

namespace reco::io {

/// The system's calls that change what is on disk. Tests put others in their place that fail, or lose what was not
/// synced; they may do so only while no other thread writes.
struct FileCalls {
  ssize_t (*write)(int descriptor, const void* data, std::size_t size);
  int (*fsync)(int descriptor);
  int (*rename)(const char* from, const char* to);
  int (*unlink)(const char* path);
};
FileCalls& file_calls();

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

/// A file in the making: what is written lies in a temporary file beside `path` until publish(), and goes again without
/// it. All throw Error naming the file.
class NewFile {
 public:
  explicit NewFile(std::filesystem::path path);
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;
  ~NewFile();
  void write(std::span<const std::byte> data);
  /// Fsyncs the file, renames it to `path` and fsyncs the folder.
  void publish();

 private:
  std::filesystem::path path_;
  std::filesystem::path temporary_;
  int descriptor_ = -1;
  bool renamed_ = false;
};

/// Writes the spans one after the other as a NewFile. Throws Error naming the file; then no file of that name is left
/// unless it was there before, or the folder could not be synced after the renaming.
void write_file_durably(const std::filesystem::path& path, std::span<const std::span<const std::byte>> parts);

/// Fsyncs a file that another library wrote, renames it to `path` and fsyncs the folder. Throws Error naming the file.
void rename_durably(const std::filesystem::path& temporary, const std::filesystem::path& path);

/// Removes a file if it is there. What cannot be removed stays, which the caller must be able to bear.
void remove_file(const std::filesystem::path& path) noexcept;

/// Makes what was created, renamed or removed in a folder durable. Throws Error naming the folder.
void sync_folder(const std::filesystem::path& folder);

}  // namespace reco::io
