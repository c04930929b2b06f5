// Checkpoints and adapters that are damaged.

#include "tests/cli/damaged_input.h"

namespace convpass::hostile {
namespace {

const std::vector<Case>& checkpoints() {
  static const std::vector<Case> cases{
      {"SafetensorsCut", [](const DamagedInput& t) { t.cut(kWeights, kWeights); }, kTrain, kWeights,
       ""},
      {"SafetensorsHeaderLength", file_with(kWeights, std::string(8, '\x7f') + "{}"),
       "inspect " + kWeights, kWeights, ""},
      {"SafetensorsNameWithoutEnd",
       file_with(kWeights,
                 safetensors("{\"body.conv1.conv.weight\":{\"dtype\":\"F32\",\"shape\":[0],"
                             "\"data_offsets\":[0,0]},\"body.layer1.0." +
                                 std::string(60000, 'a') +
                                 "\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}",
                             "abcd")),
       "inspect " + kWeights, kWeights, "wanted at most 1024"},
      {"ConfigNestedWithoutEnd",
       [](const DamagedInput& t) {
         t.copy("vit/hf_vit/model.safetensors", "hf/model.safetensors");
         t.write("hf/config.json",
                 "{\"hidden_size\":" + repeated("[", 200000) + repeated("]", 200000) + "}");
       },
       "bench --steps 1 --set backbone.weights=hf/model.safetensors", "hf/config.json",
       "nested deeper than 32 levels"},
      {"PathTooLong", nothing, "inspect " + std::string(300, 'p'), std::string(300, 'p'),
       "too long"},
      {"SafetensorsHeaderNested",
       file_with(kWeights, safetensors("{\"a\":" + std::string(100000, '['), "")),
       "inspect " + kWeights, kWeights, ""},
      {"SafetensorsSizesOverflow",
       file_with(kWeights, safetensors(R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],)"
                                       R"("data_offsets":[0,0]}})",
                                       "")),
       "inspect " + kWeights, kWeights, "a"},
      {"SafetensorsOffsets",
       file_with(kWeights, safetensors(R"({"a":{"dtype":"F32","shape":[1],)"
                                       R"("data_offsets":[18446744073709551612,0]}})",
                                       "1234")),
       "convert " + kWeights + " out.pt", kWeights, "a"},
      {"SafetensorsTypeUnknown",
       file_with(kWeights,
                 safetensors(R"({"a":{"dtype":"X9","shape":[1],"data_offsets":[0,4]}})", "1234")),
       kCheck, kWeights, "X9"},
      {"TensorMissing", weights_with([](TensorMap& map) { map.tensors.erase("norm.weight"); }),
       kTrain, kWeights, "norm.weight"},
      {"BlockLeftOver",
       weights_with([](TensorMap& map) { map.tensors["blocks.9.what"] = at::zeros(3); }), kCheck,
       kWeights, "misses 96 tensors"},
      {"TensorOfAnotherShape", weights_with([](TensorMap& map) {
         map.tensors["blocks.1.mlp.fc1.weight"] = at::zeros({5});
       }),
       kTrain, kWeights, "blocks.1.mlp.fc1.weight"},
      {"TensorOfWholeNumbers", weights_with([](TensorMap& map) {
         auto& tensor = map.tensors["norm.bias"];
         tensor = tensor.to(at::kLong);
       }),
       kCheck, kWeights, "norm.bias"},
      {"TensorEmpty", weights_with([](TensorMap& map) {
         map.tensors["pos_embed"] = at::zeros({1, 0, 32});
       }),
       kCheck, kWeights, "pos_embed"},
      {"ConfigNotANumber",
       file_with("weights/config.json", R"({"model_args": {"num_heads": NaN}})"), kCheck,
       "weights/config.json", "JSON"},
      {"ConfigOfNoHeads", file_with("weights/config.json", R"({"model_args": {"num_heads": 0}})"),
       kTrain, "weights", "head"},
      {"ConfigOfManyHeads",
       file_with("weights/config.json", R"({"model_args": {"num_heads": 4000000000000}})"), kCheck,
       "weights", "head"},
      {"ConfigOfWords", file_with("weights/config.json", R"({"model_args": {"num_heads": "two"}})"),
       kCheck, "weights/config.json", "num_heads"},
      {"WeightsEmpty", file_with(kWeights, ""), kTrain, kWeights, "is empty"},
      {"WeightsText", file_with(kWeights, "\x1b[31mthese are no weights\n"), kTrain, kWeights,
       "unknown kind"},
      {"WeightsGitLfs",
       file_with(kWeights, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
       kTrain, kWeights, "git lfs pull"},
      {"WeightsWebPage", file_with(kWeights, "<!DOCTYPE html><html></html>"), kCheck, kWeights,
       "web page"},
      {"WeightsFolder", nothing, kCheck + " --set backbone.weights=images", "images", "folder"},
      {"NpzCut",
       [](const DamagedInput& t) {
         t.copy("tensors/stored.npz", "w.npz");
         t.cut("w.npz", "w.npz");
       },
       "inspect w.npz", "w.npz", ""},
      {"NpzHostileShape",
       file_with("w.npz", zip_bytes({{"a.npy", npy("<f4", "(9223372036854775807, 3)", "1234")}})),
       "inspect w.npz", "w.npz", ""},
      {"NpzObjects", [](const DamagedInput& t) { t.copy("tensors/objects.npz", "w.npz"); },
       "convert w.npz out.safetensors", "w.npz", ""},
      {"NpzOfOtherThings", [](const DamagedInput& t) { t.copy("tensors/stored.npz", "w.npz"); },
       "convert w.npz out.safetensors", "w.npz", ""},
      {"PytorchCut",
       [](const DamagedInput& t) {
         t.copy("tensors/state_dict.pt", "w.pt");
         t.cut("w.pt", "w.pt");
       },
       "inspect w.pt", "w.pt", ""},
      {"PytorchRunsCode",
       file_with("w.pt", zip_bytes({{"a/data.pkl",
                                     "\x80\x02"
                                     "cposix\nsystem\n(X\x05\0\0\0touch1tR."},
                                    {"a/version", "3\n"}})),
       "inspect w.pt", "w.pt", ""},
      {"PytorchPickleOfJunk",
       file_with("w.pt", zip_bytes({{"a/data.pkl", "\x80\x02]]]((((tttt."}})),
       "convert w.pt out.safetensors", "w.pt", ""},
      {"PytorchLegacy", [](const DamagedInput& t) { t.copy("tensors/legacy.pt", "w.pt"); },
       kCheck + " --set backbone.weights=w.pt", "w.pt", "legacy"},
      {"ShardAbsent",
       file_with("weights/model.safetensors.index.json",
                 R"({"weight_map": {"a": "model-00001-of-00002.safetensors"}})"),
       "inspect weights/model.safetensors.index.json", "model-00001-of-00002.safetensors", ""},
      {"ShardOutside",
       file_with("weights/model.safetensors.index.json",
                 R"({"weight_map": {"a": "../../../etc/passwd"}})"),
       "inspect weights/model.safetensors.index.json", "index.json", "passwd"},
      {"ConvertToUnknownFormat", nothing, "convert " + kWeights + " out.safetensors --to timmm",
       "--to", "did you mean \"timm\""},
      {"ConvertToUnknownEnding", nothing, "convert " + kWeights + " out.onnx", "out.onnx",
       ".safetensors"},
      {"ConvertToNpz", nothing, "convert " + kWeights + " out.npz", "npz", "not written"},
      {"ConvertToImpossible",
       [](const DamagedInput& t) {
         t.copy("vit/dinov2_swiglu/config.json", "w/config.json");
         t.copy("vit/dinov2_swiglu/dinov2_vitb14_pretrain.pth", "w/w");
       },
       "convert w/w out.pt --to google-npz", "", "google"},
      {"ConvertIntoNoFolder", nothing, "convert " + kWeights + " none/out.pt", "none/out.pt",
       "cannot be written"},
      {"ConvertOntoAFolder",
       [](const DamagedInput& t) { fs::create_directories(t.folder() / "out.pt"); },
       "convert " + kWeights + " out.pt", "out.pt", "cannot be written"},
      {"ConvertOfficialWithoutBackbone",
       [](const DamagedInput& t) { t.copy("convpass/official_adapter.pt", "o.pt"); },
       "convert o.pt out.safetensors", "o.pt", "--backbone FILE and --scale S"},
      {"ConvertOfficialWithoutNumber",
       [](const DamagedInput& t) { t.copy("convpass/official_adapter.pt", "o.pt"); },
       "convert o.pt out.safetensors --scale nine --backbone " + kWeights, "/adapter/scale",
       "nine"},
      {"ConvertOfficialWithHostileBlock",
       [](const DamagedInput& t) {
         TensorMap map;
         map.tensors["blocks.9000000000000000000.adapter_attn.adapter_down.weight"] =
             at::zeros({2, 32});
         map.tensors["head.weight"] = at::zeros({3, 32});
         save_pytorch(t.folder() / "o.pt", map);
       },
       "convert o.pt out.safetensors --scale 1 --size 16 --backbone " + kWeights, "o.pt", ""},
      {"ConvertAdapterToSafetensors", good_run, "convert run/adapter.safetensors out.safetensors",
       "out.safetensors", ".pt"},
  };
  return cases;
}

const std::vector<Case>& adapters() {
  static const std::vector<Case> cases{
      {"Cut",
       [](const DamagedInput& t) {
         t.train_run();
         t.cut("run/adapter.safetensors", "bad.safetensors");
       },
       kPredict, "bad.safetensors", ""},
      {"Empty", file_with("bad.safetensors", ""), kPredict, "bad.safetensors", "is empty"},
      {"PlainSafetensors", nothing, "predict " + kWeights + " x.bmp --backbone " + kWeights,
       kWeights, "wanted an adapter file"},
      {"OfAnotherBackbone",
       [](const DamagedInput& t) {
         t.train_run();
         t.edit_weights([](TensorMap& map) { map.tensors["norm.bias"].add_(1); });
       },
       "predict run images/test/a/0.bmp", "run/adapter.safetensors", "was trained on"},
      {"BackboneGone",
       [](const DamagedInput& t) {
         t.train_run();
         fs::remove(t.weights());
       },
       "predict run images/test/a/0.bmp", "run/adapter.safetensors", "--backbone FILE"},
      {"VersionFromTheFuture", metadata_with("version", "99"), kPredict, "bad.safetensors",
       "version \"99\""},
      {"VersionHostile", metadata_with("version", "\x1b[2J\n1"), kPredict, "bad.safetensors",
       "version"},
      {"MetadataMissing", adapter_with([](TensorMap& map) { map.metadata.erase("pool"); }),
       kPredict, "bad.safetensors", "\"pool\" is missing"},
      {"MetadataNoJson", metadata_with("backbone", "{\"name\": "), kPredict, "bad.safetensors",
       "metadata"},
      {"MetadataOfAnotherType", metadata_with("classes", "{\"a\": 1}"), kPredict, "bad.safetensors",
       "metadata"},
      {"MetadataNested", metadata_with("classes", std::string(100000, '[')), kPredict,
       "bad.safetensors", ""},
      {"PoolUnknown", metadata_with("pool", "max"), kPredict, "bad.safetensors", "\"max\""},
      {"ClassesFewerThanRows", metadata_with("classes", R"(["a", "b"])"), kPredict,
       "bad.safetensors", "head.weight has 3 rows"},
      {"ImageSizeGiant", metadata_with("image_size", "[4000000000, 4000000000]"), kPredict,
       "bad.safetensors", "image_size"},
      {"ImageSizeOdd", metadata_with("image_size", "[18, 18]"), kPredict, "bad.safetensors",
       "multiple of the patch size"},
      {"WidthOfOthers",
       metadata_with("adapter", R"({"type": "convpass", "width": 4096, "blocks": [0]})"), kPredict,
       "bad.safetensors", "blocks.0"},
      {"BlocksOutOfRange",
       metadata_with("adapter", R"({"type": "convpass", "width": 4, "blocks": [77]})"), kPredict,
       "bad.safetensors", "77"},
      {"SitesUnknown",
       metadata_with("adapter", R"({"type": "convpass", "width": 4, "sites": ["a\u001b"]})"),
       kPredict, "bad.safetensors", "sites"},
      {"AdapterUnknown", metadata_with("adapter", R"({"type": "lora"})"), kPredict,
       "bad.safetensors", "lora"},
      {"PreprocessingOfTwoColours",
       metadata_with("preprocessing", R"({"size": 16, "mean": [0, 0], "std": [1, 1]})"), kPredict,
       "bad.safetensors", "mean"},
      {"PreprocessingByZero",
       metadata_with("preprocessing", R"({"size": 16, "mean": [0, 0, 0], "std": [1, 1, 0]})"),
       kPredict, "bad.safetensors", "std"},
      {"PreprocessingOfAnotherSize",
       metadata_with("preprocessing", R"({"size": 32, "mean": [0, 0, 0], "std": [1, 1, 1]})"),
       kPredict, "bad.safetensors", "size"},
      {"TensorMissing", adapter_with([](TensorMap& map) { map.tensors.erase("head.bias"); }),
       kPredict, "bad.safetensors", "head.bias"},
      {"TensorLeftOver",
       adapter_with([](TensorMap& map) { map.tensors["other"] = at::zeros({2}); }), kPredict,
       "bad.safetensors", "tensors"},
      {"ShapesSwapped", adapter_with([](TensorMap& map) {
         auto& tensor = map.tensors.at("blocks.0.adapter_attn.adapter_down.weight");
         tensor = tensor.t().contiguous();
       }),
       kPredict, "bad.safetensors", "got shape [32, 4], wanted [4, 32]"},
      {"TensorOfWholeNumbers", adapter_with([](TensorMap& map) {
         auto& tensor = map.tensors.at("head.bias");
         tensor = tensor.to(at::kLong);
       }),
       kPredict, "bad.safetensors", "head.bias"},
      {"EvalOfOne", metadata_with("classes", "[1, 2, 3]"),
       "eval bad.safetensors --data images/test --backbone " + kWeights, "bad.safetensors", ""},
      {"InspectOfOne", metadata_with("image_size", "[16]"), "inspect bad.safetensors",
       "bad.safetensors", "image_size"},
      {"ConvertOfOne", metadata_with("version", ""), "convert bad.safetensors out.pt",
       "bad.safetensors", "version"},
      {"EvalOfTextsInAnotherOrder",
       [](const DamagedInput& t) {
         const fs::path clip = fs::path(CONVPASS_TEST_DATA) / "clip";
         t.recipe(R"({"backbone": {"weights": ")" + (clip / "model.safetensors").string() +
                  R"("}, "head": {"type": "cosine", "text": ")" +
                  (clip / "text.safetensors").string() +
                  R"("}, "data": {"class_names": ["b", "a", "c"],
                       "test": {"format": "list", "path": "l.txt"}}})");
         t.write("l.txt", "images/test/b/0.bmp 0\nimages/test/a/0.bmp 1\nimages/test/c/0.bmp 2\n");
       },
       "eval recipe.json", "data", "its class 0 is \"b\", wanted \"a\" as in the model"},
      {"RunUnfinished", checkpoint_with([](TensorMap&) {}), "eval images", "images",
       "without adapter.safetensors"},
  };
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Checkpoint, HostileInput, testing::ValuesIn(checkpoints()), name_of);
INSTANTIATE_TEST_SUITE_P(Adapter, HostileInput, testing::ValuesIn(adapters()), name_of);

}  // namespace
}  // namespace convpass::hostile
