#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "convpass/core/error.h"
#include "src/core/formats.h"
#include "src/core/printable.h"

namespace convpass {
namespace {

using nlohmann::json;

constexpr uint64_t kLongestHeader = 100'000'000;  // the limit of the reference implementation
constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kAlignment = 8;
constexpr int kDeepestJson = 4;
constexpr const char* kMetadata = "__metadata__";

struct TypeName {
  const char* name;
  c10::ScalarType type;
};
constexpr TypeName kTypes[] = {
    {"F32", c10::kFloat},  {"F16", c10::kHalf},   {"BF16", c10::kBFloat16}, {"F64", c10::kDouble},
    {"I64", c10::kLong},   {"I32", c10::kInt},    {"I16", c10::kShort},     {"I8", c10::kChar},
    {"U64", c10::kUInt64}, {"U32", c10::kUInt32}, {"U16", c10::kUInt16},    {"U8", c10::kByte},
    {"BOOL", c10::kBool},
};

/// Parses JSON whose depth is bounded and whose keys are unique.
json parse_strictly(const std::filesystem::path& file, std::span<const uint8_t> text,
                    const std::string& what) {
  std::vector<std::set<std::string>> keys;
  auto check = [&](int depth, json::parse_event_t event, json& value) {
    if (depth > kDeepestJson) throw FileError(file, what + ": JSON is nested too deep");
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key &&
        !keys.back().insert(value.get_ref<const std::string&>()).second) {
      throw FileError(file, what + ": the key " + in_quotes(value.get_ref<const std::string&>()) +
                                " is there twice");
    }
    return true;
  };
  try {
    return json::parse(text.begin(), text.end(), check);
  } catch (const json::exception& error) {
    throw FileError(file, what + ": " + printable(error.what()));
  }
}

/// One tensor of the header, checked on its own.
struct Entry {
  std::string name;
  c10::ScalarType type;
  std::vector<int64_t> shape;
  uint64_t begin, end;  ///< bytes from the start of the data
};

bool whole_number(const json& value) {
  return value.is_number_unsigned() && value.get<uint64_t>() <= INT64_MAX;
}

bool whole_numbers(const json& value) {
  return value.is_array() && std::all_of(value.begin(), value.end(), whole_number);
}

Entry read_entry(const std::filesystem::path& file, const std::string& name, const json& value,
                 uint64_t data_size) {
  auto fail = [&](const std::string& what) {
    throw FileError(file, "tensor " + in_quotes(name) + ": " + what);
  };
  if (!value.is_object() || value.size() != 3 || !value.contains("dtype") ||
      !value.contains("shape") || !value.contains("data_offsets")) {
    fail("wanted an object with dtype, shape and data_offsets");
  }
  if (!value["dtype"].is_string()) fail("dtype is not a string");
  const auto& dtype = value["dtype"].get_ref<const std::string&>();
  const auto* type = std::find_if(std::begin(kTypes), std::end(kTypes),
                                  [&](const TypeName& known) { return dtype == known.name; });
  if (type == std::end(kTypes)) {
    fail("type " + in_quotes(dtype) +
         " is not read, wanted F64, F32, F16, BF16, an integer or BOOL");
  }
  const json& offsets = value["data_offsets"];
  if (!whole_numbers(value["shape"])) fail("shape is not a list of whole numbers");
  if (!whole_numbers(offsets) || offsets.size() != 2) fail("data_offsets is not [begin, end]");

  Entry entry{name, type->type, value["shape"].get<std::vector<int64_t>>(),
              offsets[0].get<uint64_t>(), offsets[1].get<uint64_t>()};
  if (entry.begin > entry.end || entry.end > data_size) {
    fail("data_offsets " + offsets.dump() + " do not lie in the " + std::to_string(data_size) +
         " bytes of data");
  }
  auto wanted = bytes_of(entry.shape, entry.type);
  if (!wanted) fail("the shape is too large");
  if (*wanted != entry.end - entry.begin) {
    fail("got " + std::to_string(entry.end - entry.begin) + " bytes, wanted " +
         std::to_string(*wanted) + " for its shape and type");
  }
  return entry;
}

/// The specification wants every byte of the data to belong to exactly one tensor.
void check_coverage(const std::filesystem::path& file, std::vector<Entry>& entries,
                    uint64_t data_size) {
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  uint64_t covered = 0;
  for (const Entry& entry : entries) {
    if (entry.begin != covered) {
      throw FileError(file, "tensor " + in_quotes(entry.name) + ": starts at byte " +
                                std::to_string(entry.begin) + " of the data, wanted " +
                                std::to_string(covered) +
                                (entry.begin < covered ? " (tensors overlap)" : " (unused bytes)"));
    }
    covered = entry.end;
  }
  if (covered != data_size) {
    throw FileError(file,
                    std::to_string(data_size - covered) + " bytes of data belong to no tensor");
  }
}

at::Tensor make_tensor(const Entry& entry, const uint8_t* data,
                       const std::shared_ptr<const MappedFile>& mapped) {
  const uint64_t size = entry.end - entry.begin;
  const bool aligned = reinterpret_cast<uintptr_t>(data) % c10::elementSize(entry.type) == 0;
  if (size == 0 || !aligned || entry.type == c10::kBool) {
    at::Tensor tensor = at::empty(entry.shape, entry.type);
    if (size != 0) std::memcpy(tensor.mutable_data_ptr(), data, size);
    if (entry.type == c10::kBool) normalise_bools(tensor.mutable_data_ptr(), size);
    return tensor;
  }
  // The mapping is private, so the cast can do no harm to the file.
  return at::from_blob(
      const_cast<uint8_t*>(data), entry.shape, [mapped](void*) {}, entry.type);
}

const char* name_of(c10::ScalarType type) {
  const auto* known = std::find_if(std::begin(kTypes), std::end(kTypes),
                                   [&](const TypeName& known) { return type == known.type; });
  TORCH_CHECK(known != std::end(kTypes), "safetensors: no name for type ", type);
  return known->name;
}

/// The header with its length in front, padded to the alignment of the data.
std::string header_text(const std::filesystem::path& file, const json& header) {
  std::string text;
  try {
    text = header.dump();
  } catch (const json::exception& error) {
    throw FileError(file, "cannot be written: " + printable(error.what()));
  }
  text.resize((text.size() + kAlignment - 1) / kAlignment * kAlignment, ' ');
  std::string length(kLengthBytes, '\0');
  for (uint64_t i = 0; i < kLengthBytes; ++i) length[i] = static_cast<char>(text.size() >> (8 * i));
  return length + text;
}

}  // namespace

