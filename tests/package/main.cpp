// Builds a small random ViT with Convpass through the public headers alone and runs it.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <convpass/adapters/convpass.h>
#include <convpass/core/device.h>
#include <convpass/data/image.h>
#include <convpass/models/vit.h>

#include <iostream>

int main() {
  convpass::VitConfig config = convpass::vit_variant("vit_tiny_patch16_224");
  convpass::Vit vit(config, convpass::Vit::random_weights(config, 1), {});
  convpass::Convpass adapter(convpass::ConvpassConfig{}, vit, 1);
  at::NoGradGuard no_grad;
  at::Tensor image = at::zeros({1, 3, 224, 224});
  const bool equal = at::equal(vit.forward(image, nullptr, {}), vit.forward(image, &adapter, {}));
  std::cout << convpass::version_text() << "fresh adapter changes nothing: " << equal << "\n";
  return equal ? 0 : 1;
}
