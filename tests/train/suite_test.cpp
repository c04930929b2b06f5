#include "convpass/train/suite.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "convpass/core/error.h"
#include "src/train/suite_table.h"
#include "tests/train/tiny_run.h"

namespace convpass {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

class Suites : public TinyRun {
 protected:
  fs::path write(const std::string& name, const std::string& text) const {
    fs::create_directories((folder() / name).parent_path());
    std::ofstream(folder() / name) << text;
    return folder() / name;
  }
  fs::path write_suite(const std::string& more, const std::string& runs) const {
    return write("s.suite.json", "{" + more + "\"runs\": [" + runs + "]}");
  }
  /// The message without the folder.
  template <class Work>
  std::string error_of(const Work& work) const {
    try {
      work();
    } catch (const Error& error) {
      std::string text = error.what();
      const std::string here = folder().string() + "/";
      for (size_t at; (at = text.find(here)) != std::string::npos;) text.erase(at, here.size());
      return text;
    }
    return "no error";
  }

  /// A task in VTAB's layout of the given files, with a label each.
  void write_list(const std::string& list, const std::vector<std::string>& lines) const {
    std::string text;
    for (const std::string& line : lines) text += line + "\n";
    write(list, text);
  }
  /// A recipe on lists task/train.txt and task/test.txt of three classes.
  fs::path write_list_recipe() const {
    return write("lists.json", R"({"extends": "recipe.json",
      "data": {"root": "task", "classes": 3, "val": null,
               "train": {"format": "list", "path": "train.txt"},
               "test": {"format": "list", "path": "test.txt"}}})");
  }
  Json checked(const Suite& suite) const {
    return Json::parse(check_suite_data(suite, 0, true).line);
  }
};

constexpr const char* kRun = R"({"name": "a", "recipe": "recipe.json"})";

TEST_F(Suites, AreToldFromRecipes) {
  EXPECT_TRUE(is_suite(write_suite("", kRun)));
  EXPECT_FALSE(is_suite(folder() / "recipe.json"));
  EXPECT_FALSE(is_suite(folder() / "absent.json"));
  EXPECT_FALSE(is_suite(write("broken.json", "{\"runs\"")));
}

TEST_F(Suites, LayTheirSetAndThenTheCommandLinesOverEveryRecipe) {
  const fs::path file =
      write("below/s.suite.json", R"({"set": {"train": {"epochs": 7, "batch_size": 4},
                                              "data": {"test": {"path": "mine"}}},
                                      "runs": [{"name": "a", "recipe": "../recipe.json"}]})");
  const Suite suite = load_suite(file, {"train.batch_size=6"});
  const Recipe& recipe = suite.recipes.at(0);
  EXPECT_EQ(recipe.train.epochs, 7);
  EXPECT_EQ(recipe.train.batch_size, 6);
  EXPECT_EQ(std::get<FolderSource>(recipe.data.test->source).path, folder() / "below/mine");
}

