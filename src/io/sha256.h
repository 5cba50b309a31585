// SPDX-License-Identifier: Apache-2.0
// SHA-256 (FIPS 180-4), for fingerprints and checksums.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace reco::io {

class Sha256 {
 public:
  void update(std::span<const std::byte> data);
  /// 64 lower-case hex digits; the object must not be used afterwards.
  std::string finish();

 private:
  void blocks(const std::uint8_t* data, std::size_t count);  ///< count blocks of 64 bytes
  std::array<std::uint32_t, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<std::uint8_t, 64> buffer_{};
  std::uint64_t length_ = 0;
};

/// The digest of one piece of data.
std::string sha256(std::span<const std::byte> data);

}  // namespace reco::io
