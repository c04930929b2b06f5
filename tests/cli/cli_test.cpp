#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "convpass/core/error.h"
#include "convpass/train/recipe.h"
#include "tests/core/temp_folder.h"

namespace convpass {
namespace {

namespace fs = std::filesystem;

struct Result {
  int status = -1;
  std::string out, err;
};

class CommandLine : public testing::Test {
 protected:
  /// Runs the binary through the shell; `words` are shell words.
  Result run(const std::string& words) const {
    fs::path out = folder_ / "stdout", err = folder_ / "stderr";
    std::string command = "cd '" + folder_.path().string() + "' && '" CONVPASS_BINARY "' " + words +
                          " >'" + out.string() + "' 2>'" + err.string() + "'";
    int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), text_of(out),
            text_of(err)};
  }
  static std::string text_of(const fs::path& file) {
    std::ifstream in(file);
    std::stringstream text;
    text << in.rdbuf();
    return text.str();
  }
  void write(const std::string& name, const std::string& text) const {
    std::ofstream(folder_ / name, std::ios::binary) << text;
  }
  /// Exit status 2 and one line on stderr that holds `part`; nothing on stdout.
  void expect_refusal(const std::string& words, const std::string& part) const {
    Result result = run(words);
    EXPECT_EQ(result.status, 2) << words << "\n" << result.err;
    EXPECT_EQ(result.out, "") << words;
    EXPECT_TRUE(result.err.starts_with("convpass: ")) << words << "\n" << result.err;
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << words << "\n"
                                                                         << result.err;
    EXPECT_NE(result.err.find(part), std::string::npos) << words << "\n" << result.err;
  }

  TempFolder folder_;
};

TEST_F(CommandLine, PrintsAnOverviewWhenAlone) {
  Result result = run("");
  EXPECT_EQ(result.status, 0);
  for (const char* command :
       {"train", "search", "eval", "predict", "inspect", "check", "bench", "convert", "help"}) {
    EXPECT_NE(result.out.find(std::string("\n  ") + command + " "), std::string::npos) << command;
  }
  EXPECT_EQ(run("--help").out, result.out);
  EXPECT_EQ(run("help").out, result.out);
}

TEST_F(CommandLine, EveryCommandExplainsItself) {
  for (const char* command :
       {"train", "search", "eval", "predict", "inspect", "check", "bench", "convert", "help"}) {
    Result result = run(std::string(command) + " --help");
    EXPECT_EQ(result.status, 0) << command;
    EXPECT_TRUE(result.out.starts_with(std::string("convpass ") + command)) << result.out;
    EXPECT_EQ(run(std::string("help ") + command).out, result.out);
  }
}

TEST_F(CommandLine, TellsItsVersions) {
  Result result = run("--version");
  EXPECT_EQ(result.status, 0);
  for (const char* name : {"convpass ", "LibTorch ", "cuDNN ", "OpenCV ", "CPU "}) {
    EXPECT_NE(result.out.find(name), std::string::npos) << name << "\n" << result.out;
  }
}

TEST_F(CommandLine, PrintsHelpAndSchemaOfARecipe) {
  EXPECT_NE(run("help recipe").out.find("adapter"), std::string::npos);
  EXPECT_NE(run("help recipe adapter").out.find("width"), std::string::npos);
  EXPECT_EQ(nlohmann::json::parse(run("help schema").out)["$schema"],
            "https://json-schema.org/draft/2020-12/schema");
  expect_refusal("help recipe adaptor", "did you mean \"adapter\"?");
}

TEST_F(CommandLine, RefusesWhatItDoesNotKnowAndNamesTheNearest) {
  expect_refusal("trian", "did you mean \"train\"?");
  expect_refusal("train r.json --outt x",
                 "unknown option, got \"--outt\" (did you mean \"--out\"?)");
  expect_refusal("train r.json --out", "--out is the last word");
  expect_refusal("train r.json --out a --out b", "got --out twice");
  expect_refusal("train r.json --out x --resume=yes", "--resume takes no value");
  expect_refusal("train --out x", "got 0 arguments");
  expect_refusal("check a b", "unexpected \"b\"");
  expect_refusal("bench --steps 0", "--steps: got \"0\", wanted a whole number of at least 1");
  expect_refusal("bench --steps 1x", "--steps: got \"1x\"");
  expect_refusal("bench --set train.epochs", "wanted KEY=VALUE");
}

