#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "convpass/core/error.h"
#include "convpass/core/file.h"
#include "convpass/core/tensor_map.h"
#include "tests/core/temp_folder.h"

namespace convpass {

/// A file that tests/reference/tensor_files.py made.
inline std::filesystem::path tensor_file(const std::string& name) {
  return std::filesystem::path(CONVPASS_TEST_DATA) / "tensors" / name;
}

/// The values that tensor_files.py gives the tensor of that seed.
inline at::Tensor reference_values(int64_t seed, at::IntArrayRef shape,
                                   at::ScalarType dtype = at::kFloat) {
  const int64_t count = c10::multiply_integers(shape);
  at::Tensor whole =
      (at::arange(count, at::kLong) * 7 + seed).remainder(dtype == at::kBool ? 2 : 100);
  return whole.to(dtype).reshape(shape);
}

inline void expect_same(const at::Tensor& got, const at::Tensor& wanted) {
  ASSERT_EQ(got.scalar_type(), wanted.scalar_type());
  ASSERT_EQ(got.sizes(), wanted.sizes());
  // The wide unsigned types have no comparison; all values fit a double.
  EXPECT_TRUE(at::equal(got.to(at::kDouble), wanted.to(at::kDouble))) << got << wanted;
}

inline std::string read_text(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

inline std::filesystem::path write_text(const std::filesystem::path& file,
                                        const std::string& text) {
  std::ofstream(file, std::ios::binary) << text;
  return file;
}

/// Loading fails with a FileError of one line that names the file and says `what`.
inline void expect_refused(const std::filesystem::path& file, const std::string& what) {
  try {
    load_tensors(file);
    ADD_FAILURE() << file << " was read; wanted an error that says: " << what;
  } catch (const FileError& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find(what), std::string::npos) << text << "\nwanted: " << what;
    EXPECT_TRUE(text.starts_with(file.parent_path().string())) << text;
    for (unsigned char c : text) EXPECT_GE(c, 0x20) << "control character in: " << text;
  } catch (const std::exception& error) {
    ADD_FAILURE() << file << ": not a FileError: " << error.what();
  }
}

/// Cut to every sixteenth of its length (0 to 15), the file is refused.
inline void expect_refused_when_cut(const std::filesystem::path& file) {
  TempFolder folder;
  const std::string good = read_text(file);
  ASSERT_FALSE(good.empty());
  for (size_t part = 0; part < 16; ++part) {
    expect_refused(write_text(folder / "cut", good.substr(0, good.size() * part / 16)), "");
  }
}

inline std::string little_endian(uint64_t value, int width) {
  std::string bytes;
  for (int i = 0; i < width; ++i) bytes += static_cast<char>(value >> (8 * i));
  return bytes;
}

}  // namespace convpass
