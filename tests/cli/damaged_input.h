// Damaged and hostile inputs, given to the real binary: what their cases are made of.
#pragma once

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

namespace convpass::hostile {

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

inline void PrintTo(const Case& c, std::ostream* out) { *out << c.words; }

inline Make recipe_with(const std::string& patch) {
  return [patch](const DamagedInput& t) { t.recipe(patch); };
}
inline Make file_with(const std::string& name, const std::string& text) {
  return [=](const DamagedInput& t) { t.write(name, text); };
}
inline Make metadata_with(const std::string& key, const std::string& text) {
  return [=](const DamagedInput& t) { t.edit_metadata(key, text); };
}
inline Make weights_with(const DamagedInput::Edit& edit) {
  return [=](const DamagedInput& t) { t.edit_weights(edit); };
}
inline Make adapter_with(const DamagedInput::Edit& edit) {
  return [=](const DamagedInput& t) { t.edit_adapter(edit); };
}
inline Make checkpoint_with(const DamagedInput::Edit& edit) {
  return [=](const DamagedInput& t) { t.edit_checkpoint(edit); };
}
inline void nothing(const DamagedInput&) {}
inline void good_run(const DamagedInput& t) { t.train_run(); }

inline std::string big_endian(uint32_t value) {
  std::string bytes = little_endian(value, 4);
  return {bytes.rbegin(), bytes.rend()};
}
inline std::string safetensors(const std::string& header, const std::string& data) {
  return little_endian(header.size(), 8) + header + data;
}
inline std::string gzip(const std::string& text) {
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
inline std::string crc_chunk(const std::string& body) {
  return big_endian(static_cast<uint32_t>(body.size() - 4)) + body +
         big_endian(static_cast<uint32_t>(crc32(0, reinterpret_cast<const Bytef*>(body.data()),
                                                static_cast<uInt>(body.size()))));
}
/// A few bytes that announce 60000 x 60000 pixels.
inline std::string png_bomb() {
  const std::string size = big_endian(60000);
  return "\x89PNG\r\n\x1a\n" + crc_chunk("IHDR" + size + size + std::string("\x08\x02\0\0\0", 5)) +
         crc_chunk("IDAT" + std::string(64, '\0')) + crc_chunk("IEND");
}
/// idx images of 8x8, `count` of them by the header.
inline std::string idx_images(uint32_t count, size_t real) {
  return big_endian(0x803) + big_endian(count) + big_endian(8) + big_endian(8) +
         std::string(real * 64, '\x40');
}
inline std::string idx_labels(uint32_t count) {
  return big_endian(0x801) + big_endian(count) + std::string(count, '\0');
}
inline constexpr const char* kIdx =
    R"({"data": {"train": {"format": "idx", "images": "i", "labels": "l", "path": null}}})";
inline constexpr const char* kNpz = R"({"data": {"train": {"format": "npz", "path": "d.npz"}}})";
inline constexpr const char* kTrainList =
    R"({"data": {"train": {"format": "list", "path": "l.txt"}}})";

inline Make idx(const std::string& images, const std::string& labels) {
  return [=](const DamagedInput& t) {
    t.recipe(kIdx);
    t.write("i", images);
    t.write("l", labels);
  };
}
inline Make npz_data(const ZipContents& contents) {
  return [=](const DamagedInput& t) {
    t.recipe(kNpz);
    t.write("d.npz", zip_bytes(contents));
  };
}
inline Make list(const std::string& text) {
  return [=](const DamagedInput& t) {
    t.recipe(kTrainList);
    t.write("l.txt", text);
  };
}
inline Make training_image(const std::string& name, const std::string& bytes) {
  return file_with("images/train/a/" + name, bytes);
}
inline std::string repeated(const std::string& text, int count) {
  std::string all;
  for (int i = 0; i < count; ++i) all += text;
  return all;
}

inline const std::string kCheck = "check recipe.json";
inline const std::string kTrain = "train recipe.json --out run";
inline const std::string kResume = "train recipe.json --set train.epochs=1 --out run --resume";
inline const std::string kWeights = "weights/tiny.safetensors";
inline const std::string kPredict =
    "predict bad.safetensors images/test/a/0.bmp --backbone weights/tiny.safetensors";
inline const std::string kEval = "eval run --data ";

/// Each case has to end in exit status 2 and one line that names the culprit, with nothing half
/// done on stdout or on the disk.
class HostileInput : public DamagedInput, public testing::WithParamInterface<Case> {};

inline std::string name_of(const testing::TestParamInfo<Case>& info) { return info.param.name; }

}  // namespace convpass::hostile
