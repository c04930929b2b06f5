#include <utility>

#include "src/core/npy.h"
#include "tests/core/zip_files.h"

namespace convpass {
namespace {

constexpr std::pair<const char*, at::ScalarType> kTypes[] = {
    {"f32", at::kFloat}, {"f16", at::kHalf},  {"bf16", at::kBFloat16}, {"f64", at::kDouble},
    {"i64", at::kLong},  {"i32", at::kInt},   {"i16", at::kShort},     {"i8", at::kChar},
    {"u8", at::kByte},   {"bool", at::kBool}, {"u64", at::kUInt64},    {"u32", at::kUInt32},
    {"u16", at::kUInt16}};

std::string npy(const std::string& dictionary, const std::string& data, int version = 1) {
  const std::string text = dictionary + "\n";
  return std::string("\x93NUMPY") + static_cast<char>(version) + '\0' +
         little_endian(text.size(), version == 1 ? 2 : 4) + text + data;
}

std::string header(const std::string& descr, const std::string& shape) {
  return "{'descr': '" + descr + "', 'fortran_order': False, 'shape': " + shape + ", }";
}

void expect_array_refused(const std::string& array, const std::string& what) {
  TempFolder folder;
  expect_refused(write_text(folder / "a.npz", zip_bytes({{"a.npy", array}})), what);
}

TEST(Npz, ReadsEveryTypeStoredOrDeflated) {
  for (const char* name : {"stored.npz", "deflated.npz"}) {
    SCOPED_TRACE(name);
    TensorMap map = load_tensors(tensor_file(name));
    EXPECT_EQ(map.format, "npz");
    EXPECT_EQ(map.tensors.size(), std::size(kTypes) + 6);
    for (size_t i = 0; i < std::size(kTypes); ++i) {
      SCOPED_TRACE(kTypes[i].first);
      expect_same(map.at(kTypes[i].first),
                  reference_values(static_cast<int64_t>(i), {2, 3}, kTypes[i].second));
    }
    expect_same(map.at("void"), reference_values(2, {2, 3}, at::kBFloat16));
    expect_same(map.at("big"), reference_values(21, {2, 3}));
    expect_same(map.at("Transformer/encoderblock_0/bias"), reference_values(22, {3}));
    EXPECT_EQ(map.at("scalar").dim(), 0);
    EXPECT_EQ(map.at("scalar").item<float>(), 5.0f);
    EXPECT_EQ(map.at("empty").sizes(), at::IntArrayRef({0, 4}));
  }
}

TEST(Npz, MakesFortranOrderContiguous) {
  at::Tensor fortran = load_tensors(tensor_file("stored.npz")).at("fortran");
  EXPECT_TRUE(fortran.is_contiguous());
  expect_same(fortran, reference_values(20, {2, 3, 4}));
}

TEST(Npz, ReadsAllVersionsOfTheHeader) {
  TensorMap map = load_tensors(tensor_file("versions.npz"));
  for (int version : {1, 2, 3}) {
    expect_same(map.at("v" + std::to_string(version)), reference_values(version, {2, 2}));
  }
}

TEST(Npz, ReadsHeadersAsPython2WroteThem) {
  NpyHeader parsed =
      parse_npy_header("{'shape': (10L, 3L), 'fortran_order':True,\"descr\":\"<f8\"}");
  EXPECT_EQ(parsed.shape, (std::vector<int64_t>{10, 3}));
  EXPECT_TRUE(parsed.fortran_order);
  EXPECT_EQ(parsed.type, at::kDouble);
}

TEST(Npz, MakesBoolsZeroOrOne) {
  TempFolder folder;
  const std::string array = npy(header("|b1", "(3,)"), std::string("\0\x01\xf0", 3));
  write_text(folder / "a.npz", zip_bytes({{"a.npy", array}}));
  EXPECT_EQ(load_tensors(folder / "a.npz").at("a").sum().item<int64_t>(), 2);
}

TEST(Npz, RefusesObjectsStringsAndSingleArrays) {
  expect_refused(tensor_file("objects.npz"), "array of Python objects");
  expect_refused(tensor_file("strings.npz"), "type '<U2' is not read");
  expect_refused(tensor_file("single.npy"), "is a single .npy array");
}

TEST(Npz, RefusesFilesCutShort) {
  expect_refused_when_cut(tensor_file("stored.npz"));
  expect_refused_when_cut(tensor_file("deflated.npz"));
}

TEST(Npz, RefusesArraysCutShort) {
  const std::string array = npy(header("<f4", "(3,)"), std::string(12, '\1'));
  for (size_t size = 0; size < array.size(); ++size)
    expect_array_refused(array.substr(0, size), "");
}

TEST(Npz, RefusesHostileShapesAndTypes) {
  const std::string data(24, '\1');
  auto refused = [&](const std::string& descr, const std::string& shape, const std::string& what) {
    expect_array_refused(npy(header(descr, shape), data), what);
  };
  refused("<f4", "(7,)", "got 24 bytes of data, wanted 28");
  refused("<f4", "(5,)", "got 24 bytes of data, wanted 20");
  refused("<f4", "(4611686018427387904, 4)", "too large");
  refused("<f4", "(4611686018427387904, 4611686018427387904, 16)", "too large");
  refused("<f4", "(0, 4611686018427387904, 4611686018427387904)", "too large");
  refused("<f4", "(99999999999999999999,)", "too large");
  refused("<f4", "(-6,)", "wanted a whole number");
  refused("<f4", "(2.0, 3)", "wanted ')'");
  refused("<f4", "(6)", "shape is not a tuple");
  refused("<f4", "6", "wanted '('");
  refused("<f4", "(,)", "wanted a whole number");
  refused("<f4", "[6]", "wanted '('");
  std::string many = "(";
  for (int i = 0; i < 70; ++i) many += "1,";
  refused("<f4", many + ")", "more than 64 dimensions");
  refused("|f4", "(6,)", "type '|f4' is not read");
  refused("<c8", "(3,)", "type '<c8' is not read");
  refused("|O", "(3,)", "Python objects");
  refused("|V4", "(6,)", "type '|V4' is not read");
  refused("", "(6,)", "type '' is not read");
  refused("\x1b<f4", "(6,)", "type '\\x1b<f4' is not read");
}

TEST(Npz, RefusesHostileHeaders) {
  const std::string data(4, '\1');
  auto refused = [&](const std::string& dictionary, const std::string& what) {
    expect_array_refused(npy(dictionary, data), what);
  };
  refused("", "wanted '{'");
  refused("{}", "lacks descr");
  refused("{'descr': '<f4', 'fortran_order': False}", "lacks descr");
  refused("{'descr': '<f4', 'fortran_order': 0, 'shape': (1,)}", "neither True nor False");
  refused("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", "once each");
  refused("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'x': 1}", "header has 'x'");
  refused("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}", "structured array");
  refused("{'descr': __import__('os'), 'fortran_order': False, 'shape': (1,)}", "wanted a string");
  refused("{'descr': '<f4\\x00', 'fortran_order': False, 'shape': (1,)}", "an escape");
  refused("{'descr': '<f4", "a string does not end");
  refused(header("<f4", "(1,)") + "x", "text after its dictionary");
  refused("{{{{{{{{", "wanted a string");
  expect_array_refused(npy(header("<f4", "(1,)"), data, 4), "version 4 of the format");
  std::string lying = npy(header("<f4", "(1,)"), data, 2);
  lying.replace(8, 4, "\xff\xff\xff\xff");
  expect_array_refused(lying, "header claims 4294967295 bytes");
}

TEST(Npz, RefusesDamagedArchives) {
  TempFolder folder;
  auto refused = [&](const std::string& zip, const std::string& what) {
    expect_refused(write_text(folder / "a.npz", zip), what);
  };
  const ZipContents good = {{"a.npy", npy(header("<f4", "(1,)"), "1234")},
                            {"b.npy", npy(header("<f4", "(1,)"), "5678")}};
  std::string zip = zip_bytes(good);
  load_tensors(write_text(folder / "good.npz", zip));
  replace_once(zip, "1234", "1235");
  refused(zip, "CRC");
  zip = zip_bytes(good);
  set_in_directory(zip, "b.npy", 8, 1);
  refused(zip, "is encrypted");
  zip = zip_bytes(good);
  set_in_directory(zip, "b.npy", 8, 12 << 16);
  refused(zip, "compression method 12");
  zip = zip_bytes(good);
  set_in_directory(zip, "b.npy", 20, 0x7fffffff);
  refused(zip, "");
  zip = zip_bytes(good);
  set_in_directory(zip, "b.npy", 24, 10);
  refused(zip, "");
  zip = zip_bytes(good);
  set_in_directory(zip, "b.npy", 42, 0x7fffffff);
  refused(zip, "");
  zip = zip_bytes(good);
  zip.replace(zip.rfind("b.npy"), 1, "a");
  refused(zip, "zip entry 'a.npy': is there twice");
  refused(zip_bytes({{"a.npy", good.at("a.npy")}, {"b.txt", "x"}}), "does not end in .npy");
  refused(zip_bytes({{"a.txt", "x"}}), "neither PyTorch's data.pkl nor .npy arrays");
}

TEST(Npz, RefusesEntriesThatClaimMoreThanDeflateCanHold) {
  TempFolder folder;
  const std::string good = read_text(tensor_file("deflated.npz"));
  for (uint32_t claim : {1u << 20, 1u << 30, 0x7fffffffu, 0xfffffffeu}) {
    std::string zip = good;
    set_in_directory(zip, "f32.npy", 24, claim);
    expect_refused(write_text(folder / "a.npz", zip), "zip entry 'f32.npy': claims");
  }
  for (uint32_t claim : {100u, 151u, 153u, 1000u}) {
    std::string zip = good;
    set_in_directory(zip, "f32.npy", 24, claim);
    expect_refused(write_text(folder / "a.npz", zip), "'f32.npy': ");
  }
}

TEST(Npz, RefusesArchivesWhoseEntriesShareBytes) {
  TempFolder folder;
  std::string zip = read_text(tensor_file("stored.npz"));
  for (const char* name : {"f32.npy", "i32.npy", "f64.npy"}) {
    set_in_directory(zip, name, 20, 3000);
    set_in_directory(zip, name, 24, 3000);
  }
  expect_refused(write_text(folder / "a.npz", zip), "more than the file has left");
}

}  // namespace
}  // namespace convpass
