#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/Storage.h>

#include <algorithm>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "convpass/core/error.h"
#include "src/core/formats.h"
#include "src/core/pickle.h"
#include "src/core/printable.h"
#include "src/core/torch_types.h"

namespace convpass {
namespace {

using Kind = PickleValue::Kind;
using Items = std::vector<const PickleValue*>;
using NamedValues = std::map<std::string, const PickleValue*>;

constexpr uint64_t kLargestPickle = 64 << 20;
constexpr int kDeepestWrapper = 4;
constexpr int kDeepestModule = 64;
constexpr size_t kMostAttributes = 1'000'000;
constexpr size_t kLongestName = 1024;
constexpr size_t kMostDimensions = 64;
/// An expanded tensor (stride 0) names more elements than it has; up to here it is believed.
constexpr uint64_t kMostExpanded = 1 << 20;
constexpr const char* kWrappers[] = {"model", "state_dict", "teacher", "model_state"};
constexpr std::string_view kModuleParts[] = {"_parameters", "_buffers", "_modules"};

[[noreturn]] void fail(const std::string& what) { throw std::invalid_argument(what); }

/// True for a call of one of torch's functions that rebuild a tensor.
bool is_tensor(const PickleValue& value) {
  return value.is(Kind::call) && value.function->is(Kind::global) &&
         value.function->text.starts_with("torch._") &&
         value.function->text.find("._rebuild_") != std::string::npos;
}

const Items& sequence(const PickleValue& value, const char* what) {
  const PickleValue* found = &value;
  if (value.is(Kind::call) && value.function->is_global("torch.Size") &&
      value.args->is(Kind::sequence) && value.args->items.size() == 1) {
    found = value.args->items[0];
  }
  if (!found->is(Kind::sequence)) fail(std::string(what) + " is not a tuple");
  return found->items;
}

int64_t integer(const PickleValue& value, const char* what) {
  if (!value.is(Kind::integer)) fail(std::string(what) + " is not a whole number");
  return value.integer;
}

std::vector<int64_t> integers(const PickleValue& value, const char* what) {
  std::vector<int64_t> numbers;
  for (const auto* item : sequence(value, what)) numbers.push_back(integer(*item, what));
  if (numbers.size() > kMostDimensions) fail("has more than 64 dimensions");
  return numbers;
}

c10::ScalarType type_named(const PickleValue& value, std::string_view TorchType::*name) {
  if (!value.is(Kind::global)) fail("its type is not a name");
  if (value.text == kUntypedStorage || value.text == "torch.UntypedStorage") return c10::kByte;
  for (const TorchType& known : kTorchTypes) {
    if (value.text == known.*name) return known.type;
  }
  fail("type " + in_quotes(value.text) + " is not read");
}

/// Refuses a view that reaches outside its storage of `available` elements.
void check_view(uint64_t available, int64_t offset, const std::vector<int64_t>& sizes,
                const std::vector<int64_t>& strides) {
  if (sizes.size() != strides.size()) fail("has not one stride for each dimension");
  if (offset < 0) fail("starts before its storage");
  uint64_t count = 1, last = static_cast<uint64_t>(offset);
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] <= 0 || strides[i] < 0) fail("has a negative size or stride");
    uint64_t reach = 0;
    if (__builtin_mul_overflow(static_cast<uint64_t>(sizes[i] - 1),
                               static_cast<uint64_t>(strides[i]), &reach) ||
        __builtin_add_overflow(last, reach, &last) ||
        __builtin_mul_overflow(count, static_cast<uint64_t>(sizes[i]), &count)) {
      fail("the shape is too large");
    }
  }
  if (last >= available) {
    fail("reaches to element " + std::to_string(last) + " of a storage of " +
         std::to_string(available));
  }
  if (count > available && count > kMostExpanded) {
    fail("has " + std::to_string(count) + " elements in a storage of " + std::to_string(available));
  }
}

/// Rebuilds tensors from what the pickle says and the storages beside it.
class TensorReader {
 public:
  TensorReader(ZipReader& zip, std::string root) : zip_(zip), root_(std::move(root)) {}

  at::Tensor read(const PickleValue& call) {
    return rebuild(*call.function, *call.args, kDeepestWrapper);
  }

