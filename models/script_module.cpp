#include "models/script_module.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/passes/inliner.h>
#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/csrc/jit/serialization/import.h>

#include <sstream>

#include "convpass/core/error.h"
#include "convpass/core/tensor_map.h"

namespace convpass {
namespace {

/// The line that says what went wrong: the interpreter puts the cause last, after its traces, and
/// names its kind ("RuntimeError: ..."). Else the first.
std::string cause(const std::string& text) {
  std::istringstream lines(text);
  std::string first, last;
  for (std::string line; std::getline(lines, line);) {
    if (first.empty()) first = line;
    const size_t colon = line.find(": ");
    if (colon != std::string::npos && line.find(' ') > colon &&
        (line.substr(0, colon).ends_with("Error") || line.substr(0, colon).ends_with("Exception")))
      last = line;
  }
  return last.empty() ? first : last;
}

/// Why LibTorch could not load it, as far as the bytes tell.
std::string why_none(const std::filesystem::path& file, const std::string& error) {
  std::string format;
  try {
    format = load_tensors(file).format;
  } catch (const Error& unread) {
    return "is no TorchScript file, or a damaged one: " +
           std::string(unread.what()).substr(file.string().size() + 2);
  }
  if (format == "torchscript")
    return "is a TorchScript file that cannot be loaded: " + cause(error);
  return "is no TorchScript file: got a " + format +
         " file of tensors without code (scripts/export_torchscript.py makes one)";
}

bool has_fixed_norm(at::ArrayRef<torch::jit::Block*> blocks) {
  for (torch::jit::Block* block : blocks)
    for (torch::jit::Node* node : block->nodes()) {
      constexpr size_t kTraining = 5;  // of batch_norm's inputs
      if (node->kind() == at::aten::batch_norm &&
          torch::jit::constant_as<bool>(node->input(kTraining)) == false)
        return true;
      if (has_fixed_norm(node->blocks())) return true;
    }
  return false;
}

NamedTensors listed(const auto& list) {
  NamedTensors all;
  for (const auto& item : list) all.emplace_back(item.name, item.value);
  return all;
}

}  // namespace

struct ScriptModule::Impl {
  torch::jit::Module module;
};

ScriptModule::ScriptModule(std::filesystem::path file)
    : file_(std::move(file)), impl_(std::make_unique<Impl>()) {
  try {
    impl_->module = torch::jit::load(file_.string(), at::kCPU);
    impl_->module.eval();
  } catch (const c10::Error& error) {
    throw FileError(file_, why_none(file_, error.what_without_backtrace()));
  } catch (const std::exception& error) {
    throw FileError(file_, why_none(file_, error.what()));
  }
  to(at::kCPU, at::kFloat);
}

ScriptModule::~ScriptModule() = default;

int64_t ScriptModule::width(const std::array<int64_t, 2>& image_size) const {
  at::NoGradGuard no_grad;
  at::Generator random = seeded_generator(1);
  const at::Tensor images = at::empty({2, 3, image_size[0], image_size[1]}).normal_(0, 1, random);
  const at::Tensor together = forward(images);
  const at::Tensor alone = forward(images.narrow(0, 0, 1));
  constexpr double kRounding = 1e-2;  // relative to the largest answer
  const double differs = (together.narrow(0, 0, 1) - alone).abs().max().item<double>();
  if (differs > kRounding * together.abs().max().item<double>())
    throw FileError(file_,
                    "its forward: got another answer for an image beside a second one, wanted the "
                    "same (torch.jit.trace wants the module in evaluation mode)");
  return together.size(1);
}

void ScriptModule::to(c10::Device device, c10::ScalarType type) {
  at::NoGradGuard no_grad;
  for (const NamedTensors& list : {parameters(), buffers()})
    for (const auto& [name, tensor] : list)
      tensor.set_data(tensor.to(device, tensor.is_floating_point() ? type : tensor.scalar_type()));
}

void ScriptModule::train(bool on) { impl_->module.train(on); }

NamedTensors ScriptModule::parameters() const { return listed(impl_->module.named_parameters()); }

NamedTensors ScriptModule::buffers() const { return listed(impl_->module.named_buffers()); }

bool ScriptModule::norms_are_fixed() const {
  const auto graph = impl_->module.get_method("forward").graph()->copy();
  torch::jit::Inline(*graph);
  return has_fixed_norm(graph->block());
}

at::Tensor ScriptModule::forward(const at::Tensor& images) const {
  torch::jit::GraphOptimizerEnabledGuard optimize(!at::GradMode::is_enabled());
  at::Tensor output;
  try {
    const c10::IValue value = impl_->module.forward({images});
    if (value.isTensor()) output = value.toTensor();
  } catch (const std::exception& error) {
    throw FileError(file_, "its forward failed on images of " + std::to_string(images.size(2)) +
                               "x" + std::to_string(images.size(3)) + ": " + cause(error.what()));
  }
  if (!output.defined() || output.dim() != 2 || output.size(0) != images.size(0) ||
      !output.is_floating_point()) {
    std::ostringstream got;
    if (output.defined())
      got << "a tensor of " << output.scalar_type() << " " << output.sizes();
    else
      got << "no tensor";
    throw FileError(file_, "its forward: got " + got.str() + ", wanted floating point [" +
                               std::to_string(images.size(0)) + ", N]");
  }
  return output;
}

}  // namespace convpass