TEST_F(Suites, ThatAreWrongNameTheKeyInOneLine) {
  struct Wrong {
    const char *more, *runs, *error;
  };
  const Wrong all[] = {
      {"", "", "s.suite.json: /runs: got no run"},
      {"\"seed\": 1,", kRun, "s.suite.json: /seed: unknown key"},
      {"\"sets\": {},", kRun, "s.suite.json: /sets: unknown key"},
      {"\"seeds\": [],", kRun, "s.suite.json: /seeds: got no seed"},
      {"\"seeds\": [1, 2, 1],", kRun, "s.suite.json: /seeds/2: got 1 twice"},
      {"\"seeds\": [-1],", kRun, "s.suite.json: /seeds/0: out of range"},
      {"\"missing\": \"ignore\",", kRun, "s.suite.json: /missing: unknown choice"},
      {"\"set\": [],", kRun, "s.suite.json: /set: wrong type, got a list of 0"},
      {"\"set\": {\"trian\": {}},", kRun, "s.suite.json (set): /trian: unknown key"},
      {"\"set\": {\"train\": {\"epochs\": 0}},", kRun,
       "s.suite.json (set): /train/epochs: out of range"},
      {"\"set\": {\"train\": {\"seed\": 3}},", kRun,
       "s.suite.json (set): /train/seed: got a seed, wanted it in the suite's \"seeds\""},
      {"\"set\": {\"select\": \"best_val\"},", kRun,
       "s.suite.json (set): /select: got \"best_val\", wanted \"last\""},
      {"\"set\": {\"data\": {\"test\": null}},", kRun, "recipe.json: /data/test: missing"},
      {"", R"({"name": "a"})", "s.suite.json: /runs/0/recipe: missing"},
      {"", R"({"recipe": "recipe.json"})", "s.suite.json: /runs/0/name: got \"\""},
      {"", R"({"name": "../a", "recipe": "recipe.json"})", "s.suite.json: /runs/0/name"},
      {"", R"({"name": "a/b", "recipe": "recipe.json"})", "s.suite.json: /runs/0/name"},
      {"", R"({"name": ".", "recipe": "recipe.json"})", "s.suite.json: /runs/0/name"},
      {"", R"({"name": "a", "recipe": "none.json"})", "none.json: no such file"},
      {"", R"({"name": "a", "recipe": "recipe.json", "published": 72.29})",
       "s.suite.json: /runs/0/published: out of range, got 72.29"},
      {"", R"({"name": "a", "recipe": "recipe.json", "recipes": 1})",
       "s.suite.json: /runs/0/recipes: unknown key"},
      {"", R"({"name": "a", "recipe": "recipe.json"}, {"name": "a", "recipe": "recipe.json"})",
       "s.suite.json: /runs/1/name: got \"a\" twice"},
  };
  for (const Wrong& wrong : all) {
    const std::string error = error_of([&] { load_suite(write_suite(wrong.more, wrong.runs)); });
    EXPECT_TRUE(error.starts_with(wrong.error)) << wrong.more << wrong.runs << "\n" << error;
    EXPECT_EQ(error.find('\n'), std::string::npos) << error;
  }
  EXPECT_TRUE(error_of([&] {
                load_suite(write_suite("", kRun), {"train.seed=3"});
              }).starts_with("--set: /train/seed: got a seed"));
}

TEST(SuiteSchema, IsCurrent) {
  std::ifstream in(fs::path(CONVPASS_SOURCE) / "recipes/suite_schema.json");
  const std::string text{std::istreambuf_iterator<char>(in), {}};
  EXPECT_TRUE(text == suite_schema())
      << "write it anew: convpass help schema suite > recipes/suite_schema.json";
}

TEST_F(Suites, TellWhichDataIsThereAndWhole) {
  const fs::path image = folder() / "images/test/a/0.bmp";
  for (const char* name : {"0.bmp", "1.bmp", "2.bmp"}) {
    fs::create_directories(folder() / "task");
    fs::copy_file(image, folder() / "task" / name);
  }
  write_list("task/train.txt", {"0.bmp 0", "1.bmp 1", "2.bmp 2"});
  write_list_recipe();
  const std::string run =
      R"({"name": "a", "recipe": "lists.json", "images": {"train": 3, "test": 2}})";
  const Suite suite = load_suite(write_suite("", run));
  Json line = checked(suite);
  EXPECT_EQ(line["present"], false);
  EXPECT_EQ(line["missing"], (folder() / "task/test.txt").string());

  write_list("task/test.txt", {"0.bmp 0", "1.bmp 1"});
  line = checked(suite);
  EXPECT_EQ(line["whole"], true) << line;
  EXPECT_EQ(line["splits"]["train"]["images"], 3);
  EXPECT_EQ(line["splits"]["train"]["kinds"], (Json{{"BMP", 3}}));
  EXPECT_EQ(line["splits"]["train"]["least_side"], 16);
  EXPECT_EQ(line["splits"]["train"]["greatest_side"], 20);
  EXPECT_FALSE(line.contains("warnings"));

  const std::pair<std::vector<std::string>, const char*> wrong[] = {
      {{"0.bmp 0"}, "a data.test: got 1 images, wanted 2"},
      {{"0.bmp 0", "1.bmp 3"}, "wanted 0 to 2"},
      {{"0.bmp 0", "9.bmp 1"}, "1 of 2 images are missing"},
      {{"0.bmp 0", "1.bmp"}, "no label"},
  };
  for (const auto& [lines, fault] : wrong) {
    write_list("task/test.txt", lines);
    line = checked(suite);
    EXPECT_EQ(line["present"], true);
    EXPECT_EQ(line["whole"], false);
    ASSERT_TRUE(line.contains("fault")) << fault;
    EXPECT_NE(line["fault"].get<std::string>().find(fault), std::string::npos) << line["fault"];
  }
  // A cut of the list is not held to the whole's number.
  write_list("task/test.txt", {"0.bmp 0", "1.bmp 1", "2.bmp 2"});
  EXPECT_EQ(checked(load_suite(folder() / "s.suite.json", {"data.test.limit=1"}))["whole"], true);

  write_list("task/test.txt", {"0.bmp 0", "1.bmp 1"});
  fs::resize_file(folder() / "task/1.bmp", 100);
  line = checked(suite);
  EXPECT_EQ(line["whole"], false);
  EXPECT_NE(line["fault"].get<std::string>().find("1.bmp"), std::string::npos) << line["fault"];
}

