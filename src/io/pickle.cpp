// SPDX-License-Identifier: Apache-2.0
#include "io/pickle.h"

#include <cstring>
#include <map>
#include <string_view>

#include "reco/error.h"
#include "unicode.h"

namespace reco::io {

namespace {

constexpr const char* kPickle = "pickle.read";
constexpr std::size_t kMaxArguments = 16;   // they are copied
constexpr std::size_t kMaxBytes = 1 << 22;  // a node takes up to a hundred times the byte that makes it
using Kind = PickleNode::Kind;

/// The stack machine that a pickle is a program for. Every object is made by an opcode and lives in `nodes`, so that
/// the file's size bounds the memory, and objects that hold each other are no trouble.
class Machine {
 public:
  Machine(std::span<const std::byte> bytes, const std::filesystem::path& path, std::deque<PickleNode>& nodes)
      : bytes_(bytes), path_(path), nodes_(nodes) {}

  const PickleNode* run() {
    require(bytes_.size() <= kMaxBytes, "has ", bytes_.size(), " bytes, at most ", kMaxBytes, " are read");
    for (std::uint8_t opcode = byte(); opcode != '.'; opcode = byte()) step(opcode);
    return pop();
  }

 private:
  template <typename... Parts>
  void require(bool condition, const Parts&... parts) const {
    if (!condition) fail(kPickle, path_.string(), ": the pickle ", parts..., " at byte ", at_);
  }

  // ---- the program

  std::span<const std::byte> take(std::size_t count) {
    require(count <= bytes_.size() - at_, "is truncated");
    at_ += count;
    return bytes_.subspan(at_ - count, count);
  }

  template <typename Number>
  Number number() {
    Number value;
    std::memcpy(&value, take(sizeof(value)).data(), sizeof(value));
    return value;
  }
  std::uint8_t byte() { return number<std::uint8_t>(); }

  std::string text(std::size_t count) {
    const auto found = take(count);
    return valid({reinterpret_cast<const char*>(found.data()), found.size()});
  }

  std::string valid(std::string text) {
    require(unicode::is_valid(text), "has a text that is no UTF-8");
    return text;
  }

  std::string line() {
    const std::string_view rest(reinterpret_cast<const char*>(bytes_.data()) + at_, bytes_.size() - at_);
    const std::size_t end = rest.find('\n');
    require(end != rest.npos, "is truncated");
    at_ += end + 1;
    return valid(std::string(rest.substr(0, end)));
  }

  /// A little-endian integer of up to eight bytes.
  std::int64_t wide() {
    const std::size_t count = byte();
    require(count <= 8, "has an integer of ", count, " bytes");
    const auto found = take(count);
    std::int64_t value = count > 0 && (std::to_integer<int>(found[count - 1]) & 0x80) != 0 ? -1 : 0;
    std::memcpy(&value, found.data(), count);
    return value;
  }

  // ---- the stack

  PickleNode* push(PickleNode node) {
    stack_.push_back(&nodes_.emplace_back(std::move(node)));
    return stack_.back();
  }
  void push_integer(std::int64_t value) { push({Kind::integer, value, {}, {}, {}}); }
  void push_text(Kind kind, std::string value) { push({kind, 0, std::move(value), {}, {}}); }

  PickleNode* pop() {
    require(!stack_.empty() && stack_.back()->kind != Kind::mark, "takes more from its stack than there is");
    PickleNode* top = stack_.back();
    stack_.pop_back();
    return top;
  }

  PickleNode* top() {
    require(!stack_.empty() && stack_.back()->kind != Kind::mark, "takes more from its stack than there is");
    return stack_.back();
  }

  /// Everything above the last mark, and the mark.
  std::vector<const PickleNode*> pop_marked() {
    std::size_t mark = stack_.size();
    while (mark > 0 && stack_[mark - 1]->kind != Kind::mark) --mark;
    require(mark > 0, "has no mark where it needs one");
    std::vector<const PickleNode*> items(stack_.begin() + static_cast<std::ptrdiff_t>(mark), stack_.end());
    stack_.resize(mark - 1);
    return items;
  }

  // ---- opcodes

  void step(std::uint8_t opcode) {
    if (!step_value(opcode) && !step_container(opcode) && !step_memo(opcode) && !step_object(opcode)) {
      require(false, "has the opcode ", int{opcode}, ", which PyTorch does not write,");
    }
  }

