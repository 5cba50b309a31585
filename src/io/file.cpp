// SPDX-License-Identifier: Apache-2.0
#include "io/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <utility>

#include "reco/error.h"

namespace reco::io {

namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail_system(const char* tag, const char* action, const fs::path& path, int code = errno) {
  fail(tag, "cannot ", action, " '", path.string(), "': ", std::strerror(code));
}

/// An open file descriptor that closes itself.
class Descriptor {
 public:
  Descriptor(const char* tag, const fs::path& path, int flags, const char* action = "open")
      : value_(::open(path.c_str(), flags | O_CLOEXEC, 0666)) {
    if (value_ < 0) fail_system(tag, action, path);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (value_ >= 0) ::close(value_);
  }
  int get() const { return value_; }

 private:
  int value_;
};

/// The size of an open regular file; Error for anything else (a folder, a pipe that would block).
std::size_t regular_size(const Descriptor& file, const char* tag, const fs::path& path) {
  struct stat info {};
  if (::fstat(file.get(), &info) != 0) fail_system(tag, "examine", path);
  check(S_ISREG(info.st_mode), tag, "'", path.string(), "' must be a regular file");
  return static_cast<std::size_t>(info.st_size);
}

/// Reads until `text` is full or the file ends; returns the bytes read.
std::size_t fill(const Descriptor& file, std::string& text, const char* tag, const fs::path& path) {
  std::size_t done = 0;
  while (done < text.size()) {
    const auto count = ::read(file.get(), text.data() + done, text.size() - done);
    if (count == 0) break;
    if (count > 0) {
      done += static_cast<std::size_t>(count);
    } else if (errno != EINTR) {
      fail_system(tag, "read", path);
    }
  }
  return done;
}

/// A name beside `path` that no other thread or process uses.
fs::path temporary_name(const fs::path& path) {
  static std::atomic<unsigned> counter{0};
  fs::path name = path;
  name += ".tmp-" + std::to_string(::getpid()) + "-" + std::to_string(counter++);
  return name;
}

constexpr const char* kWriteTag = "file.write_file_durably";

}  // namespace

FileCalls& file_calls() {
  static FileCalls calls{::write, ::fsync, ::rename, ::unlink};
  return calls;
}

void remove_file(const fs::path& path) noexcept { file_calls().unlink(path.c_str()); }

std::string read_file(const fs::path& path, std::size_t max_bytes) {
  constexpr const char* tag = "file.read_file";
  const Descriptor file(tag, path, O_RDONLY | O_NONBLOCK);
  const std::size_t size = regular_size(file, tag, path);
  check(size <= max_bytes, tag, "'", path.string(), "' must be at most ", max_bytes, " bytes, found ", size);
  std::string text(size, '\0');
  text.resize(fill(file, text, tag, path));
  return text;
}

MappedFile::MappedFile(const fs::path& path) {
  constexpr const char* tag = "file.map";
  const Descriptor file(tag, path, O_RDONLY | O_NONBLOCK);
  const std::size_t size = regular_size(file, tag, path);
  if (size == 0) return;
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, file.get(), 0);
  if (data == MAP_FAILED) fail_system(tag, "map", path);
  data_ = static_cast<const std::byte*>(data);
  size_ = size;
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

NewFile::NewFile(fs::path path) : path_(std::move(path)), temporary_(temporary_name(path_)) {
  descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (descriptor_ < 0) fail_system(kWriteTag, "create", temporary_);
}

NewFile::~NewFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
  if (!renamed_) remove_file(temporary_);
}

void NewFile::write(std::span<const std::byte> data) {
  constexpr std::size_t most = std::size_t{1} << 30;  // write() takes at most 2 GiB at once
  while (!data.empty()) {
    const auto count = file_calls().write(descriptor_, data.data(), std::min(data.size(), most));
    if (count >= 0) {
      data = data.subspan(static_cast<std::size_t>(count));
    } else if (errno != EINTR) {
      fail_system(kWriteTag, "write", path_);
    }
  }
}

void NewFile::publish() {
  if (file_calls().fsync(descriptor_) != 0) fail_system(kWriteTag, "sync", path_);
  // Some file systems report failed writes only here.
  if (::close(std::exchange(descriptor_, -1)) != 0) fail_system(kWriteTag, "close", path_);
  renamed_ = file_calls().rename(temporary_.c_str(), path_.c_str()) == 0;
  if (!renamed_) fail_system(kWriteTag, "rename the new file to", path_);
  sync_folder(path_.has_parent_path() ? path_.parent_path() : fs::path("."));
}

void write_file_durably(const fs::path& path, std::span<const std::span<const std::byte>> parts) {
  NewFile file(path);
  for (const auto part : parts) file.write(part);
  file.publish();
}

void rename_durably(const fs::path& temporary, const fs::path& path) {
  constexpr const char* tag = "file.rename_durably";
  const Descriptor file(tag, temporary, O_RDONLY);
  if (file_calls().fsync(file.get()) != 0) fail_system(tag, "sync", temporary);
  if (file_calls().rename(temporary.c_str(), path.c_str()) != 0) fail_system(tag, "rename the new file to", path);
  sync_folder(path.has_parent_path() ? path.parent_path() : fs::path("."));
}

void sync_folder(const fs::path& folder) {
  constexpr const char* tag = "file.sync_folder";
  const Descriptor descriptor(tag, folder, O_RDONLY | O_DIRECTORY, "open the folder");
  // Some network file systems cannot sync a folder and say so with EINVAL; there is nothing more to do on them.
  if (file_calls().fsync(descriptor.get()) != 0 && errno != EINVAL) fail_system(tag, "sync the folder", folder);
}

}  // namespace reco::io
