#include <c10/util/Exception.h>

#include <fstream>
#include <new>
#include <nlohmann/json.hpp>

#include "convpass/core/error.h"
#include "convpass/core/file.h"
#include "convpass/train/progress.h"
#include "convpass/train/suite.h"
#include "convpass/train/trainer.h"
#include "src/train/suite_table.h"

namespace convpass {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

/// The folder's name need not be UTF-8.
std::string one_line_json(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

/// What stands in the way of any run: weights and data, looked at before the first step of all.
/// Returns the rows, with those marked whose data is missing and which the suite skips.
std::vector<SuiteRow> begin_rows(const Suite& suite) {
  std::vector<SuiteRow> rows(suite.recipes.size());
  std::string missing;
  size_t missing_count = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    const Recipe& recipe = suite.recipes[i];
    const fs::path& weights = recipe.backbone.weights;
    if (!weights.empty() && !fs::exists(weights))
      throw RecipeError(recipe.where("/backbone/weights"), "/backbone/weights",
                        "no such file, got " + weights.string() + ", wanted a checkpoint");
    const SuiteData data = check_suite_data(suite, i, /*look=*/false);
    if (!data.fault.empty()) throw FileError(suite.file, data.fault);
    if (data.missing.empty()) continue;
    rows[i].missing = data.missing;
    const std::string& name = suite.config.runs[i].name;
    missing += (missing_count++ == 0 ? "" : ", ") + name + " (" + data.missing + ")";
  }
  if (missing_count == 0) return rows;
  const std::string what = "the data of " + std::to_string(missing_count) + " of " +
                           std::to_string(rows.size()) + " runs is missing: " + missing;
  if (suite.config.missing == MissingData::stop)
    throw FileError(suite.file, what + "; \"missing\": \"skip\" leaves them out");
  if (missing_count == rows.size()) throw FileError(suite.file, what);
  say(suite.file.string() + ": " + what + "; left out");
  return rows;
}

/// Trains the runs one after the other and keeps the table.
class SuiteRunner {
 public:
  SuiteRunner(const Suite& suite, fs::path out,
              const std::function<void(const std::string&)>& report)
      : suite_(suite), out_(std::move(out)), report_(report), rows_(begin_rows(suite)) {
    std::error_code failure;
    fs::create_directories(out_, failure);
    if (!fs::is_directory(out_))
      throw FileError(out_, "cannot be made the folder of a suite: " +
                                (failure ? failure.message() : std::string("not a directory")));
    if (fs::exists(out_ / "recipe.json"))
      throw FileError(out_, "holds a run, wanted a folder for a suite");
    lock_.emplace(out_);
    remove_leftovers(out_);
  }

  SuiteOutcome run() {
    const size_t seeds = suite_.config.seeds.size();
    recall();
    for (size_t i = 0; i < rows_.size(); ++i) {
      if (!rows_[i].missing.empty()) continue;
      cache_ = shared_cache(suite_.recipes[i].data, out_);
      for (size_t s = 0; s < seeds; ++s) {
        say("suite: run " + std::to_string(i * seeds + s + 1) + " of " +
            std::to_string(rows_.size() * seeds) + ": " + suite_.config.runs[i].name + ", seed " +
            std::to_string(suite_.config.seeds[s]));
        outcome_.stopped = stop_requested() || !run_seed(i, suite_.config.seeds[s]);
        write_table();
        if (outcome_.stopped) return outcome_;
      }
    }
    write_table();
    outcome_.summary_json = summary();
    return outcome_;
  }

 private:
  fs::path folder_of(size_t index, int64_t seed) const {
    return out_ / suite_.config.runs[index].name / ("seed" + std::to_string(seed));
  }

  /// What is finished stands in the table even if this call is stopped before it comes to it. What
  /// is wrong with it is found when it does.
  void recall() {
    for (size_t i = 0; i < rows_.size(); ++i)
      for (int64_t seed : suite_.config.seeds) try {
          std::ifstream in(folder_of(i, seed) / "result.json");
          const Json result = Json::parse(in, nullptr, /*allow_exceptions=*/false);
          if (result.is_object() && rows_[i].missing.empty())
            rows_[i].seeds[seed] = scores_of(result, folder_of(i, seed));
        } catch (const Error&) {
        }
  }

