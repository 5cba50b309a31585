// SPDX-License-Identifier: Apache-2.0
// The resampling behind resize() and preprocess().
#pragma once

#include <cstdint>

#include "reco/image.h"

namespace reco {

/// A rectangle of a resized image.
struct Region {
  std::int64_t left = 0;
  std::int64_t top = 0;
  int width = 0;
  int height = 0;
};

/// The pixels of `region` in the image that resizing to width * height gives; nothing else is computed, so the resized
/// image may be far larger than memory. The region must lie inside it.
Image resize_region(const Image& image, std::int64_t width, std::int64_t height, Resample filter, const Region& region);

}  // namespace reco
