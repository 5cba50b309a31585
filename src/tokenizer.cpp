// SPDX-License-Identifier: Apache-2.0
#include "reco/tokenizer.h"

#include <algorithm>
#include <array>
#include <limits>
#include <memory>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "model_format.h"
#include "parallel.h"
#include "reco/error.h"
#include "token_finder.h"
#include "tokenizer_files.h"
#include "tokenizer_pieces.h"
#include "unicode.h"

namespace reco {

namespace {

constexpr const char* word_end = "</w>";
constexpr std::uint32_t none = std::numeric_limits<std::uint32_t>::max();

// ---- merges

/// What two neighbouring tokens become, and how early: an open-addressing table from pairs of ids.
class MergeTable {
 public:
  struct Merge {
    std::uint32_t rank = none;  // none: the pair does not merge
    std::uint32_t id = none;
  };

  explicit MergeTable(const TokenizerFiles& files) {
    std::size_t capacity = 16;
    while (capacity < 2 * files.merges.size()) capacity *= 2;
    slots_.resize(capacity);
    std::uint32_t rank = 0;
    for (const auto& [left, right] : files.merges) {
      const auto id = [&](const std::string& token) { return static_cast<std::uint32_t>(files.vocabulary.at(token)); };
      Slot& slot = slots_[find(key(id(left), id(right)))];
      slot = {key(id(left), id(right)), {rank++, id(left + right)}};  // of two equal pairs the later one holds
    }
  }

  Merge operator()(std::uint32_t left, std::uint32_t right) const { return slots_[find(key(left, right))].merge; }

 private:
  struct Slot {
    std::uint64_t key = empty;
    Merge merge;
  };
  static constexpr std::uint64_t empty = std::numeric_limits<std::uint64_t>::max();

  static std::uint64_t key(std::uint32_t left, std::uint32_t right) { return std::uint64_t{left} << 32 | right; }

  std::size_t find(std::uint64_t key) const {
    const std::size_t mask = slots_.size() - 1;
    std::size_t at = (key * 0x9E3779B97F4A7C15U >> 32) & mask;
    while (slots_[at].key != key && slots_[at].key != empty) at = (at + 1) & mask;
    return at;
  }

  std::vector<Slot> slots_;
};

/// Merges the tokens of one word, lowest rank first, leftmost first among equals. Neighbours form a linked list and
/// possible merges a heap, so that n tokens take n log n steps whatever the word is. Keeps its memory between words.
class Merger {
 public:
  explicit Merger(const MergeTable& table) : table_(table) {}

  void run(const std::vector<std::uint32_t>& word, std::vector<std::int64_t>& ids) {
    const auto count = static_cast<std::uint32_t>(word.size());
    symbols_.clear();
    heap_.clear();
    for (std::uint32_t i = 0; i < count; ++i) symbols_.push_back({word[i], i - 1, i + 1 < count ? i + 1 : none});
    for (std::uint32_t i = 0; i + 1 < count; ++i) offer(i);
    while (!heap_.empty()) {
      std::pop_heap(heap_.begin(), heap_.end());
      const Candidate best = heap_.back();
      heap_.pop_back();
      if (is_current(best)) join(best);
    }
    for (std::uint32_t i = 0; i < count; i = symbols_[i].next) ids.push_back(symbols_[i].id);
  }

 private:
  struct Symbol {
    std::uint32_t id;  // none: joined to the one before it
    std::uint32_t previous;
    std::uint32_t next;
  };
  struct Candidate {
    std::uint32_t rank;
    std::uint32_t position;
    std::uint32_t left;
    std::uint32_t right;
    std::uint32_t joined;
    /// The heap's largest is the best one.
    bool operator<(const Candidate& other) const {
      return std::pair(rank, position) > std::pair(other.rank, other.position);
    }
  };

  /// Puts the pair that starts here on the heap, if it merges.
  void offer(std::uint32_t position) {
    const Symbol& left = symbols_[position];
    if (left.next == none) return;
    const Symbol& right = symbols_[left.next];
    const auto merge = table_(left.id, right.id);
    if (merge.rank == none) return;
    heap_.push_back({merge.rank, position, left.id, right.id, merge.id});
    std::push_heap(heap_.begin(), heap_.end());
  }

  /// Whether no merge has taken either half since the candidate was offered.
  bool is_current(const Candidate& candidate) const {
    const Symbol& left = symbols_[candidate.position];
    return left.id == candidate.left && left.next != none && symbols_[left.next].id == candidate.right;
  }

