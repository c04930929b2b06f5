#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "convpass/train/recipe.h"

namespace convpass {

/// How many images the splits of a run have where they are whole; 0 = not known.
struct SuiteImages {
  int64_t train = 0, val = 0, test = 0;
};

/// One row of the table: a recipe, trained once for each seed.
struct SuiteRun {
  std::string name;   ///< of the row and of its folder
  std::string group;  ///< whose mean the row enters; empty = none
  std::filesystem::path recipe;
  double published = 0;  ///< top-1 that its source reports, a fraction; 0 = none
  SuiteImages images;
};

/// What to do about a run whose data is not there.
enum class MissingData { stop, skip };

struct SuiteConfig {
  AboutConfig about;
  std::vector<int64_t> seeds{42};
  MissingData missing = MissingData::stop;
  std::vector<SuiteRun> runs;
};

void fields(FieldVisitor& visitor, SuiteImages& images);
void fields(FieldVisitor& visitor, SuiteRun& run);
void fields(FieldVisitor& visitor, SuiteConfig& config);

/// A suite file with its recipes resolved.
struct Suite {
  std::filesystem::path file;
  SuiteConfig config;
  std::vector<Recipe> recipes;  ///< of config.runs, in their order
};

/// Whether `file` is the JSON of a suite, which has "runs", and not that of a recipe. False for
/// what cannot be read.
bool is_suite(const std::filesystem::path& file);

/// Reads a suite and its recipes, over each of which the suite's `set` is laid and then `sets`.
/// Every run needs data.test and select "last", since that is what the table reports. Errors:
/// RecipeError, FileError, UsageError.
Suite load_suite(const std::filesystem::path& file, const std::vector<std::string>& sets = {});

/// What is there of the data of `suite.config.runs[run]`.
struct SuiteData {
  std::string missing;  ///< the first file or folder that is not there, if any
  std::string fault;    ///< else what is wrong: listed images, labels, number of images
  std::string line;     ///< JSON, one line: splits with their counts, kinds and sizes of images
  std::vector<std::string> warnings;
};
/// `look`: reads the header of every image file too, which finds those that are cut short.
SuiteData check_suite_data(const Suite& suite, size_t run, bool look);

struct SuiteOutcome {
  bool stopped = false;  ///< by a signal; the same call goes on
  int64_t failed = 0;    ///< runs of one seed
  bool our_fault = false;
  std::string summary_json;  ///< the last line of the command line contract
};

/// Trains every run with every seed into `out`/NAME/seedN, each a run folder; what is finished
/// there is left alone and what was begun goes on. `report` gets a JSON line for each that is
/// finished or has failed. After each the table is written anew: `out`/table.csv, table.md and
/// table.json.
///
/// Errors before anything runs: Error for data or weights that are missing or not whole. A run that
/// fails is reported and the others go on.
SuiteOutcome run_suite(const Suite& suite, const std::filesystem::path& out,
                       const std::function<void(const std::string&)>& report);

/// `convpass help suite`, and the JSON Schema of a suite file, which refers to that of a recipe.
std::string suite_help();
std::string suite_schema();

}  // namespace convpass
