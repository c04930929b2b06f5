#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "convpass/core/error.h"
#include "convpass/core/json.h"
#include "src/core/json_document.h"

namespace convpass {

enum class Colour { red, green };

struct Square {
  int64_t side = 2;
};
struct Circle {
  double radius = 0.5;
  std::filesystem::path texture;
};
struct Inner {
  std::string name = "n";
  std::vector<double> weights{0.1, 1.0};
};
struct Everything {
  bool flag = false;
  int64_t count = 3;
  double rate = 0.25;
  std::string text = "t";
  std::filesystem::path file;
  std::vector<int64_t> list{1, 2};
  std::vector<std::string> words{"a"};
  std::vector<int64_t> blocks;
  Colour colour = Colour::green;
  Inner inner;
  std::optional<Inner> maybe;
  std::variant<Square, Circle> shape;
  std::vector<Circle> circles;
};

void fields(FieldVisitor& v, Square& c) { v.field("side", c.side, "length", at_least(1)); }
void fields(FieldVisitor& v, Circle& c) {
  v.field("radius", c.radius, "in metres", above(0));
  v.field("texture", c.texture, "image");
}
void fields(FieldVisitor& v, Inner& c) {
  v.field("name", c.name, "a name");
  v.field("weights", c.weights, "weights", between(0, 1));
}
void fields(FieldVisitor& v, std::variant<Square, Circle>& c) {
  v.variant("kind", c, {"square", "circle"}, "form");
}
void fields(FieldVisitor& v, Everything& c) {
  v.field("flag", c.flag, "a switch");
  v.field("count", c.count, "a number of things", between(0, 10));
  v.field("rate", c.rate, "a share", {.min = 0, .max = 1, .above_min = true});
  v.field("text", c.text, "words");
  v.field("file", c.file, "a file");
  v.field("list", c.list, "numbers");
  v.field("words", c.words, "strings");
  v.list_or_word("blocks", c.blocks, "all", "which", at_least(0));
  v.choice("colour", c.colour, {"red", "green"}, "paint");
  v.part("inner", c.inner, "a part");
  v.optional_part("maybe", c.maybe, "another part");
  v.part("shape", c.shape, "a choice");
  v.parts("circles", c.circles, "some circles");
}

namespace {

Everything read(const std::string& text) {
  Everything value;
  read_json_fields(text, value, "/folder/c.json");
  return value;
}

std::string error_of(const std::string& text) {
  try {
    read(text);
  } catch (const RecipeError& error) {
    return error.what();
  }
  return "no error";
}

TEST(JsonFields, LeavesDefaultsWhereNothingIsWritten) {
  EXPECT_EQ(write_json_fields(read("{}")), write_json_fields(Everything{}));
}

TEST(JsonFields, WritesEveryFieldInTheOrderOfDeclaration) {
  EXPECT_EQ(
      write_json_fields(Everything{}),
      R"({"flag":false,"count":3,"rate":0.25,"text":"t","file":"","list":[1,2],)"
      R"("words":["a"],"blocks":"all","colour":"green",)"
      R"("inner":{"name":"n","weights":[0.1,1.0]},"shape":{"kind":"square","side":2},"circles":[]})");
}

TEST(JsonFields, ReadsBackWhatItWrites) {
  Everything value;
  value.flag = true;
  value.rate = 1.0 / 3;
  value.text = "\xc3\xa9\n\"\\";
  value.file = "/x/y z.npz";
  value.blocks = {0, 11};
  value.colour = Colour::red;
  value.maybe = Inner{.name = "m", .weights = {}};
  value.shape = Circle{.radius = 1e-30, .texture = "/t.png"};
  value.circles = {Circle{.radius = 3, .texture = "/u.png"}, Circle{}};
  for (int indent : {-1, 0, 2}) {
    Everything again = read(write_json_fields(value, indent));
    EXPECT_EQ(write_json_fields(again), write_json_fields(value)) << indent;
    EXPECT_EQ(again.rate, value.rate);
    EXPECT_EQ(std::get<Circle>(again.shape).radius, 1e-30);
  }
}

TEST(JsonFields, KeepsListsOnOneLineWhenIndented) {
  EXPECT_NE(write_json_fields(Everything{}, 2).find("    \"weights\": [0.1, 1.0]\n"),
            std::string::npos);
}

TEST(JsonFields, AllowsComments) {
  EXPECT_EQ(read("{ // two\n\"count\": 2 /* or so */}").count, 2);
}

TEST(JsonFields, TakesASingleValueAsAList) {
  Everything value = read(R"({"list": 7, "words": "b", "blocks": 3})");
  EXPECT_EQ(value.list, std::vector<int64_t>{7});
  EXPECT_EQ(value.words, std::vector<std::string>{"b"});
  EXPECT_EQ(value.blocks, std::vector<int64_t>{3});
}

TEST(JsonFields, ReadsListsOfObjects) {
  const auto circles = read(R"({"circles": [{"radius": 2, "texture": "t.png"}, {}]})").circles;
  ASSERT_EQ(circles.size(), 2u);
  EXPECT_EQ(circles[0].radius, 2);
  EXPECT_EQ(circles[0].texture, "/folder/t.png");
  EXPECT_EQ(circles[1].radius, 0.5);
  EXPECT_EQ(read(R"({"circles": {"radius": 4}})").circles.at(0).radius, 4);
}

TEST(JsonFields, TellsAnAbsentPartFromOneOfDefaults) {
  EXPECT_FALSE(read("{}").maybe.has_value());
  EXPECT_FALSE(read(R"({"maybe": null})").maybe.has_value());
  EXPECT_TRUE(read(R"({"maybe": {}})").maybe.has_value());
}

TEST(JsonFields, ResolvesPathsAgainstTheFolderOfTheText) {
  EXPECT_EQ(read(R"({"file": "../a/b"})").file, "/a/b");
  EXPECT_EQ(read(R"({"file": "/abs"})").file, "/abs");
  EXPECT_TRUE(read(R"({"file": ""})").file.empty());
}

TEST(JsonFields, SelectsTheAlternativeByItsWord) {
  Everything value = read(R"({"shape": {"radius": 2, "kind": "circle"}})");
  EXPECT_EQ(std::get<Circle>(value.shape).radius, 2);
}

TEST(JsonFields, TakesWholeNumbersHoweverTheyAreWritten) {
  EXPECT_EQ(read(R"({"count": 1e1})").count, 10);
  EXPECT_EQ(read(R"({"count": 4.0})").count, 4);
  EXPECT_EQ(read(R"({"list": [-9223372036854775808, 9223372036854775807]})").list,
            (std::vector<int64_t>{INT64_MIN, INT64_MAX}));
}

struct Wrong {
  const char* text;
  const char* error;
};

TEST(JsonFields, SaysWhereWhatGotAndWanted) {
  const std::vector<Wrong> all{
      {R"({"flag": 1})", "/flag: wrong type, got 1, wanted true or false"},
      {R"({"count": "3"})", "/count: wrong type, got \"3\", wanted a whole number"},
      {R"({"count": 1.5})", "/count: wrong type, got 1.5, wanted a whole number"},
      {R"({"count": null})", "/count: wrong type, got null, wanted a whole number"},
      {R"({"count": 11})", "/count: out of range, got 11, wanted a whole number from 0 to 10"},
      {R"({"count": 9223372036854775808})",
       "/count: out of range, got 9223372036854775808, wanted a whole number below 2^63"},
      {R"({"list": [1, 1e300]})",
       "/list/1: out of range, got 1e+300, wanted a whole number below 2^63"},
      {R"({"rate": 0})", "/rate: out of range, got 0, wanted a number above 0 and at most 1"},
      {R"({"rate": [1]})", "/rate: wrong type, got a list of 1, wanted a number"},
      {R"({"text": {}})", "/text: wrong type, got an object, wanted a string"},
      {R"({"file": "a\u0000b"})",
       "/file: wrong type, got \"a\\u0000b\", wanted a path without a NUL character"},
      {R"({"list": {}})", "/list: wrong type, got an object, wanted a list of whole numbers"},
      {R"({"list": [1, true]})", "/list/1: wrong type, got true, wanted a whole number"},
      {R"({"words": [1]})", "/words/0: wrong type, got 1, wanted a string"},
      {R"({"words": 1})", "/words: wrong type, got 1, wanted a list of strings"},
      {R"({"blocks": "al"})",
       "/blocks: wrong type, got \"al\", wanted \"all\" or a list of whole numbers"},
      {R"({"blocks": []})",
       "/blocks: wrong type, got a list of 0, wanted \"all\" or a list of whole numbers"},
      {R"({"blocks": [-1]})",
       "/blocks/0: out of range, got -1, wanted a whole number of at least 0"},
      {R"({"colour": "gren"})",
       "/colour: unknown choice, got \"gren\", wanted one of \"red\", \"green\" (did you mean "
       "\"green\"?)"},
      {R"({"colour": 1})", "/colour: wrong type, got 1, wanted one of \"red\", \"green\""},
      {R"({"inner": []})", "/inner: wrong type, got a list of 0, wanted an object"},
      {R"({"inner": null})", "/inner: wrong type, got null, wanted an object"},
      {R"({"inner": {"weights": [0, 2]}})",
       "/inner/weights/1: out of range, got 2, wanted a number from 0 to 1"},
      {R"({"inner": {"nmae": "x"}})",
       "/inner/nmae: unknown key, got \"nmae\", wanted one of \"name\", \"weights\" (did you mean "
       "\"name\"?)"},
      {R"({"inner": {"q/~": 1}})",
       "/inner/q~1~0: unknown key, got \"q/~\", wanted one of \"name\", \"weights\""},
      {R"({"maybe": {"nam": 1}})",
       "/maybe/nam: unknown key, got \"nam\", wanted one of \"name\", \"weights\" (did you mean "
       "\"name\"?)"},
      {R"({"shape": {"radius": 1}})",
       "/shape/radius: got a key of \"kind\" \"circle\", wanted one of \"square\": \"kind\", "
       "\"side\""},
      {R"({"shape": {"kind": "cirle"}})",
       "/shape/kind: unknown choice, got \"cirle\", wanted one of \"square\", \"circle\" (did you "
       "mean \"circle\"?)"},
      {R"({"circles": 1})", "/circles: wrong type, got 1, wanted a list of objects"},
      {R"({"circles": [{}, 1]})", "/circles/1: wrong type, got 1, wanted an object"},
      {R"({"circles": [{}, {"radius": 0}]})",
       "/circles/1/radius: out of range, got 0, wanted a number above 0"},
      {R"({"circles": [{"radios": 1}]})",
       "/circles/0/radios: unknown key, got \"radios\", wanted one of \"radius\", \"texture\" (did "
       "you mean \"radius\"?)"},
      {R"({"circles": null})", "/circles: wrong type, got null, wanted a list of objects"},
      {R"({"count": 1, "count": 2})", "/count: the key stands twice in one object"},
      {R"({"inner": {"name": "a", "name": "b"}})",
       "/inner/name: the key stands twice in one object"},
      {R"([1])", "/: wrong type, got a list of 1, wanted an object"},
  };
  for (const Wrong& wrong : all) {
    EXPECT_EQ(error_of(wrong.text), std::string("/folder/c.json: ") + wrong.error) << wrong.text;
  }
}

TEST(JsonFields, GivesLineAndColumnOfWhatIsNotJson) {
  EXPECT_NE(
      error_of("{\n  \"count\": 1,\n}").find("/folder/c.json: /: not JSON: line 3, column 1: "),
      std::string::npos)
      << error_of("{\n  \"count\": 1,\n}");
  for (const char* text : {"", "{", "nul", "{\"rate\": NaN}", "{\"rate\": Infinity}", "{} {}",
                           "{\"rate\": 1e999}", "{\"text\": \"\xff\"}", "{'text': 1}"}) {
    std::string error = error_of(text);
    EXPECT_NE(error.find(": not JSON: "), std::string::npos) << text << " -> " << error;
    EXPECT_EQ(error.find('\n'), std::string::npos) << error;
  }
}

TEST(JsonFields, RefusesBottomlessNesting) {
  EXPECT_EQ(error_of("{\"text\": " + std::string(1'000'000, '[')),
            "/folder/c.json: /: nested too deeply, wanted at most 32 levels");
}

TEST(JsonFields, KeepsMessagesShortAndOnOneLine) {
  std::string error = error_of("{\"count\": \"" + std::string(100'000, 'x') + "\\n\"}");
  EXPECT_LT(error.size(), 250u);
  error = error_of("{\"a\\nb\": 1}");
  EXPECT_EQ(error.find('\n'), std::string::npos) << error;
}

TEST(JsonFields, RefusesToWriteAPathThatIsNotUtf8) {
  Everything value;
  value.file = "/\xff";
  EXPECT_THROW(write_json_fields(value), Error);
  EXPECT_THROW(write_json_fields(value, 2), Error);
}

TEST(JsonFields, HelpListsEveryKeyWithDefaultAndBounds) {
  Everything value;
  auto walk = [&](FieldVisitor& v) { fields(v, value); };
  std::string help = fields_help(walk);
  for (const char* part :
       {"count", "from 0 to 10", "\"red\" | \"green\"", "optional part", "0.25"}) {
    EXPECT_NE(help.find(part), std::string::npos) << part << "\n" << help;
  }
  std::string shape = fields_help(walk, "shape");
  EXPECT_NE(shape.find("with kind \"circle\":"), std::string::npos) << shape;
  EXPECT_NE(shape.find("in metres; above 0"), std::string::npos) << shape;
  EXPECT_NE(fields_help(walk, "circles").find("in metres; above 0"), std::string::npos);
  EXPECT_THROW(fields_help(walk, "shpe"), UsageError);
}

TEST(JsonFields, SchemaClosesObjectsAndSplitsVariants) {
  Everything value;
  Json schema = fields_schema([&](FieldVisitor& v) { fields(v, value); });
  EXPECT_EQ(schema["additionalProperties"], false);
  EXPECT_EQ(schema["properties"]["count"]["maximum"], 10);
  EXPECT_EQ(schema["properties"]["rate"]["exclusiveMinimum"], 0);
  EXPECT_EQ(schema["properties"]["colour"]["default"], "green");
  const Json& branches = schema["properties"]["shape"]["oneOf"];
  ASSERT_EQ(branches.size(), 3u);
  EXPECT_EQ(branches[1]["properties"]["kind"]["const"], "circle");
  EXPECT_EQ(branches[1]["required"], Json::array({"kind"}));
  EXPECT_FALSE(branches[2]["properties"].contains("kind"));
  const Json& circles = schema["properties"]["circles"]["anyOf"];
  EXPECT_EQ(circles[1]["items"]["properties"]["radius"]["exclusiveMinimum"], 0);
}

TEST(NearestName, FindsTyposSwapsAndShortForms) {
  const std::vector<std::string> known{"width", "scale", "interpolation", "lr", "type"};
  EXPECT_EQ(nearest_name("widht", known), "width");
  EXPECT_EQ(nearest_name("withd", known), "width");
  EXPECT_EQ(nearest_name("interp", known), "interpolation");
  EXPECT_EQ(nearest_name("tpye", known), "type");
  EXPECT_EQ(nearest_name("zebra", known), "");
  EXPECT_EQ(nearest_name("", known), "");
  EXPECT_EQ(nearest_name(std::string(1 << 20, 'w'), known), "");
}

TEST(JsonDocument, RemembersWhichLayerAValueCameFrom) {
  JsonDocument document;
  document.overlay(Json::parse(R"({"a": {"x": 1, "y": 2}, "b": 3})"), "low.json", "/low");
  document.overlay(Json::parse(R"({"a": {"y": 5}, "c": {"z": 1}})"), "high.json", "/high");
  EXPECT_EQ(document.root().dump(), R"({"a":{"x":1,"y":5},"b":3,"c":{"z":1}})");
  EXPECT_EQ(document.where("/a/x"), "low.json");
  EXPECT_EQ(document.where("/a/y"), "high.json");
  EXPECT_EQ(document.where("/c/z"), "high.json");
  EXPECT_EQ(document.folder("/b"), "/low");
}

}  // namespace
}  // namespace convpass
