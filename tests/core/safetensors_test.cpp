#include <functional>
#include <nlohmann/json.hpp>
#include <utility>

#include "tests/core/tensor_files.h"

namespace convpass {
namespace {

using nlohmann::json;

constexpr std::pair<const char*, at::ScalarType> kTypes[] = {
    {"f32", at::kFloat}, {"f16", at::kHalf},  {"bf16", at::kBFloat16}, {"f64", at::kDouble},
    {"i64", at::kLong},  {"i32", at::kInt},   {"i16", at::kShort},     {"i8", at::kChar},
    {"u8", at::kByte},   {"bool", at::kBool}, {"u64", at::kUInt64},    {"u32", at::kUInt32},
    {"u16", at::kUInt16}};

std::string file_of(const std::string& header, size_t data) {
  return little_endian(header.size(), 8) + header + std::string(data, '\1');
}

TEST(Safetensors, ReadsEveryType) {
  TensorMap map = load_tensors(tensor_file("types.safetensors"));
  EXPECT_EQ(map.format, "safetensors");
  EXPECT_EQ(map.tensors.size(), std::size(kTypes) + 2);
  for (size_t i = 0; i < std::size(kTypes); ++i) {
    SCOPED_TRACE(kTypes[i].first);
    expect_same(map.at(kTypes[i].first),
                reference_values(static_cast<int64_t>(i), {2, 3}, kTypes[i].second));
  }
  EXPECT_EQ(map.at("scalar").dim(), 0);
  EXPECT_EQ(map.at("scalar").item<float>(), 5.0f);
  EXPECT_EQ(map.at("empty").sizes(), at::IntArrayRef({0, 4}));
  EXPECT_EQ(map.metadata.at("note"), "two\nlines");
  EXPECT_EQ(map.parameters(), 13 * 6 + 1);
}

TEST(Safetensors, ReadsShards) {
  TensorMap map = load_tensors(tensor_file("model.safetensors.index.json"));
  EXPECT_EQ(map.tensors.size(), 3u);
  expect_same(map.at("a"), reference_values(0, {2, 2}));
  expect_same(map.at("b"), reference_values(1, {3}));
  expect_same(map.at("c"), reference_values(2, {5}));
}

TEST(Safetensors, TensorsOutliveTheMapAndWritingToThemLeavesTheFileAlone) {
  TempFolder folder;
  TensorMap map{{{"a", at::ones({1000})}}, {}, ""};
  save_safetensors(folder / "a", map);
  const std::string before = read_text(folder / "a");
  at::Tensor tensor = load_tensors(folder / "a").at("a");
  tensor.fill_(2);
  EXPECT_EQ(tensor.sum().item<float>(), 2000.0f);
  EXPECT_EQ(read_text(folder / "a"), before);
}

TEST(Safetensors, SaveAndLoadKeepEverything) {
  TempFolder folder;
  TensorMap map = load_tensors(tensor_file("types.safetensors"));
  map.tensors["strided"] = reference_values(30, {4, 6}).t();
  save_safetensors(folder / "a", map);
  TensorMap again = load_tensors(folder / "a");
  EXPECT_EQ(again.metadata, map.metadata);
  ASSERT_EQ(again.tensors.size(), map.tensors.size());
  for (const auto& [name, tensor] : map.tensors) {
    SCOPED_TRACE(name);
    expect_same(again.at(name), tensor);
    const auto address = reinterpret_cast<uintptr_t>(again.at(name).const_data_ptr());
    EXPECT_EQ(address % again.at(name).element_size(), 0u);
  }
}

TEST(Safetensors, EqualMapsGiveEqualBytes) {
  TempFolder folder;
  TensorMap map = load_tensors(tensor_file("types.safetensors"));
  save_safetensors(folder / "a", map);
  save_safetensors(folder / "b", load_tensors(folder / "a"));
  EXPECT_EQ(read_text(folder / "a"), read_text(folder / "b"));
  EXPECT_EQ((read_text(folder / "a").find("}}") + 2 + 7) / 8 * 8 % 8, 0u);
}

TEST(Safetensors, WritesAnEmptyMap) {
  TempFolder folder;
  save_safetensors(folder / "a", TensorMap{});
  EXPECT_TRUE(load_tensors(folder / "a").tensors.empty());
}

TEST(Safetensors, CopiesTensorsThatAreNotAligned) {
  TempFolder folder;
  const std::string header = R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                             R"("b":{"dtype":"I32","shape":[1],"data_offsets":[1,5]}})";
  at::Tensor b = load_tensors(write_text(folder / "a", file_of(header, 5))).at("b");
  EXPECT_EQ(b.item<int>(), 0x01010101);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(b.const_data_ptr()) % 4, 0u);
}

TEST(Safetensors, RefusesFilesCutShort) {
  expect_refused_when_cut(tensor_file("types.safetensors"));
  expect_refused_when_cut(tensor_file("model.safetensors.index.json"));
}

TEST(Safetensors, RefusesHostileHeaderLengths) {
  TempFolder folder;
  std::string good = read_text(tensor_file("types.safetensors"));
  for (uint64_t length : {uint64_t{good.size()}, uint64_t{good.size() - 7}, uint64_t{100'000'001},
                          uint64_t{1} << 40, uint64_t{1} << 63, ~uint64_t{0}, ~uint64_t{0} - 7}) {
    std::string bad = little_endian(length, 8) + good.substr(8);
    expect_refused(write_text(folder / "a", bad), "safetensors header claims");
  }
  for (uint64_t length : {0, 1, 2, 8, 100}) {
    std::string bad = little_endian(length, 8) + good.substr(8);
    expect_refused(write_text(folder / "a", bad), "safetensors header");
  }
}

/// Refuses the header of one good tensor after `change`.
void expect_entry_refused(const std::function<void(json&)>& change, const std::string& what) {
  TempFolder folder;
  json header = {{"a", {{"dtype", "F32"}, {"shape", {2, 3}}, {"data_offsets", {0, 24}}}}};
  load_tensors(write_text(folder / "good", file_of(header.dump(), 24)));
  change(header["a"]);
  expect_refused(write_text(folder / "a", file_of(header.dump(), 24)), what);
}

TEST(Safetensors, RefusesHostileTensors) {
  expect_entry_refused([](json& a) { a["dtype"] = "F8_E4M3"; }, "type 'F8_E4M3' is not read");
  expect_entry_refused([](json& a) { a["dtype"] = "F\n32"; }, "type 'F\\x0a32' is not read");
  expect_entry_refused([](json& a) { a["dtype"] = 7; }, "dtype is not a string");
  expect_entry_refused([](json& a) { a["shape"] = "2,3"; }, "shape is not a list");
  expect_entry_refused([](json& a) { a["shape"] = {2.0, 3}; }, "shape is not a list");
  expect_entry_refused([](json& a) { a["shape"] = {-2, -3}; }, "shape is not a list");
  expect_entry_refused([](json& a) { a["shape"] = {2, 4}; }, "got 24 bytes, wanted 32");
  expect_entry_refused([](json& a) { a["dtype"] = "F64"; }, "got 24 bytes, wanted 48");
  const int64_t huge = int64_t{1} << 62;
  expect_entry_refused([=](json& a) { a["shape"] = {huge, 4}; }, "the shape is too large");
  expect_entry_refused([=](json& a) { a["shape"] = {huge, huge, huge}; }, "too large");
  expect_entry_refused([=](json& a) { a["shape"] = {0, huge, huge}; }, "too large");
  expect_entry_refused([](json& a) { a["shape"] = {~uint64_t{0}}; }, "shape is not a list");
  expect_entry_refused([](json& a) { a["data_offsets"] = {24, 0}; }, "do not lie in");
  expect_entry_refused([](json& a) { a["data_offsets"] = {0, 25}; }, "do not lie in");
  expect_entry_refused([=](json& a) { a["data_offsets"] = {huge, huge + 24}; }, "do not lie in");
  expect_entry_refused([](json& a) { a["data_offsets"] = {0}; }, "is not [begin, end]");
  expect_entry_refused([](json& a) { a["data_offsets"] = {0, 24, 24}; }, "is not [begin, end]");
  expect_entry_refused([](json& a) { a["data_offsets"] = {-24, 0}; }, "is not [begin, end]");
  expect_entry_refused([](json& a) { a.erase("shape"); }, "wanted an object with");
  expect_entry_refused([](json& a) { a["more"] = 1; }, "wanted an object with");
  expect_entry_refused([](json& a) { a = 3; }, "wanted an object with");
}

void expect_header_refused(const std::string& header, size_t data, const std::string& what) {
  TempFolder folder;
  expect_refused(write_text(folder / "a", file_of(header, data)), what);
}

std::string entry(const std::string& name, int begin, int end) {
  return "\"" + name + R"(":{"dtype":"U8","shape":[)" + std::to_string(end - begin) +
         R"(],"data_offsets":[)" + std::to_string(begin) + "," + std::to_string(end) + "]}";
}

TEST(Safetensors, RefusesOverlappingTensors) {
  expect_header_refused("{" + entry("a", 0, 4) + "," + entry("b", 2, 6) + "}", 6, "overlap");
  expect_header_refused("{" + entry("a", 0, 4) + "," + entry("b", 0, 4) + "}", 4, "overlap");
}

TEST(Safetensors, RefusesBytesThatBelongToNoTensor) {
  expect_header_refused("{" + entry("a", 1, 4) + "}", 4, "unused bytes");
  expect_header_refused("{" + entry("a", 0, 2) + "," + entry("b", 3, 4) + "}", 4, "unused bytes");
  expect_header_refused("{" + entry("a", 0, 4) + "}", 5, "belong to no tensor");
  expect_header_refused("{}", 1, "belong to no tensor");
}

TEST(Safetensors, RefusesBrokenHeaders) {
  expect_header_refused("{" + entry("a", 0, 1) + "," + entry("a", 1, 2) + "}", 2,
                        "'a' is there twice");
  expect_header_refused("{" + entry("a", 0, 1), 1, "safetensors header");
  expect_header_refused("{" + entry("a", 0, 1) + "}x", 1, "safetensors header");
  expect_header_refused("{\"\xff\xfe\":1}", 0, "safetensors header");
  expect_header_refused(R"({"__metadata__":{"a":1}})", 0, "'a' is not a string");
  expect_header_refused(R"({"__metadata__":[]})", 0, "__metadata__ is not an object");
  expect_header_refused("{\"a\":" + std::string(100'000, '['), 0, "nested too deep");
  std::string nested = "{\"a\":";
  for (int i = 0; i < 1000; ++i) nested += "{\"a\":";
  expect_header_refused(nested, 0, "nested too deep");
}

TEST(Safetensors, RefusesShardsOutsideTheFolder) {
  TempFolder folder;
  for (const char* shard :
       {"../model-1.safetensors", "/etc/passwd", "", ".", "..", "a/b", "a\\b"}) {
    json index = {{"weight_map", {{"a", shard}}}};
    expect_refused(write_text(folder / "i.json", index.dump()), "is not the plain name of a file");
  }
  json zero = {{"weight_map", {{"a", std::string("a\0b", 3)}}}};
  expect_refused(write_text(folder / "i.json", zero.dump()), "is not the plain name of a file");
}

TEST(Safetensors, RefusesIndexesThatDisagreeWithTheirShards) {
  TempFolder folder;
  auto refused = [&](const json& index, const std::string& what) {
    expect_refused(write_text(folder / "i.json", index.dump()), what);
  };
  std::filesystem::copy(tensor_file("model-1.safetensors"), folder / "s");
  refused({{"weight_map", {{"a", "s"}, {"b", "s"}, {"c", "s"}}}}, "'c' is missing");
  refused({{"weight_map", {{"a", "s"}}}}, "'b' is here, the index does not say so");
  refused({{"weight_map", {{"a", "none"}}}}, "cannot be opened");
  refused({{"weight_map", {{"a", 1}}}}, "is no file name");
  refused({{"weight_map", {{"a", "i.json"}}}}, "safetensors");
  refused({{"weight_map", json::object()}}, "without a weight_map");
  refused({{"weight_map", {"a"}}}, "without a weight_map");
  refused({{"architectures", {"ViT"}}}, "without a weight_map");
}

TEST(Safetensors, RefusesToWriteAReservedName) {
  TempFolder folder;
  TensorMap map{{{"__metadata__", at::ones(1)}}, {}, ""};
  EXPECT_THROW(save_safetensors(folder / "a", map), FileError);
  map = TensorMap{{{"\xff", at::ones(1)}}, {}, ""};
  EXPECT_THROW(save_safetensors(folder / "a", map), FileError);
  EXPECT_FALSE(std::filesystem::exists(folder / "a"));
}

}  // namespace
}  // namespace convpass
