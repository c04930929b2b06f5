#include <algorithm>
#include <cctype>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "convpass/core/error.h"
#include "src/data/dataset_kinds.h"

namespace convpass {
namespace {

namespace fs = std::filesystem;

bool hidden(const fs::path& path) { return path.filename().string().starts_with('.'); }

bool is_image_name(const fs::path& path) {
  std::string extension = path.extension().string();
  std::transform(extension.begin(), extension.end(), extension.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  constexpr const char* kExtensions[] = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"};
  return std::find(std::begin(kExtensions), std::end(kExtensions), extension) !=
         std::end(kExtensions);
}

struct Entries {
  std::vector<fs::path> folders, files;
};

// In byte order of their names.
Entries list(const fs::path& folder) {
  std::error_code error;
  fs::directory_iterator it(folder, error);
  Entries entries;
  for (;; it.increment(error)) {
    // An increment that fails ends the iteration too.
    if (error) throw FileError(folder, "cannot list this folder: " + error.message());
    if (it == fs::directory_iterator()) break;
    if (hidden(it->path())) continue;
    std::error_code none;
    (it->is_directory(none) ? entries.folders : entries.files).push_back(it->path());
  }
  auto by_name = [](const fs::path& a, const fs::path& b) { return a.native() < b.native(); };
  std::sort(entries.folders.begin(), entries.folders.end(), by_name);
  std::sort(entries.files.begin(), entries.files.end(), by_name);
  return entries;
}

// `above` holds the real paths of the folders around this one: a link back to one of them is not
// entered.
void collect(const fs::path& folder, std::vector<fs::path>& above, std::vector<fs::path>& images) {
  std::error_code error;
  fs::path real = fs::canonical(folder, error);
  if (error || std::find(above.begin(), above.end(), real) != above.end()) return;
  above.push_back(std::move(real));
  Entries entries = list(folder);
  for (const fs::path& file : entries.files) {
    if (is_image_name(file)) images.push_back(file);
  }
  for (const fs::path& inner : entries.folders) collect(inner, above, images);
  above.pop_back();
}

/// Every image at or below a folder, by path.
std::vector<fs::path> images_below(const fs::path& folder) {
  std::vector<fs::path> above, images;
  collect(folder, above, images);
  std::sort(images.begin(), images.end(),
            [](const fs::path& a, const fs::path& b) { return a.native() < b.native(); });
  return images;
}

void require_folder(const fs::path& path, const std::string& wanted) {
  if (fs::is_directory(path)) return;
  throw FileError(path, fs::exists(path) ? "not a folder, wanted " + wanted : "no such folder");
}

}  // namespace

std::unique_ptr<Dataset> open_source(const FolderSource& source, const DecodeOptions& decode,
                                     int64_t classes) {
  require_folder(source.path, "one with a folder per class");
  const Entries entries = list(source.path);
  if (entries.folders.empty()) {
    auto images = std::count_if(entries.files.begin(), entries.files.end(), is_image_name);
    throw FileError(source.path,
                    "no class folders: got " + std::to_string(images) + " images and " +
                        std::to_string(entries.files.size() - static_cast<size_t>(images)) +
                        " other files, wanted a folder per class");
  }
  if (classes > 0 && static_cast<int64_t>(entries.folders.size()) > classes) {
    throw FileError(source.path, "got " + std::to_string(entries.folders.size()) +
                                     " class folders, wanted at most " + std::to_string(classes));
  }
  std::vector<fs::path> files;
  std::vector<int64_t> labels;
  std::vector<std::string> names;
  for (const fs::path& folder : entries.folders) {
    const std::vector<fs::path> images = images_below(folder);
    if (images.empty()) {
      throw FileError(folder, "a class folder without images, wanted jpg, png, webp, bmp or tif");
    }
    labels.insert(labels.end(), images.size(), static_cast<int64_t>(names.size()));
    files.insert(files.end(), images.begin(), images.end());
    names.push_back(folder.filename().string());
  }
  return std::make_unique<FileDataset>(std::move(files), std::move(labels), std::move(names),
                                       decode);
}

std::unique_ptr<Dataset> open_source(const ImagesSource& source, const DecodeOptions& decode,
                                     int64_t classes) {
  require_folder(source.path, "one with images");
  std::vector<fs::path> files = images_below(source.path);
  if (files.empty()) {
    throw FileError(source.path, "no images in it, wanted jpg, png, webp, bmp or tif");
  }
  std::vector<int64_t> labels(files.size(), -1);
  return std::make_unique<FileDataset>(std::move(files), std::move(labels), numbers(classes),
                                       decode);
}

}  // namespace convpass
