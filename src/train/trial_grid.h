#pragma once

#include <cstdint>
#include <vector>

#include "convpass/train/search.h"

namespace convpass {

/// Every combination of the axes' values; the last axis changes fastest. With `random` above 0 so
/// many of them, those with the smallest random_key(seed, 0, place in the grid, Purpose::search),
/// in the grid's order. Errors: UsageError (a key that stands twice, too large a grid).
std::vector<Setting> trial_settings(const std::vector<SearchAxis>& axes, int64_t random,
                                    int64_t seed);

}  // namespace convpass