  void join(const Candidate& candidate) {
    Symbol& left = symbols_[candidate.position];
    Symbol& right = symbols_[left.next];
    left.id = candidate.joined;
    left.next = right.next;
    right.id = none;
    if (left.next != none) symbols_[left.next].previous = candidate.position;
    if (left.previous != none) offer(left.previous);
    offer(candidate.position);
  }

  const MergeTable& table_;
  std::vector<Symbol> symbols_;
  std::vector<Candidate> heap_;
};

// ---- splitting

/// The one mark whose capital is a letter: where case is ignored, it belongs to no part of the pattern, and is dropped.
constexpr char32_t lone_iota = 0x345;

/// As open_clip's pattern, which ignores case, sees a code point.
char32_t fold(char32_t point) {
  if (point >= 'A' && point <= 'Z') return point + ('a' - 'A');
  return point == 0x17F ? U's' : point == 0x212A ? U'k' : point;  // the long s and the Kelvin sign
}

bool starts_with(std::u32string_view text, std::u32string_view start, bool any_case) {
  if (!any_case) return text.starts_with(start);
  return text.size() >= start.size() &&
         std::equal(start.begin(), start.end(), text.begin(), [](char32_t a, char32_t b) { return a == fold(b); });
}

/// How many code points of "'s", "'re", ... the text starts with; 0 if none.
std::size_t contraction(std::u32string_view text, bool any_case) {
  if (text[0] != U'\'') return 0;
  for (const std::u32string_view ending : {U"'s", U"'t", U"'re", U"'ve", U"'m", U"'ll", U"'d"}) {
    if (starts_with(text, ending, any_case)) return ending.size();
  }
  return 0;
}

template <typename Predicate>
std::size_t run_length(std::u32string_view text, const Predicate& belongs) {
  const auto end = std::find_if_not(text.begin(), text.end(), belongs);
  return static_cast<std::size_t>(end - text.begin());
}

/// The length of the word at the start of the text: a contraction, letters, one number, or others that are no space.
std::size_t word_length(std::u32string_view text, bool any_case = false) {
  if (const std::size_t length = contraction(text, any_case)) return length;
  if (unicode::is_letter(text[0])) return run_length(text, unicode::is_letter);
  if (unicode::is_number(text[0])) return 1;
  return run_length(text, [&](char32_t c) {
    return !unicode::is_space(c) && !unicode::is_letter(c) && !unicode::is_number(c) && !(any_case && c == lone_iota);
  });
}

/// The length of a special token's name at the start of the text, 0 if there is none. The pattern that splits words
/// knows both: what reads like one only when normalised, in capitals for example, stands apart and falls into three
/// words.
std::size_t special_length(std::u32string_view text) {
  for (const std::u32string_view name : {U"<|startoftext|>", U"<|endoftext|>"}) {
    if (text.starts_with(name)) return name.size();
  }
  return 0;
}

/// Calls visit(word) for each word until it returns false.
template <typename Visit>
bool for_each_word(std::u32string_view text, const Visit& visit) {
  const auto take = [&](std::size_t length) {
    const bool more = visit(text.substr(0, length));
    text.remove_prefix(length);
    return more;
  };
  while (!text.empty()) {
    if (unicode::is_space(text[0])) {
      text.remove_prefix(1);
    } else if (const std::size_t length = special_length(text)) {
      if (!take(2) || !take(length - 4) || !take(2)) return false;
    } else if (!take(word_length(text))) {
      return false;
    }
  }
  return true;
}

/// The same by open_clip's pattern, where the name of a special token is one word.
template <typename Visit>
bool for_each_simple_word(std::u32string_view text, const std::vector<std::u32string>& names, const Visit& visit) {
  while (!text.empty()) {
    if (unicode::is_space(text[0]) || text[0] == lone_iota) {
      text.remove_prefix(1);
      continue;
    }
    const auto name =
        std::find_if(names.begin(), names.end(), [&](const auto& x) { return starts_with(text, x, true); });
    const std::size_t length = name != names.end() ? name->size() : word_length(text, true);
    if (!visit(text.substr(0, length))) return false;
    text.remove_prefix(length);
  }
  return true;
}

std::u32string collapse_spaces(const std::u32string& text) {
  std::u32string out;
  out.reserve(text.size());
  bool after_space = false;
  for (const char32_t point : text) {
    const bool space = unicode::is_space(point);
    if (!space) out.push_back(point);
    if (space && !after_space) out.push_back(U' ');
    after_space = space;
  }
  return out;
}

std::u32string normalize(const std::u32string& text) { return unicode::lower(collapse_spaces(unicode::nfc(text))); }

/// The characters that stand for bytes in the vocabulary: printable Latin-1 for itself, the rest from U+0100 on.
std::array<std::string, 256> byte_characters() {
  std::array<std::string, 256> characters;
  char32_t next = 0x100;
  for (char32_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte > 0x20 && byte < 0x7F) || (byte > 0xA0 && byte != 0xAD);
    unicode::append(printable ? byte : next++, characters[byte]);
  }
  return characters;
}

}  // namespace

