// SPDX-License-Identifier: Apache-2.0
// A tiny vocabulary made here; tests/python/test_tokenizer.py compares the real one with Hugging Face.
#include "reco/tokenizer.h"

#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>

#include "reco/error.h"
#include "unicode.h"

namespace reco {
namespace {

namespace fs = std::filesystem;
using Ids = std::vector<std::int64_t>;

class TokenizerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = fs::path(::testing::TempDir()) / (std::string("reco_tokenizer_") + info->name());
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    write("vocab.json", vocabulary().dump());
    write("merges.txt", "#version: 0.2\nl o\nlo w</w>\no w</w>\ne r</w>\nlo w\nlow er</w>\n");
  }
  void TearDown() override { fs::remove_all(folder_); }

  /// Bytes are 0 to 255, bytes that end a word 256 to 511, then what merges make.
  static nlohmann::json vocabulary() {
    nlohmann::json tokens;
    std::int64_t next = 0;
    for (const char* end : {"", "</w>"}) {
      char32_t other = 0x100;
      for (char32_t byte = 0; byte < 256; ++byte) {
        const bool printable = (byte > 0x20 && byte < 0x7F) || (byte > 0xA0 && byte != 0xAD);
        std::string character;
        unicode::append(printable ? byte : other++, character);
        tokens[character + end] = next++;
      }
    }
    for (const char* token :
         {"lo", "low</w>", "ow</w>", "er</w>", "low", "lower</w>", "<|startoftext|>", "<|endoftext|>"}) {
      tokens[token] = next++;
    }
    return tokens;
  }

  void write(const std::string& name, const std::string& text) const {
    std::ofstream(folder_ / name, std::ios::binary) << text;
  }
  Tokenizer load() const { return Tokenizer::load(folder_); }

