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

namespace convpass {
namespace {

/// The first line; LibTorch appends stack traces.
std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

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
  auto fail = [&](const std::string& why) {
    throw FileError(file_, "is no TorchScript file that can be loaded: " + first_line(why));
  };
  try {
    impl_->module = torch::jit::load(file_.string(), at::kCPU);
    impl_->module.eval();
  } catch (const c10::Error& error) {
    fail(error.what_without_backtrace());
  } catch (const std::exception& error) {
    fail(error.what());
  }
}

ScriptModule::~ScriptModule() = default;

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
                               "x" + std::to_string(images.size(3)) + ": " +
                               first_line(error.what()));
  }
  if (!output.defined() || output.dim() != 2 || output.size(0) != images.size(0)) {
    std::ostringstream got;
    if (output.defined())
      got << "a tensor of shape " << output.sizes();
    else
      got << "no tensor";
    throw FileError(file_, "its forward: got " + got.str() + ", wanted [" +
                               std::to_string(images.size(0)) + ", N]");
  }
  return output;
}

}  // namespace convpass
