#include <ATen/ATen.h>
#include <c10/util/hash.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <sstream>
#include <thread>

#include "convpass/models/vit_checkpoint.h"

namespace convpass {
namespace {

/// Digest of one tensor: name, shape and f32 values.
std::string tensor_digest(const std::string& name, const at::Tensor& tensor) {
  const at::Tensor values = tensor.to(at::kCPU, at::kFloat).contiguous();
  std::ostringstream head;
  head << name << ' ' << tensor.sizes() << '\n';
  std::string bytes = head.str();
  const size_t start = bytes.size();
  bytes.resize(start + values.nbytes());
  if (values.nbytes() > 0)
    std::memcpy(bytes.data() + start, values.const_data_ptr(), values.nbytes());
  return c10::sha1(bytes).str();
}

}  // namespace

std::string weights_hash(const TensorMap& tensors) {
  std::vector<const std::pair<const std::string, at::Tensor>*> entries;
  for (const auto& entry : tensors.tensors) entries.push_back(&entry);
  std::vector<std::string> digests(entries.size());

  // Tensors are hashed side by side; the order of the names, not of the threads, makes the result.
  std::atomic<size_t> next{0};
  auto work = [&] {
    for (size_t i = next++; i < entries.size(); i = next++)
      digests[i] = tensor_digest(entries[i]->first, entries[i]->second);
  };
  std::vector<std::jthread> threads;
  const unsigned count = std::clamp(std::thread::hardware_concurrency(), 1u, 8u);
  for (unsigned i = 1; i < count; ++i) threads.emplace_back(work);
  work();
  threads.clear();

  std::string all;
  for (const std::string& digest : digests) all += digest + '\n';
  return c10::sha1(all).str();
}

}  // namespace convpass
