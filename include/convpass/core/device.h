#pragma once

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <string>

namespace convpass {

enum class DeviceChoice { automatic, cpu, cuda };

/// f32: everything in float32. bf16: the backbone (weights and activations) in bfloat16, trainable
/// parameters and the optimiser in float32; a trainable backbone's are cast for each pass. int8: as
/// bf16, but the products of the backbone's dense layers, forward and backward, in int8: weights
/// with a scale for each output channel, inputs with one for each token.
enum class Precision { f32, bf16, int8 };
inline constexpr const char* kPrecisionNames[] = {"f32", "bf16", "int8"};

/// automatic = the first CUDA device if LibTorch sees one, else the CPU.
/// Errors: Error when CUDA is asked for and there is none.
c10::Device resolve_device(DeviceChoice choice);

c10::ScalarType dtype_of(Precision precision);

/// What a measured number depends on, one `name value` a line, each line ended: convpass, LibTorch
/// and its kind of build, CUDA and cuDNN ("none" in a CPU build), CPU (the instruction set that
/// LibTorch uses and the extras that matter), threads. The engine adds OpenCV.
std::string version_text();

}  // namespace convpass