TEST_F(CommandLine, TakesOptionsAnywhere) {
  write("r.json", "{}");
  expect_refusal("check --set a.b=1 r.json", "--set: /a: unknown key");
  expect_refusal("check r.json --set=a.b=1", "--set: /a: unknown key");
  expect_refusal("check -- --set", "--set: no such file");
}

TEST_F(CommandLine, ReportsAWrongRecipeInOneLine) {
  write("r.json", R"({"adapter": {"widht": 3}})");
  for (const char* words : {"train r.json --out run", "check r.json", "bench r.json"}) {
    expect_refusal(words, "r.json: /adapter/widht: unknown key");
  }
  write("broken.json", "{");
  expect_refusal("check broken.json", "broken.json: /: not JSON: line 1, column 2");
  expect_refusal("check none.json", "none.json: no such file");
  expect_refusal("train r.json", "wanted --out DIR");
  write("lost.json", R"({"backbone": {"weights": "none.npz"}})");
  expect_refusal("check lost.json", "/backbone/weights: no such file");
  EXPECT_FALSE(fs::exists(folder_ / "run"));
}

TEST_F(CommandLine, ReportsMissingAndDamagedFilesInOneLine) {
  write("junk", "this is no checkpoint of any kind");
  write("image.png", "neither is this");
  expect_refusal("inspect none", "none");
  expect_refusal("inspect junk", "junk");
  expect_refusal("convert junk out.pt", "junk");
  expect_refusal("eval none", "wanted a run folder, an adapter file or a recipe");
  expect_refusal("eval . --data x", "got a folder without adapter.safetensors");
  expect_refusal("predict junk image.png", "junk");
}

TEST_F(CommandLine, InspectsATResNetAndConvertsItToTimmsNames) {
  const std::string file = "'" CONVPASS_TEST_DATA "/tresnet/v2/tresnet.pth'";
  auto inspected = [&](const std::string& name) {
    return nlohmann::json::parse(run("inspect " + name).out);
  };
  ASSERT_EQ(run("convert " + file + " timm.safetensors").status, 0);
  const auto before = inspected(file), after = inspected("timm.safetensors");
  EXPECT_EQ(before["what"], "tresnet checkpoint");
  EXPECT_EQ(before["naming"], "miil");
  EXPECT_EQ(after["naming"], "timm");
  for (const char* key : {"architecture", "config", "backbone_hash", "head_tensors", "parameters"})
    EXPECT_EQ(before[key], after[key]) << key;
  expect_refusal("convert " + file + " out.pt --to miil", "--to: got \"miil\", wanted one of timm");
}

TEST_F(CommandLine, InspectsASwinAndConvertsItToTimmsNames) {
  const std::string file = "'" CONVPASS_TEST_DATA "/swin/clipped/microsoft.pth'";
  auto inspected = [&](const std::string& name) {
    return nlohmann::json::parse(run("inspect " + name).out);
  };
  ASSERT_EQ(run("convert " + file + " timm.safetensors").status, 0);
  const auto before = inspected(file), after = inspected("timm.safetensors");
  EXPECT_EQ(before["what"], "swin checkpoint");
  EXPECT_EQ(before["naming"], "microsoft");
  EXPECT_EQ(before["architecture"], "swin width 8 depths 1-2-1 heads 1-2-4 windows 7-4-2 patch 4");
  EXPECT_EQ(before["config"]["windows"], (std::vector<int>{7, 4, 2}));
  EXPECT_EQ(after["naming"], "timm");
  for (const char* key : {"architecture", "config", "backbone_hash", "head_tensors"})
    EXPECT_EQ(before[key], after[key]) << key;
  expect_refusal("convert " + file + " out.pt --to microsoft",
                 "--to: got \"microsoft\", wanted one of timm");
}

