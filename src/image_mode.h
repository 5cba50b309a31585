// SPDX-License-Identifier: Apache-2.0
// What PIL's modes ask for when an image is checked and resized.
#pragma once

#include <cstdint>

#include "reco/image.h"

namespace reco {

/// Throws Error unless the image has pixels, and as many bytes of them as its mode and size say.
void check_image(const Image& image, const char* tag);

/// Channels that count as much as alpha says, in which rgba is resized: PIL's mode RGBa.
void premultiply(Image& rgba);

/// The way back. Where alpha is 0 the colours stay.
void unpremultiply(Image& rgba);

}  // namespace reco
