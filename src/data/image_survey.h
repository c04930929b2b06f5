#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>

#include "convpass/data/dataset.h"

namespace convpass {

/// What the headers of a data set's image files say; nothing is decoded.
struct ImageSurvey {
  int64_t images = 0;                         ///< looked at
  std::map<std::string, int64_t> kinds;       ///< "JPEG" -> how many
  int64_t least_side = 0, greatest_side = 0;  ///< pixels, over heights and widths
  int64_t small_jpegs = 0;                    ///< JPEG and no side above kSmallImage
  int64_t broken = 0;                         ///< cut short, or no image
  std::string first_broken;                   ///< its path and what is wrong with it
};

constexpr int64_t kSmallImage = 64;

/// Looks at `most` images, spread evenly over the set (0: at all of them). Nothing for a set whose
/// images do not lie in files of their own. `progress` gets the number done; false ends it early.
std::optional<ImageSurvey> survey_images(const Dataset& dataset, int64_t most,
                                         const std::function<bool(int64_t)>& progress = {});

/// "1000 PNG of 28 to 64 pixels"
std::string describe(const ImageSurvey& survey);
/// What to know before numbers are compared, or nothing: a lossy copy of small images is another
/// data set.
std::string warning(const ImageSurvey& survey);

}  // namespace convpass
