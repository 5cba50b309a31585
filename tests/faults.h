// SPDX-License-Identifier: Apache-2.0
// A disk that fails: under the library's own files and under SQLite, every write, sync, rename and removal is counted,
// and from a chosen one on things go wrong. What a power cut may lose is lost: pages and names that were written since
// the last successful sync, any subset of them; what a failed sync was about stays lost until it is written anew.
#pragma once

#include <fcntl.h>
#include <sqlite3.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "io/file.h"

class FaultyDisk {
 public:
  enum class Kind {
    none,
    error,  ///< one call fails
    full,   ///< writes fail until heal() is called
    power,  ///< nothing works until heal() is called, and what was not synced may be gone
    kill,   ///< the same, but everything that was written is there
  };

  /// Stands under everything from here on; there may be one only.
  explicit FaultyDisk(std::filesystem::path attic) : attic_(std::move(attic)) {
    std::filesystem::create_directories(attic_);
    current() = this;
    saved_ = reco::io::file_calls();
    reco::io::file_calls() = {write_file, sync_file, rename_file, unlink_file};
    register_vfs();
  }
  ~FaultyDisk() {
    reco::io::file_calls() = saved_;
    sqlite3_vfs_register(original(), 1);
    current() = nullptr;
  }

  /// The call after `calls` others goes wrong.
  void plan(Kind kind, std::int64_t calls, unsigned seed) {
    kind_ = kind;
    left_ = calls;
    generator_.seed(seed);
    fired_ = off_ = full_ = false;
  }
  bool fired() const { return fired_; }
  bool off() const { return off_; }

  /// The machine starts again: what the fault lost is gone, and everything works.
  void heal() {
    const bool cut = fired_ && kind_ == Kind::power;
    plan(Kind::none, 0, static_cast<unsigned>(generator_()));
    if (cut) lose();
    if (cut) pages_.clear(), renames_.clear(), removals_.clear();
  }

 private:
  static constexpr std::int64_t kPage = 4096;
  struct Page {
    std::string before;  ///< as it is on the platters, shorter at the file's end
    bool lost = false;   ///< a sync of it failed
  };
  struct Move {
    std::string from, to;
  };

  static FaultyDisk*& current() {
    static FaultyDisk* disk = nullptr;
    return disk;
  }

  /// Counts a call; true if it fails.
  bool fails(bool writes) {
    if (off_ || (full_ && writes)) return true;
    if (kind_ == Kind::none || fired_ || left_-- > 0) return false;
    fired_ = true;
    full_ = kind_ == Kind::full;
    off_ = kind_ == Kind::power || kind_ == Kind::kill;
    return !full_ || writes;
  }

