#include <algorithm>

#include "convpass/core/rng.h"
#include "tests/core/zip_files.h"

namespace convpass {
namespace {

/// Damages 1 to 4 places: bytes changed, runs removed or repeated.
std::string damaged(std::string bytes, Rng& rng) {
  for (int64_t count = 1 + rng.below(4); count > 0 && !bytes.empty(); --count) {
    const auto at = static_cast<size_t>(rng.below(static_cast<int64_t>(bytes.size())));
    const auto length = static_cast<size_t>(1 + rng.below(16));
    switch (rng.below(6)) {
      case 0:
        bytes.erase(at, length);
        break;
      case 1:
        bytes.insert(at, bytes.substr(at, length));
        break;
      case 2:
        bytes.replace(at, std::min(length, bytes.size() - at), length,
                      rng.coin(0.5) ? '\xff' : '\0');
        break;
      default:
        bytes[at] = static_cast<char>(rng.next());
    }
  }
  return bytes;
}

/// Where the last element of a tensor lies in its storage.
int64_t last_element(const at::Tensor& tensor) {
  int64_t place = tensor.storage_offset();
  for (int64_t d = 0; d < tensor.dim(); ++d) place += (tensor.size(d) - 1) * tensor.stride(d);
  return place;
}

/// Any outcome but a tensor map or a FileError fails the test. What is read is also looked at.
void load_and_touch(const std::filesystem::path& file) {
  try {
    for (const auto& [name, tensor] : load_tensors(file).tensors) {
      if (tensor.numel() > 0) tensor.as_strided({}, {}, last_element(tensor)).item();
    }
  } catch (const FileError&) {
  }
}

void fuzz(const std::string& name, int rounds) {
  TempFolder folder;
  const std::string good = read_text(tensor_file(name));
  for (int round = 0; round < rounds; ++round) {
    Rng rng(1, 0, static_cast<uint64_t>(round), Purpose::shuffle);
    SCOPED_TRACE(name + " round " + std::to_string(round));
    ASSERT_NO_THROW(load_and_touch(write_text(folder / "a", damaged(good, rng))));
  }
}

/// Damages what is in the archive and writes a sound archive around it, so that checksums hide
/// nothing.
void fuzz_inside(const std::string& name, const std::string& entry, int rounds) {
  TempFolder folder;
  const ZipContents good = zip_contents(tensor_file(name));
  for (int round = 0; round < rounds; ++round) {
    Rng rng(2, 0, static_cast<uint64_t>(round), Purpose::shuffle);
    SCOPED_TRACE(name + " round " + std::to_string(round));
    ZipContents bad = good;
    for (auto& [key, data] : bad) {
      if (key.ends_with(entry)) data = damaged(data, rng);
    }
    ASSERT_NO_THROW(load_and_touch(write_text(folder / "a", zip_bytes(bad))));
  }
}

TEST(Fuzz, DamagedSafetensorsAreReadOrRefused) {
  fuzz("types.safetensors", 3000);
  fuzz("model.safetensors.index.json", 500);
}

TEST(Fuzz, DamagedNpzAreReadOrRefused) {
  fuzz("stored.npz", 1000);
  fuzz("deflated.npz", 1000);
  fuzz_inside("versions.npz", ".npy", 2000);
}

TEST(Fuzz, DamagedPyTorchFilesAreReadOrRefused) {
  fuzz("wrapped.pt", 1000);
  fuzz_inside("types.pt", "data.pkl", 1500);
  fuzz_inside("wrapped.pt", "data.pkl", 1500);
  fuzz_inside("views.pt", "data.pkl", 1500);
  fuzz_inside("script.pt", "data.pkl", 1500);
}

}  // namespace
}  // namespace convpass
