// The Flax files of Google: original ViT, AugReg and big_vision. The rules spell the original
// names.
#include "models/names.h"

namespace convpass {
namespace {

void add_norm(NameRules& rules, const std::string& target, const std::string& source) {
  rules.push_back({target + ".weight", {source + "scale"}, Layout::vector});
  rules.push_back({target + ".bias", {source + "bias"}, Layout::vector});
}

void add_dense(NameRules& rules, const std::string& target, const std::string& source) {
  rules.push_back({target + ".weight", {source + "kernel"}, Layout::transposed});
  rules.push_back({target + ".bias", {source + "bias"}, Layout::vector});
}

}  // namespace

const NameTable& google_names() {
  static const NameTable table = [] {
    NameTable t;
    t.format = VitFormat::google_npz;
    t.signatures = {"embedding/kernel", "Transformer/encoder_norm/scale"};
    t.prefixes = {"", "opt/target/", "params/", "params/img/"};
    t.respellings = {// big_vision
                     {"MultiHeadDotProductAttention_0/", "MultiHeadDotProductAttention_1/"},
                     {"LayerNorm_1/", "LayerNorm_2/"},
                     {"MlpBlock_0/", "MlpBlock_3/"},
                     {"^pos_embedding$", "Transformer/posembed_input/pos_embedding"}};
    t.block = "Transformer/encoderblock_";
    t.after_block = "/";
    t.stacked = "Transformer/encoderblock/";

    t.rules = {{"patch_embed.proj.weight", {"embedding/kernel"}, Layout::convolution},
               {"patch_embed.proj.bias", {"embedding/bias"}, Layout::vector},
               {"cls_token", {"cls"}},
               {"pos_embed", {"Transformer/posembed_input/pos_embedding"}}};
    add_norm(t.rules, "norm", "Transformer/encoder_norm/");

    const std::string attention = "MultiHeadDotProductAttention_1/";
    NameRule weight{"attn.qkv.weight", {}, Layout::heads_in};
    NameRule bias{"attn.qkv.bias", {}, Layout::heads_bias};
    for (const char* part : {"query/", "key/", "value/"}) {
      weight.sources.push_back(attention + part + "kernel");
      bias.sources.push_back(attention + part + "bias");
    }
    t.block_rules = {weight,
                     bias,
                     {"attn.proj.weight", {attention + "out/kernel"}, Layout::heads_out},
                     {"attn.proj.bias", {attention + "out/bias"}, Layout::vector}};
    add_norm(t.block_rules, "norm1", "LayerNorm_0/");
    add_norm(t.block_rules, "norm2", "LayerNorm_2/");
    add_dense(t.block_rules, "mlp.fc1", "MlpBlock_3/Dense_0/");
    add_dense(t.block_rules, "mlp.fc2", "MlpBlock_3/Dense_1/");

    add_dense(t.head_rules, "head", "head/");
    t.ignored = {"pre_logits/"};
    // Optimiser states and, in the image-text files, the text tower and the temperature.
    t.ignored_outside = {"opt/", "extra/", "params/txt/", "params/t", "params/b"};
    return t;
  }();
  return table;
}

}  // namespace convpass
