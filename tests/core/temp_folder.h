#pragma once

#include <stdlib.h>
#include <unistd.h>

#include <filesystem>
#include <stdexcept>
#include <string>

namespace convpass {

/// A folder that no other test has, though many run at once; removed with all that is in it.
class TempFolder {
 public:
  TempFolder() {
    // In memory where there is such a place: the fuzz tests write thousands of files.
    const std::filesystem::path memory = "/dev/shm";
    std::error_code none;
    const bool usable = ::access(memory.c_str(), W_OK) == 0 &&
                        std::filesystem::space(memory, none).available > (1u << 30);
    std::string pattern =
        (usable ? memory : std::filesystem::temp_directory_path()) / "convpass-test-XXXXXX";
    if (::mkdtemp(pattern.data()) == nullptr)
      throw std::runtime_error(pattern + ": cannot be made");
    path_ = pattern;
  }
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  std::filesystem::path operator/(const std::filesystem::path& name) const { return path_ / name; }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

}  // namespace convpass
