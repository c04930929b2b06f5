#pragma once

// CONVPASS_WIDEST_VECTORS compiles a function for several vector units and takes the widest when
// the program is loaded; CONVPASS_WIDEST_FUSED_VECTORS does so with fused multiply-adds, for sums
// whose last bit is of no account. Sanitizers start too late for either.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define CONVPASS_WIDEST_VECTORS __attribute__((target_clones("avx512f", "avx2", "default")))
#if __GNUC__ >= 12
#define CONVPASS_WIDEST_FUSED_VECTORS \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#endif
#else
#define CONVPASS_WIDEST_VECTORS
#endif
#ifndef CONVPASS_WIDEST_FUSED_VECTORS
#define CONVPASS_WIDEST_FUSED_VECTORS CONVPASS_WIDEST_VECTORS
#endif
