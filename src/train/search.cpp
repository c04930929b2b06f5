#include "convpass/train/search.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "convpass/core/error.h"
#include "convpass/core/json.h"
#include "convpass/train/progress.h"
#include "convpass/train/trainer.h"
#include "src/train/run_cache.h"
#include "src/train/search_file.h"
#include "src/train/splits.h"
#include "src/train/trial_grid.h"

namespace convpass {
namespace {

namespace fs = std::filesystem;

std::string text_of(const Setting& setting) {
  std::string text;
  for (const auto& [key, value] : setting) text += (text.empty() ? "" : " ") + key + "=" + value;
  return text;
}

/// Trials are compared on the same images after the same draws.
void check_axis(const SearchAxis& axis) {
  const std::string part = axis.key.substr(0, axis.key.find('.'));
  if (part == "data" || part == "select")
    throw UsageError("--over " + axis.key +
                     ": trials are compared on the same images; --set sets " + part +
                     " for all of them");
  if (axis.key == "train.seed")
    throw UsageError("--over train.seed: a seed is not chosen; --seeds N runs each trial N times");
}

void check_base(const Recipe& recipe) {
  auto require = [&](bool holds, const std::string& pointer, const std::string& what) {
    if (!holds) throw RecipeError(recipe.where(pointer), pointer, what);
  };
  require(recipe.data.val.has_value(), "/data/val",
          "missing, wanted images to choose by, such as {\"format\": \"held_out\", \"fraction\": "
          "0.2}, a part of data.train; the test split never chooses");
  require(!recipe.data.train_on_val, "/data/train_on_val",
          "got true, wanted false: trials are compared on data.val, and the last run trains on it "
          "by itself");
  require(
      recipe.select == SelectRule::last, "/select",
      "got \"best_val\", wanted \"last\": the last run trains on data.val too and has nothing to "
      "choose an epoch by");
  require(recipe.distill.store.file.empty(), "/distill/store/file",
          "got a file, wanted none: every seed meets the images in another order");
}

/// Where two data sets hold the same image it has the same name there.
std::string place_of(const Dataset& dataset, int64_t index) {
  const std::string name = dataset.name(index);
  const fs::path file = file_of(name);
  std::error_code none;
  const fs::path whole = fs::weakly_canonical(file, none);
  return (none ? file : whole).string() + name.substr(file.string().size());
}

/// Errors: RecipeError where an image to train on or to choose by is one of the test split.
void check_test_apart(const Recipe& recipe) {
  if (!recipe.data.test) {
    say("no data.test: the last run will not be evaluated");
    return;
  }
  std::set<std::string> tested;
  const auto test = open_split(recipe, Split::test, recipe.data.classes);
  for (int64_t i = 0; i < test->size(); ++i) tested.insert(place_of(*test, i));
  for (const auto& [split, name] : {std::pair{Split::val, "val"}, {Split::train, "train"}}) {
    const auto dataset = open_split(recipe, split, recipe.data.classes);
    int64_t shared = 0;
    std::string first;
    for (int64_t i = 0; i < dataset->size(); ++i) {
      if (!tested.contains(place_of(*dataset, i))) continue;
      if (shared++ == 0) first = dataset->name(i);
    }
    if (shared > 0)
      throw RecipeError(recipe.where("/data/test"), "/data/test",
                        "got " + std::to_string(shared) + " of the " +
                            std::to_string(dataset->size()) + " images of data." + name +
                            " again, the first " + first +
                            ", wanted others: the test split never chooses");
  }
}

SearchPlan::Trial trial_of(const fs::path& file, std::vector<std::string> sets,
                           const Setting& setting) {
  for (const auto& [key, value] : setting) sets.push_back(key + "=" + value);
  try {
    SearchPlan::Trial trial{setting, load_recipe(file, sets)};
    validate(trial.recipe, /*needs_data=*/true);
    trial.recipe.data.test.reset();
    trial.recipe.train.best_on_test_every = 0;  // the chosen one sees the test split once
    return trial;
  } catch (const Error& error) {
    throw Error("--over " + text_of(setting) + ": " + error.what());
  }
}

/// So that a setting that no model can have is told before any trial has been trained. Errors:
/// Error.
void check_models(const SearchPlan& plan, LoadedCheckpoint& checkpoint) {
  const auto train = open_split(plan.recipe, Split::train, plan.recipe.data.classes);
  const auto classes = std::ssize(train->classes());
  if (classes == 0) return;  // teachers name them
  std::set<std::string> built;
  for (const SearchPlan::Trial& trial : plan.trials) {
    Recipe model = trial.recipe;
    model.optimizer = {};
    model.schedule = {};
    model.loss = {};
    model.augment = {};
    if (!built.insert(recipe_hash(model)).second) continue;
    try {
      build_model(trial.recipe, classes, &checkpoint);
    } catch (const Error& error) {
      throw Error("--over " + text_of(trial.setting) + ": " + error.what());
    }
  }
}

/// On the weights that a run keeps, as its log's last line has it. Errors: DivergedError where the
/// loss on val is not finite.
ValScore last_score(const fs::path& run, const Recipe& recipe) {
  const fs::path file = run / "log.jsonl";
  std::ifstream in(file);
  std::string last;
  for (std::string line; std::getline(in, line);) last = line;
  try {
    const auto json = nlohmann::json::parse(last);
    const auto& val = json.at(recipe.train.ema.decay > 0 ? "val_average" : "val");
    if (val.at("loss").is_null())
      throw DivergedError(run.string() + ": the loss on val is not finite");
    ValScore score{val.at("images").get<int64_t>(), 0, val.at("loss").get<double>()};
    score.right = std::llround(val.at("top1").get<double>() * static_cast<double>(score.images));
    return score;
  } catch (const nlohmann::json::exception& error) {
    throw FileError(file, std::string("its last line has no evaluation on val: ") + error.what());
  }
}

/// Whether `a` is chosen before `b`.
bool better(const Trial& a, const Trial& b, size_t rung) {
  if (a.diverged(rung) || b.diverged(rung)) {
    if (a.diverged(rung) && b.diverged(rung)) return a.number < b.number;
    return b.diverged(rung);
  }
  if (a.right(rung) != b.right(rung)) return a.right(rung) > b.right(rung);
  if (a.loss(rung) != b.loss(rung)) return a.loss(rung) < b.loss(rung);
  return a.number < b.number;
}

/// `next`: the second best, or null.
std::string reason_for(const Trial& best, const Trial* next, size_t rung) {
  char text[200];
  std::snprintf(text, sizeof text, "mean top-1 %.4f on data.val over %zd seed%s", best.top1(rung),
                std::ssize(best.runs), best.runs.size() == 1 ? "" : "s");
  std::string reason = text;
  if (!next) return reason + ", the only trial that was trained to its end";
  const auto number = static_cast<long long>(next->number);
  if (best.right(rung) != next->right(rung)) {
    std::snprintf(text, sizeof text, ", the highest; next is trial %lld with %.4f", number,
                  next->top1(rung));
    return reason + text;
  }
  std::snprintf(text, sizeof text, ", equal to trial %lld, whose mean loss is %s (%.4f, %.4f)",
                number,
                best.loss(rung) == next->loss(rung) ? "equal too and which stands later" : "higher",
                best.loss(rung), next->loss(rung));
  return reason + text;
}

class Search {
 public:
  Search(const SearchPlan& plan, fs::path out, const SearchFile& file,
         const std::function<void(const Trial&)>& ended)
      : plan_(plan),
        out_(std::move(out)),
        file_(file),
        ended_(ended),
        cache_(shared_cache(plan.recipe.data, out_)) {
    outcome_.trials = file.trials();
    check_models(plan, cache_->checkpoint());
  }

