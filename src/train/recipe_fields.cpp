#include "convpass/core/fields.h"
#include "convpass/train/recipe.h"

namespace convpass {

void fields(FieldVisitor& visitor, AboutConfig& config) {
  visitor.field("source", config.source, "paper, table or script that the recipe follows");
  visitor.field("command", config.command, "how it is run");
  visitor.field("expected", config.expected, "what the source reports");
  visitor.field("measured", config.measured, "what we have measured, with machine and seed");
}

void fields(FieldVisitor& visitor, BackboneConfig& config) {
  visitor.field("weights", config.weights,
                "checkpoint file (safetensors, npz, PyTorch), or a TorchScript module; empty: "
                "random weights of "
                "`variant`, "
                "for `bench` or, "
                "with trainable, to train from scratch");
  visitor.field("variant", config.variant,
                "architecture such as \"vit_base_patch16\", \"swin_base_patch4_window7\" or "
                "\"resnetv2_50x1_bit\"; \"auto\" reads it off the weights; \"torchscript\" runs "
                "the weights file, a TorchScript module from "
                "images to features");
  visitor.list_or_word("image_size", config.image_size, "auto",
                       "pixels: height and width, or one number for a square; \"auto\": the "
                       "checkpoint's own. A multiple of a ViT's patch size, of 32 for a Swin, any "
                       "for a BiT",
                       at_least(1));
  visitor.field("blocks", config.blocks,
                "use the first so many blocks of a ViT and leave out the others; 0: all",
                between(0, 1024));
  visitor.choice(
      "pool", config.pool, {"auto", "cls", "mean"},
      "feature of an image: the class token or the mean of the patch tokens; \"auto\": the "
      "checkpoint's own");
  visitor.field("drop_path", config.drop_path,
                "rate of stochastic depth in the last block, rising linearly from 0 in the first",
                between(0, 0.99));
  visitor.field("trainable", config.trainable,
                "train every weight of the backbone (full fine-tuning)");
}

void fields(FieldVisitor& visitor, EmaConfig& config) {
  visitor.field(
      "ema_decay", config.decay,
      "decay of an exponential moving average of the weights, which is evaluated beside "
      "them and kept where it is better on data.val (or where there is none); 0: no average",
      between(0, 0.9999999));
  visitor.choice("ema_form", config.form, {"v2", "v3"},
                 "v2: the same decay from the first step (USI); v3: may start late and warm up; "
                 "both as in timm");
  visitor.field("ema_start", config.start, "v3: steps in which the average is a copy", at_least(0));
  visitor.field("ema_warmup", config.warmup,
                "v3: the decay rises to its value, from 1 - (1 + t)^(-2/3) after t steps");
  visitor.field("ema_copy_buffers", config.copy_buffers,
                "v3: running statistics of batch norm are copied, not averaged");
}

void fields(FieldVisitor& visitor, TrainConfig& config) {
  visitor.field("epochs", config.epochs, "passes over the training set", between(1, 1e6));
  visitor.field("steps", config.steps,
                "length of the run in steps, in place of epochs; 0: epochs count",
                between(0, 1e12));
  visitor.field("batch_size", config.batch_size, "images a forward pass", between(1, 65536));
  visitor.field("accumulate", config.accumulate, "batches whose gradients make one step",
                between(1, 65536));
  visitor.field("drop_last", config.drop_last,
                "leave out the partial batch at the end of an epoch; false: keep it, and let the "
                "batches of a step run on into the next epoch");
  visitor.choice("small_set", config.small_set, {"one_batch", "with_replacement"},
                 "training images that make no batch: one batch of what there is, or a whole one "
                 "drawn with replacement (BiT)");
  visitor.field("seed", config.seed,
                "of shuffling, augmentation, dropout and the initial trainable weights",
                at_least(0));
  visitor.choice("device", config.device, {"auto", "cpu", "cuda"},
                 "\"auto\": the first CUDA device, else the CPU");
  visitor.choice("precision", config.precision, {"f32", "bf16", "int8", "auto"},
                 "in which the backbone computes; trainable weights and the optimiser are always "
                 "float32, and int8 is for frozen ones; auto: bf16 where the device has "
                 "instructions for it, else f32");
  visitor.field(
      "memory_budget", config.memory_budget,
      "MiB that training may take: as many blocks of a ViT as needed compute twice what "
      "they would keep for the backward pass (the same result, slower); data.cache_mb and teachers "
      "come on top; 0: any",
      at_least(0));
  visitor.field("workers", config.workers,
                "threads that decode and augment; 0: one per two cores, at least one",
                between(0, 1024));
  visitor.field("eval_every", config.eval_every, "epochs between evaluations on data.val",
                at_least(1));
  visitor.field("best_on_test_every", config.best_on_test_every,
                "epochs between evaluations on data.test during training, whose best is reported "
                "as best_on_test: chosen on the test split, so not comparable with `last`; it "
                "chooses nothing; 0: none",
                at_least(0));
  visitor.field("log_every", config.log_every,
                "epochs between lines of log.jsonl; 0: so many that a run has at most 1,000 lines",
                at_least(0));
  visitor.field("save_every", config.save_every,
                "steps between checkpoints; 0: at ends of epochs, at most every 5 seconds",
                at_least(0));
  visitor.field("save_minutes", config.save_minutes,
                "a checkpoint also when so many minutes have passed since the last; 0: not",
                at_least(0));
  fields(visitor, config.ema);
}

void fields(FieldVisitor& visitor, Recipe& recipe) {
  visitor.part("about", recipe.about, "what the recipe reproduces; for readers, never acted on");
  visitor.choice("rule", recipe.rule, {"none", "bit_hyperrule", "bit_hyperrule_light"},
                 "fills in what follows from the training images and the recipe does not give: "
                 "BiT-HyperRule, or its lighter form of batch 128 at 0.001");
  visitor.part("backbone", recipe.backbone, "the pre-trained network");
  visitor.part("adapter", recipe.adapter, "what trains beside the frozen backbone");
  visitor.part("head", recipe.head, "the classifier on the backbone's feature");
  visitor.part("data", recipe.data, "training, validation and test images");
  visitor.part("input", recipe.input, "from a decoded image to the network's input");
  visitor.part("augment", recipe.augment, "random changes of training images");
  visitor.part("loss", recipe.loss, "what is minimised");
  visitor.part("distill", recipe.distill, "teachers, and what is learned from them");
  visitor.part("optimizer", recipe.optimizer, "how trainable weights are moved");
  visitor.part("schedule", recipe.schedule, "the learning rate over the run");
  visitor.part("train", recipe.train, "length, batch, seed, device and precision");
  visitor.choice(
      "select", recipe.select, {"last", "best_val"},
      "which weights are the result: the last epoch's, or the best epoch's on data.val; the "
      "test split never chooses");
}

}  // namespace convpass
