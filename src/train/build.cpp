#include "convpass/train/build.h"

#include <ATen/ATen.h>

#include <sstream>

#include "convpass/core/error.h"
#include "convpass/core/json.h"
#include "convpass/core/rng.h"
#include "convpass/data/pipeline.h"
#include "convpass/models/vit_checkpoint.h"
#include "convpass/train/progress.h"

namespace convpass {
namespace {

/// Whether a checkpoint is of the architecture that a variant names; the resolution may differ.
bool same_architecture(const VitConfig& a, const VitConfig& b) {
  return a.width == b.width && a.depth == b.depth && a.heads == b.heads && a.hidden == b.hidden &&
         a.patch == b.patch && a.registers == b.registers &&
         a.distillation_token == b.distillation_token;
}

std::string architecture_text(const VitConfig& c) {
  std::ostringstream out;
  out << vit_name(c) << " (width " << c.width << ", depth " << c.depth << ", heads " << c.heads
      << ", MLP " << c.hidden << ", patch " << c.patch << ", registers " << c.registers << ")";
  return out.str();
}

std::array<int64_t, 2> image_size(const BackboneConfig& config, const VitConfig& vit) {
  switch (config.image_size.size()) {
    case 0:
      return {vit.grid_height * vit.patch, vit.grid_width * vit.patch};
    case 1:
      return {config.image_size[0], config.image_size[0]};
    default:
      return {config.image_size[0], config.image_size[1]};
  }
}

const char* pool_name(Pool pool) {
  return pool == Pool::cls ? "cls" : pool == Pool::mean ? "mean" : "auto";
}

Pool pool_named(const std::string& name, const std::filesystem::path& file) {
  for (Pool pool : {Pool::automatic, Pool::cls, Pool::mean})
    if (name == pool_name(pool)) return pool;
  throw FileError(file, "metadata \"pool\": got \"" + name + "\", wanted auto, cls or mean");
}

/// Seeds of the parts, so that changing one part leaves the others' initial values alone.
enum InitIndex : uint64_t { kBackboneInit, kAdapterInit, kHeadInit };

uint64_t init_key(const Recipe& recipe, InitIndex part) {
  return random_key(static_cast<uint64_t>(recipe.train.seed), 0, part, Purpose::init);
}

VitConfig named_variant(const Recipe& recipe) {
  try {
    return vit_variant(recipe.backbone.variant);
  } catch (const Error& error) {
    throw RecipeError(recipe.file, "/backbone/variant", error.what());
  }
}

/// The image size of the recipe, else the checkpoint's own.
std::array<int64_t, 2> checked_image_size(const Recipe& recipe, const VitConfig& vit) {
  constexpr int64_t kMaxSide = 4096;  // beyond it the position embedding alone fills the memory
  const auto size = image_size(recipe.backbone, vit);
  for (int64_t side : size) {
    if (side > kMaxSide)
      throw RecipeError(
          recipe.file, "/backbone/image_size",
          "got " + std::to_string(side) + ", wanted at most " + std::to_string(kMaxSide));
    if (side % vit.patch != 0)
      throw RecipeError(recipe.file, "/backbone/image_size",
                        "got " + std::to_string(side) + ", wanted a multiple of the patch size " +
                            std::to_string(vit.patch));
  }
  return size;
}

void check_blocks(const Recipe& recipe, const Backbone& backbone) {
  const auto* config = std::get_if<ConvpassConfig>(&recipe.adapter);
  if (!config) return;
  for (size_t i = 0; i < config->blocks.size(); ++i)
    if (config->blocks[i] >= backbone.depth())
      throw RecipeError(recipe.file, "/adapter/blocks/" + std::to_string(i),
                        "got " + std::to_string(config->blocks[i]) + ", wanted 0 to " +
                            std::to_string(backbone.depth() - 1));
}

/// Loads or draws the backbone. `known` is what an adapter file says of its architecture: weights
/// do not tell heads, eps, activation and position resizing, and the file beside them may be
/// another one.
void build_backbone(const Recipe& recipe, const AdapterFile* known, TunedModel& model) {
  const BackboneConfig& config = recipe.backbone;
  VitCheckpoint checkpoint;
  if (config.weights.empty()) {
    checkpoint.config = named_variant(recipe);
    const auto size = checked_image_size(recipe, checkpoint.config);
    checkpoint.config.grid_height = size[0] / checkpoint.config.patch;
    checkpoint.config.grid_width = size[1] / checkpoint.config.patch;
    checkpoint.backbone = Vit::random_weights(checkpoint.config, init_key(recipe, kBackboneInit));
    model.identity.format = "random";
  } else {
    checkpoint = load_vit_checkpoint(config.weights);
    model.identity.format = vit_format_name(checkpoint.format);
    if (config.variant != "auto") {
      const VitConfig wanted = named_variant(recipe);
      if (!same_architecture(wanted, checkpoint.config))
        throw RecipeError(recipe.file, "/backbone/variant",
                          "got " + architecture_text(checkpoint.config) + " in " +
                              config.weights.string() + ", wanted " + architecture_text(wanted));
    }
  }
  if (known != nullptr && known->backbone.hash == checkpoint.hash)
    read_json_fields(known->backbone.architecture, checkpoint.config, recipe.file);
  const auto size = checked_image_size(recipe, checkpoint.config);
  model.identity.architecture = write_json_fields(checkpoint.config);
  model.identity.name = vit_name(checkpoint.config);
  model.identity.hash = checkpoint.hash;
  model.identity.position_resize = position_resize_name(checkpoint.config.position_resize);
  model.identity.normalization = checkpoint.normalization;
  model.backbone_trainable = config.trainable;
  model.backbone = std::make_unique<Vit>(
      checkpoint.config, checkpoint.backbone,
      Vit::Options{.image_size = size, .pool = config.pool, .drop_path = config.drop_path});
}

TunedModel build(const Recipe& recipe, int64_t classes, const AdapterFile* known) {
  TunedModel model;
  build_backbone(recipe, known, model);
  check_blocks(recipe, *model.backbone);
  model.adapter = make_adapter(recipe.adapter, *model.backbone, init_key(recipe, kAdapterInit));
  model.head =
      make_head(recipe.head, model.backbone->feature_dim(), classes, init_key(recipe, kHeadInit));
  model.to(resolve_device(recipe.train.device), recipe.train.precision);
  return model;
}

}  // namespace

TunedModel build_model(const Recipe& recipe, int64_t classes) {
  return build(recipe, classes, nullptr);
}

InputConfig resolve_input(const InputConfig& input, const TunedModel& model) {
  InputConfig resolved = input;
  if (resolved.size[0] == 0) resolved.size = model.backbone->image_size();
  const Normalization& own = model.identity.normalization;
  if (resolved.mean.empty() && own.assumed) {
    std::ostringstream line;
    line << "nothing tells with which mean and std the backbone was trained: taken as "
         << own.mean[0] << " and " << own.std[0]
         << ", as for AugReg ViTs; set input.mean and input.std for others (DeiT: ImageNet's)";
    say(line.str());
  }
  if (resolved.mean.empty()) resolved.mean.assign(own.mean.begin(), own.mean.end());
  if (resolved.std.empty()) resolved.std.assign(own.std.begin(), own.std.end());
  if (resolved.size != model.backbone->image_size())
    throw Error("input.size: got " + std::to_string(resolved.size[0]) + "x" +
                std::to_string(resolved.size[1]) + ", wanted the backbone's image size " +
                std::to_string(model.backbone->image_size()[0]) + "x" +
                std::to_string(model.backbone->image_size()[1]));
  return resolved;
}

AdapterFile adapter_file_of(const Recipe& recipe, const TunedModel& model, const InputConfig& input,
                            const std::vector<std::string>& classes) {
  AdapterFile file;
  for (const auto& [name, tensor] : model.trainable())
    file.weights.tensors[name] = tensor.detach().cpu().clone();
  file.backbone = model.identity;
  file.image_size = model.backbone->image_size();
  file.pool = pool_name(recipe.backbone.pool);
  file.adapter = recipe.adapter;
  InputConfig copy = input;
  file.preprocessing = write_json_fields(copy);
  file.classes = classes;
  file.recipe_hash = recipe_hash(recipe);
  return file;
}

LoadedModel load_tuned_model(const std::filesystem::path& adapter_path,
                             const std::filesystem::path& weights, DeviceChoice device,
                             Precision precision) {
  const AdapterFile file = load_adapter(adapter_path);
  LoadedModel loaded;
  read_json_fields(file.preprocessing, loaded.input, adapter_path);
  loaded.classes = file.classes;

  Recipe recipe;
  recipe.file = adapter_path;
  recipe.backbone.weights = weights;
  recipe.backbone.image_size.assign(file.image_size.begin(), file.image_size.end());
  recipe.backbone.pool = pool_named(file.pool, adapter_path);
  recipe.backbone.trainable =
      std::any_of(file.weights.tensors.begin(), file.weights.tensors.end(),
                  [](const auto& entry) { return entry.first.rfind("backbone.", 0) == 0; });
  if (recipe.backbone.trainable && precision != Precision::f32)
    throw FileError(adapter_path,
                    "holds a fine-tuned backbone, which runs in f32: got precision bf16");
  recipe.adapter = file.adapter;
  recipe.train.device = device;
  recipe.train.precision = precision;
  try {
    loaded.model = build(recipe, static_cast<int64_t>(file.classes.size()), &file);
    apply_adapter(file, loaded.model);
    loaded.input = resolve_input(loaded.input, loaded.model);
    ImagePipeline(loaded.input, AugmentConfig{});  // checks the numbers
  } catch (const FileError&) {
    throw;
  } catch (const RecipeError&) {
    throw;
  } catch (const Error& error) {
    throw FileError(adapter_path, error.what());
  }
  return loaded;
}

}  // namespace convpass
