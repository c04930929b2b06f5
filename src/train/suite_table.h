#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "convpass/train/suite.h"

namespace convpass {

/// What one run has reached with one seed: top-1 on data.test, as fractions.
struct SeedScores {
  double last = 0;
  std::optional<double> best_on_test;
};

/// What has become of one run of a suite.
struct SuiteRow {
  std::map<int64_t, SeedScores> seeds;      ///< finished
  std::map<int64_t, std::string> failures;  ///< seed -> why
  std::string missing;                      ///< the data that is not there
};

/// Mean and sample standard deviation of top-1 over seeds.
struct Spread {
  double mean = 0;
  std::optional<double> deviation;  ///< nothing for one seed
};

/// A line of the table: one run, the mean of a group, or a mean over all.
struct TableLine {
  std::string kind;  ///< "run", "group", "overall"
  std::string name, group, status;
  bool complete = false;  ///< every seed of every run that belongs to it is in it
  std::optional<Spread> last, best_on_test;
  double published = 0;  ///< 0 = none
};

/// The table of a suite: the runs, the mean of each group, the mean of the group means and the mean
/// over the runs. Means take the runs of which every seed is finished, and say where that is not
/// all of them; their standard deviations are of the same mean over seeds. `rows` in the order of
/// suite.config.runs.
std::vector<TableLine> suite_table(const Suite& suite, const std::vector<SuiteRow>& rows);

std::string table_csv(const std::vector<TableLine>& table);
std::string table_markdown(const Suite& suite, const std::vector<TableLine>& table);
/// Lines as JSON objects.
nlohmann::ordered_json table_json(const std::vector<TableLine>& table);

}  // namespace convpass