TEST_F(Suites, WarnOfSmallJpegImages) {
  fs::create_directories(folder() / "task");
  const fs::path images = fs::path(CONVPASS_TEST_DATA) / "images";
  for (const char* name : {"jpeg_444.jpg", "photo.jpg", "png_rgb.png"})
    fs::copy_file(images / name, folder() / "task" / name);
  write_list("task/train.txt", {"jpeg_444.jpg 0", "photo.jpg 1", "png_rgb.png 2"});
  write_list("task/test.txt", {"photo.jpg 0", "png_rgb.png 1"});
  write_list_recipe();
  const Json line =
      checked(load_suite(write_suite("", R"({"name": "a", "recipe": "lists.json"})")));
  EXPECT_EQ(line["splits"]["train"]["kinds"], (Json{{"JPEG", 2}, {"PNG", 1}}));
  ASSERT_EQ(line["warnings"].size(), 1u);
  EXPECT_TRUE(line["warnings"][0].get<std::string>().starts_with(
      "a data.train: 1 of 3 images are JPEG of at most 64 pixels"))
      << line["warnings"][0];
}

/// Five runs in two groups, and one without a group, with two seeds.
Suite table_suite() {
  Suite suite;
  suite.config.seeds = {1, 2};
  suite.config.about.expected = "as the paper says";
  for (const auto& [name, group, published] :
       {std::tuple{"a", "One", 0.5}, {"b", "One", 0.7}, {"c", "Two", 0.9}, {"d", "", 0.0}})
    suite.config.runs.push_back(
        {.name = name, .group = group, .recipe = "r.json", .published = published, .images = {}});
  return suite;
}

std::vector<SuiteRow> table_rows() {
  return {{.seeds = {{1, {0.4, 0.45}}, {2, {0.6, 0.65}}}, .failures = {}, .missing = {}},
          {.seeds = {{1, {0.8, 0.8}}, {2, {0.8, 0.9}}}, .failures = {}, .missing = {}},
          {.seeds = {{1, {0.9, 0.9}}, {2, {0.7, 0.7}}}, .failures = {}, .missing = {}},
          {.seeds = {{1, {0.2, {}}}, {2, {0.2, {}}}}, .failures = {}, .missing = {}}};
}

const TableLine& line_of(const std::vector<TableLine>& table, const std::string& name) {
  for (const TableLine& line : table)
    if (line.name == name) return line;
  ADD_FAILURE() << "no line " << name;
  return table.front();
}

TEST(SuiteTable, HoldsMeansAndDeviationsOverSeedsOfRunsGroupsAndAll) {
  const std::vector<TableLine> table = suite_table(table_suite(), table_rows());
  ASSERT_EQ(table.size(), 8u);
  const TableLine& a = line_of(table, "a");
  EXPECT_NEAR(a.last->mean, 0.5, 1e-12);
  EXPECT_NEAR(*a.last->deviation, std::sqrt(0.02), 1e-12);  // of a sample: divided by n - 1
  EXPECT_NEAR(a.best_on_test->mean, 0.55, 1e-12);
  EXPECT_EQ(a.published, 0.5);
  // Seeds of group One: (0.4 + 0.8) / 2 = 0.6 and (0.6 + 0.8) / 2 = 0.7.
  const TableLine& one = line_of(table, "mean of One");
  EXPECT_NEAR(one.last->mean, 0.65, 1e-12);
  EXPECT_NEAR(*one.last->deviation, std::sqrt(0.005), 1e-12);
  EXPECT_NEAR(one.published, 0.6, 1e-12);
  EXPECT_TRUE(one.complete);
  // Seeds over the groups: (0.6 + 0.9) / 2 = 0.75 and (0.7 + 0.7) / 2 = 0.7.
  const TableLine& groups = line_of(table, "mean of the group means");
  EXPECT_NEAR(groups.last->mean, 0.725, 1e-12);
  EXPECT_NEAR(*groups.last->deviation, std::sqrt(0.00125), 1e-12);
  EXPECT_NEAR(groups.best_on_test->mean, 0.75, 1e-12);
  EXPECT_NEAR(groups.published, 0.75, 1e-12);
  EXPECT_TRUE(groups.complete);
  // The run without a group enters this alone; it has no best and no published figure.
  const TableLine& all = line_of(table, "mean over all runs");
  EXPECT_NEAR(all.last->mean, 0.575, 1e-12);
  EXPECT_FALSE(all.best_on_test);
  EXPECT_EQ(all.published, 0);
  EXPECT_FALSE(line_of(table, "d").best_on_test);
}

