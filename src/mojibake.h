// SPDX-License-Identifier: Apache-2.0
// What UTF-8 looks like where it was read in another encoding: the heuristics of ftfy 6.3 (Robyn Speer,
// doi:10.5281/zenodo.2591652), whose answers open_clip's token ids depend on.
#pragma once

#include <cstddef>
#include <string_view>

namespace reco {

/// Whether neighbours occur in the text that hardly anybody writes on purpose, such as "Ã©".
bool is_mojibake(std::u32string_view text);

/// The length of the run of misread UTF-8 sequences that starts here, 0 if none does.
std::size_t misread_length(std::u32string_view text, std::size_t at);

}  // namespace reco