TensorMap load_safetensors(const std::filesystem::path& file,
                           std::shared_ptr<const MappedFile> mapped) {
  auto bytes = mapped->bytes();
  uint64_t header_size = 0;
  if (bytes.size() < kLengthBytes) throw FileError(file, "is cut short: no safetensors header");
  for (uint64_t i = 0; i < kLengthBytes; ++i) header_size |= uint64_t{bytes[i]} << (8 * i);
  if (header_size > bytes.size() - kLengthBytes || header_size > kLongestHeader) {
    throw FileError(file, "safetensors header claims " + std::to_string(header_size) +
                              " bytes, the file has " +
                              std::to_string(bytes.size() - kLengthBytes) + " after its length");
  }
  auto data = bytes.subspan(kLengthBytes + header_size);
  json header =
      parse_strictly(file, bytes.subspan(kLengthBytes, header_size), "safetensors header");
  if (!header.is_object()) throw FileError(file, "safetensors header is not a JSON object");

  TensorMap map;
  map.format = "safetensors";
  std::vector<Entry> entries;
  for (const auto& [name, value] : header.items()) {
    if (name != kMetadata) {
      entries.push_back(read_entry(file, name, value, data.size()));
      continue;
    }
    if (!value.is_object()) throw FileError(file, "__metadata__ is not an object of strings");
    for (const auto& [key, text] : value.items()) {
      if (!text.is_string()) {
        throw FileError(file, "__metadata__: " + in_quotes(key) + " is not a string");
      }
      map.metadata.emplace(key, text.get<std::string>());
    }
  }
  check_coverage(file, entries, data.size());
  for (const Entry& entry : entries) {
    map.tensors.emplace(entry.name, make_tensor(entry, data.data() + entry.begin, mapped));
  }
  return map;
}

