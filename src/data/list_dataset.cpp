#include <charconv>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "convpass/core/error.h"
#include "convpass/core/file.h"
#include "src/data/dataset_kinds.h"

namespace convpass {
namespace {

constexpr std::string_view kBlanks = " \t\r\f\v";

std::string_view trimmed(std::string_view text) {
  size_t first = text.find_first_not_of(kBlanks);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kBlanks) + 1 - first);
}

std::string shortened(std::string_view text) {
  constexpr size_t kShown = 80;
  return std::string(text.substr(0, kShown)) + (text.size() > kShown ? "..." : "");
}

}  // namespace

std::unique_ptr<Dataset> open_source(const ListSource& source, const DecodeOptions& decode,
                                     int64_t classes) {
  namespace fs = std::filesystem;
  const std::vector<uint8_t> bytes = read_file(source.path);
  std::string_view rest(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (rest.starts_with("\xEF\xBB\xBF")) rest.remove_prefix(3);  // the mark of Windows editors
  const fs::path root = source.root.empty() ? source.path.parent_path() : source.root;

  std::vector<fs::path> files;
  std::vector<int64_t> labels;
  size_t missing = 0;
  std::string first_missing;
  for (int64_t number = 1; !rest.empty(); ++number) {
    const size_t end = rest.find('\n');
    const std::string_view line = trimmed(rest.substr(0, end));
    rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
    if (line.empty()) continue;
    const std::string where = source.path.string() + ":" + std::to_string(number);
    const size_t blank = line.find_last_of(" \t");
    if (blank == std::string_view::npos) {
      throw FileError(where, "no label: got \"" + shortened(line) + "\", wanted `path label`");
    }
    const std::string_view word = line.substr(blank + 1);
    int64_t label = 0;
    const auto [stop, error] = std::from_chars(word.data(), word.data() + word.size(), label);
    if (error != std::errc() || stop != word.data() + word.size() || label < 0 ||
        label >= label_end(classes)) {
      throw FileError(where, "got label \"" + shortened(word) + "\", wanted 0 to " +
                                 std::to_string(label_end(classes) - 1));
    }
    fs::path file = root / fs::path(trimmed(line.substr(0, blank)));
    std::error_code ignored;
    if (!fs::exists(file, ignored) && missing++ == 0) {
      first_missing = "line " + std::to_string(number) + ": " + file.string();
    }
    files.push_back(std::move(file));
    labels.push_back(label);
  }
  if (files.empty()) throw FileError(source.path, "an empty list, wanted lines of `path label`");
  if (missing > 0) {
    throw FileError(source.path, std::to_string(missing) + " of " + std::to_string(files.size()) +
                                     " images are missing, the first in " + first_missing);
  }
  std::vector<std::string> names = numbered_classes(labels, classes, source.path);
  return std::make_unique<FileDataset>(std::move(files), std::move(labels), std::move(names),
                                       decode);
}

}  // namespace convpass