TEST(SuiteTable, LabelsMeansThatLackRuns) {
  std::vector<SuiteRow> rows = table_rows();
  rows[1].seeds.erase(2);
  rows[1].failures[2] = "why";
  rows[3] = {.seeds = {}, .failures = {}, .missing = "/data/d/test.txt"};
  const std::vector<TableLine> table = suite_table(table_suite(), rows);
  EXPECT_EQ(line_of(table, "b").status, "failed: 1 of 2 seeds");
  EXPECT_NEAR(line_of(table, "b").last->mean, 0.8, 1e-12);
  EXPECT_EQ(line_of(table, "d").status, "no data");
  EXPECT_FALSE(line_of(table, "d").last);
  const TableLine& one = line_of(table, "mean of One");
  EXPECT_EQ(one.status, "incomplete: 1 of 2 runs");
  EXPECT_NEAR(one.last->mean, 0.5, 1e-12);
  EXPECT_NEAR(one.published, 0.5, 1e-12);  // of the same run
  EXPECT_EQ(line_of(table, "mean of the group means").status, "incomplete: 2 of 3 runs");
  EXPECT_EQ(line_of(table, "mean over all runs").status, "incomplete: 2 of 4 runs");
  for (SuiteRow& row : rows) row.seeds.clear();
  for (const TableLine& line : suite_table(table_suite(), rows)) {
    EXPECT_FALSE(line.complete) << line.name;
    EXPECT_FALSE(line.last) << line.name;
  }
}

TEST(SuiteTable, HasNoBestOfRunsOfWhichOneDidNotLook) {
  for (const size_t without : {0, 1}) {
    std::vector<SuiteRow> rows = table_rows();
    for (auto& [seed, scores] : rows[without].seeds) scores.best_on_test.reset();
    const std::vector<TableLine> table = suite_table(table_suite(), rows);
    EXPECT_NEAR(line_of(table, "mean of One").last->mean, 0.65, 1e-12);
    EXPECT_FALSE(line_of(table, "mean of One").best_on_test);
    EXPECT_FALSE(line_of(table, "mean of the group means").best_on_test);
    EXPECT_TRUE(line_of(table, "mean of Two").best_on_test);
  }
}

TEST(SuiteTable, IsWrittenAsCsvMarkdownAndJson) {
  Suite suite = table_suite();
  suite.config.runs[3].group = "a,\"b\" | c";
  const std::vector<TableLine> table = suite_table(suite, table_rows());
  const std::string csv = table_csv(table);
  EXPECT_NE(csv.find("run,a,One,0.500000,0.141421,0.550000,0.141421,0.500000,true,2 of 2 seeds\n"),
            std::string::npos)
      << csv;
  EXPECT_NE(csv.find("run,d,\"a,\"\"b\"\" | c\",0.200000,0.000000,,,,true,"), std::string::npos)
      << csv;
  const std::string markdown = table_markdown(suite, table);
  EXPECT_NE(markdown.find("| a | One | 50.00 ± 14.14 | 55.00 ± 14.14 | 50.00 | 2 of 2 seeds |"),
            std::string::npos)
      << markdown;
  EXPECT_NE(markdown.find("| d | a,\"b\" \\| c |"), std::string::npos) << markdown;
  EXPECT_NE(markdown.find("is not comparable with `last`"), std::string::npos);
  EXPECT_NE(markdown.find("as the paper says"), std::string::npos);
  const Json json = Json::parse(table_json(table).dump());
  EXPECT_EQ(json[0]["name"], "a");
  EXPECT_NEAR(json[0]["last"]["std"].get<double>(), std::sqrt(0.02), 1e-12);
  EXPECT_TRUE(json[3]["best_on_test"].is_null());
  EXPECT_TRUE(json[3]["published"].is_null());
}

}  // namespace
}  // namespace convpass
