#include "src/train/search_file.h"

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "convpass/core/error.h"
#include "convpass/core/file.h"
#include "src/train/made_from.h"

namespace convpass {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kName = "search.json";
constexpr const char* kRule =
    "highest mean top-1 on data.val over the seeds; of equals the lower mean loss, then the "
    "earlier trial";

/// As --set takes it: JSON, else a bare word.
Json value_of(const std::string& text) {
  Json value = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  return value.is_discarded() ? Json(text) : value;
}

Json setting_json(const Setting& setting) {
  Json json = Json::object();
  for (const auto& [key, value] : setting) json[key] = value_of(value);
  return json;
}

/// All that makes it this search: a search of another plan is not gone on with.
Json plan_json(const SearchPlan& plan) {
  Json over = Json::object(), trials = Json::array();
  for (const SearchAxis& axis : plan.options.axes) {
    over[axis.key] = Json::array();
    for (const std::string& value : axis.values) over[axis.key].push_back(value_of(value));
  }
  for (const SearchPlan::Trial& trial : plan.trials) trials.push_back(recipe_hash(trial.recipe));
  return {{"recipe", recipe_hash(plan.recipe)}, {"over", over},
          {"seeds", plan.options.seeds},        {"random", plan.options.random},
          {"halving", plan.options.halving},    {"trials", trials}};
}

Json run_json(const TrialRun& run, const std::vector<double>& rungs) {
  Json scores = Json::array();
  for (size_t i = 0; i < run.scores.size(); ++i)
    scores.push_back({{"trained", rungs[i]},
                      {"images", run.scores[i].images},
                      {"right", run.scores[i].right},
                      {"loss", run.scores[i].loss}});
  return {{"seed", run.seed}, {"val", scores}, {"diverged", run.diverged}};
}

/// Throws nlohmann's exceptions for what is not as run_json() writes it.
void read_run(const Json& json, size_t rungs, TrialRun& run) {
  run.diverged = json.at("diverged").get<bool>();
  const Json& scores = json.at("val");
  if (json.at("seed").get<int64_t>() != run.seed || !scores.is_array() || scores.size() > rungs)
    throw Error("a run of another plan");
  for (const Json& score : scores) {
    ValScore read{score.at("images").get<int64_t>(), score.at("right").get<int64_t>(),
                  score.at("loss").get<double>()};
    if (read.images <= 0 || read.right < 0 || read.right > read.images || !std::isfinite(read.loss))
      throw Error("a score that cannot be");
    run.scores.push_back(read);
  }
}

}  // namespace

std::string trial_json(const Trial& trial, const SearchPlan& plan) {
  Json json{{"trial", trial.number}, {"setting", setting_json(trial.setting)}};
  const size_t rungs = trial.rungs();
  json["trained"] = rungs > 0 ? plan.rungs()[rungs - 1] : 0.0;
  json["val"] = nullptr;
  if (!trial.diverged() && rungs > 0) {
    const size_t last = rungs - 1;
    Json seeds = Json::array();
    for (const TrialRun& run : trial.runs) {
      const ValScore& score = run.scores[last];
      seeds.push_back(static_cast<double>(score.right) / static_cast<double>(score.images));
    }
    json["val"] = {{"top1", trial.top1(last)},
                   {"top1_std", trial.deviation(last)},  // NaN is written as null
                   {"loss", trial.loss(last)},
                   {"images", trial.runs.front().scores[last].images},
                   {"per_seed", seeds}};
  }
  json["diverged"] = trial.diverged();
  // What the command line gave need not be UTF-8.
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

SearchFile::SearchFile(std::filesystem::path folder, const SearchPlan& plan, bool resume)
    : folder_(std::move(folder)), plan_(plan) {
  for (const SearchPlan::Trial& trial : plan.trials) {
    trials_.push_back({.number = std::ssize(trials_), .setting = trial.setting, .runs = {}});
    for (int64_t i = 0; i < plan.options.seeds; ++i)
      trials_.back().runs.push_back({.seed = plan.recipe.train.seed + i});
  }
  std::error_code failure;
  made_ = std::filesystem::create_directories(folder_, failure);
  if (!std::filesystem::is_directory(folder_))
    throw FileError(folder_, "cannot be made the folder of a search: " +
                                 (failure ? failure.message() : std::string("not a directory")));
  lock_.emplace(folder_);
  remove_leftovers(folder_);
  const std::filesystem::path file = folder_ / kName;
  std::ifstream in(file);
  if (!in) {
    for (const char* name : {"trials", "final", "recipe.json"})
      if (std::filesystem::exists(folder_ / name))
        throw FileError(folder_, std::string("has ") + name +
                                     " and no search.json: it holds something else, wanted another "
                                     "--out");
    return;
  }
  began_ = true;
  if (!resume)
    throw FileError(folder_, "holds a search already: give --resume to go on, or another --out");
  const Json json = Json::parse(in, nullptr, /*allow_exceptions=*/false);
  try {
    const std::string differs = difference(MadeFrom(plan_json(plan)), MadeFrom(json.at("plan")));
    if (!differs.empty())
      throw FileError(file, "is of another search, which goes on as it began: " + differs);
    const Json& trials = json.at("trials");
    for (Trial& trial : trials_)
      for (size_t i = 0; i < trial.runs.size(); ++i)
        read_run(trials.at(static_cast<size_t>(trial.number)).at("runs").at(i), plan.rungs().size(),
                 trial.runs[i]);
  } catch (const FileError&) {
    throw;
  } catch (const std::exception& error) {
    throw FileError(file,
                    std::string("is damaged, wanted what convpass search writes: ") + error.what());
  }
}

SearchFile::~SearchFile() {
  if (began_) return;
  std::error_code ignored;
  for (const char* begun : {"trials", "final"})
    if (std::filesystem::exists(folder_ / begun, ignored)) return;
  std::filesystem::remove(folder_ / kName, ignored);
  if (made_) std::filesystem::remove(folder_, ignored);
}

void SearchFile::save(const SearchOutcome& outcome) const {
  Json trials = Json::array();
  for (const Trial& trial : outcome.trials) {
    Json json = Json::parse(trial_json(trial, plan_));
    json["runs"] = Json::array();
    for (const TrialRun& run : trial.runs) json["runs"].push_back(run_json(run, plan_.rungs()));
    trials.push_back(json);
  }
  Json chosen = nullptr, last = nullptr;
  if (outcome.chosen >= 0) {
    const Trial& trial = outcome.trials[static_cast<size_t>(outcome.chosen)];
    chosen = {{"trial", trial.number},
              {"setting", setting_json(trial.setting)},
              {"reason", outcome.reason}};
  }
  if (!outcome.final_json.empty()) {
    const Json result = Json::parse(outcome.final_json);
    last = {{"run", "final"}, {"seed", plan_.recipe.train.seed}, {"test", result.at("test")}};
  }
  const Json json{{"plan", plan_json(plan_)},
                  {"rule", kRule},
                  {"trials", trials},
                  {"chosen", chosen},
                  {"final", last}};
  write_atomically(folder_ / kName,
                   json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n");
}

}  // namespace convpass
