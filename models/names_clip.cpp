// The image tower of CLIP: OpenAI and open_clip names, and Hugging Face's.
#include "models/names.h"

namespace convpass {

const NameTable& clip_names() {
  static const NameTable table = [] {
    NameTable t;
    t.format = VitFormat::clip;
    t.signatures = {"class_embedding", "ln_pre.weight"};
    t.prefixes = {"visual.", "module.visual.", ""};
    t.written_prefix = t.written_prefix_with_head = "visual.";
    t.head_inside = true;
    t.block = "transformer.resblocks.";
    t.rules = {{"patch_embed.proj.weight", {"conv1.weight"}},
               {"cls_token", {"class_embedding"}, Layout::token},
               {"pos_embed", {"positional_embedding"}, Layout::table}};
    add_module(t.rules, "norm_pre", "ln_pre");
    add_module(t.rules, "norm", "ln_post");
    t.block_rules = {{"attn.qkv.weight", {"attn.in_proj_weight"}},
                     {"attn.qkv.bias", {"attn.in_proj_bias"}}};
    add_module(t.block_rules, "attn.proj", "attn.out_proj");
    add_module(t.block_rules, "norm1", "ln_1");
    add_module(t.block_rules, "norm2", "ln_2");
    add_module(t.block_rules, "mlp.fc1", "mlp.c_fc");
    add_module(t.block_rules, "mlp.fc2", "mlp.c_proj");
    t.head_rules = {{"head.weight", {"proj"}, Layout::transposed}};
    // The text tower, the temperature, and the three numbers of OpenAI's files.
    t.ignored_outside = {"text.",          "transformer.",    "token_embedding.",
                         "ln_final.",      "text_projection", "positional_embedding",
                         "logit_scale",    "logit_bias",      "input_resolution",
                         "context_length", "vocab_size",      "module."};
    t.prefix_rows = true;
    return t;
  }();
  return table;
}

const NameTable& hf_clip_names() {
  static const NameTable table = [] {
    NameTable t;
    t.format = VitFormat::hf_clip;
    t.signatures = {"embeddings.class_embedding", "pre_layrnorm.weight"};
    t.prefixes = {"vision_model.", ""};
    t.written_prefix = t.written_prefix_with_head = "vision_model.";
    t.block = "encoder.layers.";
    t.rules = {{"patch_embed.proj.weight", {"embeddings.patch_embedding.weight"}},
               {"cls_token", {"embeddings.class_embedding"}, Layout::token},
               {"pos_embed", {"embeddings.position_embedding.weight"}, Layout::table}};
    add_module(t.rules, "norm_pre", "pre_layrnorm");  // spelt so
    add_module(t.rules, "norm", "post_layernorm");
    for (const char* leaf : {".weight", ".bias"}) {
      NameRule qkv{std::string("attn.qkv") + leaf, {}};
      for (const char* part : {"q", "k", "v"})
        qkv.sources.push_back(std::string("self_attn.") + part + "_proj" + leaf);
      t.block_rules.push_back(qkv);
    }
    add_module(t.block_rules, "attn.proj", "self_attn.out_proj");
    add_module(t.block_rules, "norm1", "layer_norm1");
    add_module(t.block_rules, "norm2", "layer_norm2");
    add_module(t.block_rules, "mlp.fc1", "mlp.fc1");
    add_module(t.block_rules, "mlp.fc2", "mlp.fc2");
    t.head_rules = {{"head.weight", {"visual_projection.weight"}}};
    add_module(t.head_rules, "head", "classifier");  // CLIPForImageClassification
    t.ignored = {"embeddings.position_ids"};
    t.ignored_outside = {"text_model.", "text_projection.", "logit_scale"};
    t.prefix_rows = true;
    return t;
  }();
  return table;
}

}  // namespace convpass
