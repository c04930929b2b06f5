#include "convpass/core/error.h"
#include "convpass/train/recipe.h"
#include "convpass/train/throughput.h"
#include "src/cli/commands.h"
#include "src/cli/output.h"

namespace convpass::cli {
namespace {

int run_bench(const Arguments& arguments) {
  std::vector<std::string> sets = arguments.values("--set");
  bool from_file = !arguments.positional().empty();
  Recipe recipe = from_file ? load_recipe(arguments.positional()[0], sets) : recipe_from_sets(sets);
  if (!from_file && recipe.backbone.weights.empty() && recipe.backbone.variant == "auto") {
    recipe.backbone.variant = "vit_base_patch16";
  }
  validate(recipe, /*needs_data=*/false);
  if (arguments.has("--loader")) {
    if (arguments.has("--details"))
      throw UsageError("bench: --details and --loader exclude each other");
    if (!recipe.data.train)
      throw RecipeError(recipe.file, "/data/train", "missing, wanted the images to load");
    print_line(measure_loader(recipe, arguments.integer("--steps", 10, 1)));
    return 0;
  }
  print_line(
      measure_throughput(recipe, arguments.integer("--steps", 10, 1), arguments.has("--details")));
  return 0;
}

}  // namespace

const Command& bench_command() {
  static const Command command{
      .name = "bench",
      .synopsis = "[RECIPE] [--set K=V ...] [--steps N] [--details | --loader]",
      .summary = "Times training and inference on synthetic images.",
      .details =
          "Prints "
          "{\"images_per_second\",\"step_ms\",\"forward_ms\",\"inference_images_per_second\",\n"
          "\"peak_memory_bytes\",\"trainable_parameters\",...}. Without weights a variant gets "
          "random "
          "ones;\nwithout a recipe the variant is vit_base_patch16. Teachers are left out.",
      .options = {{"--set", "K=V", "overlays one value: --set backbone.variant=vit_small_patch16",
                   true},
                  {"--steps", "N", "steps to time after a warm-up (10)"},
                  {"--details", "",
                   "also latency with one image, the adapter's share of a training step and the "
                   "size of its file: \"latency_ms\",\"latency_p95_ms\",\"adapter_share\",..."},
                  {"--loader", "",
                   "times decoding and augmentation of data.train alone, with no image kept: "
                   "{\"loader_images_per_second\",\"workers\",...}"}},
      .min_positional = 0,
      .max_positional = 1,
      .run = run_bench};
  return command;
}

}  // namespace convpass::cli
