#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "convpass/core/error.h"
#include "convpass/train/build.h"
#include "convpass/train/objective.h"
#include "convpass/train/teacher.h"
#include "train/tiny_run.h"

namespace convpass {
namespace {

const std::filesystem::path kDeit =
    std::filesystem::path(CONVPASS_TEST_DATA) / "vit/timm_deit_distilled";

class Deit : public TinyRun {
 protected:
  Recipe distilled_recipe(std::vector<std::string> sets = {}) const {
    std::vector<std::string> all{"backbone.weights=" + (kDeit / "model.safetensors").string(),
                                 "head.type=distilled",
                                 R"(distill.teachers={"type": "checkpoint", "weights": ")" +
                                     (kDeit / "model.safetensors").string() + R"("})"};
    all.insert(all.end(), sets.begin(), sets.end());
    return tiny_recipe(all);
  }
  static std::string message_of(const Recipe& recipe) {
    try {
      build_model(recipe, 3);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }
};

bool close(const at::Tensor& got, const at::Tensor& wanted) {
  return at::allclose(got.detach(), wanted, 1e-5, 1e-5);
}

TEST_F(Deit, TwoHeadsAnswerAsTimms) {
  const TensorMap wanted = load_tensors(kDeit / "logits.safetensors");
  const at::Tensor images = load_tensors(kDeit.parent_path() / "images.safetensors").at("images");
  CheckpointTeacher source;
  source.weights = kDeit / "model.safetensors";
  const auto teacher = load_teacher({.source = source}, DeviceChoice::cpu);
  EXPECT_TRUE(close(teacher->ask(images, false).logits, wanted.at("logits")));

  const TensorMap file = load_tensors(kDeit / "model.safetensors");
  TunedModel model = build_model(distilled_recipe({"adapter.type=none"}), 3);
  for (const auto& [name, tensor] : model.head.tensors()) tensor->set_data(file.at(name));
  const auto [labels, distilled] = model.head.answers(model.features(images, Pass{}));
  EXPECT_TRUE(close(labels, wanted.at("labels")));
  EXPECT_TRUE(close(distilled, wanted.at("teacher")));
  // DeiT's hard distillation: label_weight 0.5 and hard 0.5.
  DistillTerms terms;
  terms.kl = 0;
  terms.hard = 0.5;
  const at::Tensor says = at::tensor({0.f, 1.f, 9.f, 1.f, 0.f, 9.f}).view({2, 3});
  const at::Tensor loss = 0.5 * at::cross_entropy_loss(labels, at::tensor({1, 0}, at::kLong)) +
                          distillation_loss(terms, distilled, {{.logits = says, .features = {}}});
  EXPECT_TRUE(close(loss, wanted.at("loss")));
}

TEST_F(Deit, EachHeadLearnsFromItsOwn) {
  int runs = 0;
  auto heads = [&](const std::vector<std::string>& sets) {
    std::vector<std::string> all{"adapter.type=none"};
    all.insert(all.end(), sets.begin(), sets.end());
    const auto out = folder() / std::to_string(runs++);
    train(distilled_recipe(all), out, false);
    const TensorMap file = load_tensors(out / "adapter.safetensors");
    return std::pair{file.at("head.weight").clone(), file.at("head_dist.weight").clone()};
  };
  const auto [labels, taught] = heads({});
  const auto [same_labels, otherwise_taught] = heads({"distill.kl=0", "distill.hard=1"});
  EXPECT_TRUE(at::equal(labels, same_labels));
  EXPECT_FALSE(at::equal(taught, otherwise_taught));
  const auto [other_labels, same_taught] = heads({"loss.label_smoothing=0.3"});
  EXPECT_FALSE(at::equal(labels, other_labels));
  EXPECT_TRUE(at::equal(taught, same_taught));
}

TEST_F(Deit, AHeadThatLearnsFromNothingIsRefused) {
  for (const auto& [set, says] :
       {std::pair{"distill.teachers=[]", "got \"distilled\" without teachers"},
        {"loss.label_weight=0", "got \"distilled\" with loss.label_weight 0"}}) {
    try {
      validate(distilled_recipe({set}), /*needs_data=*/true);
      ADD_FAILURE() << set;
    } catch (const RecipeError& error) {
      EXPECT_NE(std::string(error.what()).find(std::string("/head/type: ") + says),
                std::string::npos)
          << error.what();
    }
  }
  EXPECT_THROW(validate(distilled_recipe({"distill.kl=0", "distill.feature=1"}), true),
               RecipeError);
}

TEST_F(Deit, TheAdapterFileKeepsBothHeads) {
  train(distilled_recipe({"train.epochs=1"}), folder() / "run", false);
  const LoadedModel loaded =
      load_tuned_model(folder() / "run/adapter.safetensors", kDeit / "model.safetensors",
                       DeviceChoice::cpu, Precision::f32);
  EXPECT_TRUE(loaded.model.head.distilled_weight.defined());
  EXPECT_EQ(loaded.model.logits(at::zeros({2, 3, 16, 16}), Pass{}).sizes(),
            (at::IntArrayRef{2, 3}));
}

TEST_F(Deit, OtherBackbonesHaveNoSecondToken) {
  EXPECT_NE(message_of(tiny_recipe({"head.type=distilled"})).find("has no distillation token"),
            std::string::npos);
  EXPECT_NE(message_of(distilled_recipe({"backbone.pool=mean"})).find("/head/type"),
            std::string::npos);
}

}  // namespace
}  // namespace convpass