  SearchOutcome run() {
    file_.save(outcome_);
    say(std::to_string(plan_.trials.size()) + " trials, each with " +
        std::to_string(plan_.options.seeds) + (plan_.options.seeds == 1 ? " seed" : " seeds") +
        ", in " + out_.string());
    for (Trial& trial : outcome_.trials) alive_.push_back(&trial);
    const size_t rungs = plan_.rungs().size();
    for (size_t rung = 0; rung < rungs; ++rung)
      if (!climb(rung, rung + 1 == rungs)) return outcome_;
    choose();
    outcome_.finished = train_chosen();
    return outcome_;
  }

 private:
  /// Brings all that are left to a rung and lets the better half of them go on. False when a signal
  /// stopped it.
  bool climb(size_t rung, bool last) {
    for (Trial* trial : alive_) {
      if (!bring(*trial, rung)) return false;
      if (last) ended_(*trial);
    }
    std::sort(alive_.begin(), alive_.end(),
              [&](const Trial* a, const Trial* b) { return better(*a, *b, rung); });
    if (alive_.front()->diverged(rung))
      throw Error("search: every trial diverged, wanted one whose loss stays finite");
    if (last) return true;
    std::vector<Trial*> all = std::move(alive_);
    alive_.assign(all.begin(), all.begin() + (std::ssize(all) + 1) / 2);
    std::erase_if(alive_, [&](const Trial* trial) { return trial->diverged(rung); });
    auto by_number = [](const Trial* a, const Trial* b) { return a->number < b->number; };
    std::sort(alive_.begin(), alive_.end(), by_number);
    std::sort(all.begin(), all.end(), by_number);
    for (const Trial* trial : all)
      if (!std::binary_search(alive_.begin(), alive_.end(), trial, by_number)) ended_(*trial);
    return true;
  }

