#pragma once

#include <filesystem>
#include <stdexcept>
#include <string>

namespace convpass {

/// Something that the user can mend: one line that says where, what, got and wanted. The command
/// line prints it and exits with 2. Our own mistakes are TORCH_CHECK (exit 1).
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A command line that cannot be understood.
class UsageError : public Error {
 public:
  using Error::Error;
};

/// A recipe that cannot be used. `pointer` is the JSON pointer of the culprit ("/adapter/width").
class RecipeError : public Error {
 public:
  RecipeError(const std::filesystem::path& file, const std::string& pointer,
              const std::string& what)
      : Error(file.string() + ": " + (pointer.empty() ? "/" : pointer) + ": " + what) {}
};

/// A file that is missing, damaged, hostile or of the wrong kind.
class FileError : public Error {
 public:
  FileError(const std::filesystem::path& file, const std::string& what)
      : Error(file.string() + ": " + what) {}
};

}  // namespace convpass
