// SPDX-License-Identifier: Apache-2.0
// TensorBoard event files: scalars over steps.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace reco::io {

struct Scalar {
  std::int64_t step = 0;
  std::string tag;
  float value = 0;
};

/// Writes all scalars as one event file (TFRecords of tensorflow.Event messages), durably, over what was there.
/// Throws Error when it cannot be written.
void write_event_file(const std::filesystem::path& file, const std::vector<Scalar>& scalars);

}  // namespace reco::io
