#include "src/train/stored_predictions.h"

#include <ATen/ATen.h>
#include <zlib.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "convpass/core/error.h"
#include "convpass/core/json.h"
#include "convpass/core/tensor_map.h"

namespace convpass {
namespace {

constexpr const char* kFormat = "convpass-predictions";
constexpr const char* kVersion = "2";
constexpr const char* kMadeFrom = "made_from";

/// A record: the sample's index, then for each teacher its logits, or the k largest as values, the
/// value of all others, and their classes; then the CRC-32 of all that.
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
  int64_t data_bytes(int64_t teachers) const { return 8 + teachers * teacher_bytes(); }
  int64_t bytes(int64_t teachers) const { return data_bytes(teachers) + 4; }
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
      {as_bytes((values - largest).clamp_min(-60000).to(at::kHalf)),
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

/// Errors: FileError for a logit beyond float16.
void check_range(const StoreConfig& config, const at::Tensor& logits) {
  if (config.top_k > 0 || config.type == StoredType::f32) return;
  constexpr double kLargestHalf = 65504;
  if (const double largest = logits.abs().max().item<double>(); largest > kLargestHalf)
    throw FileError(config.file, "its type f16: got a logit of " + std::to_string(largest) +
                                     ", wanted at most 65504, or the type f32");
}

/// CRC-32 of each row of bytes, [B] int32.
at::Tensor checksums(const at::Tensor& rows) {
  const at::Tensor bytes = rows.contiguous();
  at::Tensor sums = at::empty({bytes.size(0)}, at::kInt);
  const auto* data = bytes.const_data_ptr<uint8_t>();
  for (int64_t row = 0; row < bytes.size(0); ++row)
    sums.mutable_data_ptr<int32_t>()[row] = static_cast<int32_t>(
        crc32(0, data + row * bytes.size(1), static_cast<unsigned>(bytes.size(1))));
  return sums;
}

MadeFrom whole_origin(const StoreConfig& config, const PredictionShape& shape, MadeFrom from) {
  from["type"] = config.top_k > 0                 ? "top " + std::to_string(config.top_k)
                 : config.type == StoredType::f16 ? "f16"
                                                  : "f32";
  from["rows"] = shape.rows;
  from["answers"] = shape.teachers;
  from["classes"] = shape.classes;
  return from;
}

}  // namespace

bool write_predictions(const StoreConfig& config, const PredictionShape& shape,
                       const MadeFrom& made_from,
                       const std::function<bool(const PutBatch&)>& produce) {
  const Record record(config, shape.classes);
  bool whole = true;
  struct GivenUp {};
  try {
    save_safetensors_rows(
        config.file,
        {.name = "records",
         .rows = shape.rows,
         .row_bytes = record.bytes(shape.teachers),
         .metadata = {{"format", kFormat},
                      {"version", kVersion},
                      {kMadeFrom, whole_origin(config, shape, made_from).dump()}}},
        [&](std::ostream& out) {
          whole = produce(
              [&](const std::vector<int64_t>& indices, const std::vector<TeacherOutput>& outputs) {
                std::vector<at::Tensor> parts{
                    as_bytes(at::tensor(indices, at::kLong).unsqueeze(1))};  // [B, 8]
                for (const TeacherOutput& output : outputs) {
                  check_range(config, output.logits);
                  parts.push_back(encoded(output.logits.cpu(), record));
                }
                const at::Tensor data = at::cat(parts, 1);
                const at::Tensor rows = at::cat({data, as_bytes(checksums(data).unsqueeze(1))}, 1);
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
  auto entry = [&](const char* name) {
    auto found = map_.metadata.find(name);
    return found == map_.metadata.end() ? std::string() : found->second;
  };
  if (entry("format") != kFormat)
    throw FileError(file_, "got a " + map_.format + " file, wanted stored predictions");
  const std::string mend = "; remove the file, or name another in distill.store.file";
  const MadeFrom held = MadeFrom::parse(entry(kMadeFrom), nullptr, /*allow_exceptions=*/false);
  if (entry("version") != kVersion || !held.is_object())
    throw FileError(file_, "its version: got " + json_quote(entry("version")) + ", wanted \"" +
                               kVersion + "\"" + mend);
  if (const auto differs = difference(held, whole_origin(config, shape, made_from));
      !differs.empty())
    throw FileError(file_, "its predictions were made from something else: " + differs + mend);
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
  const int64_t bytes = record.data_bytes(shape_.teachers);
  if (!at::equal(columns(records, bytes, 1, at::kInt).flatten(),
                 checksums(records.narrow(1, 0, bytes))))
    throw FileError(file_, "is damaged: a row does not have its checksum");
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
