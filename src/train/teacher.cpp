#include "convpass/train/teacher.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <sstream>

#include "convpass/core/error.h"
#include "convpass/core/fields.h"
#include "convpass/models/backbone_checkpoint.h"
#include "convpass/models/script_backbone.h"
#include "convpass/models/vit_checkpoint.h"
#include "convpass/train/build.h"
#include "models/script_module.h"
#include "src/train/script_notes.h"

namespace convpass {
namespace {

namespace fs = std::filesystem;

int64_t bytes_of(const NamedTensors& tensors) {
  int64_t sum = 0;
  for (const auto& [name, tensor] : tensors) sum += static_cast<int64_t>(tensor.nbytes());
  return sum;
}

/// The backbone's checkpoint: the teacher's own run knows it where the recipe does not say.
fs::path backbone_of(const AdapterTeacher& source, const fs::path& adapter) {
  if (!source.backbone.empty()) return source.backbone;
  if (load_adapter(adapter).backbone.format == BackboneIdentity::kRandom) return {};
  const fs::path recipe = adapter.parent_path() / "recipe.json";
  const fs::path weights = fs::exists(recipe) ? load_recipe(recipe).backbone.weights : fs::path();
  if (weights.empty() || !fs::exists(weights))
    throw FileError(adapter,
                    "backbone: missing, wanted the checkpoint that the adapter was trained on");
  return weights;
}

/// A model of ours, however its parts came together.
class TunedTeacher : public Teacher {
 public:
  TeacherOutput ask(const at::Tensor& images, bool features) const override {
    at::NoGradGuard no_grad;
    const at::Tensor pooled = model_.features(images, Pass{}).to(at::kFloat);  // [B, D]
    return {.logits = model_.head.forward(pooled), .features = features ? pooled : at::Tensor()};
  }
  int64_t feature_dim() const override { return model_.backbone->feature_dim(); }
  int64_t weight_bytes() const override {
    return model_.backbone->size().bytes + bytes_of(model_.trainable());
  }

 protected:
  void set_identity() {
    TensorMap trained;
    for (const auto& [name, tensor] : model_.state()) trained.tensors[name] = tensor.detach();
    identity_ = model_.identity.hash + "+" + weights_hash(trained);
  }
  TunedModel model_;
};

class TeacherFromAdapter final : public TunedTeacher {
 public:
  TeacherFromAdapter(const AdapterTeacher& source, DeviceChoice device, Precision precision) {
    const fs::path file =
        fs::is_directory(source.adapter) ? source.adapter / "adapter.safetensors" : source.adapter;
    LoadedModel loaded = load_tuned_model(file, backbone_of(source, file), device, precision);
    input_ = loaded.input;
    classes_ = loaded.classes;
    model_ = std::move(loaded.model);
    set_identity();
  }
};

class TeacherFromCheckpoint final : public TunedTeacher {
 public:
  TeacherFromCheckpoint(const CheckpointTeacher& source, DeviceChoice device, Precision precision) {
    const TensorMap file = load_tensors(source.weights);
    if (const auto format = file.metadata.find("format");
        format != file.metadata.end() && format->second == "convpass-adapter")
      throw FileError(source.weights, "is an adapter of convpass, wanted the type \"adapter\"");
    const TensorMap head = backbone_checkpoint_from(file, source.weights).head;
    const auto weight = head.tensors.find("head.weight");
    if (weight == head.tensors.end() || weight->second.dim() != 2)
      throw FileError(source.weights, "has no head, wanted a classifier");
    const int64_t classes = weight->second.size(0);
    Recipe recipe;
    recipe.file = source.weights;
    recipe.backbone.weights = source.weights;
    recipe.backbone.image_size = source.image_size;
    recipe.adapter = NoAdapter{};
    if (head.has("head_dist.weight")) recipe.head.type = HeadType::distilled;
    recipe.train.device = device;
    recipe.train.precision = precision;
    model_ = build_model(recipe, classes);
    for (const auto& [name, tensor] : model_.head.tensors())
      if (head.has(name))
        fill(*tensor, head.at(name), source.weights);
      else if (name.ends_with(".bias"))
        fill(*tensor, at::zeros({classes}), source.weights);
      else
        throw FileError(source.weights, "has no tensor " + name + ", wanted a whole classifier");
    input_ = resolve_input(source.input, model_);
    classes_ = source.class_names;
    if (classes_.empty())
      for (int64_t i = 0; i < classes; ++i) classes_.push_back(std::to_string(i));
    if (static_cast<int64_t>(classes_.size()) != classes)
      throw FileError(source.weights, "its head has " + std::to_string(classes) + " classes, got " +
                                          std::to_string(classes_.size()) + " class_names");
    set_identity();
  }

