// Damaged and hostile inputs, given to the real binary. Each has to end in exit status 2 and one
// line that names the culprit, with nothing half done on stdout or on the disk.

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <zlib.h>

#include <algorithm>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "convpass/core/file.h"
#include "convpass/models/vit_checkpoint.h"
#include "tests/core/zip_files.h"
#include "tests/train/tiny_run.h"

namespace convpass {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

/// A tiny run folder in which a case makes its damage, and the binary that is to cope with it.
class DamagedInput : public TinyRun {
 public:
  using TinyRun::folder;
  using TinyRun::weights;

  struct Result {
    int status = -1;
    std::string out, err;
  };

  void SetUp() override {
    TinyRun::SetUp();
    streams_ = folder().string() + "_streams";
    fs::create_directories(streams_);
  }
  void TearDown() override {
    fs::remove_all(streams_);
    TinyRun::TearDown();
  }

  /// `words` are shell words; the working directory is the folder.
  Result run(const std::string& words) const {
    fs::path out = streams_ / "out", err = streams_ / "err";
    const std::string command = "cd '" + folder().string() +
                                "' && timeout 120 '" CONVPASS_BINARY "' " + words + " >'" +
                                out.string() + "' 2>'" + err.string() + "' </dev/null";
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), read_text(out),
            read_text(err)};
  }

  // What cases make their damage with; names are relative to the folder.
  std::string read(const std::string& name) const { return read_text(folder() / name); }
  void write(const std::string& name, const std::string& text) const {
    fs::create_directories((folder() / name).parent_path());
    write_text(folder() / name, text);
  }
  /// Copies three quarters of a file.
  void cut(const std::string& from, const std::string& to) const {
    const std::string text = read(from);
    write(to, text.substr(0, text.size() * 3 / 4));
  }
  /// Overlays the good recipe.
  void recipe(const std::string& patch) const {
    Json json = Json::parse(read("recipe.json"));
    json.merge_patch(Json::parse(patch));
    write("recipe.json", json.dump());
  }
  using Edit = std::function<void(TensorMap&)>;
  void edit_weights(const Edit& edit) const {
    TensorMap map = owned(weights());
    edit(map);
    save_safetensors(weights(), map);
  }
  /// One epoch into "run".
  void train_run() const { train(tiny_recipe({"train.epochs=1"}), folder() / "run", false); }
  /// "bad.safetensors", the adapter of a run with changes.
  void edit_adapter(const Edit& edit) const {
    train_run();
    TensorMap map = owned(folder() / "run/adapter.safetensors");
    edit(map);
    save_safetensors(folder() / "bad.safetensors", map);
  }
  void edit_metadata(const std::string& key, const std::string& text) const {
    edit_adapter([&](TensorMap& map) { map.metadata[key] = text; });
  }
  void edit_checkpoint(const Edit& edit) const {
    train_run();
    fs::remove(folder() / "run/result.json");
    TensorMap map = owned(folder() / "run/checkpoint.pt");
    edit(map);
    save_pytorch(folder() / "run/checkpoint.pt", map);
  }
  void copy(const std::string& test_data, const std::string& name) const {
    fs::create_directories((folder() / name).parent_path());
    fs::copy_file(fs::path(CONVPASS_TEST_DATA) / test_data, folder() / name,
                  fs::copy_options::overwrite_existing);
  }

  /// Every file and what it holds.
  std::map<std::string, std::string> files() const {
    std::map<std::string, std::string> all;
    for (const auto& entry : fs::recursive_directory_iterator(folder()))
      if (entry.is_regular_file())
        all[entry.path().lexically_relative(folder()).string()] = read_text(entry.path());
    return all;
  }
  /// Nothing was made, changed or removed.
  void expect_files(const std::map<std::string, std::string>& before) const {
    const auto after = files();
    for (const auto& [name, text] : after) {
      auto found = before.find(name);
      EXPECT_NE(found, before.end()) << "left behind: " << name;
      EXPECT_TRUE(found == before.end() || found->second == text) << "changed: " << name;
    }
    for (const auto& [name, text] : before) EXPECT_TRUE(after.count(name)) << "removed: " << name;
  }

  static void expect_no_noise(const std::string& text) {
    for (const char* noise : {"terminate", "Exception raised from", "frame #", "Sanitizer",
                              "runtime error", "internal error", "json.exception"})
      EXPECT_EQ(text.find(noise), std::string::npos) << noise << " in:\n" << text;
  }
  /// One line fit for a terminal.
  static void expect_readable(const std::string& line) {
    EXPECT_LT(line.size(), 1000U) << line;
    for (unsigned char c : line)
      EXPECT_TRUE(c >= 0x20 && c != 0x7f) << "control character " << int{c} << " in: " << line;
    EXPECT_NO_THROW(static_cast<void>(Json(line).dump())) << "not UTF-8: " << line;
  }

 private:
  /// Tensors of their own: those of load_tensors lie in the file that is about to be replaced.
  static TensorMap owned(const fs::path& file) {
    TensorMap map = load_tensors(file);
    for (auto& [name, tensor] : map.tensors) tensor = tensor.clone();
    return map;
  }

  fs::path streams_;
};