TensorMap load_sharded_safetensors(const std::filesystem::path& file,
                                   std::span<const uint8_t> text) {
  json index = parse_strictly(file, text, "index of shards");
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object() ||
      index["weight_map"].empty()) {
    throw FileError(file,
                    "is JSON without a weight_map; wanted a checkpoint or its index of shards");
  }
  std::map<std::string, std::set<std::string>> shards;
  for (const auto& [name, value] : index["weight_map"].items()) {
    if (!value.is_string())
      throw FileError(file, "weight_map: " + in_quotes(name) + " is no file name");
    const auto& shard = value.get_ref<const std::string&>();
    if (shard.empty() || shard == "." || shard == ".." ||
        shard.find_first_of(std::string_view("/\\\0", 3)) != std::string::npos) {
      throw FileError(file, "weight_map: shard " + in_quotes(shard) +
                                " is not the plain name of a file in the same folder");
    }
    shards[shard].insert(name);
  }
  TensorMap map;
  map.format = "safetensors";
  for (const auto& [shard, names] : shards) {
    const auto path = file.parent_path() / shard;
    TensorMap part = load_safetensors(path, MappedFile::open(path));
    for (const auto& name : names) {
      if (!part.has(name)) {
        throw FileError(path,
                        "tensor " + in_quotes(name) + " is missing, the index says it is here");
      }
    }
    for (const auto& [name, tensor] : part.tensors) {
      if (names.count(name) == 0) {
        throw FileError(path, "tensor " + in_quotes(name) + " is here, the index does not say so");
      }
    }
    map.tensors.merge(part.tensors);
    map.metadata.merge(part.metadata);
  }
  return map;
}

void save_safetensors(const std::filesystem::path& file, const TensorMap& map) {
  // Wide elements first, so that every tensor is aligned in a mapping although the format has no
  // gaps.
  std::vector<std::pair<const std::string*, const at::Tensor*>> order;
  for (const auto& [name, tensor] : map.tensors) order.emplace_back(&name, &tensor);
  std::stable_sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return a.second->element_size() > b.second->element_size();
  });

  json header = json::object();
  if (!map.metadata.empty()) header[kMetadata] = map.metadata;
  uint64_t offset = 0;
  for (const auto& [name, tensor] : order) {
    if (*name == kMetadata) throw FileError(file, "a tensor cannot be called __metadata__");
    const uint64_t end = offset + tensor->nbytes();
    header[*name] = {{"dtype", name_of(tensor->scalar_type())},
                     {"shape", tensor->sizes().vec()},
                     {"data_offsets", {offset, end}}};
    offset = end;
  }
  const std::string text = header_text(file, header);
  write_atomically(file, [&](std::ostream& out) {
    out.write(text.data(), static_cast<std::streamsize>(text.size()));
    for (const auto& [name, tensor] : order) {
      at::Tensor flat = tensor->detach().cpu().contiguous();
      out.write(static_cast<const char*>(flat.const_data_ptr()),
                static_cast<std::streamsize>(flat.nbytes()));
    }
  });
}

void save_safetensors_rows(const std::filesystem::path& file, const ByteRows& shape,
                           const std::function<void(std::ostream&)>& write) {
  const int64_t bytes = shape.rows * shape.row_bytes;
  json header = json::object();
  header[kMetadata] = shape.metadata;
  header[shape.name] = {{"dtype", name_of(at::kByte)},
                        {"shape", {shape.rows, shape.row_bytes}},
                        {"data_offsets", {0, bytes}}};
  const std::string text = header_text(file, header);
  write_atomically(file, [&](std::ostream& out) {
    out.write(text.data(), static_cast<std::streamsize>(text.size()));
    const std::streamoff begin = out.tellp();
    write(out);
    TORCH_CHECK(!out || out.tellp() - begin == bytes, "wrote ", out.tellp() - begin,
                " bytes of data, wanted ", bytes);
  });
}

}  // namespace convpass
