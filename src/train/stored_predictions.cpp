#include "src/train/stored_predictions.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "convpass/core/error.h"
#include "convpass/core/json.h"
#include "convpass/core/tensor_map.h"

namespace convpass {
namespace {

constexpr const char* kFormat = "convpass-predictions";
constexpr const char* kVersion = "1";

/// A record: the sample's index, then for each teacher its logits, or the k largest as values, the
/// value of all others, and their classes.
struct Record {
  int64_t classes, top_k;
  int64_t element;  ///< bytes of a value

  explicit Record(const StoreConfig& config, int64_t classes_)
      : classes(classes_),
        top_k(std::min(config.top_k, classes_)),
        element(config.top_k > 0 || config.type == StoredType::f16 ? 2 : 4) {}
  int64_t teacher_bytes() const {
    return top_k > 0 ? (top_k + 1) * element + top_k * 4 : classes * element;
  }
  int64_t bytes(int64_t teachers) const { return 8 + teachers * teacher_bytes(); }
  c10::ScalarType type() const { return element == 2 ? at::kHalf : at::kFloat; }
};

/// Columns `from` to `from + count` of records [B, bytes] as elements of `type`.
at::Tensor columns(const at::Tensor& records, int64_t from, int64_t count, c10::ScalarType type) {
  const int64_t bytes = count * static_cast<int64_t>(c10::elementSize(type));
  return records.narrow(1, from, bytes).contiguous().view(type);  // [B, count]
}

at::Tensor as_bytes(const at::Tensor& values) { return values.contiguous().view(at::kByte); }

/// Logits [B, K] to bytes [B, teacher_bytes].
at::Tensor encoded(const at::Tensor& logits, const Record& record) {
  if (record.top_k == 0) return as_bytes(logits.to(record.type()));
  auto [values, classes] = logits.topk(record.top_k, 1);
  // What is left of the probability, spread evenly over the classes that are left.
  const int64_t others = record.classes - record.top_k;
  at::Tensor rest = at::full({logits.size(0), 1}, -65504.0);
  if (others > 0) {
    const at::Tensor all = logits.logsumexp(1, true), top = values.logsumexp(1, true);
    const at::Tensor left = (1 - (top - all).exp()).clamp_min(1e-12);
    rest = all + left.log() - std::log(static_cast<double>(others));
  }
  // Relative to the largest: half precision is finest near zero.
  const at::Tensor largest = values.narrow(1, 0, 1);
  return at::cat(
      {as_bytes((values - largest).to(at::kHalf)),
       as_bytes((rest - largest).clamp_min(-60000).to(at::kHalf)), as_bytes(classes.to(at::kInt))},
      1);
}

at::Tensor decoded(const at::Tensor& records, int64_t from, const Record& record) {
  if (record.top_k == 0)
    return columns(records, from, record.classes, record.type()).to(at::kFloat);
  const int64_t k = record.top_k;
  const at::Tensor values = columns(records, from, k, at::kHalf).to(at::kFloat);
  const at::Tensor rest = columns(records, from + 2 * k, 1, at::kHalf).to(at::kFloat);
  const at::Tensor classes = columns(records, from + 2 * k + 2, k, at::kInt).to(at::kLong);
  if (classes.lt(0).logical_or(classes.ge(record.classes)).any().item<bool>())
    throw Error("is damaged: a class out of range");
  return rest.expand({records.size(0), record.classes}).contiguous().scatter(1, classes, values);
}

std::map<std::string, std::string> metadata_of(const StoreConfig& config,
                                               const PredictionShape& shape,
                                               const MadeFrom& made_from) {
  std::map<std::string, std::string> metadata{
      {"format", kFormat},
      {"version", kVersion},
      {"type", config.top_k > 0                 ? "top " + std::to_string(config.top_k)
               : config.type == StoredType::f16 ? "f16"
                                                : "f32"},
      {"rows", std::to_string(shape.rows)},
      {"teachers", std::to_string(shape.teachers)},
      {"classes", std::to_string(shape.classes)}};
  for (const auto& [name, text] : made_from) metadata["from " + name] = text;
  return metadata;
}

}  // namespace

bool write_predictions(const StoreConfig& config, const PredictionShape& shape,
                       const MadeFrom& made_from,
                       const std::function<bool(const PutBatch&)>& produce) {
  const Record record(config, shape.classes);
  bool whole = true;
  struct GivenUp {};
  try {
    save_safetensors_rows(config.file,
                          {.name = "records",
                           .rows = shape.rows,
                           .row_bytes = record.bytes(shape.teachers),
                           .metadata = metadata_of(config, shape, made_from)},
                          [&](std::ostream& out) {
                            whole = produce([&](const std::vector<int64_t>& indices,
                                                const std::vector<TeacherOutput>& outputs) {
                              std::vector<at::Tensor> parts{
                                  as_bytes(at::tensor(indices, at::kLong).unsqueeze(1))};  // [B, 8]
                              for (const TeacherOutput& output : outputs)
                                parts.push_back(encoded(output.logits.cpu(), record));
                              const at::Tensor rows = at::cat(parts, 1).contiguous();
                              out.write(static_cast<const char*>(rows.const_data_ptr()),
                                        static_cast<std::streamsize>(rows.nbytes()));
                            });
                            if (!whole) throw GivenUp{};
                          });
  } catch (const GivenUp&) {
  }
  return whole;
}

StoredPredictions::StoredPredictions(const StoreConfig& config, const PredictionShape& shape,
                                     const MadeFrom& made_from)
    : file_(config.file), config_(config), shape_(shape), map_(load_tensors(config.file)) {
  auto found = map_.metadata.find("format");
  if (found == map_.metadata.end() || found->second != kFormat)
    throw FileError(file_, "got a " + map_.format + " file, wanted stored predictions");
  const auto wanted = metadata_of(config, shape, made_from);
  const std::string mend = "; remove the file, or name another in distill.store.file";
  for (const auto& [name, text] : wanted) {
    auto held = map_.metadata.find(name);
    if (held != map_.metadata.end() && held->second == text) continue;
    const bool source = name.starts_with("from ");
    throw FileError(file_, (source ? "its predictions were made from other " + name.substr(5)
                                   : "its predictions have another " + name) +
                               ": got " +
                               (held == map_.metadata.end() ? "none" : json_quote(held->second)) +
                               ", wanted " + json_quote(text) + mend);
  }
  const Record record(config, shape.classes);
  auto records = map_.tensors.find("records");
  if (records == map_.tensors.end() || records->second.scalar_type() != at::kByte ||
      records->second.sizes() != at::IntArrayRef({shape.rows, record.bytes(shape.teachers)}))
    throw FileError(file_, "is damaged: its records are missing or of another shape");
}

std::vector<TeacherOutput> StoredPredictions::rows(const std::vector<int64_t>& rows,
                                                   const std::vector<int64_t>& samples) const {
  const Record record(config_, shape_.classes);
  const at::Tensor records = map_.at("records").index_select(0, at::tensor(rows, at::kLong));
  const at::Tensor stored = columns(records, 0, 1, at::kLong).flatten();
  if (!at::equal(stored, at::tensor(samples, at::kLong)))
    throw FileError(file_, "is damaged: its samples stand in another order");
  std::vector<TeacherOutput> outputs;
  try {
    for (int64_t teacher = 0; teacher < shape_.teachers; ++teacher)
      outputs.push_back({.logits = decoded(records, 8 + teacher * record.teacher_bytes(), record),
                         .features = {}});
  } catch (const Error& error) {
    throw FileError(file_, error.what());
  }
  return outputs;
}

}  // namespace convpass