using Make = std::function<void(const DamagedInput&)>;

struct Case {
  std::string name;
  Make make;
  std::string words;
  std::string culprit;  ///< file or JSON pointer that the message has to name
  std::string says;
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.words; }

Make recipe_with(const std::string& patch) {
  return [patch](const DamagedInput& t) { t.recipe(patch); };
}
Make file_with(const std::string& name, const std::string& text) {
  return [=](const DamagedInput& t) { t.write(name, text); };
}
Make metadata_with(const std::string& key, const std::string& text) {
  return [=](const DamagedInput& t) { t.edit_metadata(key, text); };
}
Make weights_with(const DamagedInput::Edit& edit) {
  return [=](const DamagedInput& t) { t.edit_weights(edit); };
}
Make adapter_with(const DamagedInput::Edit& edit) {
  return [=](const DamagedInput& t) { t.edit_adapter(edit); };
}
Make checkpoint_with(const DamagedInput::Edit& edit) {
  return [=](const DamagedInput& t) { t.edit_checkpoint(edit); };
}
void nothing(const DamagedInput&) {}
void good_run(const DamagedInput& t) { t.train_run(); }

std::string big_endian(uint32_t value) {
  std::string bytes = little_endian(value, 4);
  return {bytes.rbegin(), bytes.rend()};
}
/// Version 1 of the npy format.
std::string npy(const std::string& type, const std::string& shape, const std::string& data) {
  const std::string header =
      "{'descr': '" + type + "', 'fortran_order': False, 'shape': " + shape + ", }\n";
  return "\x93NUMPY\x01" + std::string(1, '\0') + little_endian(header.size(), 2) + header + data;
}
std::string safetensors(const std::string& header, const std::string& data) {
  return little_endian(header.size(), 8) + header + data;
}
std::string gzip(const std::string& text) {
  z_stream stream{};
  deflateInit2(&stream, 9, Z_DEFLATED, 15 + 16, 9, Z_DEFAULT_STRATEGY);
  std::string packed(deflateBound(&stream, text.size()), '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(packed.data());
  stream.avail_out = static_cast<uInt>(packed.size());
  deflate(&stream, Z_FINISH);
  packed.resize(stream.total_out);
  deflateEnd(&stream);
  return packed;
}
std::string crc_chunk(const std::string& body) {
  return big_endian(static_cast<uint32_t>(body.size() - 4)) + body +
         big_endian(static_cast<uint32_t>(crc32(0, reinterpret_cast<const Bytef*>(body.data()),
                                                static_cast<uInt>(body.size()))));
}
/// A few bytes that announce 60000 x 60000 pixels.
std::string png_bomb() {
  const std::string size = big_endian(60000);
  return "\x89PNG\r\n\x1a\n" + crc_chunk("IHDR" + size + size + std::string("\x08\x02\0\0\0", 5)) +
         crc_chunk("IDAT" + std::string(64, '\0')) + crc_chunk("IEND");
}
/// idx images of 8x8, `count` of them by the header.
std::string idx_images(uint32_t count, size_t real) {
  return big_endian(0x803) + big_endian(count) + big_endian(8) + big_endian(8) +
         std::string(real * 64, '\x40');
}
std::string idx_labels(uint32_t count) {
  return big_endian(0x801) + big_endian(count) + std::string(count, '\0');
}
constexpr const char* kIdx =
    R"({"data": {"train": {"format": "idx", "images": "i", "labels": "l", "path": null}}})";
constexpr const char* kNpz = R"({"data": {"train": {"format": "npz", "path": "d.npz"}}})";
constexpr const char* kTrainList = R"({"data": {"train": {"format": "list", "path": "l.txt"}}})";

Make idx(const std::string& images, const std::string& labels) {
  return [=](const DamagedInput& t) {
    t.recipe(kIdx);
    t.write("i", images);
    t.write("l", labels);
  };
}
Make npz_data(const ZipContents& contents) {
  return [=](const DamagedInput& t) {
    t.recipe(kNpz);
    t.write("d.npz", zip_bytes(contents));
  };
}
Make list(const std::string& text) {
  return [=](const DamagedInput& t) {
    t.recipe(kTrainList);
    t.write("l.txt", text);
  };
}
Make training_image(const std::string& name, const std::string& bytes) {
  return file_with("images/train/a/" + name, bytes);
}
std::string repeated(const std::string& text, int count) {
  std::string all;
  for (int i = 0; i < count; ++i) all += text;
  return all;
}

const std::string kCheck = "check recipe.json";
const std::string kTrain = "train recipe.json --out run";
const std::string kResume = "train recipe.json --set train.epochs=1 --out run --resume";
const std::string kWeights = "weights/tiny.safetensors";
const std::string kPredict =
    "predict bad.safetensors images/test/a/0.bmp --backbone weights/tiny.safetensors";
const std::string kEval = "eval run --data ";

const std::vector<Case>& recipes() {
  static const std::vector<Case> cases{
      {"SyntaxError", file_with("recipe.json", "{\"train\": {\"epochs\": 3,}"), kCheck,
       "recipe.json", "not JSON: line 1"},
      {"Empty", file_with("recipe.json", ""), kCheck, "recipe.json", "not JSON"},
      {"NotAnObject", file_with("recipe.json", "[1, 2]"), kCheck, "recipe.json",
       "wanted an object"},
      {"NotUtf8", file_with("recipe.json", "{\"about\": {\"source\": \"caf\xe9\"}}"), kCheck,
       "recipe.json", "not JSON"},
      {"Binary", file_with("recipe.json", std::string("\x00\x1b[2J\xff\n\r{", 9)), kTrain,
       "recipe.json", "not JSON"},
      {"NestedWithoutEnd", file_with("recipe.json", std::string(200000, '[')), kCheck,
       "recipe.json", "nested too deeply"},
      {"FiveMegabytes", file_with("recipe.json", std::string(5 << 20, ' ')), kCheck, "recipe.json",
       "wanted a recipe of at most"},
      {"KeyTwice", file_with("recipe.json", R"({"train": {"seed": 1, "seed": 2}})"), kCheck,
       "/train/seed", "stands twice"},
      {"UnknownKey", recipe_with(R"({"adapter": {"widht": 4}})"), kTrain, "/adapter/widht",
       "did you mean \"width\""},
      {"HostileKey",
       file_with("recipe.json", "{\"\\u001b[2J\\n" + std::string(9000, 'k') + "\": 1}"), kCheck,
       "recipe.json", "unknown key"},
      {"WrongType", recipe_with(R"({"train": {"epochs": "three"}})"), kTrain, "/train/epochs",
       "\"three\""},
      {"BatchOfNone", recipe_with(R"({"train": {"batch_size": 0}})"), kTrain, "/train/batch_size",
       "got 0"},
      {"NegativeRate", recipe_with(R"({"optimizer": {"lr": -1}})"), kTrain, "/optimizer/lr", "-1"},
      {"RateNotANumber", file_with("recipe.json", R"({"optimizer": {"lr": NaN}})"), kCheck,
       "recipe.json", "not JSON"},
      {"RateBeyondDouble", file_with("recipe.json", R"({"optimizer": {"lr": 1e999}})"), kCheck,
       "recipe.json", ""},
      {"EpochsBeyondInteger", recipe_with(R"({"train": {"epochs": 1e30}})"), kTrain,
       "/train/epochs", ""},
      {"EndlessEpochs", recipe_with(R"({"train": {"epochs": 9223372036854775807}})"), kTrain,
       "/train/epochs", "wanted"},
      {"GiantBatch", recipe_with(R"({"train": {"batch_size": 9223372036854775807}})"), kTrain,
       "/train/batch_size", "wanted"},
      {"GiantAccumulation", recipe_with(R"({"train": {"accumulate": 4611686018427387904}})"),
       kCheck, "/train/accumulate", "wanted"},
      {"GiantCache", recipe_with(R"({"data": {"cache_mb": 9223372036854775807}})"), kTrain,
       "/data/cache_mb", "wanted"},
      {"GiantImage", recipe_with(R"({"backbone": {"image_size": 4000000000}})"), kCheck,
       "/backbone/image_size", "wanted"},
      {"ImageNoMultipleOfThePatch", recipe_with(R"({"backbone": {"image_size": 18}})"), kCheck,
       "/backbone/image_size", "wanted a multiple of the patch size 4"},
      {"InputOfAnotherSize", recipe_with(R"({"input": {"size": 64}})"), kCheck, "input.size",
       "wanted the backbone's image size 16x16"},
      {"BlockOutOfRange", recipe_with(R"({"adapter": {"blocks": [0, 2]}})"), kCheck,
       "/adapter/blocks/1", "got 2, wanted 0 to 1"},
      {"SiteUnknown", recipe_with(R"({"adapter": {"sites": ["att"]}})"), kTrain, "/adapter/sites/0",
       "did you mean \"attn\""},
      {"VariantUnknown", recipe_with(R"({"backbone": {"variant": "vit_bass_patch16"}})"), kCheck,
       "/backbone/variant", "vit_bass_patch16"},
      {"VariantOfOtherWeights", recipe_with(R"({"backbone": {"variant": "vit_base_patch16"}})"),
       kCheck, "/backbone/variant", "width 32"},
      {"WeightsAbsent", recipe_with(R"({"backbone": {"weights": "none.npz"}})"), kTrain, "none.npz",
       "No such file"},
      {"WeightsAbsentForCheck", recipe_with(R"({"backbone": {"weights": "none.npz"}})"), kCheck,
       "/backbone/weights", "no such file"},
      {"WeightsWithZero", recipe_with("{\"backbone\": {\"weights\": \"a\\u0000b\\u001b\"}}"),
       kTrain, "recipe.json", ""},
      {"ExtendsItself", file_with("recipe.json", R"({"extends": "recipe.json"})"), kCheck,
       "/extends", "cannot extend itself"},
      {"ExtendsInACircle",
       [](const DamagedInput& t) {
         t.write("recipe.json", R"({"extends": "a.json"})");
         t.write("a.json", R"({"extends": "recipe.json"})");
       },
       kTrain, "a.json", "cannot extend itself"},
      {"ExtendsNothing", file_with("recipe.json", R"({"extends": "none.json"})"), kCheck,
       "none.json", "no such file"},
      {"ExtendsADevice", file_with("recipe.json", R"({"extends": "/dev/zero"})"), kCheck,
       "/dev/zero", "not a file"},
      {"Absent", nothing, "train none.json --out run", "none.json", "no such file"},
      {"Folder", nothing, "check images", "images", "not a file"},
      {"SetBroken", nothing, kCheck + " --set 'adapter.blocks=[1'", "--set", "not JSON"},
      {"SetThroughANumber", nothing, kCheck + " --set train.epochs.x=1", "/train/epochs", ""},
      {"ClassesFewerThanFolders", recipe_with(R"({"data": {"classes": 2}})"), kTrain,
       "images/train", "got 3 class folders"},
      {"TestLacksAClass",
       [](const DamagedInput& t) { fs::remove_all(t.folder() / "images/test/b"); }, kTrain,
       "data.test", "class \"b\""},
      {"BestValWithoutVal", recipe_with(R"({"select": "best_val", "data": {"val": null}})"), kTrain,
       "/select", "data.val"},
      {"NoTrainingData", recipe_with(R"({"data": {"train": null}})"), kTrain, "/data/train",
       "missing"},
  };
  return cases;
}

const std::vector<Case>& checkpoints() {
  static const std::vector<Case> cases{
      {"SafetensorsCut", [](const DamagedInput& t) { t.cut(kWeights, kWeights); }, kTrain, kWeights,
       ""},
      {"SafetensorsHeaderLength", file_with(kWeights, std::string(8, '\x7f') + "{}"),
       "inspect " + kWeights, kWeights, ""},
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
      {"RunUnfinished", checkpoint_with([](TensorMap&) {}), "eval images", "images",
       "without adapter.safetensors"},
  };
  return cases;
}

const std::vector<Case>& data() {
  static const std::vector<Case> cases{
      {"ListWithoutLabel", list("images/train/a/0.bmp 0\nimages/train/b/0.bmp\n"), kTrain,
       "l.txt:2", "no label"},
      {"ListLabelNegative", list("images/train/a/0.bmp -1\n"), kTrain, "l.txt:1", "\"-1\""},
      {"ListLabelBeyondInteger", list("images/train/a/0.bmp 99999999999999999999\n"), kTrain,
       "l.txt:1", "99999999999999999999"},
      {"ListLabelOutOfRange",
       [](const DamagedInput& t) {
         t.train_run();
         t.write("l.txt", "images/test/a/0.bmp 3\n");
       },
       kEval + "l.txt", "l.txt:1", "wanted 0 to 2"},
      {"ListImageMissing", list("images/train/a/0.bmp 0\nnone.bmp 1\n"), kTrain, "none.bmp",
       "1 of 2 images are missing"},
      {"ListEmpty", list(" \n\n"), kTrain, "l.txt", "an empty list"},
      {"ListBinary", list(std::string("\x1b[2J\xff\0\x07 \x1b]0;x\x07\n", 14)), kTrain, "l.txt:1",
       ""},
      {"ListBinaryForEval",
       [](const DamagedInput& t) {
         t.train_run();
         t.copy("images/photo.jpg", "photo.jpg");
       },
       kEval + "photo.jpg", "photo.jpg", ""},
      {"ListAbsent", good_run, kEval + "none", "none", "no such file"},
      {"ClassesOfOthers",
       [](const DamagedInput& t) {
         t.train_run();
         fs::rename(t.folder() / "images/test/c", t.folder() / "images/test/d");
       },
       kEval + "images/test", "images/test", "got 3 with \"d\", wanted 3 with \"c\""},
      {"ClassesTooMany",
       [](const DamagedInput& t) {
         t.train_run();
         t.write("images/test/d/0.bmp", t.read("images/test/a/0.bmp"));
       },
       kEval + "images/test", "images/test", "4 class folders"},
      {"FolderWithoutClasses",
       [](const DamagedInput& t) {
         t.train_run();
         fs::create_directories(t.folder() / "none");
       },
       kEval + "none", "none", "no class folders"},
      {"FolderClassEmpty",
       [](const DamagedInput& t) { fs::create_directories(t.folder() / "images/train/z/x.jpg"); },
       kTrain, "images/train/z", "without images"},
      {"FolderAbsent", recipe_with(R"({"data": {"train": {"path": "none"}}})"), kTrain, "none",
       "no such folder"},
      {"FolderImageText", training_image("x.jpg", "not an image"), kTrain, "data.train",
       "1 of 37 images cannot be read"},
      {"FolderImageEmpty", training_image("x.png", ""), kTrain, "data.train", "1 of 37"},
      {"FolderImageBomb", training_image("x.png", png_bomb()), kTrain, "data.train", "1 of 37"},
      {"FolderImageCut",
       [](const DamagedInput& t) {
         t.copy("images/png_rgb.png", "images/train/a/x.png");
         t.cut("images/train/a/x.png", "images/train/a/x.png");
       },
       kTrain, "data.train", "1 of 37"},
      {"IdxShort", idx(idx_images(9, 5), idx_labels(9)), kTrain, "i: idx", "wanted"},
      {"IdxOfNoHeader", idx("abc", idx_labels(9)), kTrain, "i: idx", "cut short"},
      {"IdxMagic", idx(idx_labels(9) + std::string(40, 'x'), idx_labels(9)), kTrain, "i: idx",
       "wanted 2051"},
      {"IdxSizesOverflow",
       idx(big_endian(0x803) + repeated(big_endian(0xffffffff), 3) + "x", idx_labels(9)), kTrain,
       "i: idx", "cannot be"},
      {"IdxGzipBomb", idx(gzip(idx_images(9, 400000)), idx_labels(9)), kTrain, "i: idx",
       "more than"},
      {"IdxGzipCut", idx(gzip(idx_images(9, 9)).substr(0, 30), idx_labels(9)), kTrain, "i: gzip",
       "cut short"},
      {"IdxLabelsMissing", idx(idx_images(9, 9), idx_labels(8)), kTrain, "l: idx", "got 8 labels"},
      {"NpzWithoutImages", npz_data({{"other.npy", npy("|u1", "(2,)", "ab")}}), kTrain, "d.npz",
       "no array \"images\""},
      {"NpzImagesOfFloats",
       npz_data({{"images.npy", npy("<f4", "(1, 1, 1)", "abcd")},
                 {"labels.npy", npy("|u1", "(1,)", "a")}}),
       kTrain, "d.npz", "wanted Byte"},
      {"NpzImagesOfFourColours",
       npz_data({{"images.npy", npy("|u1", "(1, 1, 1, 4)", "abcd")},
                 {"labels.npy", npy("|u1", "(1,)", "a")}}),
       kTrain, "d.npz", "wanted Byte"},
      {"NpzLabelsTooFew",
       npz_data({{"images.npy", npy("|u1", "(2, 1, 1)", "ab")},
                 {"labels.npy", npy("|u1", "(1,)", "a")}}),
       kTrain, "d.npz", "wanted whole numbers [2]"},
      {"NpzLabelsHostile",
       npz_data({{"images.npy", npy("|u1", "(1, 1, 1)", "a")},
                 {"labels.npy", npy("<i8", "(1,)", std::string(7, '\xff') + "\x7f")}}),
       kTrain, "d.npz", "got label"},
  };
  return cases;
}

const std::vector<Case>& folders() {
  static const std::vector<Case> cases{
      {"OutIsAFile", nothing, "train recipe.json --out recipe.json", "recipe.json",
       "cannot be made a run folder"},
      {"OutBelowAFile", nothing, "train recipe.json --out recipe.json/run", "recipe.json/run",
       "cannot be made a run folder"},
      {"OutNotWritable", nothing, "train recipe.json --out /proc/convpass", "/proc/convpass",
       "cannot be made a run folder"},
      {"OutNotWritableInside", nothing, "train recipe.json --out /proc/self", "/proc/self",
       "cannot be written"},
      {"OutHoldsARun", good_run, "train recipe.json --out run", "run", "holds a run already"},
      {"OutHoldsAnotherRun", good_run, "train recipe.json --out run --resume", "run/recipe.json",
       "of another recipe"},
      {"RunRecipeDamaged",
       [](const DamagedInput& t) {
         t.train_run();
         t.cut("run/recipe.json", "run/recipe.json");
       },
       kResume, "run/recipe.json", "not JSON"},
      {"RunRecipeDamagedForPredict",
       [](const DamagedInput& t) {
         t.train_run();
         t.write("run/recipe.json", "{\"train\": 1}");
       },
       "predict run images/test/a/0.bmp", "run/recipe.json", "/train"},
      {"ResultDamaged",
       [](const DamagedInput& t) {
         t.train_run();
         t.cut("run/result.json", "run/result.json");
       },
       kResume, "run/result.json", "damaged"},
      {"ResultEmpty",
       [](const DamagedInput& t) {
         t.train_run();
         t.write("run/result.json", "");
       },
       kResume, "run/result.json", "damaged"},
      {"CheckpointCut",
       [](const DamagedInput& t) {
         t.edit_checkpoint([](TensorMap&) {});
         t.cut("run/checkpoint.pt", "run/checkpoint.pt");
       },
       kResume, "run/checkpoint.pt", ""},
      {"CheckpointWithoutProgress",
       checkpoint_with([](TensorMap& map) { map.tensors.erase("progress"); }), kResume,
       "run/checkpoint.pt", "progress"},
      {"CheckpointOfWordsForProgress", checkpoint_with([](TensorMap& map) {
         auto& progress = map.tensors.at("progress");
         progress = at::full_like(progress, NAN);
       }),
       kResume, "run/checkpoint.pt", "progress"},
      {"CheckpointBeyondTheRun",
       checkpoint_with([](TensorMap& map) { map.tensors.at("progress")[0] = 1e15; }), kResume,
       "run/checkpoint.pt", "step"},
      {"CheckpointWithoutWeights",
       checkpoint_with([](TensorMap& map) { map.tensors.erase("model/head.weight"); }), kResume,
       "run/checkpoint.pt", "head.weight"},
      {"CheckpointWithoutMoments",
       checkpoint_with([](TensorMap& map) { map.tensors.erase("optimizer/first.head.weight"); }),
       kResume, "run/checkpoint.pt", "first.head.weight"},
      {"CheckpointOfAnotherShape",
       checkpoint_with([](TensorMap& map) { map.tensors["model/head.bias"] = at::zeros({9}); }),
       kResume, "run/checkpoint.pt", "head.bias"},
  };
  return cases;
}

class HostileInput : public DamagedInput, public testing::WithParamInterface<Case> {};

TEST_P(HostileInput, EndsInOneClearLine) {
  const Case& c = GetParam();
  c.make(*this);
  const auto before = files();
  const Result result = run(c.words);
  EXPECT_EQ(result.status, 2) << result.err;
  EXPECT_EQ(result.out, "");
  expect_no_noise(result.err);

  std::vector<std::string> lines;
  std::istringstream text(result.err);
  for (std::string line; std::getline(text, line);) lines.push_back(line);
  ASSERT_FALSE(lines.empty());
  EXPECT_EQ(result.err.back(), '\n');
  const std::string& last = lines.back();
  EXPECT_TRUE(last.starts_with("convpass: ")) << result.err;
  EXPECT_NE(last.find(c.culprit), std::string::npos) << last << "\nwanted: " << c.culprit;
  EXPECT_NE(last.find(c.says), std::string::npos) << last << "\nwanted: " << c.says;
  for (const std::string& line : lines) expect_readable(line);
  // Before it only the progress of what had gone well, and the names of broken images.
  lines.pop_back();
  const bool long_command = c.words.starts_with("train ") || c.words.starts_with("check ") ||
                            c.words.starts_with("eval ");
  EXPECT_TRUE(long_command || lines.empty()) << result.err;
  for (const std::string& line : lines) EXPECT_FALSE(line.starts_with("convpass: ")) << result.err;

  expect_files(before);
}

std::string name_of(const testing::TestParamInfo<Case>& info) { return info.param.name; }
INSTANTIATE_TEST_SUITE_P(Recipe, HostileInput, testing::ValuesIn(recipes()), name_of);
INSTANTIATE_TEST_SUITE_P(Checkpoint, HostileInput, testing::ValuesIn(checkpoints()), name_of);
INSTANTIATE_TEST_SUITE_P(Adapter, HostileInput, testing::ValuesIn(adapters()), name_of);
INSTANTIATE_TEST_SUITE_P(Data, HostileInput, testing::ValuesIn(data()), name_of);
INSTANTIATE_TEST_SUITE_P(RunFolder, HostileInput, testing::ValuesIn(folders()), name_of);

TEST_F(DamagedInput, PredictTellsEachBadImageAndTheGoodOnesStillCome) {
  train_run();
  copy("images/jpeg_444.jpg", "cut.jpg");
  copy("images/png_rgb.png", "cut.png");
  copy("images/tiff_rgb_lzw.tif", "cut.tif");
  copy("images/webp_lossy.webp", "cut.webp");
  for (const char* name : {"cut.jpg", "cut.png", "cut.tif", "cut.webp"}) {
    const std::string whole = read(name);
    write(name, whole.substr(0, whole.size() / 3));
  }
  copy("images/tiff_rgb_deflate.tif", "last.tif");  // OpenCV would print a line of its own
  write("last.tif", read("last.tif").substr(0, read("last.tif").size() - 1));
  write("bomb.png", png_bomb());
  write("text.jpg", "not an image");
  write("empty.png", "");
  fs::create_directories(folder() / "folder.jpg");
  const std::vector<std::string> bad{"cut.jpg",    "cut.png",   "cut.tif",  "cut.webp",
                                     "last.tif",   "bomb.png",  "text.jpg", "empty.png",
                                     "folder.jpg", "absent.jpg"};
  std::string words = "predict run";
  for (const std::string& name : bad) words += " images/test/a/0.bmp " + name;
  const auto before = files();
  const Result result = run(words);
  EXPECT_EQ(result.status, 2) << result.err;
  EXPECT_EQ(result.err, "");
  expect_no_noise(result.out);
  std::istringstream lines(result.out);
  for (const std::string& name : bad) {
    std::string line;
    ASSERT_TRUE(std::getline(lines, line)) << name;
    EXPECT_EQ(Json::parse(line)["classes"].size(), 3U) << line;
    ASSERT_TRUE(std::getline(lines, line)) << name;
    const Json object = Json::parse(line);
    EXPECT_EQ(object["image"], name);
    ASSERT_TRUE(object.contains("error")) << line;
    const auto error = object["error"].get<std::string>();
    EXPECT_NE(error.find(name), std::string::npos) << error;
    expect_readable(error);
  }
  EXPECT_EQ(std::string(std::istreambuf_iterator<char>(lines), {}), "");
  expect_files(before);
}

TEST_F(DamagedInput, ResumeMendsALogThatIsDamaged) {
  train_run();
  fs::remove(folder() / "run/result.json");
  const std::string good = read("run/log.jsonl");
  write("run/log.jsonl", "{\"step\": \"two\"}\n[]\n\xff\xfe\n" + std::string(100000, '[') + "\n" +
                             good + "{\"step\": 1, \"ep");
  const Result result = run(kResume);
  EXPECT_EQ(result.status, 0) << result.err;
  expect_no_noise(result.err);
  EXPECT_EQ(read("run/log.jsonl"), good);
}

TEST_F(DamagedInput, ARunThatCouldNotStartStartsOnceTheInputIsMended) {
  const std::string good = read("recipe.json");
  write("images/train/a/x.jpg", "not an image");
  EXPECT_EQ(run(kTrain + " --set train.epochs=1").status, 2);
  fs::remove(folder() / "images/train/a/x.jpg");
  const Result result = run(kTrain + " --set train.epochs=1");
  EXPECT_EQ(result.status, 0) << result.err;
}

}  // namespace
}  // namespace convpass
