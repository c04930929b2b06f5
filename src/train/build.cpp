#include "convpass/train/build.h"

#include <ATen/ATen.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <functional>

#include "convpass/core/error.h"
#include "convpass/core/json.h"
#include "convpass/core/rng.h"
#include "convpass/data/pipeline.h"
#include "convpass/models/backbone_checkpoint.h"
#include "convpass/train/progress.h"
#include "src/train/build_head.h"
#include "src/train/script_notes.h"

namespace convpass {
namespace {

constexpr const char* kRandom = BackboneIdentity::kRandom;
constexpr const char* kScript = "torchscript";  // a variant, and the format of what it runs

/// The size of images whose stored positions a ViT has; nothing in a ResNet is of any one size.
struct OwnImageSize {
  std::array<int64_t, 2> operator()(const VitConfig& vit) const {
    return {vit.grid_height * vit.patch, vit.grid_width * vit.patch};
  }
  std::array<int64_t, 2> operator()(const BitConfig&) const { return {224, 224}; }
  std::array<int64_t, 2> operator()(const TResnetConfig&) const { return {224, 224}; }
  std::array<int64_t, 2> operator()(const ScriptConfig& script) const { return script.image_size; }
  std::array<int64_t, 2> operator()(const SwinConfig& swin) const { return own_image_size(swin); }
};

std::array<int64_t, 2> image_size(const BackboneConfig& config,
                                  const BackboneArchitecture& architecture) {
  switch (config.image_size.size()) {
    case 0:
      return std::visit(OwnImageSize{}, architecture);
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

BackboneArchitecture named_variant(const Recipe& recipe) {
  try {
    return backbone_variant(recipe.backbone.variant);
  } catch (const Error& error) {
    throw RecipeError(recipe.file, "/backbone/variant", error.what());
  }
}

/// What a Swin says of an image size, told of the recipe's key.
void at_image_size(const Recipe& recipe, const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& error) {
    throw RecipeError(recipe.file, "/backbone/image_size", error.what());
  }
}

/// The image size of the recipe, else the checkpoint's own.
std::array<int64_t, 2> checked_image_size(const Recipe& recipe,
                                          const BackboneArchitecture& architecture) {
  constexpr int64_t kMaxSide = 4096;  // beyond it the position embedding alone fills the memory
  const auto* vit = std::get_if<VitConfig>(&architecture);
  const bool tresnet = std::holds_alternative<TResnetConfig>(architecture);
  const auto size = image_size(recipe.backbone, architecture);
  for (int64_t side : size) {
    if (side > kMaxSide)
      throw RecipeError(
          recipe.file, "/backbone/image_size",
          "got " + std::to_string(side) + ", wanted at most " + std::to_string(kMaxSide));
    if (vit && side % vit->patch != 0)
      throw RecipeError(recipe.file, "/backbone/image_size",
                        "got " + std::to_string(side) + ", wanted a multiple of the patch size " +
                            std::to_string(vit->patch));
    if (tresnet && (side % TResnet::kSideUnit != 0 || side < TResnet::kLeastSide))
      throw RecipeError(recipe.file, "/backbone/image_size",
                        "got " + std::to_string(side) + ", wanted a multiple of " +
                            std::to_string(TResnet::kSideUnit) + ", at least " +
                            std::to_string(TResnet::kLeastSide) + ", for a TResNet");
  }
  if (const auto* swin = std::get_if<SwinConfig>(&architecture))
    at_image_size(recipe, [&] { check_image_size(*swin, size); });
  return size;
}

/// A fresh adapter of the recipe; what it refuses is told of the recipe's key.
std::unique_ptr<Adapter> build_adapter(const Recipe& recipe, const Backbone& backbone) {
  if (backbone.depth() == 0 && !std::holds_alternative<NoAdapter>(recipe.adapter))
    throw RecipeError(recipe.file, "/adapter/type",
                      std::string("got \"") + adapter_type(recipe.adapter) +
                          "\", wanted \"none\": " + backbone.describe() +
                          " has no blocks of tokens beside which a bypass could stand");
  const std::vector<int64_t> blocks = adapter_blocks(recipe.adapter);
  for (size_t i = 0; i < blocks.size(); ++i)
    if (blocks[i] >= backbone.depth())
      throw RecipeError(recipe.file, "/adapter/blocks/" + std::to_string(i),
                        "got " + std::to_string(blocks[i]) + ", wanted 0 to " +
                            std::to_string(backbone.depth() - 1));
  try {
    return make_adapter(recipe.adapter, backbone, init_key(recipe, kAdapterInit));
  } catch (const Error& error) {
    const std::string text = error.what(), start = "adapter.";  // "adapter.groups: got 3, ..."
    const size_t colon = text.find(": ");
    if (!text.starts_with(start) || colon == std::string::npos) throw;
    throw RecipeError(recipe.file, "/adapter/" + text.substr(start.size(), colon - start.size()),
                      text.substr(colon + 2));
  }
}

/// Random weights of a variant; a ViT's positions and a Swin's windows are those of the recipe's
/// image size.
struct RandomWeights {
  const Recipe& recipe;

  TensorMap operator()(VitConfig& vit) const {
    const auto size = checked_image_size(recipe, vit);
    vit.grid_height = size[0] / vit.patch;
    vit.grid_width = size[1] / vit.patch;
    return Vit::random_weights(vit, init_key(recipe, kBackboneInit));
  }
  TensorMap operator()(BitConfig& bit) const {
    return BitResnet::random_weights(bit, init_key(recipe, kBackboneInit));
  }
  TensorMap operator()(TResnetConfig& tresnet) const {
    return TResnet::random_weights(tresnet, init_key(recipe, kBackboneInit));
  }
  TensorMap operator()(SwinConfig& swin) const {
    at_image_size(recipe, [&] { swin = fitted_to(swin, image_size(recipe.backbone, swin)); });
    return Swin::random_weights(swin, init_key(recipe, kBackboneInit));
  }
  TensorMap operator()(ScriptConfig&) const {
    TORCH_CHECK(false, "a TorchScript module has no random weights of ours");
  }
};

/// The network that the weights belong to.
struct MakeBackbone {
  const Recipe& recipe;
  const TensorMap& weights;

  std::unique_ptr<Backbone> operator()(const VitConfig& vit) const {
    const BackboneConfig& config = recipe.backbone;
    if (recipe.head.type == HeadType::distilled) return with_both_tokens(vit);
    return std::make_unique<Vit>(vit, weights,
                                 Vit::Options{.image_size = checked_image_size(recipe, vit),
                                              .pool = config.pool,
                                              .drop_path = config.drop_path});
  }
  std::unique_ptr<Backbone> operator()(const BitConfig& bit) const {
    refuse_class_token(bit_name(bit));
    refuse_drop_path(bit_name(bit));
    return std::make_unique<BitResnet>(
        bit, weights, BitResnet::Options{.image_size = checked_image_size(recipe, bit)});
  }
  std::unique_ptr<Backbone> operator()(const TResnetConfig& tresnet) const {
    refuse_class_token(tresnet_name(tresnet));
    return std::make_unique<TResnet>(
        tresnet, weights,
        TResnet::Options{.image_size = checked_image_size(recipe, tresnet),
                         .drop_path = recipe.backbone.drop_path});
  }
  std::unique_ptr<Backbone> operator()(const SwinConfig& swin) const {
    refuse_class_token(swin_name(swin));
    return std::make_unique<Swin>(swin, weights,
                                  Swin::Options{.image_size = checked_image_size(recipe, swin),
                                                .drop_path = recipe.backbone.drop_path});
  }
  std::unique_ptr<Backbone> operator()(const ScriptConfig& script) const {
    refuse_class_token("a TorchScript module");
    if (recipe.backbone.pool != Pool::automatic)
      throw RecipeError(recipe.file, "/backbone/pool",
                        "got \"mean\", wanted \"auto\": a TorchScript module pools by itself");
    refuse_drop_path("a TorchScript module");
    return std::make_unique<ScriptBackbone>(
        recipe.backbone.weights,
        ScriptBackbone::Options{.image_size = checked_image_size(recipe, script)});
  }

 private:
  /// What DeiT's two heads look at.
  std::unique_ptr<Backbone> with_both_tokens(const VitConfig& vit) const {
    if (!vit.distillation_token || recipe.backbone.pool != Pool::automatic)
      throw RecipeError(recipe.file, "/head/type",
                        vit.distillation_token
                            ? "got \"distilled\" with backbone.pool, wanted it \"auto\""
                            : "got \"distilled\", wanted \"linear\": " + vit_name(vit) +
                                  " has no distillation token");
    return std::make_unique<Vit>(vit, weights,
                                 Vit::Options{.image_size = checked_image_size(recipe, vit),
                                              .pool = Pool::cls_and_distillation,
                                              .drop_path = recipe.backbone.drop_path});
  }
  void refuse_class_token(const std::string& network) const {
    if (recipe.head.type == HeadType::distilled)
      throw RecipeError(
          recipe.file, "/head/type",
          "got \"distilled\", wanted \"linear\": " + network + " has no distillation token");
    if (recipe.backbone.pool == Pool::cls)
      throw RecipeError(
          recipe.file, "/backbone/pool",
          "got \"cls\", wanted \"auto\" or \"mean\": " + network + " has no class token");
  }
  void refuse_drop_path(const std::string& network) const {
    if (recipe.backbone.drop_path > 0)
      throw RecipeError(recipe.file, "/backbone/drop_path",
                        "got more than 0, wanted 0: " + network + " has no stochastic depth");
  }
};

/// What resized the positions of a ViT.
struct PositionResizeName {
  std::string operator()(const VitConfig& vit) const {
    return position_resize_name(vit.position_resize);
  }
  template <class Other>
  std::string operator()(const Other&) const {
    return "none";
  }
};

/// What began from random weights is whole in the adapter file.
BackboneCheckpoint from_adapter_file(const AdapterFile& file, const std::filesystem::path& path) {
  BackboneCheckpoint checkpoint;
  checkpoint.format = file.backbone.format;
  read_json_fields(file.backbone.architecture, checkpoint.architecture, path);
  for (const auto& [name, tensor] : file.weights.tensors)
    if (name.starts_with("backbone.")) checkpoint.backbone.tensors[name.substr(9)] = tensor;
  return checkpoint;
}

/// Leaves out the blocks that the recipe does not use.
void cut_to(int64_t blocks, const Recipe& recipe, BackboneCheckpoint& checkpoint) {
  if (blocks == 0) return;
  try {
    keep_first_blocks(checkpoint, blocks);
  } catch (const Error& error) {
    throw RecipeError(recipe.file, "/backbone/blocks", error.what());
  }
}

/// Leaves out the blocks that the adapter file was trained without. Whether what is left is its
/// backbone is for the hash to say.
void cut_like(const AdapterFile& known, const std::filesystem::path& path,
              BackboneCheckpoint& checkpoint) {
  BackboneArchitecture architecture;
  read_json_fields(known.backbone.architecture, architecture, path);
  const auto* wanted = std::get_if<VitConfig>(&architecture);
  const auto* whole = std::get_if<VitConfig>(&checkpoint.architecture);
  if (wanted && whole && wanted->width == whole->width && wanted->depth < whole->depth)
    keep_first_blocks(checkpoint, wanted->depth);
}

/// A TorchScript file is run, not read: it has no tensors to take.
BackboneCheckpoint script_checkpoint(const Recipe& recipe) {
  const std::filesystem::path& file = recipe.backbone.weights;
  if (file.empty())
    throw RecipeError(recipe.file, "/backbone/weights",
                      "missing, wanted the TorchScript file that backbone.variant \"torchscript\" "
                      "runs");
  if (recipe.backbone.blocks > 0)
    throw RecipeError(recipe.file, "/backbone/blocks",
                      "got " + std::to_string(recipe.backbone.blocks) +
                          ", wanted 0: a TorchScript module has no blocks to leave out");
  BackboneCheckpoint checkpoint;
  checkpoint.format = kScript;
  ScriptConfig script{.name = file.stem().string()};
  checkpoint.hash = script_hash(file);
  checkpoint.normalization.assumed = true;
  if (const auto notes = read_script_notes(file)) {
    script.image_size = notes->input.size;
    std::copy_n(notes->input.mean.begin(), 3, checkpoint.normalization.mean.begin());
    std::copy_n(notes->input.std.begin(), 3, checkpoint.normalization.std.begin());
    checkpoint.normalization.assumed = false;
  }
  checkpoint.architecture = std::move(script);
  return checkpoint;
}

BackboneCheckpoint load_or_draw(const Recipe& recipe, const AdapterFile* known) {
  const BackboneConfig& config = recipe.backbone;
  if (known != nullptr ? known->backbone.format == kScript : config.variant == kScript)
    return script_checkpoint(recipe);
  if (known != nullptr && known->backbone.format == kRandom)
    return from_adapter_file(*known, recipe.file);
  if (config.weights.empty()) {
    BackboneCheckpoint checkpoint;
    checkpoint.format = kRandom;
    checkpoint.architecture = named_variant(recipe);
    cut_to(config.blocks, recipe, checkpoint);
    checkpoint.backbone = std::visit(RandomWeights{recipe}, checkpoint.architecture);
    return checkpoint;
  }
  BackboneCheckpoint checkpoint = load_backbone_checkpoint(config.weights);
  if (known != nullptr) {
    cut_like(*known, recipe.file, checkpoint);
    return checkpoint;
  }
  if (config.variant != "auto") {
    const BackboneArchitecture wanted = named_variant(recipe);
    if (!same_architecture(wanted, checkpoint.architecture))
      throw RecipeError(recipe.file, "/backbone/variant",
                        "got " + architecture_text(checkpoint.architecture) + " in " +
                            config.weights.string() + ", wanted " + architecture_text(wanted));
  }
  cut_to(config.blocks, recipe, checkpoint);
  return checkpoint;
}

/// `loaded` may be null.
BackboneCheckpoint load_once(const Recipe& recipe, LoadedCheckpoint* loaded) {
  if (loaded == nullptr) return load_or_draw(recipe, nullptr);
  BackboneConfig config = recipe.backbone;
  const std::string of = write_json_fields(config) + " " + std::to_string(recipe.train.seed);
  if (loaded->of != of) *loaded = {of, load_or_draw(recipe, nullptr)};
  return loaded->checkpoint;
}

/// Loads or draws the backbone. `known` is what an adapter file says of its architecture: weights
/// do not tell heads, eps, activation and position resizing, and the file beside them may be
/// another one.
void build_backbone(const Recipe& recipe, BackboneCheckpoint checkpoint, const AdapterFile* known,
                    TunedModel& model) {
  if (known != nullptr && known->backbone.hash == checkpoint.hash) {
    const size_t kind = checkpoint.architecture.index();
    read_json_fields(known->backbone.architecture, checkpoint.architecture, recipe.file);
    if (checkpoint.architecture.index() != kind)
      throw FileError(recipe.file, "its architecture is of another kind than its weights");
  }
  const BackboneArchitecture& architecture = checkpoint.architecture;
  model.identity.format = checkpoint.format;
  model.identity.architecture = write_json_fields(architecture);
  model.identity.name = backbone_name(architecture);
  model.identity.hash = checkpoint.hash;
  model.identity.position_resize = std::visit(PositionResizeName{}, architecture);
  model.identity.normalization = checkpoint.normalization;
  if (known != nullptr) check_backbone(*known, model.identity);  // before its size is looked at
  model.backbone_trainable = recipe.backbone.trainable;
  model.backbone = std::visit(MakeBackbone{recipe, checkpoint.backbone}, architecture);
}

/// Moves a model to where it computes. The weights as they were read are gone then; the C library
/// would keep their memory.
void place(TunedModel& model, DeviceChoice choice, Precision precision) {
  const c10::Device device = resolve_device(choice);
  if (precision == Precision::bf16 && !computes_in_bf16(device))
    say("precision: this CPU has no instructions for bf16 and emulates it, many times slower than "
        "f32, which is what \"auto\" chooses here");
  model.to(device, precision);
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

void place(TunedModel& model, const Recipe& recipe) {
  resolve_device(recipe.train.device);
  try {
    place(model, recipe.train.device, recipe.train.precision);
  } catch (const Error& error) {
    std::string what = error.what();
    if (what.starts_with("precision: ")) what.erase(0, what.find(' ') + 1);
    throw RecipeError(recipe.where("/train/precision"), "/train/precision", what);
  }
}

/// Not moved to its device yet.
TunedModel build(const Recipe& recipe, int64_t classes, BackboneCheckpoint checkpoint,
                 const AdapterFile* known = nullptr) {
  TunedModel model;
  build_backbone(recipe, std::move(checkpoint), known, model);
  model.adapter = build_adapter(recipe, *model.backbone);
  model.head = build_head(recipe, known, *model.backbone, classes, init_key(recipe, kHeadInit));
  if (!model.head.weight.defined() && !model.adapter && !model.backbone_trainable)
    throw RecipeError(recipe.file, "/head/type",
                      "got \"none\", wanted \"linear\" or backbone.trainable: nothing would train");
  return model;
}

}  // namespace

TunedModel build_model(const Recipe& recipe, int64_t classes, LoadedCheckpoint* loaded) {
  TunedModel model = build(recipe, classes, load_once(recipe, loaded));
  place(model, recipe);
  return model;
}

TunedModel build_for_inference(const Recipe& recipe, int64_t classes) {
  TunedModel model = build(recipe, classes, load_or_draw(recipe, nullptr));
  model.backbone_trainable = false;
  model.merge_adapter();
  place(model, recipe);
  return model;
}

InputConfig resolve_input(const InputConfig& input, const TunedModel& model) {
  InputConfig resolved = input;
  if (resolved.size[0] == 0) resolved.size = model.backbone->image_size();
  const Normalization& own = model.identity.normalization;
  if (resolved.mean.empty() && own.assumed) {
    std::ostringstream line;
    line
        << "nothing tells with which mean and std the backbone was trained: taken as "
        << own.mean[0] << " and " << own.std[0]
        << (own.mean[0] == 0.5
                ? ", as for AugReg ViTs; set input.mean and input.std for others (DeiT: ImageNet's)"
                : ", ... (ImageNet's); set input.mean and input.std for others");
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
  for (const auto& [name, tensor] : model.state())
    file.weights.tensors[name] = tensor.detach().cpu().clone();
  file.backbone = model.identity;
  file.image_size = model.backbone->image_size();
  file.pool = pool_name(recipe.backbone.pool);
  file.adapter = recipe.adapter;
  file.head = recipe.head.type;
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
  recipe.adapter = file.adapter;
  recipe.head.type = file.head;
  recipe.train.device = device;
  recipe.train.precision = precision;
  try {
    TunedModel& model = loaded.model;
    model = build(recipe, static_cast<int64_t>(file.classes.size()), load_or_draw(recipe, &file),
                  &file);
    // What was trained whole takes its weights as it took them in training, in memory of its own;
    // nothing trains after that. All in float32, before the backbone changes its precision.
    const bool whole = model.backbone_trainable;
    if (whole) model.backbone->set_trainable(true);
    apply_adapter(file, model);
    if (whole) model.freeze_backbone();
    model.merge_adapter();
    loaded.input = resolve_input(loaded.input, loaded.model);
    ImagePipeline(loaded.input, AugmentConfig{});  // checks the numbers
  } catch (const FileError&) {
    throw;
  } catch (const RecipeError&) {
    throw;
  } catch (const Error& error) {
    throw FileError(adapter_path, error.what());
  }
  place(loaded.model, device, precision);  // what is wrong with these is not the file's fault
  return loaded;
}

}  // namespace convpass