 private:
  at::Tensor rebuild(const PickleValue& function, const PickleValue& arguments, int depth) {
    const Items& args = sequence(arguments, "the description");
    auto has = [&](size_t count) {
      if (args.size() < count) fail("its description lacks arguments");
    };
    if (!function.is(Kind::global)) fail("its kind is not a name");
    if (depth == 0) fail("is nested too deep");
    const std::string& name = function.text;
    if (name == "torch._utils._rebuild_tensor" || name == "torch._utils._rebuild_tensor_v2") {
      has(4);
      return view(args, std::nullopt);
    }
    if (name == "torch._utils._rebuild_tensor_v3") {
      has(7);
      return view(args, type_named(*args[6], &TorchType::dtype));
    }
    if (name == "torch._utils._rebuild_parameter" ||
        name == "torch._utils._rebuild_parameter_with_state") {
      has(1);
      if (!is_tensor(*args[0])) fail("is a parameter without a tensor");
      return rebuild(*args[0]->function, *args[0]->args, depth - 1);
    }
    if (name == "torch._tensor._rebuild_from_type_v2") {
      has(3);
      return rebuild(*args[0], *args[2], depth - 1);
    }
    fail("is of a kind that is not read (" + printable(name) + ")");
  }

  /// args: storage, offset, sizes, strides; offset and strides in elements.
  at::Tensor view(const Items& args, std::optional<c10::ScalarType> dtype) {
    auto [storage, storage_type] = read_storage(*args[0]);
    const c10::ScalarType type = dtype.value_or(storage_type);
    const int64_t offset = integer(*args[1], "the offset");
    const auto sizes = integers(*args[2], "the shape");
    const auto strides = integers(*args[3], "the strides");
    const auto size = bytes_of(sizes, type);
    if (!size) fail("the shape is negative or too large");
    if (*size == 0) return at::empty(sizes, type);
    check_view(storage.nbytes() / c10::elementSize(type), offset, sizes, strides);
    if (type == c10::kBool) normalise_bools(storage.mutable_data(), storage.nbytes());
    return at::empty({0}, type).set_(storage, offset, sizes, strides);
  }

  std::pair<c10::Storage, c10::ScalarType> read_storage(const PickleValue& value) {
    if (!value.is(Kind::persistent)) fail("lacks a storage");
    // ("storage", class, key, device, number of elements)
    const Items& id = sequence(*value.args, "the storage");
    if (id.size() < 5 || !id[0]->is(Kind::text) || id[0]->text != "storage" ||
        !id[2]->is(Kind::text)) {
      fail("its storage is not described as torch does");
    }
    const auto type = type_named(*id[1], &TorchType::storage);
    const std::vector<int64_t> count = {integer(*id[4], "the storage's length")};
    const auto wanted = bytes_of(count, type);
    if (!wanted) fail("its storage has an impossible length");

    const std::string name = root_ + "data/" + id[2]->text;
    auto found = zip_.entries().find(name);
    const uint64_t got = found == zip_.entries().end() ? 0 : found->second.size;
    if (got != *wanted) {
      fail("its storage " + in_quotes(name) + " has " + std::to_string(got) + " bytes, wanted " +
           std::to_string(*wanted));
    }
    auto [cached, added] = storages_.try_emplace(name);
    if (added) {
      at::Tensor bytes = at::empty({static_cast<int64_t>(got)}, c10::kByte);
      if (got != 0) zip_.read_into(name, bytes.mutable_data_ptr());
      cached->second = bytes.storage();
    }
    return {cached->second, type};
  }

  ZipReader& zip_;
  std::string root_;
  std::map<std::string, c10::Storage> storages_;
};

/// Finds the dictionary of tensors in what was saved.
class StateFinder {
 public:
  /// The tensors of the innermost wrapper, or of `value` itself; empty when there are none.
  NamedValues find(const PickleValue& value, int depth = kDeepestWrapper) {
    if (!value.is(Kind::dict) && !value.is(Kind::call)) return {};
    for (const char* wrapper : kWrappers) {
      const auto* inner = depth > 0 ? value.find(wrapper) : nullptr;
      if (inner == nullptr || is_tensor(*inner)) continue;
      auto found = find(*inner, depth - 1);
      if (!found.empty()) return found;
    }
    NamedValues found;
    for (size_t i = 0; i + 1 < value.items.size(); i += 2) {
      if (value.items[i]->is(Kind::text) && is_tensor(*value.items[i + 1])) {
        found[value.items[i]->text] = value.items[i + 1];
      }
    }
    if (found.empty()) add_module(value, "", 0, found);
    return found;
  }

