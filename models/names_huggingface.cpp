// transformers ViT, DeiT and DINOv2. The rules spell the names of version 4, which save_pretrained
// of version 5 still writes; the respellings are the module names of version 5.
#include "models/names.h"

namespace convpass {
namespace {

const std::vector<Respelling> kAttentionOfVersion5{
    {R"(\.attention\.q_proj\.)", ".attention.attention.query."},
    {R"(\.attention\.k_proj\.)", ".attention.attention.key."},
    {R"(\.attention\.v_proj\.)", ".attention.attention.value."},
    {R"(\.attention\.o_proj\.)", ".attention.output.dense."}};

/// What the three families share.
NameTable base_table(VitFormat format) {
  NameTable t;
  t.format = format;
  t.respellings = kAttentionOfVersion5;
  t.block = "encoder.layer.";
  t.rules = {{"cls_token", {"embeddings.cls_token"}},
             {"pos_embed", {"embeddings.position_embeddings"}}};
  add_module(t.rules, "patch_embed.proj", "embeddings.patch_embeddings.projection");
  add_module(t.rules, "norm", "layernorm");
  for (const char* leaf : {".weight", ".bias"}) {
    NameRule qkv{std::string("attn.qkv") + leaf, {}};
    for (const char* part : {"query", "key", "value"})
      qkv.sources.push_back(std::string("attention.attention.") + part + leaf);
    t.block_rules.push_back(qkv);
  }
  add_module(t.block_rules, "attn.proj", "attention.output.dense");
  add_module(t.head_rules, "head", "classifier");
  t.ignored = {"embeddings.mask_token", "pooler."};
  t.prefix_rows = true;
  return t;
}

void add_vit_blocks(NameTable& t) {
  t.respellings.insert(t.respellings.end(), {{R"(^layers\.)", "encoder.layer."},
                                             {R"(\.mlp\.fc1\.)", ".intermediate.dense."},
                                             {R"(\.mlp\.fc2\.)", ".output.dense."}});
  add_module(t.block_rules, "norm1", "layernorm_before");
  add_module(t.block_rules, "norm2", "layernorm_after");
  add_module(t.block_rules, "mlp.fc1", "intermediate.dense");
  add_module(t.block_rules, "mlp.fc2", "output.dense");
}

}  // namespace

const NameTable& hf_vit_names() {
  static const NameTable table = [] {
    NameTable t = base_table(VitFormat::hf_vit);
    t.signatures = {"embeddings.patch_embeddings.projection.weight",
                    "embeddings.position_embeddings"};
    t.prefixes = {"", "vit."};
    t.written_prefix_with_head = "vit.";
    add_vit_blocks(t);
    return t;
  }();
  return table;
}

const NameTable& hf_deit_names() {
  static const NameTable table = [] {
    NameTable t = base_table(VitFormat::hf_deit);
    t.signatures = {"embeddings.distillation_token"};
    t.prefixes = {"", "deit."};
    t.written_prefix_with_head = "deit.";
    t.rules.push_back({"dist_token", {"embeddings.distillation_token"}});
    add_vit_blocks(t);
    // Files trained with a teacher; first here, so that a lone `classifier` still reads as `head`.
    NameRules heads;
    add_module(heads, "head", "cls_classifier");
    add_module(heads, "head_dist", "distillation_classifier");
    t.head_rules.insert(t.head_rules.begin(), heads.begin(), heads.end());
    return t;
  }();
  return table;
}

const NameTable& hf_dinov2_names() {
  static const NameTable table = [] {
    NameTable t = base_table(VitFormat::hf_dinov2);
    t.signatures = {"encoder.layer.0.layer_scale1.lambda1", "encoder.layer.0.norm1.weight",
                    "embeddings.register_tokens"};
    t.prefixes = {"", "dinov2.", "dinov2_with_registers."};
    t.written_prefix_with_head = "dinov2.";
    t.rules.push_back({"reg_token", {"embeddings.register_tokens"}});
    add_module(t.block_rules, "norm1", "norm1");
    add_module(t.block_rules, "norm2", "norm2");
    t.block_rules.push_back({"ls1.gamma", {"layer_scale1.lambda1"}});
    t.block_rules.push_back({"ls2.gamma", {"layer_scale2.lambda1"}});
    add_module(t.block_rules, "mlp.fc1", "mlp.weights_in", When::gated);
    add_module(t.block_rules, "mlp.fc2", "mlp.weights_out", When::gated);
    add_module(t.block_rules, "mlp.fc1", "mlp.fc1", When::plain);
    add_module(t.block_rules, "mlp.fc2", "mlp.fc2", When::plain);
    t.fillers = {{"embeddings.mask_token", {1, -1}}};
    return t;
  }();
  return table;
}

}  // namespace convpass