  // --- what is not yet on the platters -----------------------------------------------------------------------------
  static std::string read_at(const std::string& path, std::int64_t offset, std::int64_t size) {
    std::string data(static_cast<std::size_t>(size), '\0');
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) return {};
    const auto count = ::pread(descriptor, data.data(), data.size(), offset);
    ::close(descriptor);
    data.resize(count > 0 ? static_cast<std::size_t>(count) : 0);
    return data;
  }

  /// Before bytes of a file change.
  void remember(const std::string& path, std::int64_t offset, std::int64_t size) {
    auto& pages = pages_[path];
    for (std::int64_t page = offset / kPage; page * kPage < offset + size; ++page) {
      const auto [place, fresh] = pages.try_emplace(page);
      if (fresh) place->second.before = read_at(path, page * kPage, kPage);
      place->second.lost = false;
    }
  }
  void synced(const std::string& path) {
    std::erase_if(pages_[path], [](const auto& page) { return !page.second.lost; });
  }
  void sync_failed(const std::string& path) {
    for (auto& [number, page] : pages_[path]) page.lost = true;
  }
  void folder_synced(const std::string& folder) {
    std::erase_if(renames_, [&](const Move& m) { return std::filesystem::path(m.to).parent_path() == folder; });
    std::erase_if(removals_, [&](const Move& m) { return std::filesystem::path(m.from).parent_path() == folder; });
  }

  bool coin() { return (generator_() & 1) != 0; }

  void lose() {
    for (const auto& [path, pages] : pages_) {
      const int descriptor = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
      if (descriptor < 0) continue;
      for (const auto& [number, page] : pages) {
        if (!page.lost && coin()) continue;
        std::string before = page.before;
        before.resize(kPage, '\0');
        struct stat info {};
        ::fstat(descriptor, &info);
        const auto size = std::min<std::int64_t>(kPage, info.st_size - number * kPage);
        if (size > 0 && ::pwrite(descriptor, before.data(), static_cast<std::size_t>(size), number * kPage) < 0) break;
      }
      ::close(descriptor);
    }
    for (auto move = renames_.rbegin(); move != renames_.rend(); ++move) {
      if (coin()) ::rename(move->to.c_str(), move->from.c_str());
    }
    for (const Move& move : removals_) {
      if (coin() && ::access(move.from.c_str(), F_OK) != 0) ::rename(move.to.c_str(), move.from.c_str());
    }
  }

  int remove(const std::string& path) {
    const std::string kept = (attic_ / std::to_string(removed_++)).string();
    if (::rename(path.c_str(), kept.c_str()) != 0) return -1;
    removals_.push_back({path, kept});
    pages_.erase(path);
    return 0;
  }

  // --- the library's own files -------------------------------------------------------------------------------------
  static std::string path_of(int descriptor) {
    return std::filesystem::read_symlink("/proc/self/fd/" + std::to_string(descriptor)).string();
  }
  static ssize_t write_file(int descriptor, const void* data, std::size_t size) {
    FaultyDisk& disk = *current();
    const auto place = ::lseek(descriptor, 0, SEEK_CUR);
    if (disk.fails(true)) {
      errno = disk.off_ ? EIO : ENOSPC;
      if (size > 1 && !disk.off_) return ::write(descriptor, data, size / 2);  // the rest is refused next time
      return -1;
    }
    disk.remember(path_of(descriptor), place, static_cast<std::int64_t>(size));
    return ::write(descriptor, data, size);
  }
  static int sync_file(int descriptor) {
    FaultyDisk& disk = *current();
    const std::string path = path_of(descriptor);
    const bool folder = std::filesystem::is_directory(path);
    if (disk.fails(false)) {
      if (!folder && !disk.off_) disk.sync_failed(path);
      errno = EIO;
      return -1;
    }
    folder ? disk.folder_synced(path) : disk.synced(path);
    return 0;
  }
  static int rename_file(const char* from, const char* to) {
    FaultyDisk& disk = *current();
    if (disk.fails(false)) {
      errno = EIO;
      return -1;
    }
    if (::rename(from, to) != 0) return -1;
    disk.renames_.push_back({from, to});
    if (const auto node = disk.pages_.extract(from)) disk.pages_[to] = node.mapped();
    return 0;
  }
  static int unlink_file(const char* path) {
    FaultyDisk& disk = *current();
    if (disk.fails(false)) {
      errno = EIO;
      return -1;
    }
    return disk.remove(path);
  }

  // --- SQLite ------------------------------------------------------------------------------------------------------
  struct File {
    sqlite3_file base;
    const char* path;  ///< SQLite keeps it while the file is open
    sqlite3_file* real() { return reinterpret_cast<sqlite3_file*>(this + 1); }
  };
  static sqlite3_vfs*& original() {
    static sqlite3_vfs* vfs = sqlite3_vfs_find(nullptr);
    return vfs;
  }
  static File& file(sqlite3_file* f) { return *reinterpret_cast<File*>(f); }
  static sqlite3_file* real(sqlite3_file* f) { return file(f).real(); }

  static int write_page(sqlite3_file* f, const void* data, int size, sqlite3_int64 offset) {
    FaultyDisk& disk = *current();
    if (disk.fails(true)) {
      if (!disk.off_ && size > 1) real(f)->pMethods->xWrite(real(f), data, size / 2, offset);
      return disk.kind_ == Kind::full ? SQLITE_FULL : SQLITE_IOERR_WRITE;
    }
    if (file(f).path != nullptr) disk.remember(file(f).path, offset, size);
    return real(f)->pMethods->xWrite(real(f), data, size, offset);
  }
  static int truncate(sqlite3_file* f, sqlite3_int64 size) {
    FaultyDisk& disk = *current();
    if (disk.fails(false)) return SQLITE_IOERR_TRUNCATE;
    return real(f)->pMethods->xTruncate(real(f), size);
  }
  static int sync(sqlite3_file* f, int) {
    FaultyDisk& disk = *current();
    const char* path = file(f).path;
    if (disk.fails(false)) {
      if (path != nullptr && !disk.off_) disk.sync_failed(path);
      return SQLITE_IOERR_FSYNC;
    }
    if (path != nullptr) disk.synced(path);
    return SQLITE_OK;
  }
  static int remove_page_file(sqlite3_vfs*, const char* path, int) {
    FaultyDisk& disk = *current();
    if (disk.fails(false)) return SQLITE_IOERR_DELETE;
    if (::access(path, F_OK) != 0) return SQLITE_IOERR_DELETE_NOENT;
    return disk.remove(path) == 0 ? SQLITE_OK : SQLITE_IOERR_DELETE;
  }
  static int close(sqlite3_file* f) {
    f->pMethods = nullptr;
    return real(f)->pMethods->xClose(real(f));
  }
  static int open(sqlite3_vfs*, const char* path, sqlite3_file* f, int flags, int* out) {
    f->pMethods = nullptr;
    file(f).path = path;
    const int code = original()->xOpen(original(), path, real(f), flags, out);
    if (real(f)->pMethods != nullptr) f->pMethods = &methods();
    return code;
  }

  static const sqlite3_io_methods& methods() {
    static const sqlite3_io_methods all = [] {
      sqlite3_io_methods m{};
      m.iVersion = 2;  // without the memory maps of version 3
      m.xClose = close;
      m.xRead = [](sqlite3_file* f, void* out, int n, sqlite3_int64 at) {
        return real(f)->pMethods->xRead(real(f), out, n, at);
      };
      m.xWrite = write_page;
      m.xTruncate = truncate;
      m.xSync = sync;
      m.xFileSize = [](sqlite3_file* f, sqlite3_int64* size) { return real(f)->pMethods->xFileSize(real(f), size); };
      m.xLock = [](sqlite3_file* f, int lock) { return real(f)->pMethods->xLock(real(f), lock); };
      m.xUnlock = [](sqlite3_file* f, int lock) { return real(f)->pMethods->xUnlock(real(f), lock); };
      m.xCheckReservedLock = [](sqlite3_file* f, int* out) {
        return real(f)->pMethods->xCheckReservedLock(real(f), out);
      };
      m.xFileControl = [](sqlite3_file* f, int what, void* out) {
        return real(f)->pMethods->xFileControl(real(f), what, out);
      };
      m.xSectorSize = [](sqlite3_file* f) { return real(f)->pMethods->xSectorSize(real(f)); };
      m.xDeviceCharacteristics = [](sqlite3_file* f) { return real(f)->pMethods->xDeviceCharacteristics(real(f)); };
      m.xShmMap = [](sqlite3_file* f, int page, int size, int extend, void volatile** out) {
        return real(f)->pMethods->xShmMap(real(f), page, size, extend, out);
      };
      m.xShmLock = [](sqlite3_file* f, int from, int n, int flags) {
        return real(f)->pMethods->xShmLock(real(f), from, n, flags);
      };
      m.xShmBarrier = [](sqlite3_file* f) { real(f)->pMethods->xShmBarrier(real(f)); };
      m.xShmUnmap = [](sqlite3_file* f, int gone) { return real(f)->pMethods->xShmUnmap(real(f), gone); };
      return m;
    }();
    return all;
  }

  static void register_vfs() {
    static sqlite3_vfs vfs = [] {
      sqlite3_vfs v = *original();
      v.zName = "faulty";
      v.pNext = nullptr;
      v.szOsFile = static_cast<int>(sizeof(File)) + original()->szOsFile;
      v.xOpen = open;
      v.xDelete = remove_page_file;
      return v;
    }();
    sqlite3_vfs_register(&vfs, 1);
  }

  std::filesystem::path attic_;  ///< where removed files wait
  reco::io::FileCalls saved_{};
  Kind kind_ = Kind::none;
  std::int64_t left_ = 0;
  bool fired_ = false, off_ = false, full_ = false;
  std::mt19937 generator_;
  std::int64_t removed_ = 0;
  std::map<std::string, std::map<std::int64_t, Page>> pages_;
  std::vector<Move> renames_, removals_;
};
