// SPDX-License-Identifier: Apache-2.0
// All of reco.
#pragma once

#include "reco/clip.h"
#include "reco/error.h"
#include "reco/evaluation.h"
#include "reco/fusion.h"
#include "reco/image.h"
#include "reco/memory.h"
#include "reco/memory_base.h"
#include "reco/model.h"
#include "reco/threads.h"
#include "reco/tokenizer.h"
#include "reco/training.h"
#include "reco/types.h"
