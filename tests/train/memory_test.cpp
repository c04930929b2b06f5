#include "src/train/memory.h"

#include "convpass/core/error.h"
#include "convpass/train/build.h"
#include "tests/train/tiny_run.h"

namespace convpass {
namespace {

using Recomputing = TinyRun;

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

}  // namespace
}  // namespace convpass