  std::string failure() const {
    try {
      load();
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }

  fs::path folder_;
};

constexpr std::int64_t lo = 512, low_end = 513, er_end = 515, lower_end = 517, start = 518, end = 519;

/// The id of a byte that ends a word.
std::int64_t last(unsigned char byte) { return 256 + byte; }

TEST_F(TokenizerTest, MergesByRank) {
  const Tokenizer tokenizer = load();
  EXPECT_EQ(tokenizer.size(), 520);
  EXPECT_EQ(tokenizer.start_id(), start);
  EXPECT_EQ(tokenizer.end_id(), end);
  EXPECT_EQ(tokenizer.pad_id(), end);
  EXPECT_EQ(tokenizer.encode(""), (Ids{start, end}));
  EXPECT_EQ(tokenizer.encode("low"), (Ids{start, low_end, end}));
  EXPECT_EQ(tokenizer.encode(" LoWER\n"), (Ids{start, lower_end, end}));
  EXPECT_EQ(tokenizer.encode("lol"), (Ids{start, lo, last('l'), end}));
  EXPECT_EQ(tokenizer.encode("eer"), (Ids{start, 'e', er_end, end}));
}

TEST_F(TokenizerTest, SplitsWords) {
  const Tokenizer tokenizer = load();
  EXPECT_EQ(tokenizer.encode("low12's!?"),
            (Ids{start, low_end, last('1'), last('2'), '\'', last('s'), '!', last('?'), end}));
  EXPECT_EQ(tokenizer.encode("x<|endoftext|>y"), (Ids{start, last('x'), end, last('y'), end}));
  EXPECT_EQ(tokenizer.encode("<|endofTEXT|>!").size(), 16U);  // "<|", "endoftext", "|>" and "!" in bytes
}

TEST_F(TokenizerTest, NormalisesUnicode) {
  const Tokenizer tokenizer = load();
  const Ids composed{start, 0xC3, last(0xA9), end};
  EXPECT_EQ(tokenizer.encode("\u00e9"), composed);
  EXPECT_EQ(tokenizer.encode("e\u0301"), composed);
  EXPECT_EQ(tokenizer.encode("\u00c9"), composed);
  EXPECT_EQ(tokenizer.encode("\xff"), tokenizer.encode("\ufffd"));
  EXPECT_EQ(tokenizer.encode("a\xe2\x82z"), tokenizer.encode("a\ufffdz"));
}

TEST_F(TokenizerTest, CutsAndPads) {
  const Tokenizer tokenizer = load();
  EXPECT_EQ(tokenizer.encode("low low low", 3), (Ids{start, low_end, end}));
  EXPECT_EQ(tokenizer.encode("lololo", 4), (Ids{start, lo, lo, end}));
  EXPECT_EQ(tokenizer.encode("low", 2), (Ids{start, end}));
  EXPECT_THROW(tokenizer.encode("low", 1), Error);
  const std::vector<std::string> texts{"low", "", "low lower low"};
  IndexMatrix expected(3, 4);
  expected << start, low_end, end, end, start, end, end, end, start, low_end, lower_end, end;
  EXPECT_EQ(tokenizer.encode(texts, 4), expected);
  EXPECT_EQ(tokenizer.encode(std::span<const std::string>{}, 4).rows(), 0);
}

TEST_F(TokenizerTest, ManyTextsEqualOneByOne) {
  const Tokenizer tokenizer = load();
  std::vector<std::string> texts;
  for (int i = 0; i < 1000; ++i) texts.push_back("lower " + std::to_string(i) + " low, \u00c9l\u00e8ve's");
  const IndexMatrix ids = tokenizer.encode(texts, 32);
  for (int i = 0; i < 1000; ++i) {
    const Ids one = tokenizer.encode(texts[static_cast<std::size_t>(i)], 32);
    EXPECT_TRUE(std::equal(one.begin(), one.end(), ids.row(i).data()));
  }
}

TEST_F(TokenizerTest, TakesTokenizerJsonToo) {
  const nlohmann::json merges = nlohmann::json::array({"l o", nlohmann::json::array({"lo", "w</w>"})});
  const nlohmann::json model{{"type", "BPE"}, {"vocab", vocabulary()}, {"merges", merges}};
  write("tokenizer.json", nlohmann::json{{"model", model}}.dump());
  fs::remove(folder_ / "vocab.json");
  EXPECT_EQ(load().encode("low lower"), (Ids{start, low_end, lo, 'w', 'e', last('r'), end}));
}

TEST_F(TokenizerTest, TakesSpecialTokensFromTheConfig) {
  write("tokenizer_config.json", R"({"pad_token": "!", "extra_special_tokens": ["<Cat>"]})");
  const Tokenizer tokenizer = load();
  EXPECT_EQ(tokenizer.pad_id(), '!');
  EXPECT_EQ(tokenizer.size(), 521);
  EXPECT_EQ(tokenizer.encode("low!<Cat>"), (Ids{start, low_end, '!', 520, end}));
}

TEST_F(TokenizerTest, NamesWhatIsWrong) {
  write("merges.txt", "l o\nlo\n");
  EXPECT_NE(failure().find("merge 2 must be two tokens and a space, got 'lo'"), std::string::npos) << failure();
  write("merges.txt", "l o\no l\n");
  EXPECT_NE(failure().find("has 'ol', which is not in the vocabulary"), std::string::npos) << failure();
  write("vocab.json", std::string(100'000, '['));
  EXPECT_NE(failure().find("must hold a JSON object"), std::string::npos) << failure();
  write("vocab.json", R"({"a": )" + std::string(100'000, '[') + std::string(100'000, ']') + "}");
  EXPECT_NE(failure().find("must be an integer"), std::string::npos) << failure();
  fs::remove(folder_ / "vocab.json");
  EXPECT_NE(failure().find("must have tokenizer.json, or vocab.json and merges.txt"), std::string::npos) << failure();
}

TEST_F(TokenizerTest, LongWordsAndMarksAreNotQuadratic) {
  const Tokenizer tokenizer = load();
  std::string marks = "a";
  for (int i = 0; i < 200'000; ++i) marks += "\u0301\u0316";
  const auto before = std::chrono::steady_clock::now();
  EXPECT_EQ(tokenizer.encode(std::string(400'000, 'l'), 1'000'000).size(), 400'002U);
  EXPECT_GT(tokenizer.encode(marks, 1'000'000).size(), 400'000U);
  EXPECT_LT(std::chrono::steady_clock::now() - before, std::chrono::seconds(20));
}

TEST(Unicode, NormalisesByTheStandard) {
  using unicode::nfc;
  EXPECT_EQ(nfc(U"a\u0301\u0316"), U"\u00e1\u0316");
  EXPECT_EQ(nfc(U"a\u0316\u0301"), U"\u00e1\u0316");
  EXPECT_EQ(nfc(U"a\u0316\u0316\u0301\u0301"), U"\u00e1\u0316\u0316\u0301");
  EXPECT_EQ(nfc(U"\u1100\u1161\u11a8"), U"\uac01");
  EXPECT_EQ(nfc(U"\u212b"), U"\u00c5");
  EXPECT_EQ(nfc(U"\u0344"), U"\u0308\u0301");
  EXPECT_EQ(nfc(U"\u0301e"), U"\u0301e");
}

TEST(Unicode, LowersCodePointByCodePoint) {
  EXPECT_EQ(unicode::lower(U"A\u00c9\u03a3\u0130\u1e9e"), U"a\u00e9\u03c3i\u0307\u00df");
  EXPECT_EQ(unicode::lower(U"\ua7cb\U00010d50"), U"\u0264\U00010d70");  // of Unicode 16
}

}  // namespace
}  // namespace reco