  bool step_value(std::uint8_t opcode) {
    switch (opcode) {
      case 0x80:  // PROTO
        byte();
        return true;
      case 'N':
        push({});
        return true;
      case 0x88:  // NEWTRUE
      case 0x89:  // NEWFALSE
        push({Kind::boolean, opcode == 0x88, {}, {}, {}});
        return true;
      case 'J':
        push_integer(number<std::int32_t>());
        return true;
      case 'K':
        push_integer(byte());
        return true;
      case 'M':
        push_integer(number<std::uint16_t>());
        return true;
      case 0x8a:  // LONG1
        push_integer(wide());
        return true;
      case 'G':  // BINFLOAT; no tensor needs its value
        take(8);
        push({Kind::number, 0, {}, {}, {}});
        return true;
      case 'X':
        push_text(Kind::text, text(number<std::uint32_t>()));
        return true;
      default:
        return false;
    }
  }

  bool step_container(std::uint8_t opcode) {
    switch (opcode) {
      case '(':
        push({Kind::mark, 0, {}, {}, {}});
        return true;
      case ')':
        push({Kind::tuple, 0, {}, {}, {}});
        return true;
      case ']':
        push({Kind::list, 0, {}, {}, {}});
        return true;
      case '}':
        push({Kind::dict, 0, {}, {}, {}});
        return true;
      case 't': {
        auto items = pop_marked();
        push({Kind::tuple, 0, {}, std::move(items), {}});
        return true;
      }
      case 0x85:  // TUPLE1 to TUPLE3
      case 0x86:
      case 0x87:
        push_tuple(opcode - 0x84U);
        return true;
      case 'a': {
        const PickleNode* item = pop();
        top()->items.push_back(item);
        return true;
      }
      case 'e': {
        const auto items = pop_marked();
        top()->items.insert(top()->items.end(), items.begin(), items.end());
        return true;
      }
      case 's': {
        const PickleNode* value = pop();
        const PickleNode* key = pop();
        top()->members.emplace_back(key, value);
        return true;
      }
      case 'u':
        set_items(pop_marked());
        return true;
      default:
        return false;
    }
  }

  void push_tuple(std::size_t count) {
    std::vector<const PickleNode*> items(count);
    for (std::size_t i = count; i > 0; --i) items[i - 1] = pop();
    push({Kind::tuple, 0, {}, std::move(items), {}});
  }

  void set_items(const std::vector<const PickleNode*>& items) {
    require(items.size() % 2 == 0, "has a key without a value");
    for (std::size_t i = 0; i < items.size(); i += 2) top()->members.emplace_back(items[i], items[i + 1]);
  }

  bool step_memo(std::uint8_t opcode) {
    switch (opcode) {
      case 'q':
        memo_[byte()] = top();
        return true;
      case 'r':
        memo_[number<std::uint32_t>()] = top();
        return true;
      case 'h':
        recall(byte());
        return true;
      case 'j':
        recall(number<std::uint32_t>());
        return true;
      default:
        return false;
    }
  }

  void recall(std::uint32_t number) {
    const auto found = memo_.find(number);
    require(found != memo_.end(), "refers to ", number, ", which it has not stored,");
    stack_.push_back(found->second);
  }

  bool step_object(std::uint8_t opcode) {
    switch (opcode) {
      case 'c': {
        const std::string module = line();
        push_text(Kind::global, module + ' ' + line());
        return true;
      }
      case 'R':
      case 0x81:  // NEWOBJ
        call(opcode == 'R' ? Kind::call : Kind::object);
        return true;
      case 'b': {
        const PickleNode* state = pop();
        top()->members.emplace_back(nullptr, state);
        return true;
      }
      case 'Q': {
        const PickleNode* name = pop();
        require(name->items.size() <= kMaxArguments, "has a reference with ", name->items.size(), " parts");
        push({Kind::reference, 0, {}, name->items, {}});
        return true;
      }
      default:
        return false;
    }
  }

  void call(Kind kind) {
    const PickleNode* arguments = pop();
    const PickleNode* callee = pop();
    require(callee->kind == Kind::global && arguments->kind == Kind::tuple, "calls what is no function");
    require(arguments->items.size() <= kMaxArguments, "calls with ", arguments->items.size(), " arguments");
    push({kind, 0, callee->text, arguments->items, {}});
  }

  std::span<const std::byte> bytes_;
  const std::filesystem::path& path_;
  std::deque<PickleNode>& nodes_;
  std::size_t at_ = 0;
  std::vector<PickleNode*> stack_;
  std::map<std::uint32_t, PickleNode*> memo_;
};

}  // namespace

Pickle::Pickle(std::span<const std::byte> bytes, const std::filesystem::path& path)
    : root_(Machine(bytes, path, nodes_).run()) {}

}  // namespace reco::io