  /// Trains each seed of a trial as far as the rung. False when a signal stopped it.
  bool bring(Trial& trial, size_t rung) {
    const double share = plan_.rungs()[rung];
    for (TrialRun& run : trial.runs) {
      if (trial.diverged(rung)) return true;  // it is out, whatever its other seeds do
      if (run.scores.size() > rung) continue;
      Recipe recipe = plan_.trials[static_cast<size_t>(trial.number)].recipe;
      recipe.train.seed = run.seed;
      const fs::path folder =
          out_ / "trials" / name_of(trial.number) / ("seed_" + std::to_string(run.seed));
      say("trial " + std::to_string(trial.number) + ", seed " + std::to_string(run.seed) + ": " +
          text_of(trial.setting));
      try {
        const TrainOutcome outcome =
            train(recipe, folder, {.resume = began(folder), .share = share, .cache = cache_});
        if (!outcome.finished && !outcome.paused) return false;
        run.scores.push_back(last_score(folder, recipe));
      } catch (const DivergedError& error) {
        say(error.what());
        run.diverged = true;
      }
      file_.save(outcome_);
    }
    return true;
  }

  void choose() {
    const Trial* next = alive_.size() > 1 && !alive_[1]->diverged() ? alive_[1] : nullptr;
    outcome_.chosen = alive_[0]->number;
    outcome_.reason = reason_for(*alive_[0], next, plan_.rungs().size() - 1);
    file_.save(outcome_);
  }

  /// On train and val, with the recipe's seed; the only run that sees the test split.
  bool train_chosen() {
    Recipe recipe = plan_.trials[static_cast<size_t>(outcome_.chosen)].recipe;
    recipe.data.test = plan_.recipe.data.test;
    recipe.data.train_on_val = true;
    say("chosen: trial " + std::to_string(outcome_.chosen) + ", " + outcome_.reason);
    cache_.reset();  // its images are others, and may need the memory
    const fs::path folder = out_ / "final";
    const TrainOutcome outcome = train(recipe, folder, {.resume = began(folder)});
    if (!outcome.finished) return false;
    outcome_.final_json = outcome.result_json;
    file_.save(outcome_);
    return true;
  }

