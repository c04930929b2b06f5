#include <array>
#include <nlohmann/json.hpp>

#include "convpass/core/error.h"
#include "convpass/train/progress.h"
#include "convpass/train/suite.h"
#include "src/data/image_survey.h"
#include "src/train/splits.h"

namespace convpass {
namespace {

namespace fs = std::filesystem;
using OrderedJson = nlohmann::ordered_json;

struct PathsOf {
  std::vector<fs::path> operator()(const FolderSource& source) const { return {source.path}; }
  std::vector<fs::path> operator()(const ListSource& source) const { return {source.path}; }
  std::vector<fs::path> operator()(const IdxSource& source) const {
    return {source.images, source.labels};
  }
  std::vector<fs::path> operator()(const CifarSource& source) const { return {source.path}; }
  std::vector<fs::path> operator()(const NpzSource& source) const { return {source.path}; }
  std::vector<fs::path> operator()(const ImagesSource& source) const { return {source.path}; }
  std::vector<fs::path> operator()(const HeldOutSource&) const { return {}; }  // data.train's
};

std::string first_missing(const DataConfig& data) {
  for (const auto* split : {&data.train, &data.val, &data.test}) {
    if (!*split) continue;
    for (const fs::path& path : std::visit(PathsOf{}, (*split)->source))
      if (std::error_code none; !fs::exists(path, none)) return path.string();
  }
  return {};
}

OrderedJson survey_split(const Dataset& dataset, const std::string& what, SuiteData& data) {
  Progress progress("headers of " + what, dataset.size(), "image");
  const std::optional<ImageSurvey> survey = survey_images(dataset, 0, [&](int64_t done) {
    progress.update(done);
    return !stop_requested();
  });
  OrderedJson json = OrderedJson::object();
  if (!survey) return json;
  progress.finish();
  json["kinds"] = survey->kinds;
  json["least_side"] = survey->least_side;
  json["greatest_side"] = survey->greatest_side;
  if (survey->broken > 0 && data.fault.empty())
    data.fault = what + ": " + std::to_string(survey->broken) + " of " +
                 std::to_string(survey->images) +
                 " images cannot be read, the first: " + survey->first_broken;
  if (const std::string text = warning(*survey); !text.empty())
    data.warnings.push_back(what + ": " + text);
  return json;
}

/// The number of images must be the expected one where all of them, and no others, are taken.
std::string wrong_count(const Recipe& recipe, Split part, const DatasetConfig& config,
                        int64_t expected, const Dataset& dataset, const std::string& what) {
  const DataConfig& data = recipe.data;
  const bool held_out = data.val && std::holds_alternative<HeldOutSource>(data.val->source);
  const bool moved = part != Split::test && (held_out || data.train_on_val);
  const bool all = config.limit == 0 && config.per_class == 0 && !moved;
  if (expected == 0 || !all || dataset.size() == expected) return {};
  return what + ": got " + std::to_string(dataset.size()) + " images, wanted " +
         std::to_string(expected);
}

}  // namespace

SuiteData check_suite_data(const Suite& suite, size_t run, bool look) {
  const SuiteRun& entry = suite.config.runs[run];
  const Recipe& recipe = suite.recipes[run];
  SuiteData data{.missing = first_missing(recipe.data), .fault = {}, .line = {}, .warnings = {}};
  OrderedJson splits = OrderedJson::object();
  if (data.missing.empty()) try {
      auto add = [&](Split part, const std::optional<DatasetConfig>& config, int64_t expected) {
        if (!config || (part == Split::val && recipe.data.train_on_val)) return;
        const std::string name = std::array{"train", "val", "test"}[static_cast<size_t>(part)];
        const std::string what = entry.name + " data." + name;
        const auto dataset = open_split(recipe, part, recipe.data.classes);
        OrderedJson& split = splits[name];
        split["images"] = dataset->size();
        split["classes"] = dataset->classes().size();
        if (data.fault.empty())
          data.fault = wrong_count(recipe, part, *config, expected, *dataset, what);
        if (look) split.update(survey_split(*dataset, what, data));
      };
      add(Split::train, recipe.data.train, entry.images.train);
      add(Split::val, recipe.data.val, entry.images.val);
      add(Split::test, recipe.data.test, entry.images.test);
    } catch (const Error& error) {
      data.fault = entry.name + ": " + error.what();
    }
  OrderedJson line{{"name", entry.name},
                   {"group", entry.group},
                   {"present", data.missing.empty()},
                   {"whole", data.missing.empty() && data.fault.empty()},
                   {"splits", splits}};
  if (!data.missing.empty()) line["missing"] = data.missing;
  if (!data.fault.empty()) line["fault"] = data.fault;
  if (!data.warnings.empty()) line["warnings"] = data.warnings;
  data.line = line.dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
  return data;
}

}  // namespace convpass
