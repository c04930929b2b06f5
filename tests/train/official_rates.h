#pragma once

#include <fstream>
#include <string>
#include <vector>

namespace convpass {

/// What the official Convpass loop runs each of its 100 epochs at
/// (tests/reference/official_schedule.py).
inline std::vector<double> official_rates() {
  std::ifstream in(std::string(CONVPASS_TEST_DATA) + "/convpass/official_rates.txt");
  std::vector<double> rates;
  for (double rate = 0; in >> rate;) rates.push_back(rate);
  return rates;
}

}  // namespace convpass
