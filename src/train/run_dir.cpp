#include "convpass/train/run_dir.h"

#include <fstream>
#include <nlohmann/json.hpp>

#include "convpass/core/error.h"
#include "convpass/core/file.h"

namespace convpass {

RunDir::RunDir(std::filesystem::path folder, const Recipe& recipe, bool resume)
    : folder_(std::move(folder)) {
  std::error_code failure;
  std::filesystem::create_directories(folder_, failure);
  if (!std::filesystem::is_directory(folder_))
    throw FileError(folder_, "cannot be made a run folder: " +
                                 (failure ? failure.message() : std::string("not a directory")));
  remove_leftovers(folder_);
  const std::filesystem::path stored = folder_ / "recipe.json";
  if (std::filesystem::exists(stored)) {
    if (!resume)
      throw FileError(folder_, "holds a run already: give --resume to go on, or another --out");
    if (recipe_hash(load_recipe(stored)) != recipe_hash(recipe))
      throw FileError(stored,
                      "is of another recipe than the one given: a run resumes with its own");
    return;
  }
  write_atomically(stored, recipe_json(recipe) + "\n");
}

void RunDir::log(const std::string& line) const {
  std::ofstream out(folder_ / "log.jsonl", std::ios::app);
  out << line << '\n' << std::flush;
  if (!out) throw FileError(folder_ / "log.jsonl", "cannot be written");
}

void RunDir::cut_log(int64_t step) const {
  const std::filesystem::path file = folder_ / "log.jsonl";
  std::ifstream in(file);
  if (!in) return;
  std::string kept;
  for (std::string line; std::getline(in, line);) {
    const auto json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (json.is_object() && json.value("step", step + 1) <= step) kept += line + "\n";
  }
  write_atomically(file, kept);
}

std::string RunDir::result() const {
  std::ifstream in(folder_ / "result.json");
  std::string line;
  std::getline(in, line);
  return line;
}

void RunDir::save_result(const std::string& line) const {
  write_atomically(folder_ / "result.json", line + "\n");
}

}  // namespace convpass
