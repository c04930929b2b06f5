#pragma once

#include <filesystem>
#include <optional>
#include <vector>

#include "convpass/core/file.h"
#include "convpass/train/search.h"

namespace convpass {

/// search.json: the plan, what each trial has reached, the choice and its reason, the last run. It
/// is written whole after every run, and is what a search remembers when it is resumed; it says
/// nothing of the time that anything took, so that a search that was killed ends in the same bytes.
class SearchFile {
 public:
  /// Makes the folder and holds it. Errors: FileError where `folder` holds a search and `resume` is
  /// false, one of another plan, or a damaged search.json, or where another process is at work.
  SearchFile(std::filesystem::path folder, const SearchPlan& plan, bool resume);
  /// Leaves nothing behind where no trial has begun.
  ~SearchFile();
  SearchFile(const SearchFile&) = delete;
  SearchFile& operator=(const SearchFile&) = delete;

  /// The plan's trials with what they had reached when the file was last written.
  const std::vector<Trial>& trials() const { return trials_; }
  void save(const SearchOutcome& outcome) const;

 private:
  std::filesystem::path folder_;
  bool made_;           ///< the folder, which was not there
  bool began_ = false;  ///< search.json, which was there
  std::optional<FolderLock> lock_;
  const SearchPlan& plan_;
  std::vector<Trial> trials_;
};

}  // namespace convpass