 private:
  /// A saved module (pickled whole, or TorchScript): attributes become dotted names.
  void add_module(const PickleValue& module, const std::string& prefix, int depth,
                  NamedValues& found) {
    if (!module.is(Kind::call) || module.state == nullptr || !module.state->is(Kind::dict)) return;
    add_attributes(module.state->items, prefix, depth, found);
  }

  void add_attributes(const Items& items, const std::string& prefix, int depth,
                      NamedValues& found) {
    // A module may occur in itself, and in many places.
    if (depth > kDeepestModule) fail("modules are nested too deep");
    for (size_t i = 0; i + 1 < items.size(); i += 2) {
      if (++attributes_ > kMostAttributes) fail("modules have too many attributes");
      const auto &key = *items[i], &value = *items[i + 1];
      if (!key.is(Kind::text)) continue;
      if (prefix.size() + key.text.size() > kLongestName) fail("a module's name is too long");
      const bool part = std::find(std::begin(kModuleParts), std::end(kModuleParts), key.text) !=
                        std::end(kModuleParts);
      if (is_tensor(value)) {
        found[prefix + key.text] = &value;
      } else if (part && (value.is(Kind::dict) || value.is(Kind::call))) {
        add_attributes(value.items, prefix, depth + 1, found);
      } else {
        add_module(value, prefix + key.text + ".", depth + 1, found);
      }
    }
  }

  size_t attributes_ = 0;
};

std::string keys_of(const PickleValue& value) {
  std::string keys;
  for (size_t i = 0, count = 0; i + 1 < value.items.size() && count < 8; i += 2) {
    if (!value.items[i]->is(Kind::text)) continue;
    keys += (count++ == 0 ? "" : ", ") + printable(value.items[i]->text);
  }
  return keys.empty() ? "none" : keys;
}

/// Takes a prefix off that every name has (DataParallel's `module.`).
void strip_prefix(std::map<std::string, at::Tensor>& tensors, std::string_view prefix) {
  for (const auto& [name, tensor] : tensors) {
    if (!name.starts_with(prefix)) return;
  }
  std::map<std::string, at::Tensor> stripped;
  for (auto& [name, tensor] : tensors) stripped.emplace(name.substr(prefix.size()), tensor);
  tensors.swap(stripped);
}

std::string find_root(const ZipReader& zip) {
  constexpr std::string_view kPickle = "data.pkl";
  const std::string* shortest = nullptr;
  for (const auto& [name, entry] : zip.entries()) {
    if (name.ends_with("/data.pkl") && (shortest == nullptr || name.size() < shortest->size())) {
      shortest = &name;
    }
  }
  TORCH_CHECK(shortest != nullptr, "load_pytorch: the archive has no data.pkl");
  return shortest->substr(0, shortest->size() - kPickle.size());
}

}  // namespace

TensorMap load_pytorch(ZipReader& zip) {
  const std::string root = find_root(zip);
  if (zip.has(root + "byteorder")) {
    const auto order = zip.read(root + "byteorder", 16);
    if (std::string(order.begin(), order.end()) != "little") {
      throw FileError(zip.file(),
                      "was written on a machine of another byte order, which is not read");
    }
  }
  const auto bytes = zip.read(root + "data.pkl", kLargestPickle);
  TensorMap map;
  map.format = zip.has(root + "constants.pkl") ? "torchscript" : "pytorch";
  std::string where;
  try {
    const Pickle pickle = Pickle::parse(bytes);
    const NamedValues found = StateFinder().find(pickle.root());
    if (found.empty()) {
      fail("no tensors at its top nor under model, state_dict, teacher or model_state; its keys: " +
           keys_of(pickle.root()));
    }
    TensorReader reader(zip, root);
    for (const auto& [name, value] : found) {
      where = "tensor " + in_quotes(name) + ": ";
      map.tensors.emplace(name, reader.read(*value));
    }
  } catch (const std::invalid_argument& error) {
    throw FileError(zip.file(), where + error.what());
  }
  for (const char* prefix : {"module.", "backbone."}) strip_prefix(map.tensors, prefix);
  return map;
}

}  // namespace convpass
