// SPDX-License-Identifier: Apache-2.0
#include "image_memory.h"

#include <algorithm>
#include <array>
#include <utility>

#include "reco/image.h"

namespace reco {

namespace {

constexpr std::size_t most_bytes = std::size_t{64} << 20;
constexpr std::size_t worth_keeping = std::size_t{64} << 10;  // smaller ones malloc() keeps by itself

/// One for an image, two for the passes of a resize, one for its result. The empty ones come first, then the oldest.
thread_local std::array<std::vector<std::uint8_t>, 4> spare;

std::size_t spare_bytes() {
  std::size_t bytes = 0;
  for (const auto& memory : spare) bytes += memory.capacity();
  return bytes;
}

}  // namespace

std::vector<std::uint8_t> take_memory(std::size_t size) {
  const auto fits = [&](const auto& memory) { return memory.capacity() >= size && memory.capacity() / 2 <= size; };
  const auto found = std::find_if(spare.begin(), spare.end(), fits);
  std::vector<std::uint8_t> memory;
  if (found != spare.end()) {
    memory.swap(*found);
    std::rotate(spare.begin(), found, found + 1);
  }
  memory.resize(size);
  return memory;
}

void give_back(std::vector<std::uint8_t>&& memory) noexcept {
  if (memory.capacity() < worth_keeping) return;
  std::rotate(spare.begin(), spare.begin() + 1, spare.end());
  spare.back() = std::move(memory);
  for (auto oldest = spare.begin(); spare_bytes() > most_bytes; ++oldest) std::vector<std::uint8_t>().swap(*oldest);
}

Image new_image(int width, int height, ImageMode mode) {
  Image image{width, height, {}, mode};
  image.pixels = take_memory(image.pixel_size() * static_cast<std::size_t>(std::max(width, 0)) *
                             static_cast<std::size_t>(std::max(height, 0)));
  return image;
}

void recycle(Image&& image) {
  give_back(std::move(image.pixels));
  image = {};
}

}  // namespace reco
