#include <utility>

#include "src/core/pickle.h"
#include "tests/core/zip_files.h"

namespace convpass {
namespace {

constexpr std::pair<const char*, at::ScalarType> kTypes[] = {
    {"f32", at::kFloat}, {"f16", at::kHalf},  {"bf16", at::kBFloat16}, {"f64", at::kDouble},
    {"i64", at::kLong},  {"i32", at::kInt},   {"i16", at::kShort},     {"i8", at::kChar},
    {"u8", at::kByte},   {"bool", at::kBool}, {"u64", at::kUInt64},    {"u32", at::kUInt32},
    {"u16", at::kUInt16}};

/// The state dict of the module `Tower` in tensor_files.py.
void expect_tower(const TensorMap& map, const std::string& format = "pytorch") {
  EXPECT_EQ(map.format, format);
  EXPECT_EQ(map.tensors.size(), 3u);
  expect_same(map.at("layers.0.weight"), reference_values(3, {4, 2}));
  expect_same(map.at("layers.0.mean"), reference_values(4, {2}));
  expect_same(map.at("scale"), reference_values(5, {1}, at::kHalf));
}

TEST(PyTorch, ReadsEveryType) {
  TensorMap map = load_tensors(tensor_file("types.pt"));
  EXPECT_EQ(map.tensors.size(), std::size(kTypes));
  for (size_t i = 0; i < std::size(kTypes); ++i) {
    SCOPED_TRACE(kTypes[i].first);
    expect_same(map.at(kTypes[i].first),
                reference_values(static_cast<int64_t>(i), {2, 3}, kTypes[i].second));
  }
}

TEST(PyTorch, ReadsAPlainStateDict) { expect_tower(load_tensors(tensor_file("state_dict.pt"))); }

TEST(PyTorch, UnwrapsTrainingStatesAndIgnoresTheRest) {
  expect_tower(load_tensors(tensor_file("wrapped.pt")));
}

TEST(PyTorch, StripsPrefixesThatAllNamesHave) {
  expect_tower(load_tensors(tensor_file("teacher.pt")));
  expect_tower(load_tensors(tensor_file("nested.pt")));
}

TEST(PyTorch, ReadsWholeModulesAndTorchScript) {
  expect_tower(load_tensors(tensor_file("module.pt")));
  expect_tower(load_tensors(tensor_file("script.pt")), "torchscript");
}

TEST(PyTorch, ReadsViewsOfOneStorage) {
  TensorMap map = load_tensors(tensor_file("views.pt"));
  const at::Tensor whole = reference_values(6, {4, 6});
  expect_same(map.at("whole"), whole);
  expect_same(map.at("row"), whole[1]);
  expect_same(map.at("transposed"), whole.t());
  expect_same(map.at("corner"), whole.slice(0, 1, 3).slice(1, 2, 5));
  expect_same(map.at("expanded"), reference_values(7, {1, 3}).expand({4, 3}));
  expect_same(map.at("parameter"), reference_values(8, {2, 2}));
  expect_same(map.at("last"), reference_values(9, {2, 3, 2, 2}));
  EXPECT_EQ(map.at("empty").sizes(), at::IntArrayRef({0, 3}));
  EXPECT_TRUE(map.at("row").is_alias_of(map.at("whole")));
}

TEST(PyTorch, ReadsTensorsWithPythonAttributes) {
  TensorMap map = load_tensors(tensor_file("attributes.pt"));
  expect_same(map.at("a"), reference_values(10, {3}));
  expect_same(map.at("b"), reference_values(11, {3}));
}

TEST(PyTorch, SaveAndLoadKeepEverything) {
  TempFolder folder;
  for (const char* name : {"types.pt", "views.pt"}) {
    TensorMap map = load_tensors(tensor_file(name));
    map.tensors["scalar"] = at::scalar_tensor(3.5);
    save_pytorch(folder / name, map);
    TensorMap again = load_tensors(folder / name);
    ASSERT_EQ(again.tensors.size(), map.tensors.size());
    for (const auto& [key, tensor] : map.tensors) expect_same(again.at(key), tensor);
    save_pytorch(folder / "again.pt", again);
    EXPECT_EQ(read_text(folder / "again.pt"), read_text(folder / name));
  }
}

TEST(PyTorch, SavesTensorDataAlignedTo64Bytes) {
  TempFolder folder;
  save_pytorch(folder / "a.pt", TensorMap{{{"a", at::full({4}, 1.5)}, {"b", at::ones(3)}}, {}, ""});
  const std::string bytes = read_text(folder / "a.pt");
  const std::string data(reinterpret_cast<const char*>(at::full({4}, 1.5).const_data_ptr()), 16);
  EXPECT_EQ(bytes.find(data) % 64, 0u);
}

TEST(PyTorch, RefusesWhatItCannotRead) {
  expect_refused(tensor_file("legacy.pt"), "re-save it with a current torch");
  expect_refused(tensor_file("sparse.pt"), "tensor 'a': is of a kind that is not read");
  expect_refused(tensor_file("complex.pt"), "type 'torch.ComplexFloatStorage' is not read");
  expect_refused(tensor_file("no_tensors.pt"), "its keys: epoch, student");
}

TEST(PyTorch, RefusesFilesCutShort) {
  expect_refused_when_cut(tensor_file("wrapped.pt"));
  expect_refused_when_cut(tensor_file("script.pt"));
}

/// A small file of our own whose pickle is easy to edit: one float tensor `a` of shape [2, 3].
class HostilePyTorch : public testing::Test {
 protected:
  void SetUp() override {
    save_pytorch(folder_ / "good.pt", TensorMap{{{"a", at::ones({2, 3})}}, {}, ""});
    contents_ = zip_contents(folder_ / "good.pt");
  }

