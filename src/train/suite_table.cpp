#include "src/train/suite_table.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>

namespace convpass {
namespace {

using Json = nlohmann::ordered_json;

std::optional<Spread> spread(const std::vector<double>& values) {
  if (values.empty()) return std::nullopt;
  const auto count = static_cast<double>(values.size());
  Spread result{.mean = std::accumulate(values.begin(), values.end(), 0.0) / count,
                .deviation = {}};
  if (values.size() < 2) return result;
  double squares = 0;
  for (double value : values) squares += (value - result.mean) * (value - result.mean);
  result.deviation = std::sqrt(squares / (count - 1));
  return result;
}

std::string count_of(size_t number, size_t of, const char* what) {
  return std::to_string(number) + " of " + std::to_string(of) + " " + what + (of == 1 ? "" : "s");
}

std::string status_of(const SuiteRow& row, size_t seeds) {
  if (!row.missing.empty()) return "no data";
  if (!row.failures.empty()) return "failed: " + count_of(row.failures.size(), seeds, "seed");
  return count_of(row.seeds.size(), seeds, "seed");
}

/// The scores of runs that share their seeds: [runs][seeds].
struct Scores {
  std::vector<std::vector<double>> last, best_on_test;
  std::vector<double> published;
  size_t runs = 0;  ///< also those that are not finished
};

/// For each seed the mean over the runs; nothing where a run lacks one.
std::vector<double> mean_over_runs(const std::vector<std::vector<double>>& runs) {
  std::vector<double> means;
  for (const auto& run : runs)
    if (run.size() != runs.front().size()) return means;
  for (size_t seed = 0; !runs.empty() && seed < runs.front().size(); ++seed) {
    double sum = 0;
    for (const auto& run : runs) sum += run[seed];
    means.push_back(sum / static_cast<double>(runs.size()));
  }
  return means;
}

/// 0 where one of them is not known.
double mean_published(const std::vector<double>& published) {
  if (published.empty() || std::find(published.begin(), published.end(), 0.0) != published.end())
    return 0;
  return std::accumulate(published.begin(), published.end(), 0.0) /
         static_cast<double>(published.size());
}

class Summary {
 public:
  Summary(const Suite& suite, const std::vector<SuiteRow>& rows) : suite_(suite), rows_(rows) {}

  std::vector<TableLine> lines() {
    std::vector<TableLine> table;
    std::vector<std::string> groups;
    Scores all;
    std::map<std::string, Scores> by_group;
    for (size_t i = 0; i < rows_.size(); ++i) {
      const SuiteRun& run = suite_.config.runs[i];
      table.push_back(run_line(run, rows_[i]));
      add(all, run, rows_[i]);
      if (run.group.empty()) continue;
      if (std::find(groups.begin(), groups.end(), run.group) == groups.end())
        groups.push_back(run.group);
      add(by_group[run.group], run, rows_[i]);
    }
    Scores means;  // of the groups, as if each were a run
    for (const std::string& group : groups) {
      const Scores& scores = by_group.at(group);
      table.push_back(mean_line("group", "mean of " + group, scores, "run"));
      table.back().group = group;
      means.runs += 1;
      if (scores.last.empty()) continue;
      means.last.push_back(mean_over_runs(scores.last));
      means.best_on_test.push_back(mean_over_runs(scores.best_on_test));
      means.published.push_back(mean_published(scores.published));
    }
    if (!groups.empty()) {
      TableLine line = mean_line("overall", "mean of the group means", means, "group");
      for (const TableLine& other : table)
        if (other.kind == "group" && !other.complete) line.complete = false;
      if (!line.complete)
        line.status = "incomplete: " + count_of(all.last.size(), in_groups(), "run");
      table.push_back(line);
    }
    table.push_back(mean_line("overall", "mean over all runs", all, "run"));
    return table;
  }

 private:
  size_t in_groups() const {
    const auto& runs = suite_.config.runs;
    return static_cast<size_t>(std::count_if(
        runs.begin(), runs.end(), [](const SuiteRun& run) { return !run.group.empty(); }));
  }

  std::optional<Spread> best_of(const SuiteRow& row) const {
    std::vector<double> values;
    for (const auto& [seed, scores] : row.seeds)
      if (scores.best_on_test) values.push_back(*scores.best_on_test);
    return values.size() == row.seeds.size() ? spread(values) : std::nullopt;
  }

  TableLine run_line(const SuiteRun& run, const SuiteRow& row) const {
    std::vector<double> last;
    for (const auto& [seed, scores] : row.seeds) last.push_back(scores.last);
    return {.kind = "run",
            .name = run.name,
            .group = run.group,
            .status = status_of(row, suite_.config.seeds.size()),
            .complete = row.seeds.size() == suite_.config.seeds.size(),
            .last = spread(last),
            .best_on_test = best_of(row),
            .published = run.published};
  }

