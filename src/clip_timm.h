// SPDX-License-Identifier: Apache-2.0
// timm's image towers within open_clip's models: SigLIP's and SigLIP 2's.
#pragma once

#include <string>

#include "clip_config.h"
#include "clip_json.h"
#include "clip_weights.h"

namespace reco {

/// Whether vision_cfg names a tower of timm's.
bool is_timm(const ClipSection& section);

/// The tower that vision_cfg names by timm_model_name, which stands for sizes and activation. Throws Error naming it
/// unless it is one of SigLIP's.
void read_timm(const ClipSection& section, ClipVision& vision);

/// Where timm keeps a tensor of the image tower, vision_model.*; other names stay as they are.
ClipTensorName timm_name(const std::string& name);

}  // namespace reco
