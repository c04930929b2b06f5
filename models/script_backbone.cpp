#include "convpass/models/script_backbone.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/grad_mode.h>
#include <ATen/record_function.h>
#include <c10/util/hash.h>

#include <algorithm>

#include "convpass/core/error.h"
#include "convpass/core/fields.h"
#include "convpass/core/file.h"
#include "models/script_module.h"

namespace convpass {
namespace {

/// Values in the outputs of the operators that ran on this thread.
struct OutputCount {
  int64_t all = 0, most = 0;
};
thread_local OutputCount output_count;

void count_outputs(const at::RecordFunction& function, at::ObserverContext*) {
  for (const c10::IValue& output : function.outputs()) {
    if (!output.isTensor() || !output.toTensor().defined()) continue;
    output_count.all += output.toTensor().numel();
    output_count.most = std::max(output_count.most, output.toTensor().numel());
  }
}

}  // namespace

void fields(FieldVisitor& visitor, ScriptConfig& config) {
  visitor.field("name", config.name, "stem of the TorchScript file");
  std::vector<int64_t> size(config.image_size.begin(), config.image_size.end());
  visitor.field("image_size", size, "height and width that it is meant for", between(1, 8192));
  if (size.size() != 2)
    throw Error("image_size: got " + std::to_string(size.size()) + " numbers, wanted 2");
  config.image_size = {size[0], size[1]};
}

std::string script_hash(const std::filesystem::path& file) {
  const std::vector<uint8_t> bytes = read_file(file);
  return c10::sha1(std::string(bytes.begin(), bytes.end())).str();
}

ScriptBackbone::ScriptBackbone(const std::filesystem::path& file, const Options& options)
    : options_(options),
      module_(std::make_unique<ScriptModule>(file)),
      features_(module_->width(options.image_size)) {
  run_once();
}

ScriptBackbone::~ScriptBackbone() = default;

void ScriptBackbone::run_once() {
  at::NoGradGuard no_grad;
  output_count = {};
  const auto handle = at::addThreadLocalCallback(
      at::RecordFunctionCallback(
          [](const at::RecordFunction&) -> std::unique_ptr<at::ObserverContext> { return nullptr; },
          count_outputs)
          .needsOutputs(true)
          .scopes({at::RecordScope::FUNCTION}));
  try {
    module_->forward(at::zeros({1, 3, options_.image_size[0], options_.image_size[1]}));
  } catch (...) {
    at::removeCallback(handle);
    throw;
  }
  at::removeCallback(handle);
  all_values_ = output_count.all;
  most_values_ = output_count.most;
}

at::Tensor ScriptBackbone::forward(const at::Tensor& images, const Adapter* adapter,
                                   const Pass& pass) const {
  TORCH_CHECK(adapter == nullptr, "no adapter can stand beside a TorchScript module");
  const bool trains = trainable_ && pass.training();
  module_->train(trains);
  if (!trains) return module_->forward(images.to(dtype_));
  at::Generator random = *pass.random;
  at::manual_seed(at::check_generator<at::CPUGeneratorImpl>(random)->random64());
  return module_->forward(images.to(dtype_));
}

NamedTensors ScriptBackbone::parameters() const { return module_->parameters(); }

NamedTensors ScriptBackbone::buffers() const { return module_->buffers(); }

void ScriptBackbone::to(c10::Device device, Precision precision) {
  refuse_int8(precision);
  dtype_ = dtype_of(precision);
  module_->to(device, dtype_);
}

void ScriptBackbone::set_trainable(bool trainable) {
  const NamedTensors parameters = module_->parameters();
  if (trainable && parameters.empty())
    throw FileError(module_->file(),
                    "got a module without parameters, wanted some to train "
                    "(torch.jit.freeze makes constants of them)");
  if (trainable && module_->norms_are_fixed())
    throw FileError(module_->file(),
                    "got batch norms that were traced in evaluation mode, wanted a module that "
                    "torch.jit.script made, to train it");
  trainable_ = trainable;
  for (const auto& [name, parameter] : parameters) parameter.requires_grad_(trainable);
  if (trainable && !passes_gradients())
    throw FileError(module_->file(),
                    "got a forward that passes no gradient to its parameters (detach or no_grad?), "
                    "wanted one, to train it");
}

bool ScriptBackbone::passes_gradients() const {
  at::AutoGradMode with_gradients(true);
  const at::Tensor image = at::zeros({1, 3, options_.image_size[0], options_.image_size[1]});
  module_->train(false);  // a batch of one has no statistics
  return module_->forward(image.to(parameters().front().second.device(), dtype_)).requires_grad();
}

std::string ScriptBackbone::describe() const {
  return "torchscript " + module_->file().stem().string() + ", " +
         std::to_string(options_.image_size[0]) + "x" + std::to_string(options_.image_size[1]);
}

}  // namespace convpass
