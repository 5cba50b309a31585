// SPDX-License-Identifier: Apache-2.0
#include "io/torchscript.h"

#include <algorithm>
#include <span>
#include <string_view>

#include "io/pickle.h"
#include "io/zip.h"
#include "reco/error.h"

namespace reco::io {

namespace {

namespace fs = std::filesystem;
using Kind = PickleNode::Kind;
using Files = std::map<std::string, std::span<const std::byte>>;

constexpr const char* kOpen = "torchscript.open";
constexpr int kMaxDepth = 32;            // of attributes
constexpr std::size_t kMaxVisits = 1e6;  // objects may hang in many places

std::string dtype_of(const std::string& storage) {
  static const std::map<std::string, std::string> dtypes{
      {"torch FloatStorage", "F32"},  {"torch HalfStorage", "F16"}, {"torch BFloat16Storage", "BF16"},
      {"torch DoubleStorage", "F64"}, {"torch LongStorage", "I64"}, {"torch IntStorage", "I32"},
      {"torch ShortStorage", "I16"},  {"torch CharStorage", "I8"},  {"torch ByteStorage", "U8"},
      {"torch BoolStorage", "BOOL"}};
  const auto found = dtypes.find(storage);
  return found == dtypes.end() ? "" : found->second;
}

/// Goes through all that hangs at the root and collects the tensors.
class Collector {
 public:
  Collector(const Files& files, std::string folder, const fs::path& path)
      : files_(files), folder_(std::move(folder)), path_(path) {}

  std::map<std::string, TensorView> collect(const PickleNode& root) {
    visit(root, "", 0);
    return std::move(tensors_);
  }

 private:
  template <typename... Parts>
  void require(bool condition, const Parts&... parts) const {
    if (!condition) fail(kOpen, path_.string(), ": ", parts...);
  }

  void visit(const PickleNode& node, const std::string& name, int depth) {
    require(depth <= kMaxDepth, "'", name.substr(0, 80), "' lies deeper than ", kMaxDepth, " levels");
    require(++visits_ <= kMaxVisits, "more than ", kMaxVisits, " objects");
    if (node.kind == Kind::call && node.text == "torch._utils _rebuild_parameter") {
      require(!node.items.empty(), "parameter '", name, "' has no tensor");
      return visit(*node.items[0], name, depth + 1);
    }
    if (node.kind == Kind::call && node.text == "torch._utils _rebuild_tensor_v2") {
      tensors_[name] = read_tensor(node, name);
      return;
    }
    for (const auto& [key, value] : node.members) {
      if (key == nullptr) {
        visit(*value, name, depth + 1);
      } else if (key->kind == Kind::text) {
        visit(*value, name.empty() ? key->text : name + '.' + key->text, depth + 1);
      }
    }
  }

  std::vector<std::int64_t> numbers(const PickleNode& tuple, const std::string& name) const {
    std::vector<std::int64_t> values;
    require(tuple.kind == Kind::tuple, "tensor '", name, "' has a shape or strides that are no tuple");
    for (const PickleNode* item : tuple.items) {
      require(item->kind == Kind::integer && item->integer >= 0, "tensor '", name,
              "' has a shape or strides that are no whole numbers from 0 on");
      values.push_back(item->integer);
    }
    return values;
  }

  void check_contiguous(const std::vector<std::int64_t>& shape, const std::vector<std::int64_t>& strides,
                        const std::string& name) const {
    bool contiguous = shape.size() == strides.size();
    std::int64_t expected = 1;
    for (std::size_t i = shape.size(); contiguous && i > 0; --i) {
      contiguous = shape[i - 1] == 1 || strides[i - 1] == expected;
      contiguous = contiguous && !__builtin_mul_overflow(expected, std::max<std::int64_t>(shape[i - 1], 1), &expected);
    }
    require(contiguous, "tensor '", name, "' is not contiguous; such tensors are not read");
  }

  /// _rebuild_tensor_v2(storage, offset, shape, strides, ...), storage = ("storage", type, file, device, elements).
  TensorView read_tensor(const PickleNode& call, const std::string& name) const {
    require(call.items.size() >= 4 && call.items[0]->kind == Kind::reference && call.items[0]->items.size() >= 3 &&
                call.items[0]->items[1]->kind == Kind::global && call.items[0]->items[2]->kind == Kind::text,
            "tensor '", name, "' has no storage");
    const std::string& storage = call.items[0]->items[1]->text;
    TensorView view{dtype_of(storage), numbers(*call.items[2], name), {}};
    require(!view.dtype.empty(), "tensor '", name, "' lies in a '", storage.substr(0, 80), "', which is not read");
    check_contiguous(view.shape, numbers(*call.items[3], name), name);
    const auto file = files_.find(folder_ + "/data/" + call.items[0]->items[2]->text);
    require(file != files_.end(), "the storage of tensor '", name, "' is missing");
    view.data = part(view, call.items[1]->integer, file->second, name);
    return view;
  }

  std::span<const std::byte> part(const TensorView& view, std::int64_t offset, std::span<const std::byte> storage,
                                  const std::string& name) const {
    const std::size_t element = element_size(view.dtype);
    std::uint64_t count = 1;
    bool fits = offset >= 0 && static_cast<std::uint64_t>(offset) <= storage.size() / element;
    for (const std::int64_t size : view.shape) {
      fits = fits && !__builtin_mul_overflow(count, static_cast<std::uint64_t>(size), &count);
    }
    fits = fits && count <= storage.size() / element - static_cast<std::uint64_t>(offset);
    require(fits, "tensor '", name, "' reaches beyond its storage of ", storage.size(), " bytes");
    return storage.subspan(static_cast<std::size_t>(offset) * element, count * element);
  }

  const Files& files_;
  std::string folder_;
  const fs::path& path_;
  std::map<std::string, TensorView> tensors_;
  std::size_t visits_ = 0;
};

/// The folder inside the archive that holds everything; it is called like the archive once was.
std::string find_folder(const Files& files, const fs::path& path) {
  constexpr std::string_view pickle = "/data.pkl";
  for (const auto& [name, bytes] : files) {
    if (name.ends_with(pickle) && name.find('/') == name.size() - pickle.size()) {
      return name.substr(0, name.size() - pickle.size());
    }
  }
  fail(kOpen, path.string(), " has no data.pkl: it is no TorchScript archive");
}

}  // namespace

TorchScript::TorchScript(const fs::path& path) : file_(path) {
  const Files files = read_zip(file_.bytes(), path);
  const std::string folder = find_folder(files, path);
  const auto order = files.find(folder + "/byteorder");
  check(order == files.end() || order->second.size() != 3, kOpen, path.string(), " is big-endian");  // "big", "little"
  const Pickle pickle(files.at(folder + "/data.pkl"), path);
  tensors_ = Collector(files, folder, path).collect(pickle.root());
}

}  // namespace reco::io
