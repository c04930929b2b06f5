#pragma once

#include <cstdint>
#include <vector>

#include "adapters/bypass_kernels.h"

/// The three products of a bypass with the tokens of an image, nearly all of its work: for any CPU,
/// and for bfloat16 with AVX512's instructions.
namespace convpass::kernels {

/// planes[j, slot of t] = sum_d rows[t, d] weight[j, d]; other slots stay.
void token_dots(const BypassPlan& plan, const float* rows, const Projection& weight, float* planes);
void token_dots(const BypassPlan& plan, const uint16_t* rows, const Projection& weight,
                float* planes);

/// sum[t, d] = stream + branch + factor * (bias[d] + sum_j planes[j, slot of t] weight[j, d])
void add_combined(const BypassPlan& plan, const float* planes, const Projection& weight,
                  float factor, const ResidualSum<float>& sum);
void add_combined(const BypassPlan& plan, const float* planes, const Projection& weight,
                  float factor, const ResidualSum<uint16_t>& sum);

/// weight[j, d] = sum_t planes[j, slot of t] rows[t, d], and total[d] = sum_t rows[t, d] unless
/// null.
void token_outer(const BypassPlan& plan, const float* planes, const float* rows, float* weight,
                 float* total);
void token_outer(const BypassPlan& plan, const float* planes, const uint16_t* rows, float* weight,
                 float* total);

/// The same with AVX512_BF16, which reads Projection's bfloat16 forms and rounds the planes.
namespace avx512 {

bool supported();
void token_dots(const BypassPlan& plan, const uint16_t* rows, const Projection& weight,
                float* planes);
void add_combined(const BypassPlan& plan, const float* planes, const Projection& weight,
                  float factor, const ResidualSum<uint16_t>& sum, std::vector<uint32_t>& scratch);
void token_outer(const BypassPlan& plan, const float* planes, const uint16_t* rows, float* weight,
                 float* total, std::vector<uint32_t>& scratch);

}  // namespace avx512
}  // namespace convpass::kernels
