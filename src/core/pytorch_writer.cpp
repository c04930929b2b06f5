#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <string>
#include <string_view>

#include "convpass/core/error.h"
#include "convpass/core/file.h"
#include "convpass/core/tensor_map.h"
#include "src/core/torch_types.h"
#include "src/core/zip_writer.h"

namespace convpass {
namespace {

/// Writes the few operations of pickle protocol 2 that a dictionary of tensors takes.
class PickleWriter {
 public:
  void op(std::string_view bytes) { bytes_ += bytes; }

  void text(std::string_view value) {
    bytes_ += 'X';
    little_endian(value.size(), 4);
    bytes_ += value;
  }

  /// `name` is module.name.
  void global(std::string_view name) {
    const auto dot = name.rfind('.');
    bytes_ += 'c';
    bytes_ += name.substr(0, dot);
    bytes_ += '\n';
    bytes_ += name.substr(dot + 1);
    bytes_ += '\n';
  }

  void integer(int64_t value) {
    if (value >= 0 && value <= INT32_MAX) {
      bytes_ += 'J';
      little_endian(static_cast<uint64_t>(value), 4);
    } else {
      bytes_ += "\x8a\x08";
      little_endian(static_cast<uint64_t>(value), 8);
    }
  }

  void tuple(at::IntArrayRef values) {
    op("(");
    for (int64_t value : values) integer(value);
    op("t");
  }

  const std::string& bytes() const { return bytes_; }

 private:
  void little_endian(uint64_t value, int width) {
    for (int i = 0; i < width; ++i) bytes_ += static_cast<char>(value >> (8 * i));
  }
  std::string bytes_;
};

std::vector<int64_t> row_major_strides(at::IntArrayRef sizes) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size(); i-- > 1;) {
    strides[i - 1] = strides[i] * std::max<int64_t>(1, sizes[i]);
  }
  return strides;
}

/// The call that rebuilds a tensor from all of storage `key`.
void write_tensor(PickleWriter& pickle, const at::Tensor& tensor, size_t key) {
  const auto* type =
      std::find_if(std::begin(kTorchTypes), std::end(kTorchTypes),
                   [&](const TorchType& known) { return known.type == tensor.scalar_type(); });
  TORCH_CHECK(type != std::end(kTorchTypes), "no PyTorch name for type ", tensor.scalar_type());
  const bool typed = !type->storage.empty();

  pickle.global(typed ? "torch._utils._rebuild_tensor_v2" : "torch._utils._rebuild_tensor_v3");
  pickle.op("((");
  pickle.text("storage");
  pickle.global(typed ? type->storage : kUntypedStorage);
  pickle.text(std::to_string(key));
  pickle.text("cpu");
  pickle.integer(typed ? tensor.numel() : static_cast<int64_t>(tensor.nbytes()));
  pickle.op("tQ");
  pickle.integer(0);
  pickle.tuple(tensor.sizes());
  pickle.tuple(row_major_strides(tensor.sizes()));
  pickle.op("\x89");  // requires_grad = False
  pickle.global("collections.OrderedDict");
  pickle.op(")R");  // no hooks
  if (!typed) pickle.global(type->dtype);
  pickle.op("tR");
}

}  // namespace

void save_pytorch(const std::filesystem::path& file, const TensorMap& map) {
  PickleWriter pickle;
  pickle.op("\x80\x02}(");
  size_t key = 0;
  for (const auto& [name, tensor] : map.tensors) {
    pickle.text(name);
    write_tensor(pickle, tensor, key++);
  }
  pickle.op("u.");
  write_atomically(file, [&](std::ostream& out) {
    ZipWriter zip(out);
    zip.add("archive/data.pkl", pickle.bytes());
    zip.add("archive/byteorder", "little");
    key = 0;
    for (const auto& [name, tensor] : map.tensors) {
      at::Tensor flat = tensor.detach().cpu().contiguous();
      zip.add("archive/data/" + std::to_string(key++),
              {static_cast<const char*>(flat.const_data_ptr()), flat.nbytes()});
    }
    zip.add("archive/version", "3\n");
    zip.finish();
  });
}

}  // namespace convpass
