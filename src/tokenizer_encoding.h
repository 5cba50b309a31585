// SPDX-License-Identifier: Apache-2.0
// Text that was UTF-8 and was read in another encoding ("cafÃ©"), guessed back as ftfy does it, also where it happened
// several times, or in parts of the text only.
#pragma once

#include <string>

namespace reco {

/// ftfy's fix_encoding(). What does not look misread stays as it is.
std::u32string fix_encoding(std::u32string text);

/// What Windows-1252 has for a control of ISO 8859's second set; others stay as they are.
char32_t from_windows(char32_t c);

}  // namespace reco
