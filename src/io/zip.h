// SPDX-License-Identifier: Apache-2.0
// Zip archives whose files are stored, not compressed, as PyTorch writes them.
#pragma once

#include <cstddef>
#include <filesystem>
#include <map>
#include <span>
#include <string>

namespace reco::io {

/// The stored files of an archive by name; compressed ones are left out. `path` is for messages. Throws Error when the
/// archive is damaged.
std::map<std::string, std::span<const std::byte>> read_zip(std::span<const std::byte> archive,
                                                           const std::filesystem::path& path);

}  // namespace reco::io
