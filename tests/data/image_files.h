#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "convpass/data/image.h"

namespace convpass::test {

inline std::filesystem::path image_file(const std::string& name) {
  return std::filesystem::path(CONVPASS_TEST_DATA) / "images" / name;
}

inline std::vector<uint8_t> bytes_of(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  if (!in) throw std::runtime_error("no test file " + file.string());
  return {std::istreambuf_iterator<char>(in), {}};
}

inline void write_bytes(const std::filesystem::path& file, const std::vector<uint8_t>& bytes) {
  std::ofstream out(file, std::ios::binary);
  out.write(reinterpret_cast<const char*>(bytes.data()),
            static_cast<std::streamsize>(bytes.size()));
}

inline Image read_ppm(const std::string& name) {
  std::ifstream in(image_file(name), std::ios::binary);
  std::string magic;
  Image image;
  int top = 0;
  in >> magic >> image.width >> image.height >> top;
  in.get();
  if (!in || magic != "P6" || top != 255) throw std::runtime_error("no test picture " + name);
  image.pixels.resize(static_cast<size_t>(image.width * image.height * 3));
  in.read(reinterpret_cast<char*>(image.pixels.data()),
          static_cast<std::streamsize>(image.pixels.size()));
  return image;
}

/// The message of what `action` throws, or "" when it throws nothing.
template <class Action>
std::string message_of(Action action) {
  try {
    action();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

struct Difference {
  int largest = 0;
  double mean = 0;
};

inline Difference difference(const Image& a, const Image& b) {
  if (a.height != b.height || a.width != b.width) return {999, 999};
  Difference result;
  for (size_t i = 0; i < a.pixels.size(); ++i) {
    int d = std::abs(int{a.pixels[i]} - int{b.pixels[i]});
    result.largest = std::max(result.largest, d);
    result.mean += d;
  }
  result.mean /= static_cast<double>(a.pixels.size());
  return result;
}

}  // namespace convpass::test
