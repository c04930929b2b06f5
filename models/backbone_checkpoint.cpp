#include "convpass/models/backbone_checkpoint.h"

#include <algorithm>
#include <sstream>
#include <string_view>

#include "convpass/core/error.h"
#include "convpass/core/fields.h"
#include "convpass/models/bit_checkpoint.h"
#include "convpass/models/swin_checkpoint.h"
#include "convpass/models/tresnet_checkpoint.h"
#include "convpass/models/vit_checkpoint.h"
#include "models/names.h"

namespace convpass {
namespace {

template <class Checkpoint>
BackboneCheckpoint of_any_kind(Checkpoint checkpoint, std::string_view format) {
  return {.format = std::string(format),
          .architecture = std::move(checkpoint.config),
          .backbone = std::move(checkpoint.backbone),
          .head = std::move(checkpoint.head),
          .normalization = checkpoint.normalization,
          .hash = std::move(checkpoint.hash)};
}

bool is_vit_checkpoint(const TensorMap& tensors) {
  const auto& tables = all_name_tables();
  return std::any_of(tables.begin(), tables.end(),
                     [&](const NameTable* table) { return matching_prefix(*table, tensors); });
}

struct Namer {
  std::string operator()(const VitConfig& config) const { return vit_name(config); }
  std::string operator()(const BitConfig& config) const { return bit_name(config); }
  std::string operator()(const TResnetConfig& config) const { return tresnet_name(config); }
  std::string operator()(const ScriptConfig& config) const { return "torchscript " + config.name; }
  std::string operator()(const SwinConfig& config) const { return swin_name(config); }
};

std::string list_text(const std::vector<int64_t>& numbers) {
  std::string text;
  for (int64_t number : numbers) text += (text.empty() ? "" : "-") + std::to_string(number);
  return text;
}

struct Describer {
  std::ostringstream& out;
  void operator()(const VitConfig& c) const {
    out << " (width " << c.width << ", depth " << c.depth << ", heads " << c.heads << ", MLP "
        << c.hidden << ", patch " << c.patch << ", registers " << c.registers << ")";
  }
  void operator()(const BitConfig& c) const {
    out << " (units " << list_text(c.units) << ", widths " << list_text(c.widths) << ", root "
        << c.root << ", groups " << c.groups << ")";
  }
  void operator()(const TResnetConfig& c) const {
    out << " (" << (c.v2 ? "v2, " : "") << "width " << c.width << ", layers " << list_text(c.layers)
        << ")";
  }
  void operator()(const ScriptConfig&) const {}
  void operator()(const SwinConfig& c) const {
    out << " (width " << c.width << ", depths " << list_text(c.depths) << ", heads "
        << list_text(c.heads) << ", windows " << list_text(c.windows) << ", patch " << c.patch
        << ")";
  }
};

struct Comparer {
  bool operator()(const VitConfig& a, const VitConfig& b) const {
    return a.width == b.width && a.depth == b.depth && a.heads == b.heads && a.hidden == b.hidden &&
           a.patch == b.patch && a.registers == b.registers &&
           a.distillation_token == b.distillation_token;
  }
  bool operator()(const BitConfig& a, const BitConfig& b) const {
    return a.units == b.units && a.widths == b.widths && a.root == b.root && a.groups == b.groups;
  }
  bool operator()(const TResnetConfig& a, const TResnetConfig& b) const { return a == b; }
  bool operator()(const ScriptConfig& a, const ScriptConfig& b) const { return a.name == b.name; }
  bool operator()(const SwinConfig& a, const SwinConfig& b) const {
    // The windows of the last stages follow the resolution.
    return a.width == b.width && a.depths == b.depths && a.heads == b.heads &&
           a.windows[0] == b.windows[0] && a.patch == b.patch && a.expansion == b.expansion;
  }
  template <class A, class B>
  bool operator()(const A&, const B&) const {
    return false;
  }
};

}  // namespace

void fields(FieldVisitor& visitor, BackboneArchitecture& architecture) {
  visitor.variant("kind", architecture, {"vit", "bit", "tresnet", "torchscript", "swin"},
                  "which network it is");
}

BackboneCheckpoint load_backbone_checkpoint(const std::filesystem::path& file) {
  return backbone_checkpoint_from(load_tensors(file), file);
}

BackboneCheckpoint backbone_checkpoint_from(const TensorMap& tensors,
                                            const std::filesystem::path& file) {
  if (is_bit_checkpoint(tensors)) {
    BitCheckpoint bit = bit_checkpoint_from(tensors, file);
    const std::string_view format = bit_format_name(bit.format);
    return of_any_kind(std::move(bit), format);
  }
  if (is_tresnet_checkpoint(tensors)) {
    TResnetCheckpoint tresnet = tresnet_checkpoint_from(tensors, file);
    const std::string_view format = tresnet_format_name(tresnet.format);
    return of_any_kind(std::move(tresnet), format);
  }
  if (is_swin_checkpoint(tensors)) {
    SwinCheckpoint swin = swin_checkpoint_from(tensors, file);
    const std::string_view format = swin_format_name(swin.format);
    return of_any_kind(std::move(swin), format);
  }
  if (!is_vit_checkpoint(tensors))
    throw FileError(file, tensors.format == "torchscript"
                              ? "is a TorchScript module; backbone.variant \"torchscript\" runs it"
                              : "holds no ViT (timm, Google npz, Hugging Face, DINOv2, CLIP), BiT "
                                "ResNet (big_transfer, big_vision, timm, Hugging Face), TResNet "
                                "(timm, its authors') or Swin (timm, Microsoft, Hugging Face) of a "
                                "known naming");
  VitCheckpoint vit = vit_checkpoint_from(tensors, file);
  const std::string_view format = vit_format_name(vit.format);
  return of_any_kind(std::move(vit), format);
}

void keep_first_blocks(BackboneCheckpoint& checkpoint, int64_t blocks) {
  auto* vit = std::get_if<VitConfig>(&checkpoint.architecture);
  if (vit == nullptr)
    throw Error("got " + std::to_string(blocks) +
                ", wanted 0: " + backbone_name(checkpoint.architecture) +
                " is no ViT, whose blocks can be left out");
  if (blocks < 1 || blocks > vit->depth)
    throw Error("got " + std::to_string(blocks) + ", wanted 1 to " + std::to_string(vit->depth) +
                ", the blocks of " + backbone_name(checkpoint.architecture));
  vit->depth = blocks;
  std::erase_if(checkpoint.backbone.tensors, [&](const auto& entry) {
    constexpr std::string_view kStart = "blocks.";
    return entry.first.starts_with(kStart) &&
           std::stoll(entry.first.substr(kStart.size())) >= blocks;
  });
  if (!checkpoint.hash.empty()) checkpoint.hash = weights_hash(checkpoint.backbone);
}

BackboneArchitecture backbone_variant(const std::string& name) {
  constexpr size_t kLongest = 256;
  if (name.size() > kLongest)
    throw Error("backbone variant: got a name of " + std::to_string(name.size()) +
                " characters, wanted at most " + std::to_string(kLongest));
  // No name of a ViT begins so.
  for (const char* start : {"resnet", "R", "r", "bit", "BiT"})
    if (name.starts_with(start)) return bit_variant(name);
  if (name.starts_with("tresnet")) return tresnet_variant(name);
  if (name.starts_with("swin")) return swin_variant(name);
  return vit_variant(name);
}

std::string backbone_name(const BackboneArchitecture& architecture) {
  return std::visit(Namer{}, architecture);
}

std::string architecture_text(const BackboneArchitecture& architecture) {
  std::ostringstream out;
  out << backbone_name(architecture);
  std::visit(Describer{out}, architecture);
  return out.str();
}

bool same_architecture(const BackboneArchitecture& a, const BackboneArchitecture& b) {
  return std::visit(Comparer{}, a, b);
}

}  // namespace convpass
