#pragma once

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <string>

namespace convpass {

enum class DeviceChoice { automatic, cpu, cuda };

/// f32: everything in float32. bf16: the backbone (weights and activations) in bfloat16, trainable
/// parameters and the optimiser in float32; a trainable backbone's are cast for each pass. int8: as
/// bf16, but the products of the backbone's dense layers, forward and backward, in int8: weights
/// with a scale for each output channel, inputs with one for each token. automatic: the faster of
/// bf16 and f32, until resolve_precision says which that is.
enum class Precision { f32, bf16, int8, automatic };
inline constexpr const char* kPrecisionNames[] = {"f32", "bf16", "int8", "auto"};

/// automatic = the first CUDA device if LibTorch sees one, else the CPU.
/// Errors: Error when CUDA is asked for and there is none.
c10::Device resolve_device(DeviceChoice choice);

/// Whether a device has instructions for bfloat16: a GPU, a CPU with AVX512_BF16 or AMX_BF16. Other
/// CPUs emulate it, many times slower than float32.
bool computes_in_bf16(const c10::Device& device);
/// automatic = bf16 where the device has instructions for it, else f32.
Precision resolve_precision(Precision precision, DeviceChoice device);

/// Not of Precision::automatic.
c10::ScalarType dtype_of(Precision precision);

/// What a measured number depends on, one `name value` a line, each line ended: convpass, LibTorch
/// and its kind of build, CUDA and cuDNN ("none" in a CPU build), CPU (the instruction set that
/// LibTorch uses and the extras that matter), threads. The engine adds OpenCV.
std::string version_text();

}  // namespace convpass
