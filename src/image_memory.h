// SPDX-License-Identifier: Apache-2.0
// Memory that images and what they pass through share: clearing fresh pages would take a third of a JPEG's time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace reco {

/// `size` bytes of any value.
std::vector<std::uint8_t> take_memory(std::size_t size);

/// What take_memory() may give out again, to the same thread.
void give_back(std::vector<std::uint8_t>&& memory) noexcept;

}  // namespace reco
