#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "convpass/core/file.h"
#include "convpass/core/tensor_map.h"
#include "convpass/train/recipe.h"

namespace convpass {

/// The folder of a run: recipe.json (resolved), made_from.json (hashes of the weights that it
/// stands on), log.jsonl, checkpoint.pt (private, for resuming), adapter.safetensors and
/// result.json (last: a run that has it is finished). Every file but the log appears whole or not
/// at all; the log is cut back to the checkpoint when a run is resumed.
class RunDir {
 public:
  /// Makes the folder and holds it. Errors: Error when `folder` holds a run and `resume` is false,
  /// or a run of another recipe, or when another process is at work in it.
  RunDir(std::filesystem::path folder, const Recipe& recipe, bool resume);
  /// Removes the folders that it made where nothing was put into them.
  ~RunDir();
  RunDir(const RunDir&) = delete;
  RunDir& operator=(const RunDir&) = delete;

  /// Errors: FileError where the folder's run began with something else; `made_from` is a JSON
  /// object. A run of a version that did not keep it is taken as it is.
  void check_made_from(const std::string& made_from) const;
  /// Stores both, which makes the folder a run. Called after the first step, so that a run that
  /// could not start can be started again once its inputs are mended.
  void begin(const Recipe& recipe, const std::string& made_from) const;

  std::filesystem::path adapter() const { return folder_ / "adapter.safetensors"; }
  const std::filesystem::path& folder() const { return folder_; }

  bool has_checkpoint() const { return std::filesystem::exists(checkpoint()); }
  std::filesystem::path log_file() const { return folder_ / "log.jsonl"; }
  std::filesystem::path checkpoint() const { return folder_ / "checkpoint.pt"; }
  TensorMap load_checkpoint() const { return load_tensors(checkpoint()); }
  /// After what was logged before it: none is without its log, even after a power cut.
  void save_checkpoint(const TensorMap& state) const;

  /// Appends one JSON line, which has a member "step".
  void log(const std::string& line) const;
  /// Drops the lines of later steps, and a last line that was cut short.
  void cut_log(int64_t step) const;

  /// The result line, empty while the run is not finished.
  std::string result() const;
  void save_result(const std::string& line) const;

 private:
  std::filesystem::path folder_;
  std::filesystem::path above_;  ///< the folder that was there already
  std::optional<FolderLock> lock_;
};

}  // namespace convpass
