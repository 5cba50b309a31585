// SPDX-License-Identifier: Apache-2.0
// Precompiled: LibTorch's tensor header costs eight seconds a source otherwise.
#pragma once

#include <ATen/ATen.h>