struct Tokenizer::Impl {
  explicit Impl(const TokenizerFiles& files)
      : merges(files),
        cleaning(files.cleaning),
        characters(files.characters),
        simple(files.simple),
        start(files.start),
        end(files.end),
        pad(files.pad),
        size(files.size) {
    constexpr std::array names{"hugging face", "open_clip lower", "open_clip whitespace", "open_clip canonicalize"};
    cleaning_name = names.at(static_cast<std::size_t>(cleaning));
    if (characters && cleaning == Cleaning::none) cleaning_name = characters->lower_case ? "siglip2 lower" : "siglip2";
    for (const AddedToken& token : files.added) {
      const std::u32string content = unicode::decode(token.content);
      token.normalized ? normalized.add(normalize(content), token.id) : raw.add(content, token.id);
    }
    characters ? learn_characters(files) : learn_bytes(files);
  }

  void learn_bytes(const TokenizerFiles& files) {
    const auto symbols = byte_characters();
    for (std::size_t byte = 0; byte < 256; ++byte) {
      bytes[byte] = id_of(files, symbols[byte]);
      last_bytes[byte] = id_of(files, symbols[byte] + word_end);
    }
  }

  /// Tokens of one character, and of the bytes that stand for other characters.
  void learn_characters(const TokenizerFiles& files) {
    for (const auto& [token, id] : files.vocabulary) {
      const std::u32string text = unicode::decode(token);
      if (text.size() == 1) points[text[0]] = static_cast<std::uint32_t>(id);
    }
    constexpr const char* digits = "0123456789ABCDEF";
    for (std::size_t byte = 0; byte < 256; ++byte) {
      bytes[byte] = id_of(files, std::string("<0x") + digits[byte / 16] + digits[byte % 16] + '>');
    }
  }

  /// SigLIP's; nothing else of this is used.
  explicit Impl(PieceTokenizer tokenizer)
      : merges(TokenizerFiles{}),
        pieces(std::move(tokenizer)),
        cleaning_name("siglip"),
        start(-1),
        end(pieces->end_id()),
        pad(pieces->pad_id()),
        size(pieces->size()) {}

  static std::uint32_t id_of(const TokenizerFiles& files, const std::string& token) {
    const auto found = files.vocabulary.find(token);
    const std::int64_t id = found != files.vocabulary.end() ? found->second : files.unknown;
    check(id >= 0, "tokenizer.load", "the vocabulary must have a token for every byte or for what is unknown, '", token,
          "' is missing");
    return static_cast<std::uint32_t>(id);
  }

  MergeTable merges;
  std::optional<PieceTokenizer> pieces;
  TokenFinder raw;         // added tokens that are found before,
  TokenFinder normalized;  // and after the text is normalised
  std::array<std::uint32_t, 256> bytes{};
  std::array<std::uint32_t, 256> last_bytes{};  // of a byte that ends a word
  Cleaning cleaning = Cleaning::none;
  std::string cleaning_name;
  std::optional<CharacterFiles> characters;
  std::unordered_map<char32_t, std::uint32_t> points;  // tokens of one character
  std::vector<std::u32string> simple;  // what open_clip's own tokenizer takes for start and end in a text
  std::int64_t start;
  std::int64_t end;
  std::int64_t pad;
  std::int64_t size;
};

namespace {

/// Turns texts into ids; keeps its memory between texts. One a thread.
template <typename Impl>
class Encoder {
 public:
  explicit Encoder(const Impl& impl) : impl_(impl), merger_(impl.merges) {}

  const std::vector<std::int64_t>& encode(std::string_view text, std::int64_t max_length) {
    if (impl_.characters) return encode_characters(text, static_cast<std::size_t>(max_length));
    if (impl_.pieces) return ids_ = impl_.pieces->encode(text, max_length);
    const auto room = static_cast<std::size_t>(max_length) - 1;
    ids_.assign(1, impl_.start);
    if (room > 1) {
      std::u32string points = clean(unicode::decode(text), impl_.cleaning);
      impl_.simple.empty() ? split(points, room) : split_simple(points, room);
    }
    ids_.resize(std::min(ids_.size(), room));
    ids_.push_back(impl_.end);
    return ids_;
  }