 private:
  static void fill(at::Tensor& into, const at::Tensor& from, const fs::path& file) {
    at::NoGradGuard no_grad;
    std::ostringstream shapes;
    shapes << "its head has shape " << from.sizes() << ", wanted " << into.sizes()
           << ", one column for each feature";
    if (from.sizes() != into.sizes()) throw FileError(file, shapes.str());
    into.copy_(from);
  }
};

class ScriptTeacher final : public Teacher {
 public:
  ScriptTeacher(const TorchScriptTeacher& source, DeviceChoice device, Precision precision)
      : device_(resolve_device(device)), type_(dtype_of(precision)) {
    module_.emplace(source.file);
    fs::path beside = source.file;
    beside.replace_extension(".json");
    const auto notes = read_script_notes(source.file);
    if (!notes)
      throw FileError(source.file, "wanted its classes and preprocessing in " + beside.string() +
                                       " beside it (scripts/export_torchscript.py writes both)");
    if (notes->classes.empty()) throw FileError(beside, "/classes: missing, wanted class names");
    classes_ = notes->classes;
    input_ = notes->input;
    identity_ = script_hash(source.file);
    const auto classes = static_cast<int64_t>(classes_.size());
    if (const int64_t width = module_->width(input_.size); width != classes)
      throw FileError(source.file, "its forward: got " + std::to_string(width) +
                                       " logits, wanted " + std::to_string(classes) +
                                       ", the classes of its .json");
    module_->to(device_, type_);
  }

  TeacherOutput ask(const at::Tensor& images, bool features) const override {
    TORCH_CHECK(!features, "a TorchScript teacher has no features");
    at::NoGradGuard no_grad;
    return {.logits = module_->forward(images.to(type_)).to(at::kFloat), .features = {}};
  }
  int64_t feature_dim() const override { return 0; }
  int64_t weight_bytes() const override {
    return bytes_of(module_->parameters()) + bytes_of(module_->buffers());
  }

 private:
  std::optional<ScriptModule> module_;
  c10::Device device_;
  c10::ScalarType type_;
};

}  // namespace

void fields(FieldVisitor& visitor, AdapterTeacher& source) {
  visitor.field("adapter", source.adapter, "its adapter.safetensors, or the run folder with it");
  visitor.field("backbone", source.backbone,
                "the checkpoint that the adapter was trained on; empty: as its run's recipe says");
}

void fields(FieldVisitor& visitor, CheckpointTeacher& source) {
  visitor.field("weights", source.weights, "a classifier's checkpoint, with its head");
  visitor.list_or_word("image_size", source.image_size, "auto",
                       "pixels: height and width, or one number; auto = the checkpoint's own",
                       at_least(1));
  visitor.field("class_names", source.class_names, "in the order of its logits; empty = 0, 1, ...");
  visitor.part("input", source.input, "its evaluation view");
}

void fields(FieldVisitor& visitor, TorchScriptTeacher& source) {
  visitor.field("file", source.file,
                "a TorchScript file; classes and preprocessing stand in the .json beside it");
}

void fields(FieldVisitor& visitor, TeacherConfig& config) {
  visitor.variant("type", config.source, {"adapter", "checkpoint", "torchscript"},
                  "what the teacher is");
  visitor.choice("precision", config.precision, {"f32", "bf16", "int8", "auto"},
                 "of its weights and activations; auto: bf16 where the device has instructions for "
                 "it, else f32");
}

std::unique_ptr<Teacher> load_teacher(const TeacherConfig& config, DeviceChoice device) {
  struct Visitor {
    DeviceChoice device;
    Precision precision;
    std::unique_ptr<Teacher> operator()(const AdapterTeacher& source) const {
      return std::make_unique<TeacherFromAdapter>(source, device, precision);
    }
    std::unique_ptr<Teacher> operator()(const CheckpointTeacher& source) const {
      return std::make_unique<TeacherFromCheckpoint>(source, device, precision);
    }
    std::unique_ptr<Teacher> operator()(const TorchScriptTeacher& source) const {
      return std::make_unique<ScriptTeacher>(source, device, precision);
    }
  };
  return std::visit(Visitor{device, config.precision}, config.source);
}

at::Tensor renormalized(const at::Tensor& images, const InputConfig& from, const InputConfig& to) {
  std::vector<float> scale, offset;
  for (size_t channel = 0; channel < 3; ++channel) {
    scale.push_back(static_cast<float>(from.std[channel] / to.std[channel]));
    offset.push_back(static_cast<float>((from.mean[channel] - to.mean[channel]) / to.std[channel]));
  }
  auto column = [&](const std::vector<float>& values) {
    return at::tensor(values).view({1, 3, 1, 1}).to(images.options());
  };
  return images * column(scale) + column(offset);
}

}  // namespace convpass