  static bool began(const fs::path& run) { return fs::exists(run / "recipe.json"); }
  /// As many digits for all of them, so that they are listed in their order.
  std::string name_of(int64_t number) const {
    const std::string text = std::to_string(number);
    return std::string(std::to_string(plan_.trials.size() - 1).size() - text.size(), '0') + text;
  }

  const SearchPlan& plan_;
  fs::path out_;
  const SearchFile& file_;
  const std::function<void(const Trial&)>& ended_;
  std::shared_ptr<RunCache> cache_;  ///< of all trials
  SearchOutcome outcome_;
  std::vector<Trial*> alive_;
};

}  // namespace

std::vector<double> SearchPlan::rungs() const {
  return options.halving ? std::vector{0.25, 0.5, 1.0} : std::vector{1.0};
}

bool Trial::diverged() const {
  return std::any_of(runs.begin(), runs.end(), [](const TrialRun& run) { return run.diverged; });
}

bool Trial::diverged(size_t rung) const {
  return std::any_of(runs.begin(), runs.end(), [&](const TrialRun& run) {
    return run.diverged && run.scores.size() <= rung;
  });
}

size_t Trial::rungs() const {
  size_t least = std::numeric_limits<size_t>::max();
  for (const TrialRun& run : runs) least = std::min(least, run.scores.size());
  return least;
}

int64_t Trial::right(size_t rung) const {
  int64_t sum = 0;
  for (const TrialRun& run : runs) sum += run.scores[rung].right;
  return sum;
}

double Trial::top1(size_t rung) const {
  int64_t images = 0;
  for (const TrialRun& run : runs) images += run.scores[rung].images;
  return static_cast<double>(right(rung)) / static_cast<double>(images);
}

double Trial::loss(size_t rung) const {
  double sum = 0;
  for (const TrialRun& run : runs) sum += run.scores[rung].loss;
  return sum / static_cast<double>(runs.size());
}

double Trial::deviation(size_t rung) const {
  if (runs.size() < 2) return std::numeric_limits<double>::quiet_NaN();
  double squares = 0;
  for (const TrialRun& run : runs) {
    const ValScore& score = run.scores[rung];
    const double top1 = static_cast<double>(score.right) / static_cast<double>(score.images);
    squares += (top1 - this->top1(rung)) * (top1 - this->top1(rung));
  }
  return std::sqrt(squares / static_cast<double>(runs.size() - 1));
}

SearchPlan plan_search(const fs::path& file, const std::vector<std::string>& sets,
                       const SearchOptions& options) {
  if (options.axes.empty())
    throw UsageError("search: wanted --over KEY=VALUE,VALUE,..., the settings to try");
  for (const SearchAxis& axis : options.axes) check_axis(axis);
  SearchPlan plan{.options = options, .recipe = load_recipe(file, sets), .trials = {}};
  validate(plan.recipe, /*needs_data=*/true);
  check_base(plan.recipe);
  std::map<std::string, const Setting*> seen;
  const auto settings = trial_settings(options.axes, options.random, plan.recipe.train.seed);
  for (const Setting& setting : settings) {
    plan.trials.push_back(trial_of(file, sets, setting));
    const auto [same, added] = seen.emplace(recipe_hash(plan.trials.back().recipe), &setting);
    if (!added)
      throw UsageError("--over " + text_of(setting) + ": the same recipe as with " +
                       text_of(*same->second));
  }
  return plan;
}

SearchOutcome search(const SearchPlan& plan, const fs::path& out, bool resume,
                     const std::function<void(const Trial&)>& ended) {
  check_test_apart(plan.recipe);
  const SearchFile file(out, plan, resume);
  return Search(plan, out, file, ended).run();
}

}  // namespace convpass
