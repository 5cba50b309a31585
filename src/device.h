// SPDX-License-Identifier: Apache-2.0
// Names of devices: "cpu", "cuda", "cuda:1".
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <string>

#include "reco/error.h"

namespace reco {

/// Throws Error with `tag` unless it is 'cpu', 'cuda' or 'cuda:N'.
inline void check_device_name(const std::string& name, const char* tag) {
  const bool numbered = name.starts_with("cuda:") && name.size() > 5 && name.size() <= 8 &&
                        name.find_first_not_of("0123456789", 5) == std::string::npos;
  check(name == "cpu" || name == "cuda" || numbered, tag, "device must be 'cpu', 'cuda' or 'cuda:N', got '", name, "'");
}

/// The device of that name. Throws Error with `tag` where there is none.
inline at::Device parse_device(const std::string& name, const char* tag) {
  check_device_name(name, tag);
  if (name == "cpu") return {at::kCPU};
  check(at::hasCUDA(), tag, "device '", name, "' was asked for, but there is no GPU that this LibTorch can use");
  const auto number = name.size() > 5 ? std::stoll(name.substr(5)) : 0;
  const auto gpus = static_cast<std::int64_t>(at::getNumGPUs());
  check(number < gpus, tag, "device '", name, "' was asked for, but there are ", gpus, " GPUs");
  return {at::kCUDA, static_cast<at::DeviceIndex>(number)};
}

}  // namespace reco