/// The tiny ViT that PEFT's files in tests/data/peft belong to.
class CommandLinePeft : public CommandLine {
 protected:
  void SetUp() override {
    const fs::path data(CONVPASS_TEST_DATA);
    fs::copy(data / "convpass/vit_tiny.safetensors", folder_ / "vit.safetensors");
    write("config.json", R"({"model_args": {"num_heads": 2}})");
    fs::copy(data / "peft", folder_ / "peft", fs::copy_options::recursive);
  }
  static nlohmann::json json_of(const Result& result) {
    EXPECT_EQ(result.status, 0) << result.err;
    return nlohmann::json::parse(result.out, nullptr, /*allow_exceptions=*/false);
  }
};

TEST_F(CommandLinePeft, ConvertsItToAnAdapterFileAndBack) {
  const std::pair<const char*, const char*> all[] = {
      {"timm", "peft-timm"}, {"timm_rslora", "peft-timm"}, {"hf", "peft-hf"}, {"hf5", "peft-hf5"}};
  for (const auto& [name, naming] : all) {
    const std::string in = std::string("peft/") + name;
    EXPECT_EQ(json_of(run("inspect " + in))["naming"], naming);
    EXPECT_EQ(json_of(run("convert " + in + " a.safetensors --backbone vit.safetensors"))["wrote"],
              "a.safetensors");
    const auto inspected = json_of(run("inspect a.safetensors"));
    EXPECT_EQ(inspected["what"], "convpass adapter");
    EXPECT_EQ(inspected["adapter"]["type"], "lora");
    EXPECT_EQ(inspected["adapter"]["rank"], 4);
    EXPECT_EQ(inspected["metadata"]["image_size"], (std::vector<int>{16, 16}));
    json_of(run("convert a.safetensors out --to " + std::string(naming)));
    // The very bytes of the tensors, and the adapter that they were made from.
    json_of(run("convert out/adapter_model.safetensors b.safetensors --backbone vit.safetensors"));
    EXPECT_EQ(text_of(folder_ / "a.safetensors"), text_of(folder_ / "b.safetensors"));
  }
}

TEST_F(CommandLinePeft, RefusesInOneLineWhatItCannotConvert) {
  expect_refusal("convert peft/hf a.safetensors", "wanted --backbone FILE");
  expect_refusal("convert peft/hf a.pt --backbone vit.safetensors", "ending in .safetensors");
  expect_refusal("convert vit.safetensors out --to peft-hf", "is no adapter file of ours");
  run("convert peft/hf a.safetensors --backbone vit.safetensors");
  ASSERT_TRUE(fs::exists(folder_ / "a.safetensors"));
  expect_refusal("convert a.safetensors out --to peft-hg", "did you mean \"peft-hf\"");
  expect_refusal("convert a.safetensors a.pt", "its adapter is of the type \"lora\"");
  expect_refusal("convert a.safetensors out --to peft-timm", "timm's attn.qkv is one layer");
  expect_refusal("convert a.safetensors vit.safetensors --to peft-hf",
                 "is a file, wanted a folder");
  EXPECT_FALSE(fs::exists(folder_ / "out"));
  // Another width.
  write("config.json", R"({"model_args": {"num_heads": 2, "embed_dim": 64}})");
  expect_refusal("convert peft/hf a.safetensors --backbone vit.safetensors", "width");
  write("peft/hf/adapter_config.json", R"({"peft_type": "LORA", "r": 4, "use_dora": true})");
  expect_refusal("convert peft/hf a.safetensors --backbone vit.safetensors", "\"use_dora\"");
  expect_refusal("inspect peft/hf", "\"use_dora\"");
  fs::remove(folder_ / "peft/hf/adapter_model.safetensors");
  write("peft/hf/adapter_config.json", R"({"peft_type": "LORA", "r": 4})");
  expect_refusal("convert peft/hf a.safetensors --backbone vit.safetensors", "No such file");
}

