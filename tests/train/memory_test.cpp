#include "src/train/memory.h"

#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include "convpass/core/error.h"
#include "convpass/train/build.h"
#include "tests/train/tiny_run.h"

namespace convpass {
namespace {

using Recomputing = TinyRun;
using Keeping = TinyRun;

double dtype_size(const Recipe& recipe) {
  return static_cast<double>(c10::elementSize(dtype_of(recipe.train.precision)));
}

/// Bytes of tensors on the CPU that this thread has made and not freed while it is installed.
struct HeldBytes : c10::MemoryReportingInfoBase {
  int64_t now = 0;
  void reportMemoryUsage(void*, int64_t bytes, size_t, size_t, c10::Device) override {
    now += bytes;
  }
  bool memoryProfilingEnabled() const override { return true; }
};

/// The whole state after one backward pass with dropout and stochastic depth.
std::vector<at::Tensor> gradients(const Recipe& recipe, int64_t recomputed) {
  TunedModel model = build_model(recipe, 3);
  at::NoGradGuard no_grad;
  at::Generator generator = seeded_generator(1);
  for (auto& [name, tensor] : model.trainable()) tensor.normal_(0, 0.1, generator);
  model.backbone->set_recomputed(recomputed);
  at::AutoGradMode enable(true);
  const at::Tensor images = at::empty({4, 3, 16, 16}).normal_(0, 1, generator);
  const at::Tensor logits = model.logits(images, Pass{seeded_generator(7)});
  logits.pow(2).sum().backward();
  std::vector<at::Tensor> all{logits.detach()};
  for (auto& [name, tensor] : model.trainable()) all.push_back(tensor.grad());
  return all;
}

TEST_F(Recomputing, GivesTheSameGradientsToTheLastBit) {
  for (const std::string precision : {"f32", "bf16"})
    for (const std::string set :
         {"adapter.blocks=all", "adapter.blocks=[1]", "backbone.trainable=true"}) {
      const Recipe recipe = tiny_recipe({"train.precision=" + precision, set});
      const auto kept = gradients(recipe, 0);
      for (const int64_t again : {1, 2, 9}) {
        const auto twice = gradients(recipe, again);
        ASSERT_EQ(kept.size(), twice.size());
        for (size_t i = 0; i < kept.size(); ++i)
          EXPECT_TRUE(at::equal(kept[i], twice[i])) << precision << " " << set << " " << i;
      }
    }
}

TEST_F(Recomputing, FitsABudgetWithAsFewBlocksAsPossible) {
  const Recipe free = tiny_recipe({"train.batch_size=4096"});
  TunedModel model = build_for_training(free, 3);
  const double whole = memory_need(free, model).total();
  model.backbone->set_recomputed(1);
  const double one = memory_need(free, model).total();
  ASSERT_LT(one, whole);

  auto need_within = [&](double budget) {
    const Recipe bound = tiny_recipe(
        {"train.batch_size=4096",
         "train.memory_budget=" + std::to_string(static_cast<int64_t>(budget / (1 << 20)) + 1)});
    return memory_need(bound, build_for_training(bound, 3)).total();
  };
  EXPECT_EQ(need_within(whole), whole);
  EXPECT_EQ(need_within(one), one);
  EXPECT_THROW(need_within(one / 2), RecipeError);
}

TEST_F(Keeping, IsWhatTheEstimateSays) {
  for (const std::vector<std::string>& sets : std::vector<std::vector<std::string>>{
           {"adapter.type=convpass"},
           {"adapter.type=lora"},
           {"adapter.type=lora", "adapter.layers=[\"qkv\",\"proj\",\"fc1\",\"fc2\"]"},
           {"adapter.type=lora", "adapter.layers=[\"fc2\"]", "adapter.dropout=0.1"},
           {"adapter.type=ssf"},
           {"adapter.type=bitfit"},
           {"adapter.type=vpt", "adapter.tokens=20"},
           {"adapter.type=fact"},
           {"adapter.type=adaptformer"},
           {"adapter.type=bottleneck"},
           {"adapter.type=repadapter"},
           {"adapter.type=none", "backbone.trainable=true"},
           {"adapter.type=none", "backbone.trainable=true", "train.precision=bf16"}}) {
    std::vector<std::string> all{"backbone.weights=", "backbone.variant=vit_tiny_patch16",
                                 "backbone.image_size=128", "train.batch_size=4"};
    all.insert(all.end(), sets.begin(), sets.end());
    const Recipe recipe = tiny_recipe(all);
    const TunedModel model = build_model(recipe, 3);
    const at::Tensor images = at::randn({recipe.train.batch_size, 3, 128, 128});
    model.features(images, Pass{seeded_generator(1)});  // what is made once and stays
    const auto held = std::make_shared<HeldBytes>();
    const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, held);
    const at::Tensor features = model.features(images, Pass{seeded_generator(1)});
    const auto kept = static_cast<double>(held->now);
    const MemoryNeed need = memory_need(recipe, model);
    const double working =
        dtype_size(recipe) *
        static_cast<double>(recipe.train.batch_size * model.backbone->step_values(nullptr, false));
    const double casts = model.backbone_trainable ? need.backbone : 0;
    const double estimate = need.activations - working + casts;
    EXPECT_NEAR(kept / estimate, 1, 0.2) << sets[0] << " " << sets.back();
  }
}

}  // namespace
}  // namespace convpass
