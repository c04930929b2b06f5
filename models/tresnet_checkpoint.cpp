#include "convpass/models/tresnet_checkpoint.h"

#include <ATen/ATen.h>

#include <optional>
#include <regex>

#include "convpass/core/error.h"
#include "convpass/models/vit_checkpoint.h"
#include "models/names.h"
#include "models/tensor_text.h"
#include "models/tresnet_shapes.h"

namespace convpass {
namespace {

constexpr Normalization kNone{{0, 0, 0}, {1, 1, 1}};
constexpr double kAbnEps = 1e-5;
constexpr size_t kStages = 4;

/// The authors' names in timm's spelling: a convolution and its norm stand side by side in a
/// sequence, which with a blur behind it is the first of another.
std::string timm_spelling(std::string name) {
  static const std::pair<std::regex, const char*> rules[] = {
      {std::regex(R"(conv(\d+)\.0\.0)"), "conv$1.conv"},
      {std::regex(R"(conv(\d+)\.0\.1)"), "conv$1.bn"},
      {std::regex(R"(conv(\d+)\.0)"), "conv$1.conv"},
      {std::regex(R"(conv(\d+)\.1)"), "conv$1.bn"},
      {std::regex(R"(downsample\.(\d+)\.0)"), "downsample.$1.conv"},
      {std::regex(R"(downsample\.(\d+)\.1)"), "downsample.$1.bn"}};
  for (const auto& [pattern, replacement] : rules)
    name = std::regex_replace(name, pattern, replacement);
  return name;
}

/// Stage and block of a name, both counted from 0.
struct Place {
  size_t stage = 0;
  int64_t block = 0;
};
std::optional<Place> place_of(const std::string& name) {
  static const std::regex pattern(R"(body\.layer([1-4])\.(0|[1-9][0-9]{0,3})\..*)");
  std::smatch match;
  if (!std::regex_match(name, match, pattern)) return std::nullopt;
  const int64_t block = std::stoll(match[2]);
  if (block >= kMostTResnetBlocks) return std::nullopt;
  return Place{static_cast<size_t>(std::stoll(match[1]) - 1), block};
}

std::optional<TResnetFormat> format_of(const TensorMap& tensors) {
  if (tensors.has("body.conv1.conv.weight")) return TResnetFormat::timm;
  if (tensors.has("body.conv1.0.weight")) return TResnetFormat::miil;
  return std::nullopt;
}

/// Reads one checkpoint; the members are what the steps share.
class Reader {
 public:
  Reader(TResnetFormat format, const TensorMap& source, const std::filesystem::path& file)
      : source_(source), file_(file) {
    out_.format = format;
  }

  TResnetCheckpoint read() {
    for (const auto& [name, tensor] : source_.tensors) rename(name, tensor);
    out_.backbone.format = out_.head.format = source_.format;
    read_config();
    read_normalization();
    shapes_ = tresnet_shapes(out_.config);
    check_names();
    check_shapes();
    out_.hash = weights_hash(out_.backbone);
    return std::move(out_);
  }

 private:
  void rename(const std::string& origin, const at::Tensor& tensor) {
    const bool old = out_.format == TResnetFormat::miil;
    std::string name = old ? timm_spelling(origin) : origin;
    if (name.ends_with(".bn.num_batches_tracked")) return;
    const bool head = name.starts_with("head.fc.");
    if (head) name.erase(5, 3);
    if (!origin_.try_emplace(name, origin).second) {
      left_over_.push_back(origin);
      return;
    }
    if (!tensor.is_floating_point())
      throw FileError(file_, "tensor " + origin + ": got " + std::string(tensor.dtype().name()) +
                                 ", wanted floating point");
    if (tensor.numel() == 0)
      throw FileError(file_, "tensor " + origin + " is empty: " + shape_text(tensor.sizes()));
    const bool in_place = old && name.ends_with("bn.weight");
    (head ? out_.head : out_.backbone).tensors[name] =
        (in_place ? tensor.abs().add(kAbnEps) : tensor).to(at::kFloat).contiguous();
  }

