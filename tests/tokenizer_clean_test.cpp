// SPDX-License-Identifier: Apache-2.0
#include "tokenizer_clean.h"

#include <gtest/gtest.h>

#include "tokenizer_encoding.h"
#include "unicode.h"

namespace reco {
namespace {

std::u32string cleaned(const std::u32string& text) { return clean(text, Cleaning::lower); }

TEST(TokenizerCleanTest, LeavesTextAloneWhereNothingIsAsked) {
  EXPECT_EQ(clean(U" A&amp;B  \u201Cc\u201D ", Cleaning::none), U" A&amp;B  \u201Cc\u201D ");
}

TEST(TokenizerCleanTest, ResolvesReferencesTwiceAsHtmlDoes) {
  EXPECT_EQ(unescape_html(U"&amp;amp; &lt;b&gt; &copy &notit; &#65;&#x42 &#128;"),
            U"&amp; <b> \u00A9 \u00ACit; AB \u20AC");
  EXPECT_EQ(unescape_html(U"& && &; &a; &#; &#x; &unknown; &#0; &#11;|&#xD800; &#99999999999;"),
            U"& && &; &a; &#; &#x; &unknown; \uFFFD |\uFFFD \uFFFD");
  EXPECT_EQ(unescape_html(U"&NotEqualTilde;&fjlig;"), U"\u2242\u0338fj");
  EXPECT_EQ(cleaned(U"a &amp;amp;lt; b"), U"a < b");
}

TEST(TokenizerCleanTest, RepairsWhatFtfyRepairs) {
  EXPECT_EQ(fix_text(U"\u201Cq\u201D \u2018s\u2019 \uFB01x \u0132 \uFF21\uFF22\u3000"), U"\"q\" 's' fix IJ AB ");
  EXPECT_EQ(fix_text(U"a\r\nb\rc\u2028d\u0085"), U"a\nb\nc\nd\u2026");  // a control that Windows has for an ellipsis
  EXPECT_EQ(fix_text(U"\x1B[31mred\x1B[0m \x1B[x\x07\uFEFF\x7F"), U"red ");
  EXPECT_EQ(fix_text(U"e\u0301"), U"\u00E9");
  EXPECT_EQ(fix_text(U"&EACUTE; &SZLIG; &nTILDE; &copy"), U"\u00C9 SS &nTILDE; &copy");
  EXPECT_EQ(fix_text(U"&lt;\n<b>&lt;\n&lt;"), U"<\n<b>&lt;\n&lt;");  // behind a tag, references are meant
}

TEST(TokenizerCleanTest, RepairsWhatWasReadInAWrongEncoding) {
  EXPECT_EQ(fix_encoding(U"caf\u00C3\u00A9"), U"caf\u00E9");                            // as Latin-1
  EXPECT_EQ(fix_encoding(U"\u00E2\u20AC\u0153q\u00E2\u20AC\u009D"), U"\u201Cq\u201D");  // as Windows-1252
  EXPECT_EQ(fix_encoding(U"\u00C3\u0192\u00C2\u00B3"), U"\u00F3");                      // twice
  EXPECT_EQ(fix_encoding(U"\u0432\u0402\u045Aq\u0432\u0402\u045C"), U"\u201Cq\u201D");  // as Windows-1251
  EXPECT_EQ(fix_encoding(U"\u6771 caf\u00C3\u00A9"), U"\u6771 caf\u00E9");              // in a part only
  EXPECT_EQ(fix_encoding(U"voil\u00C3 le"), U"voil\u00E0 le");                      // its no-break space became a space
  EXPECT_EQ(fix_encoding(U"\u00E2\u20AC\uFFFD"), U"\uFFFD");                        // what is lost stays lost
  EXPECT_EQ(fix_encoding(U"\u00ED\u00A0\u00BD\u00ED\u00B8\u0080"), U"\U0001F600");  // two surrogates
  for (const char32_t* usual :
       {U"", U"plain", U"caf\u00E9 na\u00EFve 5 \u20AC", U"\u041F\u0440\u0438", U"\u00BD \u00B1 \u00A9"}) {
    EXPECT_EQ(fix_encoding(usual), usual);
  }
}

TEST(TokenizerCleanTest, Cases) {
  EXPECT_EQ(cleaned(U" \t A  B\u00A0c\x1C "), U"a b c");
  EXPECT_EQ(cleaned(U"\u03A3\u0391\u03A3 \u0391\u03A3. \u03A3"), U"\u03C3\u03B1\u03C2 \u03B1\u03C2. \u03C3");
  EXPECT_EQ(clean(U"A_b, C!  d", Cleaning::whitespace), U"A_b, C! d");
  EXPECT_EQ(clean(U"A_b, C!  d", Cleaning::canonicalize), U"a b c d");
  EXPECT_EQ(canonicalize(U"A_b, C!  d "), U"Ab C d");
}

TEST(TokenizerCleanTest, NothingIsQuadratic) {
  const std::size_t length = 300'000;
  for (const char32_t* part : {U"&", U"&#", U"&amp;", U"&notin", U"\x1B[", U"\x1B[1;", U"\n", U"\uFB03", U"\u03A3",
                               U"\u00C3\u00A9", U"\u6771\u00C3\u00A9", U"\u00C3 ", U"\u0391\u00AF\u00C2\u00AF"}) {
    std::u32string text;
    while (text.size() < length) text += part;
    EXPECT_LE(clean(text, Cleaning::lower).size(), 3 * length);
  }
  std::u32string nested = U"&";
  while (nested.size() < length) nested += U"amp;";
  EXPECT_LT(clean(nested, Cleaning::lower).size(), nested.size());
}

TEST(TokenizerCleanTest, ValidUtf8) {
  EXPECT_TRUE(unicode::is_valid("a\u00E9\U0001F600"));
  for (const char* bad : {"\xff", "a\xC3", "\xED\xA0\x80", "\xC0\x80"}) EXPECT_FALSE(unicode::is_valid(bad));
}

}  // namespace
}  // namespace reco
