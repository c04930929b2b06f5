#include "convpass/core/tensor_map.h"

#include "tests/core/tensor_files.h"

namespace convpass {
namespace {

TEST(LoadTensors, NamesTheKindOfWhatItDoesNotRead) {
  TempFolder folder;
  auto refused = [&](const std::string& bytes, const std::string& what) {
    expect_refused(write_text(folder / "a", bytes), what);
  };
  refused("", "is empty");
  refused("x", "is of an unknown kind");
  refused("PK\x03\x04", "damaged zip archive");
  refused("PK\x05\x06" + std::string(18, '\0'), "zip archive of 0 entries");
  refused("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "git-lfs pointer");
  refused("\x1f\x8b\x08\x00", "gzip-compressed");
  refused("\x89HDF\r\n\x1a\n", "HDF5");
  refused("<!DOCTYPE html><html>", "web page");
  refused("\x80\x04\x95\x01", "bare Python pickle");
  refused(std::string(257, '\0') + "ustar", "tar archive");
  refused("\n\r\t\x1b[31m", "unknown kind (it starts with '\\x0a\\x0d\\x09\\x1b[31m')");
  refused("{\"a\":1}", "JSON without a weight_map");
}

TEST(LoadTensors, RefusesMissingFilesAndFolders) {
  TempFolder folder;
  expect_refused(folder / "missing", "cannot be opened: No such file");
  std::filesystem::create_directory(folder / "d");
  expect_refused(folder / "d", "is a folder");
}

TEST(LoadTensors, FindsTheKindWhateverTheName) {
  TempFolder folder;
  std::filesystem::copy(tensor_file("stored.npz"), folder / "a.safetensors");
  std::filesystem::copy(tensor_file("types.safetensors"), folder / "a.pt");
  std::filesystem::copy(tensor_file("types.pt"), folder / "a.npz");
  EXPECT_EQ(load_tensors(folder / "a.safetensors").format, "npz");
  EXPECT_EQ(load_tensors(folder / "a.pt").format, "safetensors");
  EXPECT_EQ(load_tensors(folder / "a.npz").format, "pytorch");
}

TEST(TensorMap, AskingForAnAbsentNameIsOurMistake) {
  TensorMap map{{{"a", at::ones({2, 3})}}, {}, ""};
  EXPECT_TRUE(map.has("a"));
  EXPECT_FALSE(map.has("b"));
  EXPECT_EQ(map.parameters(), 6);
  EXPECT_THROW(map.at("b"), c10::Error);
}

}  // namespace
}  // namespace convpass
