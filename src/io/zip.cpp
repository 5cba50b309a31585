// SPDX-License-Identifier: Apache-2.0
#include "io/zip.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "reco/error.h"

namespace reco::io {

namespace {

constexpr const char* kZip = "zip.read";
constexpr std::uint32_t kEnd = 0x06054b50, kEnd64 = 0x06064b50, kLocator64 = 0x07064b50, kEntry = 0x02014b50;
constexpr std::uint32_t kLocal = 0x04034b50;
constexpr std::uint64_t kIn64 = 0xFFFFFFFF;  // the value lies in the 64-bit part instead

/// Little-endian numbers and parts of the file, each checked to lie inside it.
class Reader {
 public:
  Reader(std::span<const std::byte> file, const std::filesystem::path& path) : file_(file), path_(path) {}

  std::span<const std::byte> bytes(std::uint64_t at, std::uint64_t count) const {
    require(at <= file_.size() && count <= file_.size() - at, "is truncated: ", count, " bytes from ", at, " on, of ",
            file_.size());
    return file_.subspan(at, count);
  }

  template <typename Number>
  std::uint64_t number(std::uint64_t at) const {
    Number value;
    std::memcpy(&value, bytes(at, sizeof(value)).data(), sizeof(value));
    return value;
  }
  std::uint64_t u16(std::uint64_t at) const { return number<std::uint16_t>(at); }
  std::uint64_t u32(std::uint64_t at) const { return number<std::uint32_t>(at); }
  std::uint64_t u64(std::uint64_t at) const { return number<std::uint64_t>(at); }

  void expect(std::uint64_t at, std::uint32_t signature) const {
    require(u32(at) == signature, "is damaged: no zip record at byte ", at);
  }

  std::uint64_t size() const { return file_.size(); }

  template <typename... Parts>
  void require(bool condition, const Parts&... parts) const {
    if (!condition) fail(kZip, path_.string(), " ", parts...);
  }

 private:
  std::span<const std::byte> file_;
  const std::filesystem::path& path_;
};

struct Directory {
  std::uint64_t entries, offset;
};

/// The record at the end of every archive; a comment of up to 65,535 bytes may follow it.
std::uint64_t find_end(const Reader& file) {
  constexpr std::uint64_t record = 22, comment = 65'535;
  file.require(file.size() >= record, "is no zip archive: ", file.size(), " bytes");
  const std::uint64_t last = file.size() - record, first = last - std::min(last, comment);
  for (std::uint64_t at = last;; --at) {
    if (file.u32(at) == kEnd) return at;
    file.require(at > first, "is no zip archive, or is truncated: it has no directory");
  }
}

Directory find_directory(const Reader& file) {
  const std::uint64_t end = find_end(file);
  const Directory plain{file.u16(end + 10), file.u32(end + 16)};
  if (end < 20 || file.u32(end - 20) != kLocator64) return plain;
  const std::uint64_t wide = file.u64(end - 20 + 8);
  file.expect(wide, kEnd64);
  return {file.u64(wide + 32), file.u64(wide + 48)};
}

/// Where an entry's file lies. Sizes and offsets that do not fit 32 bits stand in a list of extras, in this order.
struct Location {
  std::uint64_t size, stored, offset;
};

Location locate(const Reader& file, std::uint64_t entry, std::uint64_t extras, std::uint64_t length) {
  Location location{file.u32(entry + 24), file.u32(entry + 20), file.u32(entry + 42)};
  for (std::uint64_t at = extras; at + 4 <= extras + length;) {
    const std::uint64_t end = at + 4 + file.u16(at + 2);
    if (file.u16(at) == 1) {
      std::uint64_t value = at + 4;
      for (std::uint64_t* field : {&location.size, &location.stored, &location.offset}) {
        if (*field != kIn64) continue;
        file.require(value + 8 <= end, "is damaged: a zip record lacks a 64-bit size");
        *field = file.u64(value), value += 8;
      }
    }
    at = end;
  }
  return location;
}

std::span<const std::byte> contents(const Reader& file, const Location& location) {
  file.expect(location.offset, kLocal);
  const std::uint64_t header = 30 + file.u16(location.offset + 26) + file.u16(location.offset + 28);
  return file.bytes(location.offset + header, location.size);
}

}  // namespace

std::map<std::string, std::span<const std::byte>> read_zip(std::span<const std::byte> archive,
                                                           const std::filesystem::path& path) {
  const Reader file(archive, path);
  const Directory directory = find_directory(file);
  std::map<std::string, std::span<const std::byte>> files;
  std::uint64_t at = directory.offset;
  for (std::uint64_t i = 0; i < directory.entries; ++i) {
    file.expect(at, kEntry);
    const std::uint64_t name = file.u16(at + 28), extra = file.u16(at + 30), comment = file.u16(at + 32);
    const auto text = file.bytes(at + 46, name);
    const Location location = locate(file, at, at + 46 + name, extra);
    const bool plain = file.u16(at + 10) == 0 && (file.u16(at + 8) & 1) == 0;  // neither compressed nor encrypted
    if (plain && location.size == location.stored) {
      files[{reinterpret_cast<const char*>(text.data()), text.size()}] = contents(file, location);
    }
    at += 46 + name + extra + comment;
  }
  return files;
}

}  // namespace reco::io
