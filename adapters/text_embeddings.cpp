#include "convpass/adapters/text_embeddings.h"

#include <ATen/ATen.h>

#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "convpass/core/error.h"
#include "convpass/core/json.h"
#include "convpass/core/tensor_map.h"

namespace convpass {
namespace {

/// Takes tensors out of one file and says what is wrong with them.
class Reader {
 public:
  explicit Reader(const std::filesystem::path& file) : file_(file), map_(load_tensors(file)) {}

  bool has(const std::string& name) const { return map_.has(name); }
  /// In float32, with memory of its own.
  at::Tensor numbers(const std::string& name, int64_t dims, const std::string& shape) const {
    if (!has(name))
      fail("has no tensor " + name + ", wanted a file that scripts/clip_text_head.py writes");
    const at::Tensor& tensor = map_.at(name);
    std::ostringstream got;
    got << c10::toString(tensor.scalar_type()) << " " << tensor.sizes();
    if (tensor.dim() != dims || tensor.numel() == 0 || !tensor.is_floating_point())
      fail(name + ": got " + got.str() + ", wanted floating point " + shape);
    at::Tensor values = tensor.to(at::kFloat, /*non_blocking=*/false, /*copy=*/true).contiguous();
    if (!at::isfinite(values).all().item<bool>()) fail(name + ": got values that are not finite");
    return values;
  }
  bool named() const { return map_.metadata.count("classes") > 0; }
  /// As many as there are rows.
  std::vector<std::string> names(int64_t rows) const {
    std::vector<std::string> all;
    const auto found = map_.metadata.find("classes");
    if (found == map_.metadata.end()) {
      for (int64_t i = 0; i < rows; ++i) all.push_back(std::to_string(i));
      return all;
    }
    try {
      all = nlohmann::json::parse(found->second).get<std::vector<std::string>>();
    } catch (const nlohmann::json::exception&) {
      fail("metadata \"classes\": wanted a JSON list of names");
    }
    if (std::ssize(all) != rows)
      fail("metadata \"classes\": got " + std::to_string(all.size()) + " names, wanted " +
           std::to_string(rows) + ", one a row of embeddings");
    std::set<std::string> seen;
    for (const std::string& name : all)
      if (name.empty() || !seen.insert(name).second)
        fail("metadata \"classes\": got " + json_quote(name) + (name.empty() ? "" : " twice") +
             ", wanted another name for each class");
    return all;
  }
  [[noreturn]] void fail(const std::string& what) const { throw FileError(file_, what); }

 private:
  const std::filesystem::path& file_;
  const TensorMap map_;
};

}  // namespace

TextEmbeddings load_text_embeddings(const std::filesystem::path& file) {
  const Reader reader(file);
  TextEmbeddings text;
  text.embeddings = reader.numbers("embeddings", 2, "[classes, width]");
  // In double: the squares of what float32 holds.
  const at::Tensor rows = text.embeddings.to(at::kDouble);
  const at::Tensor lengths = rows.norm(2, /*dim=*/1, /*keepdim=*/true);
  if (lengths.eq(0).any().item<bool>()) reader.fail("embeddings: got a row of zeros");
  text.embeddings = (rows / lengths).to(at::kFloat);
  if (reader.has("projection")) {
    text.projection = reader.numbers("projection", 2, "[width, features]");
    const int64_t width = text.embeddings.size(1);
    if (text.projection.size(0) != width)
      reader.fail("projection: got " + std::to_string(text.projection.size(0)) + " rows, wanted " +
                  std::to_string(width) + ", the width of the embeddings");
  }
  text.scale = reader.numbers("scale", 0, "[], a single number");
  if (text.scale.item<float>() <= 0) reader.fail("scale: got a number that is not above 0");
  text.classes = reader.names(text.embeddings.size(0));
  text.named = reader.named();
  return text;
}

}  // namespace convpass