  /// Adds a run of which every seed is finished.
  void add(Scores& scores, const SuiteRun& run, const SuiteRow& row) const {
    ++scores.runs;
    if (row.seeds.size() < suite_.config.seeds.size()) return;
    std::vector<double> last, best;
    for (const auto& [seed, of_seed] : row.seeds) {
      last.push_back(of_seed.last);
      if (of_seed.best_on_test) best.push_back(*of_seed.best_on_test);
    }
    scores.last.push_back(last);
    scores.best_on_test.push_back(best);
    scores.published.push_back(run.published);
  }

  static TableLine mean_line(const std::string& kind, const std::string& name, const Scores& scores,
                             const char* what) {
    TableLine line{.kind = kind,
                   .name = name,
                   .group = {},
                   .status = count_of(scores.last.size(), scores.runs, what),
                   .complete = scores.last.size() == scores.runs,
                   .last = spread(mean_over_runs(scores.last)),
                   .best_on_test = spread(mean_over_runs(scores.best_on_test)),
                   .published = mean_published(scores.published)};
    if (!line.complete) line.status = "incomplete: " + line.status;
    return line;
  }

  const Suite& suite_;
  const std::vector<SuiteRow>& rows_;
};

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.6f", value);
  return text;
}

/// RFC 4180.
std::string csv_cell(const std::string& text) {
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string quoted = "\"";
  for (char c : text) quoted += c == '"' ? std::string("\"\"") : std::string(1, c);
  return quoted + "\"";
}

std::string csv_spread(const std::optional<Spread>& spread) {
  if (!spread) return ",";
  return number(spread->mean) + "," + (spread->deviation ? number(*spread->deviation) : "");
}

std::string percent(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.2f", 100 * value);
  return text;
}

std::string percent(const std::optional<Spread>& spread) {
  if (!spread) return "";
  return percent(spread->mean) + (spread->deviation ? " ± " + percent(*spread->deviation) : "");
}

std::string markdown_cell(const std::string& text) {
  std::string cell;
  for (char c : text) {
    if (c == '|') cell += '\\';
    cell += c == '\n' || c == '\r' ? ' ' : c;
  }
  return cell;
}

Json json_of(const std::optional<Spread>& spread) {
  if (!spread) return nullptr;
  return {{"mean", spread->mean},
          {"std", spread->deviation ? Json(*spread->deviation) : Json(nullptr)}};
}

}  // namespace

std::vector<TableLine> suite_table(const Suite& suite, const std::vector<SuiteRow>& rows) {
  return Summary(suite, rows).lines();
}

std::string table_csv(const std::vector<TableLine>& table) {
  std::string text =
      "kind,name,group,last_mean,last_std,best_on_test_mean,best_on_test_std,published,complete,"
      "status\n";
  for (const TableLine& line : table)
    text += line.kind + "," + csv_cell(line.name) + "," + csv_cell(line.group) + "," +
            csv_spread(line.last) + "," + csv_spread(line.best_on_test) + "," +
            (line.published > 0 ? number(line.published) : "") + "," +
            (line.complete ? "true" : "false") + "," + csv_cell(line.status) + "\n";
  return text;
}

std::string table_markdown(const Suite& suite, const std::vector<TableLine>& table) {
  const std::vector<int64_t>& seeds = suite.config.seeds;
  std::string text = "Top-1 on the test split in percent, mean";
  if (seeds.size() > 1) text += " ± standard deviation";
  text += seeds.size() == 1 ? ", seed" : " over the seeds";
  for (size_t i = 0; i < seeds.size(); ++i)
    text += (i == 0 ? " " : ", ") + std::to_string(seeds[i]);
  text += ".\n\n| | group | last | best on test | published | |\n|---|---|---:|---:|---:|---|\n";
  for (const TableLine& line : table) {
    const std::string name = markdown_cell(line.name);
    text += "| " + (line.kind == "run" ? name : "**" + name + "**") + " | " +
            markdown_cell(line.group) + " | " + percent(line.last) + " | " +
            percent(line.best_on_test) + " | " +
            (line.published > 0 ? percent(line.published) : "") + " | " + line.status + " |\n";
  }
  text +=
      "\n`last` is the number to report: the weights after the last epoch. `best on test` is the "
      "best of the\nevaluations during training, chosen on the test split: it is no result and is "
      "not comparable with `last`.\nMeans take the runs of which every seed is finished; published "
      "means are of the same runs.\n";
  const AboutConfig& about = suite.config.about;
  for (const auto& [title, words] : {std::pair{"Published: ", about.source}, {"", about.expected}})
    if (!words.empty()) text += "\n" + std::string(title) + words + "\n";
  return text;
}

Json table_json(const std::vector<TableLine>& table) {
  Json lines = Json::array();
  for (const TableLine& line : table) {
    Json json{{"kind", line.kind}, {"name", line.name}};
    if (!line.group.empty()) json["group"] = line.group;
    json["last"] = json_of(line.last);
    json["best_on_test"] = json_of(line.best_on_test);
    json["published"] = line.published > 0 ? Json(line.published) : Json(nullptr);
    json["complete"] = line.complete;
    json["status"] = line.status;
    lines.push_back(json);
  }
  return lines;
}

}  // namespace convpass
