// timm, official DeiT, open_clip files with a timm trunk, and the official DINOv2 files, whose
// names are timm's but for the SwiGLU layers and the registers.
#include "models/names.h"

namespace convpass {
namespace {

const std::vector<std::string> kBlockModules{"norm1", "attn.qkv", "attn.proj", "norm2"};

void add_same(NameRules& rules, const std::string& name) { rules.push_back({name, {name}}); }

NameRules common_rules() {
  NameRules rules;
  add_module(rules, "patch_embed.proj", "patch_embed.proj");
  add_same(rules, "cls_token");
  add_same(rules, "pos_embed");
  add_module(rules, "norm", "norm");
  return rules;
}

NameRules common_block_rules() {
  NameRules rules;
  for (const std::string& module : kBlockModules) add_module(rules, module, module);
  add_same(rules, "ls1.gamma");
  add_same(rules, "ls2.gamma");
  return rules;
}

}  // namespace

const NameTable& timm_names() {
  static const NameTable table = [] {
    NameTable t;
    t.format = VitFormat::timm;
    t.signatures = {"pos_embed", "blocks.0.norm1.weight"};
    t.prefixes = {"", "module.", "visual.trunk."};
    t.respellings = {{R"(\.gamma_([12])$)", ".ls$1.gamma"}};  // DeiT-III
    t.block = "blocks.";
    t.rules = common_rules();
    for (const char* name : {"dist_token", "reg_token"}) add_same(t.rules, name);
    for (const char* name : {"norm_pre", "fc_norm"}) add_module(t.rules, name, name);
    t.block_rules = common_block_rules();
    for (const char* name : {"mlp.fc1", "mlp.fc2"}) add_module(t.block_rules, name, name);
    for (const char* name : {"head", "head_dist"}) add_module(t.head_rules, name, name);
    t.head_rules.push_back({"head.weight", {"visual.head.proj.weight"}});
    t.ignored = {"pre_logits."};
    t.ignored_outside = {"text.", "logit_scale", "logit_bias"};
    return t;
  }();
  return table;
}

const NameTable& dinov2_names() {
  static const NameTable table = [] {
    NameTable t;
    t.format = VitFormat::dinov2;
    t.signatures = {"mask_token", "register_tokens", "blocks.0.mlp.w12.weight",
                    "blocks.0.0.norm1.weight"};
    t.prefixes = {"", "backbone.", "module.backbone.", "teacher.backbone."};
    t.respellings = {{R"(^blocks\.\d+\.(\d+)\.)", "blocks.$1."}};  // chunked: blocks.c.i
    t.block = "blocks.";
    t.rules = common_rules();
    t.rules.push_back({"reg_token", {"register_tokens"}});
    t.block_rules = common_block_rules();
    add_module(t.block_rules, "mlp.fc1", "mlp.w12", When::gated);
    add_module(t.block_rules, "mlp.fc2", "mlp.w3", When::gated);
    add_module(t.block_rules, "mlp.fc1", "mlp.fc1", When::plain);
    add_module(t.block_rules, "mlp.fc2", "mlp.fc2", When::plain);
    add_module(t.head_rules, "head", "linear_head");
    t.ignored = {"mask_token"};
    t.ignored_outside = {"dino_head.", "ibot_head.", "teacher.dino_head.", "teacher.ibot_head.",
                         "student."};
    t.prefix_rows = true;
    t.fillers = {{"mask_token", {1, -1}}};
    return t;
  }();
  return table;
}

}  // namespace convpass