TEST_F(CommandLine, InspectsATorchScriptModuleAndSaysHowItRuns) {
  const auto module =
      nlohmann::json::parse(run("inspect '" CONVPASS_TEST_DATA "/teacher/tiny.pt'").out);
  EXPECT_EQ(module["what"], "TorchScript module");
  EXPECT_NE(module["why_no_backbone"].get<std::string>().find("backbone.variant \"torchscript\""),
            std::string::npos);
}

TEST_F(CommandLine, ChecksATinyRecipeWithoutImages) {
  write("r.json", R"({"backbone": {"variant": "vit_tiny_patch16", "image_size": 32},
                      "adapter": {"blocks": [11]}, "train": {"device": "cpu"}})");
  Result result = run("check r.json --set train.seed=7");
  EXPECT_EQ(result.status, 0) << result.err;
  auto recipe = nlohmann::json::parse(result.out);
  EXPECT_EQ(recipe["train"]["seed"], 7);
  EXPECT_EQ(recipe["adapter"]["width"], 8);
  EXPECT_NE(result.err.find("trainable: "), std::string::npos) << result.err;
  EXPECT_NE(result.err.find("memory for training"), std::string::npos) << result.err;
}

TEST_F(CommandLine, BenchesRandomWeights) {
  Result result =
      run("bench --steps 1 --set backbone.variant=vit_tiny_patch16 --set backbone.image_size=32 "
          "--set train.batch_size=2 --set train.device=cpu");
  EXPECT_EQ(result.status, 0) << result.err;
  auto line = nlohmann::json::parse(result.out);
  for (const char* key :
       {"images_per_second", "step_ms", "forward_ms", "inference_images_per_second",
        "peak_memory_bytes", "trainable_parameters"}) {
    EXPECT_GT(line[key].get<double>(), 0) << key;
  }
}

TEST_F(CommandLine, BenchesTheAdaptersShareLatencyAndFile) {
  const std::string tiny =
      "bench --details --steps 1 --set backbone.variant=vit_tiny_patch16 "
      "--set backbone.image_size=32 --set backbone.blocks=2 --set train.batch_size=2 "
      "--set train.device=cpu ";
  auto measured = [&](const std::string& sets) {
    const Result result = run(tiny + sets);
    EXPECT_EQ(result.status, 0) << result.err;
    return nlohmann::json::parse(result.out);
  };
  const auto line = measured("");
  EXPECT_GT(line["latency_ms"].get<double>(), 0);
  EXPECT_GE(line["latency_p95_ms"], line["latency_ms"]);
  EXPECT_GE(line["latency_images"], 20);
  EXPECT_LT(line["adapter_share"].get<double>(), 1);
  for (const char* key : {"paired_step_ms", "idle_step_ms", "dense_ms"})
    EXPECT_GT(line[key].get<double>(), 0) << key;
  EXPECT_GE(line["peak_memory_bytes"], line["inference_peak_memory_bytes"]);
  const double floats = 4 * line["trainable_parameters"].get<double>();
  EXPECT_GT(line["adapter_file_bytes"].get<double>(), floats);
  EXPECT_LT(line["adapter_file_bytes"].get<double>(), floats + 20000);

  EXPECT_TRUE(measured("--set adapter.type=none")["adapter_share"].is_null());
  EXPECT_TRUE(measured("--set adapter.type=none --set backbone.trainable=true")["adapter_share"]
                  .is_number());
  expect_refusal(tiny + "--loader", "--details and --loader exclude each other");
}

TEST_F(CommandLine, GoesQuietlyWhenTheReaderOfStdoutHasGone) {
  Result result = run("help schema | head -c 1");
  EXPECT_EQ(result.out, "{");
  EXPECT_EQ(result.err, "");
}

TEST_F(CommandLine, SaysThatStdoutIsFull) {
  std::string command =
      "'" CONVPASS_BINARY "' help schema >/dev/full 2>'" + (folder_ / "stderr").string() + "'";
  int status = std::system(command.c_str());
  EXPECT_EQ(WEXITSTATUS(status), 2);
  EXPECT_NE(text_of(folder_ / "stderr").find("stdout cannot be written: No space left"),
            std::string::npos);
}

}  // namespace
}  // namespace convpass