  void read_config() {
    TResnetConfig& config = out_.config;
    // A stage that is not there at all misses at least one block.
    config.layers.assign(kStages, 1);
    for (const auto& [name, tensor] : out_.backbone.tensors) {
      const std::optional<Place> place = place_of(name);
      if (!place) continue;
      config.layers[place->stage] = std::max(config.layers[place->stage], place->block + 1);
      // Only bottlenecks have a third convolution.
      if (place->stage == 0 && name.find(".conv3.") != std::string::npos) config.v2 = true;
    }
    if (auto stem = out_.backbone.tensors.find("body.conv1.conv.weight");
        stem != out_.backbone.tensors.end() && stem->second.dim() > 0)
      config.width = stem->second.size(0);
    try {
      check(config);
    } catch (const Error& error) {
      throw FileError(file_, error.what());
    }
  }

  void read_normalization() {
    out_.normalization = timm_normalization(file_).value_or(kNone);
    if (auto text = source_.metadata.find(kNormalizationKey); text != source_.metadata.end())
      out_.normalization = normalization_from(text->second, file_);
  }

  void check_names() {
    std::vector<std::string> missing;
    for (const auto& [name, shape] : shapes_)
      if (!out_.backbone.has(name)) missing.push_back(name);
    for (const auto& [name, file_name] :
         {std::pair{"head.weight", "head.fc.weight"}, {"head.bias", "head.fc.bias"}})
      if (!out_.head.tensors.empty() && !out_.head.has(name)) missing.emplace_back(file_name);
    for (const auto& [name, tensor] : out_.backbone.tensors)
      if (shapes_.count(name) == 0) left_over_.push_back(origin_.at(name));
    for (const auto& [name, tensor] : out_.head.tensors)
      if (name != "head.weight" && name != "head.bias") left_over_.push_back(origin_.at(name));
    const std::string kind = " of a TResNet";
    if (!missing.empty())
      throw FileError(file_, "misses " + count_and_names(missing) + kind + " in timm's naming");
    if (!left_over_.empty())
      throw FileError(file_, "has, beside those" + kind + ", " + count_and_names(left_over_));
  }

  void check_shapes() {
    if (out_.head.has("head.weight")) {
      const at::Tensor& weight = out_.head.at("head.weight");
      const int64_t classes = weight.dim() > 0 ? weight.size(0) : 1;
      shapes_["head.weight"] = {classes, out_.config.outside(kStages - 1)};
      shapes_["head.bias"] = {classes};
    }
    for (const auto& [name, shape] : shapes_) {
      const TensorMap& tensors = name.starts_with("head.") ? out_.head : out_.backbone;
      const at::Tensor& tensor = tensors.at(name);
      if (tensor.sizes() != at::IntArrayRef(shape))
        throw FileError(file_, "tensor " + origin_.at(name) + ": got shape " +
                                   shape_text(tensor.sizes()) + ", wanted " + shape_text(shape));
    }
  }

  const TensorMap& source_;
  const std::filesystem::path& file_;
  TResnetCheckpoint out_;
  std::map<std::string, std::string> origin_;  ///< our name -> name in the file
  std::vector<std::string> left_over_;
  std::map<std::string, std::vector<int64_t>> shapes_;
};

}  // namespace

bool is_tresnet_checkpoint(const TensorMap& tensors) { return format_of(tensors).has_value(); }

TResnetCheckpoint load_tresnet_checkpoint(const std::filesystem::path& file) {
  return tresnet_checkpoint_from(load_tensors(file), file);
}

TResnetCheckpoint tresnet_checkpoint_from(const TensorMap& tensors,
                                          const std::filesystem::path& file) {
  const std::optional<TResnetFormat> format = format_of(tensors);
  if (!format) throw FileError(file, "holds no TResNet: body.conv1 is missing");
  return Reader(*format, tensors, file).read();
}

TensorMap tresnet_checkpoint_as_timm(const TResnetCheckpoint& checkpoint) {
  TensorMap out;
  out.format = checkpoint.backbone.format;
  out.tensors = checkpoint.backbone.tensors;
  for (const auto& [name, tensor] : checkpoint.head.tensors)
    out.tensors["head.fc." + name.substr(5)] = tensor;
  out.metadata[kNormalizationKey] = normalization_text(checkpoint.normalization);
  return out;
}

std::string_view tresnet_format_name(TResnetFormat format) {
  return format == TResnetFormat::timm ? "timm" : "miil";
}

}  // namespace convpass
