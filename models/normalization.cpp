// How mean and std stand in the metadata of a file of ours.
#include "convpass/core/error.h"
#include "convpass/core/fields.h"
#include "convpass/core/json.h"
#include "models/names.h"

namespace convpass {
namespace {

struct StoredNormalization {
  std::vector<double> mean, std;
};
void fields(FieldVisitor& visitor, StoredNormalization& stored) {
  visitor.field("mean", stored.mean, "mean of each channel, for pixels in [0, 1]");
  visitor.field("std", stored.std, "standard deviation of each channel", above(0));
}

}  // namespace

std::string normalization_text(const Normalization& normalization) {
  return write_json_fields(
      StoredNormalization{{normalization.mean.begin(), normalization.mean.end()},
                          {normalization.std.begin(), normalization.std.end()}});
}

Normalization normalization_from(const std::string& text, const std::filesystem::path& file) {
  StoredNormalization stored;
  read_json_fields(text, stored, file);
  if (stored.mean.size() != 3 || stored.std.size() != 3)
    throw FileError(file, std::string("metadata ") + kNormalizationKey +
                              ": wanted three means and three deviations");
  Normalization normalization;
  std::copy(stored.mean.begin(), stored.mean.end(), normalization.mean.begin());
  std::copy(stored.std.begin(), stored.std.end(), normalization.std.begin());
  return normalization;
}

}  // namespace convpass
