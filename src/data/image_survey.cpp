#include "src/data/image_survey.h"

#include <algorithm>

#include "convpass/core/error.h"
#include "convpass/core/file.h"
#include "src/data/dataset_kinds.h"
#include "src/data/image_header.h"

namespace convpass {
namespace {

void add(ImageSurvey& survey, const std::string& file) {
  const bool first = survey.kinds.empty();
  ++survey.images;
  try {
    const auto mapped = MappedFile::open(file);
    const ImageHeader header = read_image_header(mapped->bytes());
    const auto [shorter, longer] = std::minmax(header.width, header.height);
    ++survey.kinds[kind_name(header.kind)];
    survey.least_side = first ? shorter : std::min(survey.least_side, shorter);
    survey.greatest_side = std::max(survey.greatest_side, longer);
    survey.small_jpegs += header.kind == ImageKind::jpeg && longer <= kSmallImage;
  } catch (const FileError& error) {
    if (survey.broken++ == 0) survey.first_broken = error.what();
  } catch (const Error& error) {
    if (survey.broken++ == 0) survey.first_broken = file + ": " + error.what();
  }
}

}  // namespace

std::optional<ImageSurvey> survey_images(const Dataset& dataset, int64_t most,
                                         const std::function<bool(int64_t)>& progress) {
  if (!dynamic_cast<const FileDataset*>(&dataset)) return std::nullopt;
  const int64_t count = most > 0 ? std::min(most, dataset.size()) : dataset.size();
  ImageSurvey survey;
  for (int64_t i = 0; i < count; ++i) {
    add(survey, dataset.name(i * dataset.size() / count));
    if (progress && !progress(i + 1)) break;
  }
  return survey;
}

std::string describe(const ImageSurvey& survey) {
  std::string text;
  for (const auto& [kind, count] : survey.kinds)
    text += (text.empty() ? "" : ", ") + std::to_string(count) + " " + kind;
  if (survey.kinds.empty()) return "no image that can be read";
  text += " of " + std::to_string(survey.least_side);
  if (survey.greatest_side > survey.least_side)
    text += " to " + std::to_string(survey.greatest_side);
  return text + " pixels a side";
}

std::string warning(const ImageSurvey& survey) {
  if (survey.small_jpegs == 0) return {};
  return std::to_string(survey.small_jpegs) + " of " + std::to_string(survey.images) +
         " images are JPEG of at most " + std::to_string(kSmallImage) +
         " pixels: a lossy copy of small images can cost ten points of accuracy, so do not compare "
         "with figures from the original files";
}

}  // namespace convpass
