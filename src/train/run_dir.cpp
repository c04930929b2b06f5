#include "convpass/train/run_dir.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "convpass/core/error.h"
#include "convpass/core/file.h"
#include "convpass/train/progress.h"
#include "src/train/made_from.h"

namespace convpass {
namespace {

constexpr const char* kRecipe = "recipe.json";
constexpr const char* kMadeFrom = "made_from.json";

}  // namespace

RunDir::RunDir(std::filesystem::path folder, const Recipe& recipe, bool resume)
    : folder_(std::move(folder)), above_(folder_) {
  std::error_code failure;
  while (above_.has_relative_path() && !std::filesystem::exists(above_, failure))
    above_ = above_.parent_path();
  std::filesystem::create_directories(folder_, failure);
  if (!std::filesystem::is_directory(folder_))
    throw FileError(folder_, "cannot be made a run folder: " +
                                 (failure ? failure.message() : std::string("not a directory")));
  lock_.emplace(folder_);
  remove_leftovers(folder_);
  const std::filesystem::path stored = folder_ / kRecipe;
  if (!resume)
    for (const char* name : {"checkpoint.pt", "adapter.safetensors", "result.json"})
      if (std::filesystem::exists(folder_ / name))
        throw FileError(folder_,
                        std::string("has ") + name +
                            ": it holds a run already, give --resume to go on, or another --out");
  if (std::filesystem::exists(stored)) {
    if (!resume)
      throw FileError(folder_, "holds a run already: give --resume to go on, or another --out");
    if (recipe_hash(load_recipe(stored)) != recipe_hash(recipe))
      throw FileError(stored,
                      "is of another recipe than the one given: a run resumes with its own");
  }
  if (resume && !std::filesystem::exists(stored))
    say("nothing to resume in " + folder_.string() + ": the run begins");
  if (::access(folder_.c_str(), W_OK | X_OK) != 0)
    throw FileError(folder_, std::string("cannot be written: ") + std::strerror(errno));
}

RunDir::~RunDir() {
  std::error_code not_empty;
  for (std::filesystem::path made = folder_; made != above_; made = made.parent_path())
    if (!std::filesystem::remove(made, not_empty)) return;
}

void RunDir::check_made_from(const std::string& made_from) const {
  const std::filesystem::path stored = folder_ / kMadeFrom;
  std::ifstream in(stored);
  if (!in || !std::filesystem::exists(folder_ / kRecipe)) return;
  const MadeFrom held = MadeFrom::parse(in, nullptr, /*allow_exceptions=*/false);
  if (!held.is_object()) throw FileError(stored, "is damaged, wanted one JSON object");
  if (const std::string differs = difference(MadeFrom::parse(made_from), held); !differs.empty())
    throw FileError(stored, "a run resumes with what it began with: " + differs);
}

void RunDir::begin(const Recipe& recipe, const std::string& made_from) const {
  const std::filesystem::path stored = folder_ / kRecipe;
  if (std::filesystem::exists(stored)) return;
  write_atomically(folder_ / kMadeFrom, made_from + "\n");
  write_atomically(stored, recipe_json(recipe) + "\n");
}

void RunDir::save_checkpoint(const TensorMap& state) const {
  if (std::filesystem::exists(log_file())) sync_file(log_file());
  save_pytorch(checkpoint(), state);
}

void RunDir::log(const std::string& line) const {
  std::ofstream out(log_file(), std::ios::app);
  out << line << '\n' << std::flush;
  if (!out) throw FileError(log_file(), std::string("cannot be written: ") + std::strerror(errno));
}

void RunDir::cut_log(int64_t step) const {
  const std::filesystem::path file = log_file();
  std::ifstream in(file);
  if (!in) return;
  std::string kept;
  for (std::string line; std::getline(in, line);) {
    const auto json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object()) continue;
    auto found = json.find("step");
    if (found != json.end() && found->is_number_integer() && found->get<int64_t>() <= step)
      kept += line + "\n";
  }
  write_atomically(file, kept);
}

std::string RunDir::result() const {
  const std::filesystem::path file = folder_ / "result.json";
  std::ifstream in(file);
  if (!in) return {};
  std::string line;
  std::getline(in, line);
  const auto json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("last") || !json.contains("test"))
    throw FileError(file,
                    "is damaged, wanted one JSON object with the evaluations; without it "
                    "--resume ends the run anew");
  return line;
}

void RunDir::save_result(const std::string& line) const {
  if (std::filesystem::exists(log_file())) sync_file(log_file());
  write_atomically(folder_ / "result.json", line + "\n");
}

}  // namespace convpass