 private:
  void split(std::u32string_view text, std::size_t room) {
    const auto add = [&](std::int64_t id) {
      ids_.push_back(id);
      return ids_.size() < room;
    };
    const auto words = [&](std::u32string_view part) {
      return for_each_word(part, [&](std::u32string_view word) {
        encode_word(word);
        return ids_.size() < room;
      });
    };
    impl_.raw.split(
        text,
        [&](std::u32string_view part) { return impl_.normalized.split(normalize(std::u32string(part)), words, add); },
        add);
  }

  void split_simple(std::u32string_view text, std::size_t room) {
    for_each_simple_word(text, impl_.simple, [&](std::u32string_view word) {
      if (word == impl_.simple[0]) {
        ids_.push_back(impl_.start);
      } else if (word == impl_.simple[1]) {
        ids_.push_back(impl_.end);
      } else {
        encode_word(word);
      }
      return ids_.size() < room;
    });
  }

  const std::vector<std::int64_t>& encode_characters(std::string_view text, std::size_t max_length) {
    const auto& [lower_case, before, after] = *impl_.characters;
    const std::size_t room = max_length - std::min(max_length, after.size());
    ids_ = before;
    const auto part = [&](std::u32string_view piece) {
      merge_characters(lower_case ? unicode::lower(std::u32string(piece)) : std::u32string(piece));
      return ids_.size() < room;
    };
    const auto token = [&](std::int64_t id) {
      ids_.push_back(id);
      return ids_.size() < room;
    };
    impl_.raw.split(clean(unicode::decode(text), impl_.cleaning), part, token);
    ids_.resize(std::min(ids_.size(), room));
    ids_.insert(ids_.end(), after.begin(), after.end());
    return ids_;
  }

  void merge_characters(const std::u32string& text) {
    symbols_.clear();
    for (const char32_t point : text) {
      const auto found = impl_.points.find(point == U' ' ? U'\u2581' : point);
      if (found != impl_.points.end()) {
        symbols_.push_back(found->second);
        continue;
      }
      utf8_.clear();
      unicode::append(point, utf8_);
      for (const char byte : utf8_) symbols_.push_back(impl_.bytes[static_cast<std::uint8_t>(byte)]);
    }
    merger_.run(symbols_, ids_);
  }

  void encode_word(std::u32string_view word) {
    utf8_.clear();
    for (const char32_t point : word) unicode::append(point, utf8_);
    symbols_.clear();
    for (const char byte : utf8_) symbols_.push_back(impl_.bytes[static_cast<std::uint8_t>(byte)]);
    symbols_.back() = impl_.last_bytes[static_cast<std::uint8_t>(utf8_.back())];
    merger_.run(symbols_, ids_);
  }

  const Impl& impl_;
  Merger merger_;
  std::string utf8_;
  std::vector<std::uint32_t> symbols_;
  std::vector<std::int64_t> ids_;
};

void check_length(std::int64_t max_length) {
  constexpr std::int64_t most = std::int64_t{1} << 24;
  check(max_length >= 2 && max_length <= most, "tokenizer.encode", "max_length must be from 2 to ", most, ", got ",
        max_length);
}

}  // namespace

Tokenizer Tokenizer::load(const std::filesystem::path& path) {
  if (model_format(path) == ModelFormat::hugging_face && PieceTokenizer::is_in(path)) {
    return Tokenizer(std::make_shared<const Impl>(PieceTokenizer(path)));
  }
  return Tokenizer(std::make_shared<const Impl>(read_tokenizer_files(path)));
}

std::vector<std::int64_t> Tokenizer::encode(std::string_view text, std::int64_t max_length) const {
  check_length(max_length);
  return Encoder(*impl_).encode(text, max_length);
}

IndexMatrix Tokenizer::encode(std::span<const std::string> texts, std::int64_t max_length) const {
  check_length(max_length);
  constexpr std::int64_t block = 64;  // texts that share an encoder's memory
  const auto count = static_cast<std::int64_t>(texts.size());
  IndexMatrix ids = IndexMatrix::Constant(count, max_length, impl_->pad);
  parallel_for((count + block - 1) / block, [&](std::int64_t b) {
    Encoder encoder(*impl_);
    for (std::int64_t i = b * block; i < std::min(count, (b + 1) * block); ++i) {
      const auto& found = encoder.encode(texts[static_cast<std::size_t>(i)], max_length);
      std::copy(found.begin(), found.end(), ids.row(i).data());
    }
  });
  return ids;
}

const std::string& Tokenizer::cleaning() const { return impl_->cleaning_name; }
std::int64_t Tokenizer::size() const { return impl_->size; }
std::int64_t Tokenizer::start_id() const { return impl_->start; }
std::int64_t Tokenizer::end_id() const { return impl_->end; }
std::int64_t Tokenizer::pad_id() const { return impl_->pad; }

}  // namespace reco
