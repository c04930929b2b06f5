#include "convpass/core/device.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <torch/version.h>

#include <fstream>
#include <sstream>

#include "convpass/core/error.h"

namespace convpass {
namespace {

/// What follows `label` in LibTorch's own description of its CUDA side, up to the end of the word.
std::string word_after(const std::string& text, const std::string& label) {
  const auto start = text.find(label);
  if (start == std::string::npos) return "unknown";
  std::string word;
  std::istringstream(text.substr(start + label.size())) >> word;
  while (!word.empty() && (word.back() == ',' || word.back() == ')')) word.pop_back();
  return word.empty() ? "unknown" : word;
}

/// Those instruction sets that matter to us and that the capability's name does not say.
std::string cpu_extras() {
  std::ifstream info("/proc/cpuinfo");
  std::string line, extras;
  while (std::getline(info, line)) {
    if (!line.starts_with("flags")) continue;
    std::istringstream flags(line);
    for (std::string flag; flags >> flag;) {
      if (flag == "avx512_bf16") extras += " AVX512_BF16";
      if (flag == "avx512_vnni") extras += " AVX512_VNNI";
      if (flag == "amx_bf16") extras += " AMX_BF16";
      if (flag == "amx_int8") extras += " AMX_INT8";
    }
    break;
  }
  return extras;
}

}  // namespace

c10::Device resolve_device(DeviceChoice choice) {
  if (choice == DeviceChoice::cpu) return c10::kCPU;
  if (at::hasCUDA()) return c10::Device(c10::kCUDA, 0);
  if (choice == DeviceChoice::cuda) {
    throw Error(std::string("device: cuda is asked for, but ") +
                (at::detail::getCUDAHooks().hasCUDART() ? "no CUDA device is found"
                                                        : "this LibTorch is a CPU build"));
  }
  return c10::kCPU;
}

bool computes_in_bf16(const c10::Device& device) {
  return !device.is_cpu() || cpu_extras().find("_BF16") != std::string::npos;
}

Precision resolve_precision(Precision precision, DeviceChoice device) {
  if (precision != Precision::automatic) return precision;
  return computes_in_bf16(resolve_device(device)) ? Precision::bf16 : Precision::f32;
}

c10::ScalarType dtype_of(Precision precision) {
  TORCH_CHECK(precision != Precision::automatic, "a precision that is not resolved");
  return precision == Precision::f32 ? c10::kFloat : c10::kBFloat16;
}

std::string version_text() {
  const auto& hooks = at::detail::getCUDAHooks();
  const bool cuda_build = hooks.hasCUDART();
  const std::string cuda = cuda_build ? hooks.showConfig() : "";
  std::ostringstream text;
  text << "convpass " << CONVPASS_VERSION << "\n"
       << "LibTorch " << TORCH_VERSION << (cuda_build ? " (CUDA build)" : " (CPU build)") << "\n"
       << "CUDA " << (cuda_build ? word_after(cuda, "CUDA Runtime ") : "none") << "\n"
       << "cuDNN " << (cuda_build ? word_after(cuda, "CuDNN ") : "none") << "\n"
       << "CPU " << at::get_cpu_capability() << cpu_extras() << "\n"
       << "threads " << at::get_num_threads() << "\n";
  return text.str();
}

}  // namespace convpass
