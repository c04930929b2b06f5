#include "convpass/adapters/adapter_file.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "convpass/core/error.h"
#include "convpass/core/fields.h"
#include "convpass/core/json.h"

namespace convpass {
namespace {

using Json = nlohmann::ordered_json;
constexpr const char* kFormat = "convpass-adapter";

/// The types of head that a file names: one without a name is linear, as before there were others.
constexpr std::pair<const char*, HeadType> kNamedHeads[] = {
    {"distilled", HeadType::distilled}, {"none", HeadType::none}, {"cosine", HeadType::cosine}};

HeadType head_named(const std::string& name, const std::filesystem::path& file) {
  for (const auto& [known, type] : kNamedHeads)
    if (name == known) return type;
  throw FileError(file, "metadata \"head\": got \"" + name.substr(0, 20) +
                            "\", wanted \"distilled\", \"none\", \"cosine\" or nothing");
}

const std::string& metadata(const TensorMap& map, const std::filesystem::path& file,
                            const std::string& key) {
  auto found = map.metadata.find(key);
  if (found == map.metadata.end()) throw FileError(file, "metadata \"" + key + "\" is missing");
  return found->second;
}

std::string shape_text(const at::Tensor& tensor) {
  std::ostringstream out;
  out << tensor.sizes();
  return out.str();
}

/// What the head is built from, before the values are put into it.
void check_cosine_head(const std::map<std::string, at::Tensor>& tensors,
                       const std::filesystem::path& file) {
  const auto scale = tensors.find("head.scale"), projection = tensors.find("head.projection");
  if (scale == tensors.end() || scale->second.dim() != 0)
    throw FileError(file, "tensor head.scale is missing or no single number");
  const int64_t width = tensors.at("head.weight").size(1);
  if (projection != tensors.end() &&
      (projection->second.dim() != 2 || projection->second.size(0) != width))
    throw FileError(file, "tensor head.projection: got shape " + shape_text(projection->second) +
                              ", wanted " + std::to_string(width) + " rows like head.weight");
}

}  // namespace

void save_adapter(const std::filesystem::path& file, const AdapterFile& adapter) {
  TensorMap map = adapter.weights;
  auto config = adapter.adapter;
  map.metadata = {
      {"format", kFormat},
      {"version", std::to_string(AdapterFile::kVersion)},
      {"backbone", Json{{"name", adapter.backbone.name},
                        {"format", adapter.backbone.format},
                        {"hash", adapter.backbone.hash},
                        {"position_resize", adapter.backbone.position_resize},
                        {"architecture", adapter.backbone.architecture}}
                       .dump()},
      {"image_size", Json(adapter.image_size).dump()},
      {"pool", adapter.pool},
      {"adapter", write_json_fields(config)},
      {"preprocessing", adapter.preprocessing},
      {"classes", Json(adapter.classes).dump()},
      {"recipe_hash", adapter.recipe_hash},
  };
  for (const auto& [name, type] : kNamedHeads)
    if (adapter.head == type) map.metadata["head"] = name;
  save_safetensors(file, map);
}

AdapterFile load_adapter(const std::filesystem::path& file) {
  TensorMap map = load_tensors(file);
  auto format = map.metadata.find("format");
  if (format == map.metadata.end() || format->second != kFormat)
    throw FileError(file,
                    "got a " + map.format + " file without our metadata, wanted an adapter file");
  const std::string& version = metadata(map, file, "version");
  if (version != std::to_string(AdapterFile::kVersion))
    throw FileError(file, "adapter file version \"" + version.substr(0, 20) + "\", wanted " +
                              std::to_string(AdapterFile::kVersion));
  AdapterFile adapter;
  try {
    const Json backbone = Json::parse(metadata(map, file, "backbone"));
    adapter.backbone.name = backbone.at("name").get<std::string>();
    adapter.backbone.format = backbone.at("format").get<std::string>();
    adapter.backbone.hash = backbone.at("hash").get<std::string>();
    adapter.backbone.position_resize = backbone.at("position_resize").get<std::string>();
    adapter.backbone.architecture = backbone.at("architecture").get<std::string>();
    // A vector first: reading an array of two would pass over a third element.
    const auto size = Json::parse(metadata(map, file, "image_size")).get<std::vector<int64_t>>();
    if (size.size() != 2 || size[0] <= 0 || size[1] <= 0)
      throw FileError(file, "metadata \"image_size\": wanted two positive numbers");
    adapter.image_size = {size[0], size[1]};
    adapter.classes = Json::parse(metadata(map, file, "classes")).get<std::vector<std::string>>();
  } catch (const nlohmann::json::exception& error) {
    const std::string text = error.what();
    const size_t tag = text.find("] ");  // of nlohmann
    throw FileError(file,
                    "metadata is damaged: " + text.substr(tag == std::string::npos ? 0 : tag + 2));
  }
  adapter.pool = metadata(map, file, "pool");
  read_json_fields(metadata(map, file, "adapter"), adapter.adapter, file);
  adapter.preprocessing = metadata(map, file, "preprocessing");
  adapter.recipe_hash = metadata(map, file, "recipe_hash");
  if (auto head = map.metadata.find("head"); head != map.metadata.end())
    adapter.head = head_named(head->second, file);
  map.metadata.clear();
  adapter.weights = std::move(map);
  if (adapter.head == HeadType::none) return adapter;

  const auto& tensors = adapter.weights.tensors;
  auto head = tensors.find("head.weight");
  if (head == tensors.end() || head->second.dim() != 2)
    throw FileError(file, "tensor head.weight is missing or no matrix");
  if (head->second.numel() == 0)
    throw FileError(file, "head.weight holds nothing, wanted a row for each class");
  if (head->second.size(0) != static_cast<int64_t>(adapter.classes.size()))
    throw FileError(file, "head.weight has " + std::to_string(head->second.size(0)) +
                              " rows, the metadata " + std::to_string(adapter.classes.size()) +
                              " class names");
  if (adapter.head == HeadType::cosine) check_cosine_head(tensors, file);
  return adapter;
}

void check_backbone(const AdapterFile& file, const BackboneIdentity& backbone) {
  if (file.backbone.hash != backbone.hash)
    throw Error("the adapter was trained on " + file.backbone.name + " (weights " +
                file.backbone.hash.substr(0, 12) + "), got " + backbone.name + " (weights " +
                backbone.hash.substr(0, 12) + ")");
}

void apply_adapter(const AdapterFile& file, TunedModel& model) {
  check_backbone(file, model.identity);
  const NamedTensors wanted = model.state();
  at::NoGradGuard no_grad;
  for (const auto& [name, tensor] : wanted) {
    auto found = file.weights.tensors.find(name);
    if (found == file.weights.tensors.end()) throw Error("adapter: tensor " + name + " is missing");
    if (found->second.sizes() != tensor.sizes())
      throw Error("adapter: tensor " + name + ": got shape " + shape_text(found->second) +
                  ", wanted " + shape_text(tensor));
    const bool numbers = tensor.is_floating_point();
    if (found->second.is_floating_point() != numbers)
      throw Error("adapter: tensor " + name + ": got type " +
                  c10::toString(found->second.scalar_type()) + ", wanted " +
                  (numbers ? "a floating point type" : "whole numbers"));
    tensor.copy_(found->second);
  }
  if (wanted.size() != file.weights.tensors.size())
    throw Error("adapter: got " + std::to_string(file.weights.tensors.size()) +
                " tensors, wanted " + std::to_string(wanted.size()) +
                ": some belong to no part of this adapter");
}

}  // namespace convpass