  /// False when a signal stopped it.
  bool run_seed(size_t index, int64_t seed) {
    const SuiteRun& entry = suite_.config.runs[index];
    const fs::path folder = folder_of(index, seed);
    Recipe recipe = suite_.recipes[index];
    recipe.train.seed = seed;
    recipe.given["/train/seed"] = suite_.file;
    std::string failure;
    try {
      // A folder without a recipe is that of a run that never began.
      const TrainOutcome trained =
          train(recipe, folder, {.resume = fs::exists(folder / "recipe.json"), .cache = cache_});
      if (!trained.finished) return false;
      Json line{{"name", entry.name}, {"seed", seed}};
      line.update(Json::parse(trained.result_json));
      rows_[index].seeds[seed] = scores_of(line, folder);
      report_(one_line_json(line));
      return true;
    } catch (const Error& error) {
      failure = error.what();
    } catch (const std::bad_alloc&) {
      failure = our_fault("out of memory");
    } catch (const c10::Error& error) {
      failure = our_fault(error.what_without_backtrace());
    } catch (const std::exception& error) {
      failure = our_fault(error.what());
    }
    ++outcome_.failed;
    rows_[index].seeds.erase(seed);
    rows_[index].failures[seed] = failure;
    say("suite: " + entry.name + ", seed " + std::to_string(seed) + ": " + failure);
    report_(one_line_json({{"name", entry.name}, {"seed", seed}, {"error", failure}}));
    return true;
  }

  std::string our_fault(const std::string& text) {
    outcome_.our_fault = true;
    return "internal error: " + text.substr(0, text.find('\n'));
  }

  static SeedScores scores_of(const Json& result, const fs::path& folder) {
    auto top1 = [&](const char* key) -> std::optional<double> {
      auto found = result.find(key);
      if (found == result.end() || !found->is_object()) return std::nullopt;
      auto value = found->find("top1");
      if (value == found->end() || !value->is_number()) return std::nullopt;
      return value->get<double>();
    };
    const std::optional<double> last = top1("last");
    if (!last) throw FileError(folder / "result.json", "got no last.top1, wanted a finished run's");
    return {.last = *last, .best_on_test = top1("best_on_test")};
  }

  void write_table() const {
    const std::vector<TableLine> table = suite_table(suite_, rows_);
    Json json{{"suite", suite_.file.filename().string()},
              {"seeds", suite_.config.seeds},
              {"last", "top-1 on data.test after the last epoch"},
              {"best_on_test",
               "best of the looks during training, chosen on the test split: not comparable"},
              {"published", suite_.config.about.expected},
              {"lines", table_json(table)},
              {"failures", Json::array()}};
    for (size_t i = 0; i < rows_.size(); ++i)
      for (const auto& [seed, why] : rows_[i].failures)
        json["failures"].push_back(
            {{"name", suite_.config.runs[i].name}, {"seed", seed}, {"error", why}});
    write_atomically(out_ / "table.csv", table_csv(table));
    write_atomically(out_ / "table.md", table_markdown(suite_, table));
    write_atomically(out_ / "table.json",
                     json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
  }

  std::string summary() const {
    size_t finished = 0, skipped = 0;
    for (const SuiteRow& row : rows_) {
      finished += row.seeds.size();
      skipped += row.missing.empty() ? 0 : suite_.config.seeds.size();
    }
    Json means = Json::array();
    for (const Json& line : table_json(suite_table(suite_, rows_)))
      if (line["kind"] != "run") means.push_back(line);
    return one_line_json({{"suite", suite_.file.string()},
                          {"out", out_.string()},
                          {"finished", finished},
                          {"failed", outcome_.failed},
                          {"skipped", skipped},
                          {"means", means}});
  }

  const Suite& suite_;
  const fs::path out_;
  const std::function<void(const std::string&)>& report_;
  std::vector<SuiteRow> rows_;
  std::optional<FolderLock> lock_;
  std::shared_ptr<RunCache> cache_;  ///< of the seeds of one run
  SuiteOutcome outcome_;
};

}  // namespace

SuiteOutcome run_suite(const Suite& suite, const fs::path& out,
                       const std::function<void(const std::string&)>& report) {
  return SuiteRunner(suite, out, report).run();
}

}  // namespace convpass