  void expect_edit_refused(const std::string& old, const std::string& now,
                           const std::string& what) {
    ZipContents edited = contents_;
    replace_once(edited["archive/data.pkl"], old, now);
    expect_contents_refused(edited, what);
  }

  void expect_contents_refused(const ZipContents& contents, const std::string& what) {
    expect_refused(write_text(folder_ / "a.pt", zip_bytes(contents)), what);
  }

  void expect_pickle_refused(const std::string& pickle, const std::string& what) {
    ZipContents edited = contents_;
    edited["archive/data.pkl"] = pickle;
    expect_contents_refused(edited, what);
  }

  static std::string i(int32_t value) {
    return "J" + little_endian(static_cast<uint32_t>(value), 4);
  }

  TempFolder folder_;
  ZipContents contents_;
};

TEST_F(HostilePyTorch, ViewsOutsideTheirStorageAreRefused) {
  const std::string offset = i(0) + "(" + i(2), sizes = "(" + i(2) + i(3) + "t";
  const std::string strides = "(" + i(3) + i(1) + "t";
  const std::string huge = "\x8a\x08" + little_endian(uint64_t{1} << 62, 8);
  expect_edit_refused(offset, i(1) + "(" + i(2), "reaches to element 6 of a storage of 6");
  expect_edit_refused(offset, i(-1) + "(" + i(2), "starts before its storage");
  expect_edit_refused(offset, huge + "(" + i(2), "reaches to element");
  expect_edit_refused(sizes, "(" + i(2) + i(4) + "t", "reaches to element 6");
  expect_edit_refused(sizes, "(" + i(-2) + i(-3) + "t", "negative");
  expect_edit_refused(sizes, "(" + huge + i(4) + "t", "too large");
  expect_edit_refused(sizes, "(" + huge + huge + "t", "too large");
  expect_edit_refused(sizes, "(" + i(6) + "t", "one stride for each dimension");
  expect_edit_refused(sizes, "(" + i(2) + "Nt", "the shape is not a whole number");
  expect_edit_refused(sizes, "N", "the shape is not a tuple");
  expect_edit_refused(strides, "(" + i(3) + i(2) + "t", "reaches to element 7");
  expect_edit_refused(strides, "(" + i(-3) + i(1) + "t", "negative size or stride");
  expect_edit_refused(strides, "(" + huge + huge + "t", "reaches to element");
  expect_edit_refused(sizes + strides, "(" + huge + "t(" + huge + "t", "too large");
  expect_edit_refused(sizes + strides, "(" + i(1 << 30) + i(1 << 20) + "t(" + i(0) + i(0) + "t",
                      "elements in a storage");
  std::string dimensions = "(";
  for (int n = 0; n < 70; ++n) dimensions += i(1);
  expect_edit_refused(sizes + strides, dimensions + "t" + dimensions + "t", "64 dimensions");
}

TEST_F(HostilePyTorch, StoragesThatDisagreeWithTheFileAreRefused) {
  const std::string count = "X\x03" + std::string(3, '\0') + "cpu" + i(6);
  const std::string cpu = count.substr(0, count.size() - 5);
  expect_edit_refused(count, cpu + i(7), "has 24 bytes, wanted 28");
  expect_edit_refused(count, cpu + i(5), "has 24 bytes, wanted 20");
  expect_edit_refused(count, cpu + i(-6), "impossible length");
  expect_edit_refused(count, cpu + "\x8a\x08" + little_endian(uint64_t{1} << 62, 8), "impossible");
  expect_edit_refused(count, cpu + "N", "length is not a whole number");
  expect_edit_refused("FloatStorage", "DoubleStorage", "has 24 bytes, wanted 48");
  expect_edit_refused("FloatStorage", "QInt8Storage", "type 'torch.QInt8Storage' is not read");
  expect_edit_refused("storage", "stooage", "not described as torch does");
  ZipContents edited = contents_;
  edited.erase("archive/data/0");
  expect_contents_refused(edited, "storage 'archive/data/0' has 0 bytes, wanted 24");
  edited = contents_;
  edited["archive/byteorder"] = "big";
  expect_contents_refused(edited, "another byte order");
  edited = contents_;
  edited.erase("archive/data.pkl");
  expect_contents_refused(edited, "neither PyTorch's data.pkl");
}

TEST_F(HostilePyTorch, CodeIsNeverRun) {
  const std::string call = "cos\nsystem\nX\x0d" + std::string(3, '\0') + "touch /pwned!\x85R.";
  expect_pickle_refused("\x80\x02" + call, "no tensors");
  expect_edit_refused("torch._utils\n_rebuild_tensor_v2", "os\nsystem", "no tensors");
  expect_edit_refused("_rebuild_tensor_v2", "_rebuild_anything", "kind that is not read");
  EXPECT_FALSE(std::filesystem::exists("/pwned!"));
}

TEST_F(HostilePyTorch, BrokenPicklesAreRefused) {
  const std::string start = "\x80\x02";
  expect_pickle_refused("", "is cut short");
  expect_pickle_refused(".", "empty stack");
  expect_pickle_refused(start + ".", "empty stack");
  expect_pickle_refused("\x80\x09.", "protocol 9");
  expect_pickle_refused("\x80\x01.", "protocol 1");
  expect_pickle_refused(start + "u.", "lacks a mark");
  expect_pickle_refused(start + "}(NNNu.", "key without a value");
  expect_pickle_refused(start + "NNNs.", "sets an item of what has none");
  expect_pickle_refused(start + "NNa.", "appends to what is no list");
  expect_pickle_refused(start + "N(R.", "empty stack");
  expect_pickle_refused(start + "hQ.", "recalls what it never remembered");
  expect_pickle_refused(start + "j\xff\xff\xff\xff.", "recalls what it never remembered");
  expect_pickle_refused(start + "r\xff\xff\xff\xff.", "empty stack");
  expect_pickle_refused(start + "X\xff\xff\xff\xff.", "wanted 4294967295 bytes, got 1");
  expect_pickle_refused(start + "\x8d" + std::string(8, '\xff') + ".", "is cut short");
  expect_pickle_refused(start + "\x95" + std::string(8, '\xff') + ".", "cut short in a frame");
  expect_pickle_refused(start + "ctorch", "cut short in a name");
  expect_pickle_refused(start + "NN\x93.", "names a global without text");
  expect_pickle_refused(start + "I1\n.", "operation 73 is not read");
  expect_pickle_refused(start + "\xff.", "operation 255 is not read");
  expect_pickle_refused(start + std::string(4'100'000, 'N'), "more than 4000000 values");
  expect_pickle_refused(start + "N.", "its keys: none");
}

TEST_F(HostilePyTorch, DeepAndCyclicPicklesAreRefused) {
  const std::string start = "\x80\x02";
  expect_pickle_refused(start + std::string(1'000'000, ']') + std::string(999'999, 'a') + ".",
                        "no tensors");
  // A module that is its own child, and a dictionary that is its own `model`.
  const std::string child = "X\x05" + std::string(3, '\0') + "child",
                    model = child.substr(0, 5) + "model";
  expect_pickle_refused(start + "ca\nb\n)\x81q\x01}" + child + "h\x01sb.", "nested too deep");
  expect_pickle_refused(start + "}q\x01" + model + "h\x01s.", "no tensors");
  // A module whose two children are one, sixty levels deep: 2^60 paths.
  std::string doubled = "ca\nb\n)\x81q\x01";
  for (int n = 0; n < 60; ++n) {
    doubled += "ca\nb\n)\x81}X\x01" + std::string(3, '\0') + "ah\x01sX\x01" + std::string(3, '\0') +
               "bh\x01sbq\x01";
  }
  expect_pickle_refused(start + doubled + ".", "too many attributes");
  // The same through the parts of a module, which add nothing to the name.
  std::string parts = "}q\x01";
  for (int n = 0; n < 60; ++n) {
    parts += "}X\x08" + std::string(3, '\0') + "_modulesh\x01sX\x08" + std::string(3, '\0') +
             "_buffersh\x01sq\x01";
  }
  expect_pickle_refused(start + parts + "ca\nb\n)\x81h\x01" + "b.", "too many attributes");
}

TEST(Pickle, ReadsNumbersAndContainersOfAllProtocols) {
  const std::string text = std::string("\x80\x05\x95\x04\0\0\0\0\0\0\0", 11) +
                           "(K\x05M\x01\x02J\xff\xff\xff\xff" + "\x8a\x02\xff\xfe" +
                           std::string("\x8a\0", 2) + "\x8a\x09" + std::string(9, '\1') +
                           "\x8c\x01x\x94G" + std::string(8, '\0') + "C\x01y\x8f(K\x01\x90t.";
  Pickle pickle = Pickle::parse({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
  const auto& items = pickle.root().items;
  ASSERT_EQ(items.size(), 10u);
  const int64_t wanted[] = {5, 513, -1, -257, 0};
  for (size_t i = 0; i < std::size(wanted); ++i) EXPECT_EQ(items[i]->integer, wanted[i]) << i;
  EXPECT_TRUE(items[5]->is(PickleValue::Kind::other));
  EXPECT_EQ(items[6]->text, "x");
  EXPECT_EQ(items[9]->items.size(), 1u);
}

}  // namespace
}  // namespace convpass
