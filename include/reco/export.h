// SPDX-License-Identifier: Apache-2.0
/// @file
/// What the shared library exports.
#pragma once

/// Marks what the shared library exports; everything else is hidden.
#if defined(_WIN32)
#define RECO_API
#else
#define RECO_API __attribute__((visibility("default")))
#endif
