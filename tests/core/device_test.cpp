#include "convpass/core/device.h"

#include <ATen/Context.h>
#include <gtest/gtest.h>

#include "convpass/core/error.h"

namespace convpass {
namespace {

TEST(Device, CpuIsAlwaysThere) { EXPECT_TRUE(resolve_device(DeviceChoice::cpu).is_cpu()); }

TEST(Device, CudaIsRefusedWhereThereIsNone) {
  if (at::hasCUDA()) {
    EXPECT_TRUE(resolve_device(DeviceChoice::cuda).is_cuda());
    EXPECT_TRUE(resolve_device(DeviceChoice::automatic).is_cuda());
  } else {
    EXPECT_THROW(resolve_device(DeviceChoice::cuda), Error);
    EXPECT_TRUE(resolve_device(DeviceChoice::automatic).is_cpu());
  }
}

TEST(Device, PrecisionNamesTheTypeOfTheBackbone) {
  EXPECT_EQ(dtype_of(Precision::f32), c10::kFloat);
  EXPECT_EQ(dtype_of(Precision::bf16), c10::kBFloat16);
}

TEST(Device, AutoPrecisionIsTheOneThatTheDeviceHasInstructionsFor) {
  const bool there = computes_in_bf16(c10::kCPU);
  const std::string text = version_text();
  EXPECT_EQ(there, text.find("AVX512_BF16") != std::string::npos ||
                       text.find("AMX_BF16") != std::string::npos);
  EXPECT_EQ(resolve_precision(Precision::automatic, DeviceChoice::cpu),
            there ? Precision::bf16 : Precision::f32);
  for (Precision named : {Precision::f32, Precision::bf16, Precision::int8})
    EXPECT_EQ(resolve_precision(named, DeviceChoice::cpu), named);
}

TEST(Device, VersionTextNamesWhatANumberDependsOn) {
  const std::string text = version_text();
  EXPECT_TRUE(text.starts_with("convpass 0."));
  for (const char* line : {"\nLibTorch 2.", "\nCUDA ", "\ncuDNN ", "\nCPU ", "\nthreads "}) {
    EXPECT_NE(text.find(line), std::string::npos) << line << " in\n" << text;
  }
  EXPECT_EQ(text.find("unknown"), std::string::npos) << text;
}

}  // namespace
}  // namespace convpass
