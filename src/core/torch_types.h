#pragma once

#include <c10/core/ScalarType.h>

#include <string_view>

namespace convpass {

/// How PyTorch's pickles name an element type.
struct TorchType {
  c10::ScalarType type;
  std::string_view storage;  ///< module.class of its storage; empty: it has none of its own
  std::string_view dtype;    ///< module.name of the dtype object
};

inline constexpr TorchType kTorchTypes[] = {
    {c10::kFloat, "torch.FloatStorage", "torch.float32"},
    {c10::kHalf, "torch.HalfStorage", "torch.float16"},
    {c10::kBFloat16, "torch.BFloat16Storage", "torch.bfloat16"},
    {c10::kDouble, "torch.DoubleStorage", "torch.float64"},
    {c10::kLong, "torch.LongStorage", "torch.int64"},
    {c10::kInt, "torch.IntStorage", "torch.int32"},
    {c10::kShort, "torch.ShortStorage", "torch.int16"},
    {c10::kChar, "torch.CharStorage", "torch.int8"},
    {c10::kByte, "torch.ByteStorage", "torch.uint8"},
    {c10::kBool, "torch.BoolStorage", "torch.bool"},
    {c10::kUInt64, "", "torch.uint64"},
    {c10::kUInt32, "", "torch.uint32"},
    {c10::kUInt16, "", "torch.uint16"},
};
inline constexpr std::string_view kUntypedStorage = "torch.storage.UntypedStorage";

}  // namespace convpass
