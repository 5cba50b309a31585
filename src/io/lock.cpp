// SPDX-License-Identifier: Apache-2.0
#include "io/lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "reco/error.h"

namespace reco::io {

FileLock::FileLock(const std::filesystem::path& path, const char* holder)
    : descriptor_(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666)), owner_(::getpid()) {
  check(descriptor_ >= 0, "lock", "cannot open '", path.string(), "': ", std::strerror(errno));
  if (::flock(descriptor_, LOCK_EX | LOCK_NB) == 0) return;
  const int code = errno;
  ::close(std::exchange(descriptor_, -1));
  check(code != EWOULDBLOCK, "lock", "'", path.string(), "' is locked: ", holder);
  fail("lock", "cannot lock '", path.string(), "': ", std::strerror(code));
}

FileLock::FileLock(FileLock&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)), owner_(other.owner_) {}

FileLock& FileLock::operator=(FileLock&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  std::swap(owner_, other.owner_);
  return *this;
}

FileLock::~FileLock() {
  if (descriptor_ < 0) return;
  // A forked child shares the lock: unlocking explicitly frees it although children live, and they must not free it.
  if (::getpid() == owner_) ::flock(descriptor_, LOCK_UN);
  ::close(descriptor_);
}

}  // namespace reco::io
